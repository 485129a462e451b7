"""The terminal is asked for its background, and colours are readable on it. The answer is never taken for keys."""

from __future__ import annotations

from functools import partial

import pytest

from gptcli.cli.terminal.background_colour import BackgroundAnswers, Rgb, background_of_environment, contrast, readable
from tests.cli.chat_terminal import Chat, said
from tests.cli.scripted import Script
from tests.cli.terminal.pty_terminal import QUESTION, Terminal, show

CODE = Script(pieces=list("`code`\n\n```python\n@a\ndef f(x: int):  # c\n    return x + 'y' + 1\n```\n"))
DARK, LIGHT = "1e1e/1e1e/2e2e", "fdfd/f6f6/e3e3"
TERMINAL = "\x1b[?62;22c"  # what a terminal answers to DA1


generate = partial(show, CODE)


def answer(colour: str) -> str:
    return f"\x1b]11;rgb:{colour}\x1b\\{TERMINAL}"


def rgb(digits: str) -> Rgb:
    red, green, blue = (int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4))
    return red, green, blue


def colours(terminal: Terminal) -> set[str]:
    """The colours of characters on the screen, as hexadecimal digits."""
    rows = terminal.screen.buffer.values()
    return {cell.fg for row in rows for cell in row.values() if len(cell.fg) == 6 and cell.data != " "}


@pytest.mark.parametrize("background", ["000000", "1e1e2e", "2e3440", "002b36", "ffffff", "fdf6e3", "e1e2e7", "808080"])
@pytest.mark.parametrize("colour", ["#ff7b72", "#79c0ff", "#a5d6ff", "#8b949e", "#ffff00", "#0000ff", "#000000"])
def test_colours_are_readable(colour: str, background: str) -> None:
    assert contrast(rgb(readable(colour, rgb(background))[1:]), rgb(background)) >= 4.5
    unknown = rgb(readable(colour, None)[1:])
    assert min(contrast(unknown, rgb("000000")), contrast(unknown, rgb("ffffff"))) > 3.5


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        (answer("ffff/8080/0000"), (1, 0x8080 / 0xFFFF, 0)),
        (f"\x1b]11;rgb:ff/80/00\x07{TERMINAL}", (1, 0x80 / 0xFF, 0)),
        (f"\x1b]11;rgba:ffff/8080/0000/ffff\x1b\\{TERMINAL}", (1, 0x8080 / 0xFFFF, 0)),
        (TERMINAL, None),
    ],
)
def test_an_answer_is_taken_out_of_the_keys_however_it_is_cut(text: str, colour: Rgb | None) -> None:
    whole = f"keys\x1b[A{text}more\x1b[B"
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1):
            answers = BackgroundAnswers()
            pieces = (whole[:first], whole[first:second], whole[second:])
            assert "".join(map(answers.without, pieces)) == "keys\x1b[Amore\x1b[B"
            assert answers.done
            assert answers.colour == colour


def test_the_escape_key_does_not_wait_once_the_terminal_has_answered() -> None:
    answers = BackgroundAnswers()
    assert answers.without("\x1b") == ""
    assert answers.without(TERMINAL[1:]) == ""
    assert answers.without("\x1b") == "\x1b"


@pytest.mark.parametrize(
    ("value", "light"),
    [
        *(("15;0", False), ("0;15", True), ("0;default;7", True), ("7;8", False)),
        *(("", None), ("default", None), ("15;default", None)),
    ],
)
def test_colorfgbg_names_the_background(value: str, light: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", value)
    background = background_of_environment()
    assert (background and sum(background) > 1.5) == light


@pytest.mark.usefixtures("tiny_by_default")
class TestPrograms:
    """A program on a terminal that answers, or does not."""

    @pytest.mark.parametrize(("background", "colorterm"), [(DARK, ""), (LIGHT, "truecolor")])
    def test_answers_at_the_prompt_are_readable(self, background: str, colorterm: str) -> None:
        chat = Chat(CODE, answer=answer(background), COLORTERM=colorterm).ready()
        chat.ask("question")
        shown = colours(chat)
        assert len(shown) >= 4
        digits = background[0:2] + background[5:7] + background[10:12]
        assert min(contrast(rgb(colour), rgb(digits)) for colour in shown) >= 4.5
        assert chat.leave() == 0
        assert said()[0] == "question"

    @pytest.mark.parametrize("late", [answer(LIGHT), TERMINAL])
    def test_a_late_answer_is_no_text(self, late: str) -> None:
        chat = Chat(CODE).ready()
        chat.type("que", "> que")
        chat.type(late)
        chat.ask("stion")
        assert chat.leave() == 0
        assert said()[0] == "question"

    def test_the_last_answer_is_shown_in_colours_that_suit(self) -> None:
        chat = Chat(CODE).ready()
        chat.ask("question")
        assert chat.leave() == 0
        shown = []
        for background in (LIGHT, DARK):
            chat = Chat(CODE, "--continue", answer=answer(background)).ready(2)
            shown.append(colours(chat))
            assert chat.leave() == 0
        assert shown[0] and shown[0].isdisjoint(shown[1])

    def test_leaving_waits_for_the_answer(self) -> None:
        chat = Chat(CODE).ready()
        chat.type("\x04")
        chat.child.send(answer(LIGHT))
        assert chat.end() == 0
        assert "rgb" not in chat.text

    def test_one_text_in_markdown_is_readable_and_the_answer_is_not_echoed(self) -> None:
        light = generate("--markdown", answer=answer(LIGHT))
        dark = generate("--markdown", answer=answer(DARK))
        assert light.lines == dark.lines == ["code", "", "@a", "def f(x: int):  # c", "    return x + 'y' + 1"]
        assert colours(light).isdisjoint(colours(dark))

    def test_only_markdown_in_colour_asks(self) -> None:
        asked = generate("--markdown")
        assert QUESTION in asked.raw and colours(asked)  # though nothing answers
        assert QUESTION not in generate().raw
        for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"GPTCLI_THEME": "dark"}, {"SSH_CONNECTION": "1 2 3 4"}):
            assert QUESTION not in generate("--markdown", **setting).raw

    def test_a_theme_can_be_chosen_and_an_unknown_one_is_refused(self) -> None:
        light, dark = (generate("--markdown", GPTCLI_THEME=theme) for theme in ("light", "dark"))
        assert colours(light).isdisjoint(colours(dark))

        terminal = generate("--markdown", GPTCLI_THEME="pink")
        assert terminal.lines == ["gptcli: error: GPTCLI_THEME is auto, dark or light, not pink"]
        assert terminal.child.exitstatus == 2
