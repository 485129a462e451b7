"""Runs the application on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptcli.errors import UsageError

_HEADER_S = 30.0  # for a client to send a request's headers
_MOST_HEADER_BYTES = 64 << 10


class _ImpatientProtocol(H11Protocol):
    """HTTP that closes idle connections, and always notices when a client leaves."""

    _idle_since = math.inf  # never, while a request runs
    _waiting: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of H11Protocol's own
        """Waits for a request. If there are too many connections, closes the one idle longest."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) >= (self.limit_concurrency or math.inf):
            others = cast("set[_ImpatientProtocol]", self.connections - {self})
            oldest = min(others, key=lambda each: each._idle_since)
            if oldest._idle_since < math.inf:
                self.connections.discard(oldest)
                oldest.transport.close()

    def handle_events(self) -> None:
        """Ends the wait at a request. Reads on during an answer, to notice that the client leaves."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle_since = math.inf
            self._waiting.cancel()
            if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= _MOST_HEADER_BYTES:
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        self._wait()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._idle_since = self.loop.time()
        self._waiting = self.loop.call_later(_HEADER_S, self.transport.close)


class Server(uvicorn.Server):
    """A server that leaves signals to its caller, who calls `stop`."""

    def __init__(self, app: ASGIApp, grace: float, most_connections: int) -> None:
        """grace: seconds that running requests have to end in."""
        settings: dict[str, Any] = {
            "http": _ImpatientProtocol,
            "ws": "none",
            "lifespan": "off",
            "log_config": None,
            "log_level": "critical",  # `Observed` logs
            "access_log": False,
            "server_header": False,
            "limit_concurrency": most_connections,
            "h11_max_incomplete_event_size": _MOST_HEADER_BYTES,
            "timeout_graceful_shutdown": grace,
        }
        super().__init__(uvicorn.Config(app, **settings))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield

    def stop(self, *, at_once: bool = False) -> None:
        """Takes no more requests, and ends once the running ones have, or at once. For signal handlers."""
        self.should_exit = True
        if at_once:
            self.force_exit = True
            for task in list(self.server_state.tasks):
                task.get_loop().call_soon_threadsafe(task.cancel)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises UsageError if it is not available."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            stack.pop_all()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot listen on {host} port {port}: {why}", "--port chooses another; 0 is any") from None
    return listening
