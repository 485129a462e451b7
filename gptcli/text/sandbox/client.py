"""Starts a process that opens an untrusted chat template or tokenizer, and asks it for answers.

Such a template or tokenizer can hang, abort or fill the memory of the process that opens it. This process has limits
of CPU time and memory, imports no torch, and starts in about 60 ms. Linux enforces the limits; elsewhere a thread
watches its memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from gptcli.errors import OutOfMemory

Content = Literal["template", "tokenizer"]

_LIBRARIES: dict[Content, tuple[str, ...]] = {"template": ("jinja2", "markupsafe"), "tokenizer": ("tokenizers",)}
_PROGRAM = "import sys; sys.path += sys.argv[3:]; from gptcli.text.sandbox.worker import main; main(*sys.argv[1:3])"
_START_SECONDS = 60.0  # allows for a disk that sleeps
_WALL_PER_CPU_SECOND = 2.0
_POLL_SECONDS = 0.02
_REPLY_LIMIT = 1 << 30  # bytes
_TOO_LONG = "it takes too long"
# Each thread would reserve memory for its arenas, which counts towards the limit.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class SandboxFailure(Exception):
    """The process reported an error, took too much time or memory, or crashed."""


class SandboxClient:
    """A process that opens one template or tokenizer and answers requests.

    It starts at the first request, and again after it died. Threads take turns.
    """

    def __init__(self, content: Content, data: bytes, *, seconds: float = 1.0, memory: int = 512 << 20) -> None:
        """data: what the process opens, in `seconds` of CPU time. memory: bytes that it may address."""
        self._content: Content = content
        self._data = data
        self._seconds = seconds
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._killed_for = ""
        self._lock = threading.RLock()

    def __del__(self) -> None:
        self._end()

    def open(self) -> None:
        """Starts the process unless it runs. Raises SandboxFailure, and OutOfMemory if no process can be started."""
        with self._lock:
            if self._process is None:
                self._start()

    def _start(self) -> None:
        homes = {_home(name): None for name in ("gptcli", *_LIBRARIES[self._content])}
        # -I and -S: neither environment variables nor site files influence what runs.
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, self._content, str(self._memory), *homes]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C reaches only us
            )
        except OSError as error:
            raise OutOfMemory(f"cannot start a process to open a {self._content} in: {error.strerror}") from None
        try:
            with self._watched(_START_SECONDS):
                self._reply()
            self._exchange(self._data, self._seconds)
        except SandboxFailure:
            self._end()
            raise

    def ask(self, request: dict[str, Any], seconds: float = 1.0) -> Any:
        """The process's answer, within `seconds` of CPU time. Raises as `open` does."""
        with self._lock:
            self.open()
            return self._exchange(json.dumps(request).encode(), seconds)

    def _exchange(self, message: bytes, seconds: float) -> Any:
        assert self._process is not None and self._process.stdin is not None
        with self._watched(_WALL_PER_CPU_SECOND * seconds):
            try:
                head = int(seconds * 1e6).to_bytes(8, "little") + len(message).to_bytes(8, "little")
                self._process.stdin.write(head + message)
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended; its exit status tells why
            return self._reply()

    def _reply(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        size = int.from_bytes(self._process.stdout.read(8), "little")
        data = self._process.stdout.read(size) if 0 < size < _REPLY_LIMIT else b""
        if not data or len(data) < size:
            raise SandboxFailure(self._reason())
        reply = json.loads(data)
        if "error" in reply:
            raise SandboxFailure(reply["error"])
        return reply["value"]

    def _reason(self) -> str:
        """Why the process ended. Reaps it."""
        process = self._process
        assert process is not None
        self._end()
        if self._killed_for:
            return self._killed_for
        if process.returncode == -getattr(signal, "SIGPROF", 0):
            return _TOO_LONG
        return "it takes too much memory, or crashes the library that reads it"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()

    @contextlib.contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        """Kills the process if the block takes longer, or if it uses too much memory where that cannot be limited."""
        process, done = self._process, threading.Event()
        assert process is not None
        self._killed_for = ""

        def watch() -> None:
            deadline = time.monotonic() + seconds
            while not done.wait(_POLL_SECONDS):
                if time.monotonic() >= deadline:
                    self._killed_for = _TOO_LONG
                elif sys.platform != "linux" and _resident_bytes(process.pid) > self._memory:
                    self._killed_for = "it takes too much memory"
                else:
                    continue
                process.kill()
                return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        except SandboxFailure:
            raise
        except BaseException:  # after Ctrl-C within a message, request and reply no longer match
            self._end()
            raise
        finally:
            done.set()
            watcher.join()


def _home(module: str) -> str:
    """The directory that contains a package."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parents[1])


def _resident_bytes(pid: int) -> int:
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
