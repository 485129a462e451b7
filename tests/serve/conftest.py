"""A server in a thread of the tests, and clients of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
import pytest

from gptcli import LanguageModel
from gptcli.openai_api.prompting import Prompting
from gptcli.serve.app import Outlets, make_app
from gptcli.serve.guards import Access
from gptcli.serve.runner import Runner
from gptcli.serve.served_models import ServedModels
from gptcli.serve.server import Server, listen
from gptcli.serve.service import Service
from tests.cli.conftest import cli

__all__ = ["cli"]
CHAT, TEXT, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "hi"}]


@dataclass
class Answer:
    """A status, headers and the body."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The JSON of each event of a stream, less the `[DONE]` at its end."""
        lines = [line.removeprefix("data: ") for line in self.data.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


@dataclass
class Running:
    """A running server: its port, what it logged, and its parts."""

    port: int
    service: Service
    lines: list[str] = field(default_factory=list)
    bugs: list[Exception] = field(default_factory=list)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        connection.close()
        return answer

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> Answer:
        return self.ask("POST", path, body, headers)

    def send(self, data: bytes) -> bytes:
        """The beginning of what is answered to bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(data)
            return client.recv(100)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="secret", max_retries=0)

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=f"http://127.0.0.1:{self.port}", api_key="secret", max_retries=0)


@contextmanager
def serving(
    *models: LanguageModel, access: Access | None = None, queue: int = 64, most_bytes: int = 1 << 20, **options: Any
) -> Iterator[Running]:
    """A server of models by their names. options: defaults of requests."""
    openers = {lm.folder.path.name: lambda lm=lm: prompting(lm, options) for lm in models}
    running = Running(0, None)
    runner = Runner(queue)
    running.service = Service(ServedModels(openers, running.lines.append, runner.leave), runner)
    outlets = Outlets(running.lines.append, running.bugs.append)
    server = Server(make_app(running.service, access or Access(), outlets, most_bytes), grace=5, most_connections=200)
    listening = listen("127.0.0.1", 0)
    running.port = listening.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    yield running
    server.stop()
    thread.join()
    running.service.close()
    assert running.bugs == []


def prompting(lm: LanguageModel, options: dict[str, Any]) -> Prompting:
    return Prompting(lm, {"temperature": 0.0, **options}, lambda: (lm.template, {}))


def until(condition: Callable[[], bool]) -> None:
    """Waits until a condition is true."""
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition did not become true")


@pytest.fixture(scope="module")
def server(tiny: LanguageModel) -> Iterator[Running]:
    """A server of the tiny model."""
    with serving(tiny) as running:
        yield running
