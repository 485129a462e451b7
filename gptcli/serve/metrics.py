"""The counts of `/metrics`, and the logged line of a request, which has nothing of its content."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptcli.serve.transport import GONE, Call, ClientLeft

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counts of one server. waiting: returns the number of requests that run or wait."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gptcli_requests", "Requests that ended, 499: the client left.", ["path", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "gptcli_request_seconds", "From a request to the end of its answer.", ["path"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("gptcli_prompt_tokens", "Tokens of prompts.", registry=self._registry)
        self._completion_tokens = Counter("gptcli_completion_tokens", "Generated tokens.", registry=self._registry)
        gauge = Gauge("gptcli_waiting", "Requests that run or wait for the model.", registry=self._registry)
        gauge.set_function(waiting)

    def count(self, path: str, status: int, seconds: float, call: Call | None) -> None:
        """Counts a request that ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if call is not None:
            self._prompt_tokens.inc(call.prompt_tokens)
            self._completion_tokens.inc(call.completion_tokens)

    async def answer(self, call: Call) -> Response:
        """All counts, in Prometheus's text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class Observed:
    """An ASGI application whose requests are counted and logged. paths: those with counts of their own."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], log: Callable[[str], object]) -> None:
        self._app, self._metrics, self._paths, self._log = app, metrics, paths, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientLeft:
            status = GONE
        finally:
            seconds, call = time.monotonic() - started, scope["state"].get("call")
            self._metrics.count(scope["path"] if scope["path"] in self._paths else "other", status, seconds, call)
            client = scope["client"][0] if scope["client"] else "-"
            tokens = f" {call.prompt_tokens}+{call.completion_tokens} tok" if call and call.prompt_tokens else ""
            self._log(f"{client} {scope['method']} {scope['path'][:80]} {status}{tokens} {seconds:.2f} s")
