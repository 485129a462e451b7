"""Runs what strangers wrote in a process of its own, with limits on its CPU time and memory.

For chat templates and tokenizers that can hang, abort or fill the memory of whoever opens them. The process is small:
it imports no torch, and starts in some 60 ms. Linux holds it to its limits; elsewhere its memory is watched.
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

Kind = Literal["template", "tokenizer"]

_LIBRARIES: dict[Kind, tuple[str, ...]] = {"template": ("jinja2", "markupsafe"), "tokenizer": ("tokenizers",)}
_PROGRAM = "import sys; sys.path += sys.argv[3:]; from gptcli.text.sandbox.worker import main; main(*sys.argv[1:3])"
_STARTS_S = 60.0  # to start, from a disk that sleeps
_WALL = 2.0  # seconds that may pass for each one of CPU time
_LOOK_S = 0.02
_MOST_REPLIED = 1 << 30
_TOO_LONG = "it takes too long"
# A thread's arenas count as memory, though nobody uses them.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Misbehaved(Exception):
    """The process failed: it said why, or took too long, or too much memory, or crashed."""


class Isolated:
    """A process that has opened one thing and answers about it; started when first asked, and again where it died."""

    def __init__(self, kind: Kind, opening: bytes, *, seconds: float = 1.0, memory: int = 512 << 20) -> None:
        """opening: what the process opens, in `seconds` of CPU time. memory: bytes it may address."""
        self._kind = kind
        self._opening = opening
        self._seconds = seconds
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._killed_for = ""

    def __del__(self) -> None:
        self._end()

    def open(self) -> None:
        """Starts the process, unless it runs. Raises Misbehaved, and OutOfMemory where there can be no process."""
        if self._process is not None:
            return
        homes = {_home(name): None for name in ("gptcli", *_LIBRARIES[self._kind])}
        # -I and -S: no variable and no file of a site decides what runs there.
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, self._kind, str(self._memory), *homes]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        except OSError as error:
            raise OutOfMemory(f"cannot start a process to open a {self._kind} in: {error.strerror}") from None
        try:
            with self._watched(_STARTS_S):
                self._reply()
            self._exchange(self._opening, self._seconds)
        except Misbehaved:
            self._end()
            raise

    def ask(self, request: dict[str, Any], seconds: float = 1.0) -> Any:
        """The process's answer, in so many seconds of CPU time. Raises as `open` does."""
        self.open()
        return self._exchange(json.dumps(request).encode(), seconds)

    def _exchange(self, message: bytes, seconds: float) -> Any:
        assert self._process is not None and self._process.stdin is not None
        with self._watched(_WALL * seconds):
            try:
                head = int(seconds * 1e6).to_bytes(8, "little") + len(message).to_bytes(8, "little")
                self._process.stdin.write(head + message)
                self._process.stdin.flush()
            except BrokenPipeError:
                pass  # its end tells why
            return self._reply()

    def _reply(self) -> Any:
        assert self._process is not None and self._process.stdout is not None
        size = int.from_bytes(self._process.stdout.read(8), "little")
        data = self._process.stdout.read(size) if 0 < size < _MOST_REPLIED else b""
        if not data or len(data) < size:
            raise Misbehaved(self._reason())
        reply = json.loads(data)
        if "error" in reply:
            raise Misbehaved(reply["error"])
        return reply["value"]

    def _reason(self) -> str:
        """Why the process ended, which is over now."""
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        self._end()
        if self._killed_for:
            return self._killed_for
        if code == -getattr(signal, "SIGPROF", 0):
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
        """Kills the process where the block takes longer, or, where the system knows no limits, too much memory."""
        process, done = self._process, threading.Event()
        assert process is not None
        self._killed_for = ""

        def watch() -> None:
            ends = time.monotonic() + seconds
            while not done.wait(_LOOK_S):
                if time.monotonic() >= ends:
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
        except Misbehaved:
            raise
        except BaseException:  # Ctrl-C, amid a message: there is no telling what comes next
            self._end()
            raise
        finally:
            done.set()
            watcher.join()


def _home(module: str) -> str:
    """The directory that a package lies in."""
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    return str(Path(found.origin).parents[1])


def _resident_bytes(pid: int) -> int:
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
