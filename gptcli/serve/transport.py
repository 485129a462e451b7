"""Reads bodies and sends answers, bounded, as JSON or event streams, until the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gptcli.errors import BrokenCheckpoint, GptcliError
from gptcli.files import parse_json
from gptcli.openai_api.refusals import Refusal

_BODIES = 4  # of the largest size in memory at once, or more smaller ones
PATIENCE_S = 60.0  # for a client that sends its body, or reads its answer, slowly
GONE = 499  # other servers' status for a client that left


class ClientLeft(Exception):
    """The connection was closed before the answer was complete."""


@dataclass
class Call:
    """A request of an API. Its handler counts tokens here, for the log and the metrics."""

    body: Mapping[str, Any]
    path: Mapping[str, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


Events = AsyncGenerator[bytes]
Handler = Callable[[Call], Awaitable[dict[str, Any] | Response | Events]]
ErrorAnswer = Callable[[GptcliError], tuple[int, dict[str, Any]]]


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else to_json(data).decode()
    return f"event: {name}\ndata: {text}\n\n".encode() if name else f"data: {text}\n\n".encode()


def to_json(value: Any) -> bytes:
    """A value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


class Bodies:
    """The bodies in memory. most_bytes: of each; all together have a few times as many."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self._held = most_bytes, 0

    @contextmanager
    def one(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that counts a body's bytes, which raises Refusal for too many, until the block ends."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            own += size
            self._held += size
            if own > self.most_bytes:
                raise self.too_large()
            if self._held > _BODIES * self.most_bytes:
                headers = {"Retry-After": "1", "Connection": "close"}
                raise Refusal(429, "the bodies of other requests fill the memory that there is for them", None, headers)

        try:
            yield take
        finally:
            self._held -= own

    def too_large(self) -> Refusal:
        """The refusal of a body that is too large."""
        return Refusal(413, f"the body is larger than {self.most_bytes} bytes", headers={"Connection": "close"})


class Endpoint:
    """An ASGI application for one path: a JSON object in, or nothing; JSON, another response or an event stream out.

    error: returns an error's status and body. on_bug: called with an unexpected exception.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        bodies: Bodies,
        error: ErrorAnswer,
        on_bug: Callable[[Exception], object],
    ) -> None:
        """handlers: by method."""
        self._handlers, self._bodies, self._error, self._on_bug = handlers, bodies, error, on_bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request. Raises ClientLeft."""
        try:
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            if method not in self._handlers:
                allowed = ", ".join(self._handlers)
                raise Refusal(405, f"the method must be {allowed}", headers={"Allow": allowed, "Connection": "close"})
            with self._bodies.one() as take:
                body = await read_object(scope, receive, self._bodies, take) if method == "POST" else {}
                call = scope["state"]["call"] = Call(body, scope.get("path_params", {}))
                reply = _Reply(send)
                await _while_connected(receive, reply, self._answer(self._handlers[method], call, scope, reply))
        except GptcliError as error:
            await self._refuse(error, scope, receive, send)

    async def _answer(self, handler: Handler, call: Call, scope: Scope, send: Send) -> None:
        try:
            answer = await handler(call)
            if isinstance(answer, AsyncGenerator):
                await self._stream(answer, send)
                return
            if isinstance(answer, dict):
                answer = Response(to_json(answer), media_type="application/json")
            await answer(scope, _nothing, send)
        except (GptcliError, ClientLeft):
            raise
        except Exception as error:  # a bug, and the server goes on
            raise self._bug(error) from error

    def _bug(self, error: Exception) -> GptcliError:
        """Reports an unexpected exception; returns the error for the client."""
        self._on_bug(error)
        return Refusal(500, "internal error")

    async def _stream(self, events: Events, send: Send) -> None:
        """Sends events. An error before the first has its own status; a later one is an event."""
        async with aclosing(events):
            first = await anext(events)
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for each in events:
                    await send({"type": "http.response.body", "body": each, "more_body": True})
            except ClientLeft:
                raise
            except Exception as error:  # likewise, once the answer has begun
                _, body = self._error(error if isinstance(error, GptcliError) else self._bug(error))
                await send({"type": "http.response.body", "body": event(body, "error"), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, error: GptcliError, scope: Scope, receive: Receive, send: Send) -> None:
        status, body = self._error(error)
        headers = error.headers if isinstance(error, Refusal) else {}
        await Response(to_json(body), status, headers, "application/json")(scope, receive, send)


async def read_object(scope: Scope, receive: Receive, bodies: Bodies, take: Callable[[int], None]) -> dict[str, Any]:
    """A request's JSON object. take: called with the number of bytes of each piece. Raises Refusal and ClientLeft."""
    if int(dict(scope["headers"]).get(b"content-length", b"0")) > bodies.most_bytes:
        raise bodies.too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                take(len(message["body"]))
                body += message["body"]
                if not message["more_body"]:
                    break
    except TimeoutError:
        raise Refusal(408, "the body did not come in time", headers={"Connection": "close"}) from None
    try:
        return await asyncio.to_thread(parse_json, bytes(body), "the body")
    except BrokenCheckpoint as error:
        raise Refusal(400, error.message) from None


class _Reply:
    """Sends messages; a client that does not read counts as left. complete: whether all is sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.complete = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._send(message)
                await asyncio.sleep(0)  # a connection that this found lost is closed before the next is sent
        except TimeoutError:
            raise ClientLeft from None
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


async def _while_connected(receive: Receive, reply: _Reply, work: Coroutine[Any, Any, None]) -> None:
    """Runs work. Cancels it and raises ClientLeft when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not reply.complete:
            raise ClientLeft
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
        del working, leaving, task  # a task's error refers to this frame, and would keep the request in memory


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> Message:
    raise AssertionError("the body has been read")
