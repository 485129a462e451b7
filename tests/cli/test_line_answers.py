"""`generate --lines` and `chat --lines`: a prompt a line, a JSON object a line."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from gptcli.runtime.engine import Extended, Extension
from gptcli.runtime.torch_engine import TorchEngine
from tests.cli.conftest import GPTCLI, ROOT, Cli

pytestmark = pytest.mark.usefixtures("tiny_by_default")
GREEDY = ("-t", "0", "-n", "4", "--ignore-eos")


def test_each_line_is_answered_as_it_would_be_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\r\ntwo \x0c three\n\nfour")
    together = cli("generate", "good {}, {}", "--lines", "-f", tmp_path / "lines", *GREEDY).records
    texts = ["one", "two \x0c three", "", "four"]
    alone = [cli("generate", f"good {text}, {text}", "--json", *GREEDY).json for text in texts]
    assert [record["line"] for record in together] == [1, 2, 3, 4]
    assert [record["ids"] for record in together] == [record["ids"] for record in alone]


def test_stdin_has_the_lines_and_each_may_have_samples(cli: Cli) -> None:
    found = cli("generate", "--lines", "--samples", "2", "-s", "5", "-n", "2", stdin=b"a\nb\n").records
    assert [(record["line"], record["seed"]) for record in found] == [(1, 5), (1, 6), (2, 5), (2, 6)]


def test_chat_asks_each_line_in_a_conversation_of_its_own(cli: Cli) -> None:
    options = ("--system", "Be brief.", *GREEDY)
    together = cli("chat", "--lines", *options, stdin=b"one\ntwo\n").records
    alone = [cli("chat", text, "--json", *options, stdin=b"").json for text in ("one", "two")]
    assert [record["ids"] for record in together] == [record["ids"] for record in alone]


def test_a_line_that_does_not_fit_fails_alone(cli: Cli) -> None:
    result = cli("generate", "--lines", *GREEDY, stdin=b"one\n" + b"long " * 400 + b"\ntwo\n")
    first, failed, last = result.records
    assert "does not fit" in failed["error"] and (first["line"], failed["line"], last["line"]) == (1, 2, 3)
    assert result.code == 6 and "line 2: " in result.err


def test_lines_share_steps(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, extend = list[int](), TorchEngine.extend

    def counting(engine: TorchEngine, texts: list[Extension]) -> list[Extended]:
        steps.append(len(texts))
        return extend(engine, texts)

    monkeypatch.setattr(TorchEngine, "extend", counting)
    assert len(cli("generate", "--lines", *GREEDY, stdin=b"one\ntwo\nand three\n" * 4).records) == 12
    assert max(steps) > 4 and len(steps) < 24


@pytest.mark.parametrize(("wrong", "says"), [(b"\xff", "not UTF-8"), (b"a\0b", "a NUL byte at 9")])
def test_what_cannot_be_read_ends_the_run_after_the_lines_before_it(cli: Cli, wrong: bytes, says: str) -> None:
    result = cli("generate", "--lines", *GREEDY, stdin=b"one\ntwo\n" + wrong + b"\n")
    assert [record["line"] for record in result.records] == [1, 2]
    assert result.code == 4 and says in result.err


def test_a_line_is_answered_before_the_next_and_ctrl_c_ends_the_wait(tiny_model: Path) -> None:
    command = [*GPTCLI, "generate", "--lines", "-m", str(tiny_model), *GREEDY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        for number in range(1, 3):
            process.stdin.write(b"a line\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["line"] == number
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        time.sleep(1)
        assert sum(psutil.Process(process.pid).cpu_times()[:2]) - before < 0.5  # a busy wait takes all of it
        process.send_signal(signal.SIGINT)
        assert process.wait() == -signal.SIGINT and not process.stdout.read()
        watchdog.cancel()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate --lines here", "must have {} where the line goes"),
        ("generate --lines --echo", "--lines writes JSON alone"),
        ("chat --lines --session s", "a conversation of its own"),
        ("chat --lines --prompt-report", "--lines writes JSON alone"),
        ("generate --lines --draft-model x", "--draft-model is for one text"),
        ("chat --lines --draft-model x", "--draft-model is for one text"),
        ("generate --lines --logit-bias 999999=1", "999999"),
    ],
)
def test_what_means_nothing_with_lines_is_refused(cli: Cli, arguments: str, says: str) -> None:
    cli(*arguments.split(), stdin=b"a\n").fails(2, says)
