"""gptcli with streams that are closed, full, or read by nobody; and in locales without UTF-8."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.cli.conftest import ROOT, SCRIPTED, Result, shell
from tests.cli.scripted import Script

pytestmark = pytest.mark.usefixtures("tiny_by_default")
SAYS = Script(pieces=["some ", "text"])


def test_a_real_run_leaves_stderr_silent() -> None:
    done = shell("$gptcli generate 'In a' -n 4 --ignore-eos -s 1")
    assert (done.code, done.err) == (0, "") and done.out


def test_a_reader_that_leaves_ends_decoding_within_a_token() -> None:
    endless = Script(pieces=["text"] * 1000, piece_s=0.02)
    assert shell("$gptcli generate a | head -c1; echo ${PIPESTATUS[0]}", endless) == Result(0, b"t141\n", "")


def test_a_reader_that_leaves_json_or_help_is_no_error() -> None:
    assert shell("$gptcli generate a --json | true; echo ${PIPESTATUS[0]}", SAYS).out in (b"141\n", b"0\n")
    assert shell("(sleep 0.5; $gptcli generate --help; echo $? >&2) | true").err == "141\n"


FULL = "standard output: No space left on device"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("generate a > /dev/full", FULL),
        ("generate a --json > /dev/full", FULL),
        ("generate a --markdown > /dev/full", FULL),
        ("--help > /dev/full", FULL),
        ("generate a -m nonsense >&-", "standard output is closed"),  # before a model is looked for
    ],
)
def test_a_full_disk_or_closed_stdout_is_an_output_error(command: str, reason: str) -> None:
    assert shell(f"$gptcli {command}", SAYS) == Result(8, b"", f"gptcli: error: cannot write: {reason}\n")


@pytest.mark.parametrize("closed", ["2>/dev/full", "<&- 2>&-"])
def test_the_text_comes_whatever_else_is_closed(closed: str) -> None:
    done = shell(f"$gptcli generate a --stats {closed}", SAYS)
    assert (done.code, done.out) == (0, b"some text")


@pytest.mark.parametrize("closed", ["2>/dev/full", "<&- >&- 2>&-"])
def test_an_error_that_cannot_be_said_keeps_its_exit_code(closed: str) -> None:
    assert shell(f"$gptcli generate a -t nan {closed}", SAYS) == Result(2, b"", "")


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii:strict"}],
)
def test_text_is_utf8_in_every_locale(locale: dict[str, str]) -> None:
    script = Script(pieces=["größer 👩‍🚀"])
    done = shell("$gptcli generate --echo 'né ' && printf 'né' | $gptcli generate --echo ''", script, **locale)
    assert done.text == "né größer 👩‍🚀" + "négrößer 👩‍🚀"
    assert shell("$gptcli generate -m né a", None, **locale).err.startswith("gptcli: error: no such model: n")


def test_a_pipe_is_written_to_as_the_text_comes() -> None:
    """And not only once a buffer is full."""
    slow = Script(pieces=["a", "b"], piece_s=0.3)
    process = subprocess.Popen([*SCRIPTED, "generate", "x"], stdout=subprocess.PIPE, cwd=ROOT, env=slow.environment())
    assert os.read(process.stdout.fileno(), 9) == b"a"
    assert process.poll() is None
    assert process.communicate()[0] == b"b"


def test_a_reader_that_leaves_a_real_generation_ends_it() -> None:
    done = shell("$gptcli generate a -n 100000 --overflow shift --ignore-eos | head -c1 | wc -c; echo ${PIPESTATUS[0]}")
    assert (done.out.split(), done.err) == ([b"1", b"141"], "")
