"""The process: it says where it listens, finishes what runs when it is asked to leave, and dies by the signal."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.conftest import SCRIPTED
from tests.cli.scripted import Script
from tests.serve.conftest import CHAT, until


@contextmanager
def started(model: Path, script: Script, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`gptcli serve` as a process, and its address."""
    command = [*SCRIPTED, "serve", "-m", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=script.environment()) as process:
        try:
            address = process.stderr.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
            yield process, address
        finally:
            process.kill()


def listens(address: str) -> bool:
    """Whether connections are taken."""
    try:
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    except OSError:
        return False
    return True


def begun(address: str) -> list[str]:
    """A streamed answer, gathered by a thread; returns once it has begun."""
    said, first = list[str](), threading.Event()

    def read() -> None:
        body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(address + CHAT, body)) as answer:
                for line in answer:
                    said.append(line.decode().strip())
                    first.set()
        except OSError:
            said.append("cut")
            first.set()

    threading.Thread(target=read, daemon=True).start()
    assert first.wait(30)
    return said


def test_a_signal_lets_what_runs_come_to_its_end(tiny_model: Path) -> None:
    with started(tiny_model, Script(pieces=["word "] * 20, piece_s=0.02)) as (process, address):
        said = begun(address)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        assert "Traceback" not in process.stderr.read()
    assert said[-2] == "data: [DONE]"


def test_a_second_ctrl_c_ends_at_once(tiny_model: Path) -> None:
    with started(tiny_model, Script(pieces=["word "] * 5000, piece_s=0.02)) as (process, address):
        said = begun(address)
        process.send_signal(signal.SIGINT)
        until(lambda: not listens(address))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert "Traceback" not in process.stderr.read()
    assert "data: [DONE]" not in said


def test_grace_is_how_long_a_signal_waits(tiny_model: Path) -> None:
    with started(tiny_model, Script(pieces=["word "] * 5000, piece_s=0.02), "--grace", "0") as (process, address):
        begun(address)
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
