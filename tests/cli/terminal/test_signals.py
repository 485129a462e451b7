"""A process that a signal ends dies by that signal, silently, keeps the text so far and restores the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import GPTCLI, ROOT, SCRIPTED
from tests.cli.forked import gptcli_with
from tests.cli.scripted import Script
from tests.cli.terminal.pty_terminal import Terminal

ENDLESS = Script(pieces=["text "] * 1000, piece_s=0.02)
pytestmark = pytest.mark.usefixtures("tiny_by_default")


def wait_for(mark: Path) -> None:
    ends = time.monotonic() + 10
    while not mark.exists():
        assert time.monotonic() < ends
        time.sleep(0.01)


def start(script: Script, *options: str) -> subprocess.Popen[bytes]:
    """`gptcli generate` with a scripted model, its streams pipes."""
    return subprocess.Popen(
        [*SCRIPTED, "generate", "a", *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=script.environment(),
        preexec_fn=gptcli_with(["generate", "a", *options], script.environment()),
    )  # fmt: skip


@pytest.fixture
def started() -> Iterator[subprocess.Popen[bytes]]:
    """A run in mid-stream."""
    with start(ENDLESS) as process:
        assert process.stdout.read(5) == b"text "
        yield process
        process.kill()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_text_ends_the_run_and_keeps_the_text(started: subprocess.Popen[bytes], signum: int) -> None:
    started.send_signal(signum)
    out, err = started.communicate(timeout=5)
    assert (started.returncode, err) == (-signum, b"")
    assert set(out.split()) <= {b"text"} and not out.endswith(b"\n")


@pytest.mark.parametrize("load", ["", "busy machine"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_destructor_ends_the_run_in_silence(signum: int, load: str) -> None:
    code = f"""
import os, signal, sys, threading, time
from gptcli import __main__
from gptcli.cli import app

class Dying:
    def __del__(self):
        os.kill(os.getpid(), {signum:d})
        time.sleep(0.01)

def run(arguments):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Dying()
    time.sleep(9)

class LateTimer(threading.Timer):  # whose caller waits long for its turn on a busy machine
    def start(self):
        super().start()
        time.sleep(0.1)

if {load!r}:
    threading.Timer = LateTimer
app.run = run
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (-signum, b"", b"")


def test_an_interrupt_ends_all_samples_and_keeps_what_each_has_said(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with start(replace(ENDLESS, mark=str(mark)), "--json", "--samples", "3", "--stats") as process:
        wait_for(mark)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    assert process.returncode == -signal.SIGINT
    assert [json.loads(line)["finish_reason"] for line in out.splitlines()] == ["interrupt"] * 3
    assert err.count(b"\n") == 3


@pytest.mark.parametrize(
    ("loses_exceptions", "signum"), [(False, signal.SIGINT), (True, signal.SIGINT), (True, signal.SIGTERM)]
)
def test_a_signal_while_loading_ends_the_run_in_silence(tmp_path: Path, loses_exceptions: bool, signum: int) -> None:
    mark = tmp_path / "mark"
    with start(Script(load_s=20, loses_exceptions=loses_exceptions, mark=str(mark))) as process:
        wait_for(mark)
        process.send_signal(signum)
        assert process.communicate(timeout=5) == (b"", b"")
    assert process.returncode == -signum


IN_NATIVE_CODE = """
import hashlib, os, sys, threading
from gptcli.cli.terminal.signals import deadly
with deadly(lambda: None):
    pass
with deadly(lambda: print("tidied", flush=True)):
    threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv[1]))).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # takes minutes, in which Python runs no handler
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_native_code_ends_the_run_at_once(signum: int) -> None:
    command = [sys.executable, "-c", IN_NATIVE_CODE, str(int(signum))]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=20)
    assert (done.returncode, done.stdout) == (-signum, b"tidied\n")


def wait_for_main(process: subprocess.Popen[bytes]) -> None:
    """Waits until Python has set its handler of SIGINT and gptcli has removed it, which it does first."""
    caught = False
    for _ in range(10_000):
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = int(status.partition("SigCgt:")[2].split()[0], 16)
        is_caught = bool(mask & 1 << (signal.SIGINT - 1))
        if caught and not is_caught:
            return
        caught = is_caught
        time.sleep(0.001)
    raise AssertionError("gptcli did not start")


@pytest.mark.parametrize("after_s", [0, 0.2, 0.7])
def test_a_signal_while_importing_ends_the_run_in_silence(after_s: float) -> None:
    process = subprocess.Popen(
        [*GPTCLI, "generate", "a", "-n", "100000", "--overflow", "shift", "--ignore-eos"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    wait_for_main(process)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == b""
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(("command", "signum"), [("nohup", signal.SIGHUP), ("trap '' INT;", signal.SIGINT)])
def test_a_signal_that_the_parent_ignores_is_ignored(command: str, signum: int) -> None:
    script = Script(pieces=["text "] * 30, piece_s=0.02)
    process = subprocess.Popen(
        ["bash", "-c", f"{command} {' '.join(SCRIPTED)} generate a 2>/dev/null & echo $!; wait $!"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, env=script.environment(),
    )  # fmt: skip
    child = int(process.stdout.readline())
    assert process.stdout.read(5) == b"text "
    subprocess.run(["kill", f"-{signum}", str(child)], check=True)
    assert process.communicate(timeout=5)[0] == b"text " * 29
    assert process.returncode == 0


def test_a_shell_loop_stops_at_an_interrupt() -> None:
    loop = f"for i in 1 2 3; do {' '.join(SCRIPTED)} generate a; echo again; done"
    shell = Terminal("bash", "-c", loop, environment=ENDLESS.environment())
    shell.expect("text text")
    shell.child.sendintr()
    shell.finish()
    assert shell.child.signalstatus == signal.SIGINT
    assert "again" not in shell.text


PHASES = {
    "loading": (Script(load_s=20), (), "loading tiny"),
    "prefilling": (Script(prefill_s=0.9, pieces=["text "] * 1000, piece_s=0.02), (), "prefill"),
    "decoding": (ENDLESS, (), "text text"),
    "drawing Markdown": (ENDLESS, ("--markdown",), "text text"),
}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_leaves_the_terminal_as_it_was(phase: str, signum: int) -> None:
    script, options, sign = PHASES[phase]
    terminal = Terminal(*SCRIPTED, "generate", "a", *options, environment=script.environment())
    before = terminal.modes()
    terminal.expect(sign)
    terminal.child.kill(signum)
    after = terminal.finish()
    assert terminal.child.signalstatus == signum
    assert not terminal.screen.cursor.hidden
    assert after == before
    assert "loading" not in terminal.text and "prefill" not in terminal.text and "Traceback" not in terminal.text
    assert terminal.screen.cursor.x == 0


@pytest.mark.parametrize("phase", PHASES)
def test_a_terminal_that_is_gone_ends_the_run_by_sighup(phase: str) -> None:
    script, options, sign = PHASES[phase]
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*SCRIPTED, "generate", "a", *options], preexec_fn=lambda: os.login_tty(theirs), cwd=ROOT,
        env=script.environment(),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while sign.encode() not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(timeout=5) == -signal.SIGHUP
