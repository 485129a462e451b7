"""What a person sees of `gptcli generate` on a terminal."""

from __future__ import annotations

import shlex

import pytest

from gptcli.cli.terminal.columns import wrapped
from tests.cli.conftest import SCRIPTED
from tests.cli.scripted import Script
from tests.cli.terminal.pty_terminal import Terminal, show

pytestmark = pytest.mark.usefixtures("tiny_by_default")


def test_a_missing_newline_is_added() -> None:
    terminal = show(Script(pieces=["some ", "text"]))
    assert terminal.lines == ["some text"]
    assert (terminal.screen.cursor.x, terminal.screen.cursor.y) == (0, 1)


def test_an_empty_text_gets_a_note_and_no_newline() -> None:
    assert show(Script()).lines == ["gptcli: note: the model ended at once; --chat asks it a question"]
    assert show(Script(), "-q").raw == b""


def test_a_cut_text_says_so() -> None:
    cut = Script(pieces=["one ", "two"], reason="length")
    assert show(cut, "-n", "2").lines[1] == "gptcli: note: cut at 2 tokens; -n sets how many"
    assert show(cut).lines[1] == "gptcli: note: cut: the context is full"
    one = Script(pieces=["one"], reason="length")
    assert show(one, "-n", "1").lines[1] == "gptcli: note: cut at 1 token; -n sets how many"


def test_a_question_that_was_only_continued_gets_a_hint() -> None:
    because = Script(pieces=["Because."])
    assert show(because, prompt="Why?").lines[1] == "gptcli: note: this continued the question; --chat asks it"
    assert show(because, "--chat", prompt="Why?").lines == ["Because."]


@pytest.mark.parametrize(
    ("written", "command", "noted"),
    [
        ("Why?\\n", "generate --chat", True),
        ("Why?\\n", "chat", True),
        ("Why?", "chat", False),
        ("Why?\\n", "chat -q", False),
        ("Why?\\n", "chat 'Answer briefly.'", False),
        ("It rains.\\nWhy?\\n", "chat", False),
        ("Why\\n", "generate", False),
    ],
)
def test_a_newline_after_a_piped_question_is_noted(written: str, command: str, noted: bool) -> None:
    pipe = f"printf '{written}' | {shlex.join(SCRIPTED)} {command}"
    terminal = Terminal("sh", "-c", pipe, environment=Script(pieces=["Because."]).environment())
    terminal.finish()
    note = "gptcli: note: the question ends with a newline, which the model reads; `echo -n` writes none"
    assert " ".join(terminal.lines) == (f"{note} Because." if noted else "Because.")


def test_control_characters_are_shown_and_not_obeyed() -> None:
    pieces = ["a\x1b", "[31m", "\x1b]0;title\x07", "\x9b2J", "b\rc\x08\x00\x7f", "\u202ed\u2066e"]
    terminal = show(Script(pieces=pieces))
    assert terminal.text == "a␛[31m␛]0;title␇\\x9b2Jb␍c␈␀␡<U+202E>d<U+2066>e"
    assert b"\x1b" not in terminal.raw
    assert terminal.screen.title == ""


@pytest.mark.parametrize("text", ["text", "👩‍🚀 ❤️ é नि", "[red]a[/b] :smile: https://x.example"])
def test_text_is_shown_as_it_is_and_at_once(text: str) -> None:
    assert show(Script(pieces=[text])).raw.decode() == text + "\r\n"


@pytest.mark.parametrize("slow", [{"load_s": 0.3}, {"prefill_s": 0.3}])
@pytest.mark.parametrize("options", [["--echo"], ["--markdown"]])
def test_progress_is_shown_and_then_erased(slow: dict[str, float], options: list[str]) -> None:
    terminal = show(Script(pieces=["text ", "and more"], **slow), *options)
    assert ("loading tiny" if "load_s" in slow else "prefill").encode() in terminal.raw
    assert terminal.lines == ["atext and more" if "--echo" in options else "text and more"]


def test_progress_shows_how_far_it_is() -> None:
    assert "━━━━━━────────────── 100 MB/300 MB".encode() in show(Script(load_s=0.4)).raw


def test_quiet_and_dumb_terminals_show_no_progress() -> None:
    script = Script(load_s=0.4, pieces=["text"])
    assert show(script, "-q").raw == show(script, TERM="dumb").raw == b"text\r\n"


@pytest.mark.parametrize("width", [1, 20])
def test_progress_never_wraps(width: int) -> None:
    terminal = show(Script(load_s=0.5, pieces=["x\n"]), width=width)
    assert terminal.lines == ["x"]
    assert terminal.screen.cursor.y == 1


def test_an_error_in_mid_stream_begins_a_line() -> None:
    terminal = show(Script(pieces=["text"], overflows=True))
    assert terminal.lines == ["text", "gptcli: error: the context of 8 tokens is full"]
    assert terminal.child.exitstatus == 6


def test_errors_are_coloured_unless_asked_not_to() -> None:
    assert b"\x1b[1;31mgptcli: error:" in show(Script(), "-t", "nan").raw
    assert b"31m" not in show(Script(), "-t", "nan", NO_COLOR="1").raw
    assert b"\x1b" not in show(Script(), "-t", "nan", TERM="dumb").raw
    assert b"\x1b" not in show(Script(), "-t", "nan", TERM="").raw


def test_an_error_is_wrapped_between_words() -> None:
    terminal = show(Script(), "-t", "nan", width=20)
    assert terminal.lines == ["gptcli: error:", "temperature must be", "at least 0 (0 is", "greedy), not nan"]


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (60, ["hint: run `gptcli models pull one/two` or call it three"]),
        (40, ["hint: run `gptcli models pull one/two`", "or call it three"]),
        (30, ["hint: run", "`gptcli models pull one/two`", "or call it three"]),
        (12, ["hint: run", "`gptcli models pull one/two`", "or call it", "three"]),
    ],
)
def test_a_command_to_be_copied_is_never_split(columns: int, lines: list[str]) -> None:
    text = "hint: run `gptcli models pull one/two` or call it three"
    assert wrapped(text, columns).split("\n") == lines
    assert wrapped(f"  {text}", columns + 2).split("\n") == [f"  {line}" for line in lines]


DOCUMENT = "# Title\n\nSome *text*.\n\n- one\n- two\n\n```\ncode\n```\n"


def test_markdown_on_a_dumb_terminal_is_text() -> None:
    assert show(Script(pieces=list(DOCUMENT)), "--markdown", TERM="dumb").text == DOCUMENT.rstrip()


def test_markdown_without_colour_is_drawn_without_colour() -> None:
    terminal = show(Script(pieces=list("`code`\n\n```python\nx = 1\n```\n")), "--markdown", NO_COLOR="1")
    assert terminal.text.split() == ["code", "x", "=", "1"]
    assert b"\x1b[3" not in terminal.raw and b";3" not in terminal.raw
