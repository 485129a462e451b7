"""Who may ask: by which name, from which page, with which key; and how much."""

from __future__ import annotations

import gc
import json
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gptcli import LanguageModel
from gptcli.serve import server as server_module
from gptcli.serve import transport
from gptcli.serve.guards import Access
from gptcli.serve.server import listen
from gptcli.serve.transport import Call
from tests.cli.conftest import Cli
from tests.serve.conftest import CHAT, EMBEDDINGS, HI, MESSAGES, RESPONSES, TEXT, Running, serving, until

KEY = {"Authorization": "Bearer secret"}
HEALTH, POST = (f"{each} HTTP/1.1\r\nHost: localhost\r\n".encode() for each in ("GET /health", f"POST {TEXT}"))
POST_WITH_KEY = POST + b"Authorization: Bearer secret\r\n"


@pytest.fixture(scope="module")
def guarded(tiny: LanguageModel) -> Iterator[Running]:
    access = Access(hosts={"my.lan"}, origins={"http://app.example"}, key="secret")
    with serving(tiny, access=access, most_bytes=1000) as running:
        yield running


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "localhost:1", "LOCALHOST", "[::1]:8080", "192.168.0.2", "a.localhost"]
)
def test_addresses_and_localhost_are_names_of_this_machine(server: Running, host: str) -> None:
    assert server.ask("GET", "/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["", "my.lan", "evil.example", "2130706433", "127.0.0.1@evil.example:1x", "[::1", "[::1]evil.example"]
    + ["127.0.0.1.evil.example", "localhost:80a"]
    + [f"localhost{mark}evil.example" for mark in (".", "/.", "#.", "@", ", ")],
)
@pytest.mark.parametrize("path", ["/health", "/v1/models", "/"])
def test_another_name_is_refused(server: Running, host: str, path: str) -> None:
    answer = server.ask("GET", path, headers={"Host": host})
    assert (answer.status, answer.error["type"]) == (403, "permission_error")


def test_a_name_that_is_allowed_is_served(guarded: Running) -> None:
    assert guarded.ask("GET", "/health", headers={"Host": "my.lan:80"}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
def test_a_page_of_another_site_may_not_ask(server: Running, origin: str) -> None:
    for method in ("POST", "OPTIONS", "GET"):
        answer = server.ask(method, TEXT, {}, {"Origin": origin, "Content-Type": "text/plain"})
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


def test_a_second_origin_is_checked_like_the_first(server: Running) -> None:
    head = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nOrigin: http://127.0.0.1:{server.port}\r\n"
    for other, status in (("", b"200"), ("Origin: http://evil.example\r\n", b"403")):
        assert server.send(f"{head}{other}\r\n".encode()).split()[1] == status


@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),  # <img src="http://localhost:8080/v1/models">
        ("same-site", "no-cors", 403),  # the same of a page of another port
        ("cross-site", "navigate", 200),  # a link to here
        ("same-origin", "cors", 200),
        ("none", "navigate", 200),  # typed by the user
    ],
)
def test_a_page_of_another_site_may_not_embed_an_answer(server: Running, site: str, mode: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
    answer = server.ask("GET", "/v1/models", headers=headers)
    assert answer.status == status
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["x-frame-options"] == "DENY"


def test_our_own_page_and_those_that_are_allowed_may(guarded: Running) -> None:
    own = f"http://127.0.0.1:{guarded.port}"
    for origin in (own, "http://app.example"):
        answer = guarded.ask("GET", "/v1/models", headers=KEY | {"Origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    asked = {"Origin": "http://app.example", "Access-Control-Request-Headers": "authorization"}
    preflight = guarded.ask("OPTIONS", CHAT, headers=asked)
    assert (preflight.status, preflight.headers["access-control-allow-headers"]) == (204, "authorization")


@pytest.mark.parametrize(
    "headers",
    [{}, {"x-api-key": "é"}, *({"Authorization": each} for each in ("Bearer Secret", "Bearer", "Basic secret"))],
)
@pytest.mark.parametrize("path", ["/v1/models", TEXT, "/metrics", "/nowhere"])
def test_without_the_key_nothing_is_answered(guarded: Running, headers: dict[str, str], path: str) -> None:
    answer = guarded.ask("GET", path, headers=headers)
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_key_it_is(guarded: Running) -> None:
    for headers in (KEY, {"Authorization": "bearer secret"}, {"x-api-key": "secret"}):
        assert guarded.ask("GET", "/v1/models", headers=headers).status == 200
    assert guarded.ask("GET", "/health").status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_read(guarded: Running) -> None:
    assert guarded.post(TEXT, KEY, prompt="x" * 2000).status == 413
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    for rest in (b"Content-Length: 1000000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n" + chunk):
        assert guarded.send(POST_WITH_KEY + rest).startswith(b"HTTP/1.1 413")


def test_bodies_too_large_together_are_refused_until_there_is_room(guarded: Running) -> None:
    clients = [socket.create_connection(("127.0.0.1", guarded.port)) for _ in range(5)]
    for client in clients:
        client.sendall(POST_WITH_KEY + b"Content-Length: 990\r\n\r\n" + b" " * 900)
    answer = b"".join(client.recv(100) for client in select.select(clients, [], [], 20)[0])
    assert answer.startswith(b"HTTP/1.1 429")
    assert guarded.post(TEXT, KEY, prompt="x" * 500).headers["retry-after"] == "1"
    for client in clients:
        client.close()
    until(lambda: guarded.post(TEXT, KEY, prompt="x", max_tokens=1).status == 200)


def test_headers_that_are_too_large_and_what_is_no_http_are_refused(server: Running) -> None:
    for data in (HEALTH + b"a: " + b"x" * 70_000, b"\x16\x03\x01 hello\r\n\r\n"):
        assert server.send(data).startswith(b"HTTP/1.1 400")


def test_a_body_with_two_ends_is_refused_and_nothing_after_it_is_read(server: Running) -> None:
    inner = HEALTH + b"\r\n"
    headers = f"Content-Length: {5 + len(inner)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(POST + headers + b"0\r\n\r\n" + inner)
        received = b"".join(iter(lambda: client.recv(1000), b""))  # until the server closes
    assert received.startswith(b"HTTP/1.1 400") and received.count(b"HTTP/1.1 ") == 1


def test_a_method_that_a_path_does_not_know_is_refused(server: Running) -> None:
    answer = server.ask("GET", TEXT)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert server.ask("DELETE", "/v1/models").headers["allow"] == "GET"
    assert server.ask("POST", "/nowhere", {}).status == 404
    assert server.ask("HEAD", "/health").status == 200


@pytest.fixture
def busy(tiny: LanguageModel) -> Iterator[Running]:
    """A server that takes at most two requests at once."""
    with serving(tiny, queue=2) as running:
        yield running


def begun(server: Running, *, stream: bool = True) -> socket.socket:
    """A client of an answer that never ends."""
    client = socket.create_connection(("127.0.0.1", server.port))
    body = {"prompt": "a", "stream": stream, "max_tokens": 10**9, "ignore_eos": True, "overflow": "shift", "n": 3}
    data = json.dumps(body).encode()
    client.sendall(POST + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("after", [b"", b"\r\n", HEALTH + b"\r\n"])
def test_a_client_that_leaves_ends_its_answer(busy: Running, stream: bool, half: bool, after: bytes) -> None:
    client = begun(busy, stream=stream)
    until(lambda: busy.service.runner.open == 3)
    client.sendall(after)
    time.sleep(0.05)  # so that it is read by itself
    client.shutdown(socket.SHUT_WR) if half else client.close()
    until(lambda: busy.service.runner.open == busy.service.runner.waiting == 0)
    until(lambda: any(" 499 " in line for line in busy.lines))
    client.close()


def test_clients_that_leave_write_nothing_to_the_log_but_their_lines(
    busy: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(40):
        client = begun(busy)
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
        client.close()
        until(lambda: busy.service.runner.open == busy.service.runner.waiting == 0)
    assert caplog.record_tuples == []


def test_more_than_may_wait_are_told_to_come_again(busy: Running) -> None:
    clients = [begun(busy), begun(busy)]
    until(lambda: busy.service.runner.waiting == 2)
    answer = busy.post(TEXT, prompt="a")
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    for client in clients:
        client.close()
    until(lambda: busy.service.runner.waiting == 0)


def test_a_client_that_is_too_slow_is_given_up(busy: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PATIENCE_S", 0.05)
    assert busy.send(POST + b"Content-Length: 9\r\n\r\n{").startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("before", [b"", HEALTH + b"\r\n"])
def test_a_client_without_a_request_is_given_up(busy: Running, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    monkeypatch.setattr(server_module, "_HEADER_S", 0.2)
    with socket.create_connection(("127.0.0.1", busy.port), timeout=20) as client:
        client.sendall(before + b"GET /hea")
        received = b"".join(iter(lambda: client.recv(1000), b""))  # until the server closes
    assert received.count(b"HTTP/1.1 200") == bool(before)


def test_connections_that_ask_nothing_keep_nobody_out(busy: Running) -> None:
    asking = begun(busy)
    until(lambda: busy.service.runner.open == 3)
    idle = [socket.create_connection(("127.0.0.1", busy.port)) for _ in range(300)]  # the server takes 200
    assert busy.post(TEXT, prompt="a", max_tokens=1).status == 200
    assert busy.service.runner.open == 3
    for client in (*idle, asking):
        client.close()


def test_no_answer_is_longer_than_it_may_be(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "most_tokens", 3)
    for asked, given in ((2, 2), (3, 3), (50, 3), (-1, 3)):
        usage = server.post(TEXT, prompt="a", max_tokens=asked, ignore_eos=True).json["usage"]
        assert usage["completion_tokens"] == given


def test_a_request_leaves_no_cycle_that_keeps_its_body(server: Running) -> None:
    def kept() -> list[Call]:
        return [each for each in gc.get_objects() if type(each) is Call]

    until(lambda: gc.collect() >= 0 and not kept())
    gc.disable()
    try:
        for prompt, options in (([1] * 9999, {}), ("a", {"stream": True}), ("a", {"n": 0}), ([400], {})):
            server.post(TEXT, prompt=prompt, **options)
        server.ask("POST", TEXT, b"{")
        until(lambda: not kept())
    finally:
        gc.enable()


def test_no_request_opens_a_file(server: Running) -> None:
    paths = ("/", "/etc/passwd", "/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/page.html", "//etc/passwd")
    asked: dict[str, dict[str, Any]] = {
        TEXT: {"prompt": "a"},
        CHAT: {"messages": HI, "json_schema": {"$ref": "file:///etc/passwd"}},
        RESPONSES: {"input": "hi"},
        MESSAGES: {"messages": HI, "max_tokens": 2},
        EMBEDDINGS: {"input": "file:///etc/passwd"},
        "/tokenize": {"prompt": "/etc/passwd"},
    }

    def ask() -> list[int]:
        return [server.ask("GET", path).status for path in paths] + [
            server.post(path, model="tiny", **body).status for path, body in asked.items()
        ]

    ask()  # what is imported when it is first needed
    with opened_files() as opened:
        statuses = ask()
        assert {path for path in opened if not path.startswith(("/proc/", "/sys/"))} == set()  # the memory that is free
        Path(__file__).read_bytes()
        assert opened[-1] == __file__
    assert statuses == [200, *[404] * 5, 200, 400, *[200] * 4]


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths that are opened meanwhile, to read or write."""
    paths: list[str] = []
    sys.addaudithook(lambda event, given: paths.append(str(given[0])) if event == "open" and watching else None)
    watching = True
    yield paths
    watching = False


def test_the_log_and_the_metrics_have_nothing_of_what_is_said(server: Running) -> None:
    server.post(TEXT, prompt="my secret")
    server.post(TEXT, prompt="my secret", unknown="my secret")
    server.ask("GET", "/v1/models?key=secret")
    metrics = server.ask("GET", "/metrics").data.decode()
    assert re.search(rf'gptcli_requests_total{{path="{TEXT}",status="200"}} [1-9]', metrics)
    assert re.search(r"gptcli_completion_tokens_total [1-9]", metrics)
    until(lambda: "GET /metrics" in server.lines[-1])
    assert "secret" not in metrics + "".join(server.lines)
    assert re.search(rf"^127.0.0.1 POST {TEXT} 200 \d+\+\d+ tok \d+\.\d\d s$", "\n".join(server.lines), re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "others could reach 0.0.0.0 without a key"),
        (("--api-key", ""), "an API key must be ASCII, and not empty"),
        (("--port", "TAKEN"), "cannot listen on 127.0.0.1 port"),
        (("--temperature", "-1"), "temperature must be"),
        (("-m", "no-such-model"), "no-such-model"),
    ],
)
def test_an_unsafe_server_is_not_started(cli: Cli, tiny_model: Path, options: tuple[str, ...], message: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        given = [str(taken.getsockname()[1]) if option == "TAKEN" else option for option in options]
        result = cli("serve", "--offline", "-m", tiny_model, *given)
    assert result.code in (2, 4)
    assert message in result.err
