"""A Hugging Face hub with one repository on 127.0.0.1, which can fail as the real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


class FakeHub:
    """Serves `files` of `repository` at commit `commit`; `requests` are the methods and paths asked for."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository = repository
        self.files = files
        self.commit = COMMIT
        self.requests: list[str] = []
        self.refuse: tuple[int, str] | None = None  # a status and an X-Error-Code for every request
        self.before_file: Callable[[str], None] = lambda name: None
        self.without_hash: set[str] = set()
        self.sent: dict[str, bytes] = {}  # instead of what is listed

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        return [path.rsplit("/", 1)[1] for path in self.requests if path.startswith("GET ") and "/resolve/" in path]

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Runs the hub; yields its address."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # tests hang up on purpose

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.requests.append(f"{handler.command} {handler.path}")
        if self.refuse:
            status, code = self.refuse
            self._send(handler, status, b"{}", body, {"X-Error-Code": code, "X-Error-Message": code})
            return
        path = handler.path.partition("?")[0]
        if path.startswith(f"/api/models/{self.repository}"):
            siblings = [self._listed(name, data) for name, data in self.files.items()]
            info = {"id": self.repository, "sha": self.commit, "siblings": siblings}
            self._send(handler, 200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})
            return
        prefix = f"/{self.repository}/resolve/"
        revision, _, name = path.removeprefix(prefix).partition("/")
        if not path.startswith(prefix) or revision not in (self.commit, "main") or name not in self.files:
            self._send(handler, 404, b"", body, {"X-Error-Code": "EntryNotFound"})
            return
        if body:
            self.before_file(name)
        data = self.sent.get(name, self.files[name])
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(handler, 200, data, body, {"X-Repo-Commit": self.commit, "ETag": etag})

    def _listed(self, name: str, data: bytes) -> dict[str, Any]:
        """A file as the hub lists it: large ones with the hash that Git LFS has, others with git's own."""
        listed: dict[str, Any] = {"rfilename": name, "size": len(data)}
        if name in self.without_hash:
            return listed
        if name.endswith((".safetensors", ".gguf")):
            digest = hashlib.sha256(data).hexdigest()
            return listed | {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}, "blobId": "0" * 40}
        return listed | {"blobId": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()}

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, data: bytes, body: bool, headers: dict[str, str]
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if body:
            handler.wfile.write(data)


def files_of(model: Path) -> dict[str, bytes]:
    """A model directory as a repository's files."""
    return {file.name: file.read_bytes() for file in model.iterdir()}
