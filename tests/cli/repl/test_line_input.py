"""Keys, pastes, editor, completion and history at the prompt."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gptcli.cli.repl.prompt.pastes import Pastes
from gptcli.cli.repl.prompt.prompt_history import PromptHistory
from tests.cli.chat_terminal import HELLO, Chat, said, state

LINES = "\n".join(f"line {number}" for number in range(312))


@pytest.mark.parametrize("key", ["\n", "\x1b\r"], ids=["ctrl-j", "alt-enter"])
def test_a_newline_is_inserted_and_enter_submits(key: str, chat: Chat) -> None:
    chat.type(f"one{key}two", ". two")
    chat.ask("")
    assert said()[0] == "one\ntwo"


def test_triple_quotes_open_many_lines(chat: Chat) -> None:
    chat.type('"""one\rtwo\r', ". two")
    chat.ask('"""')
    assert said()[0] == "one\ntwo"


def test_a_paste_is_not_submitted_and_a_short_one_is_shown(chat: Chat) -> None:
    chat.paste("one\ntwo\n", ". two")
    chat.ask("three")
    assert said()[0] == "one\ntwo\nthree"


def test_a_key_deletes_a_long_paste_whole(chat: Chat) -> None:
    chat.paste(LINES)
    chat.paste(LINES + "\nmore", "> [pasted 312 lines][pasted 313 lines]")
    chat.type("\x1b[D\x7f")
    chat.wait_for(lambda: "> [pasted 313 lines]" in chat.lines[1], "one paste less")
    chat.ask("")
    assert said()[0] == LINES + "\nmore"


def test_a_paste_into_the_middle_of_a_word_leaves_the_cursor_after_it(chat: Chat) -> None:
    chat.type("ab\x02")
    chat.paste(LINES)
    chat.ask("x")
    assert said()[0] == f"a{LINES}xb"


def test_pastes_with_the_same_label_stay_apart() -> None:
    pastes = Pastes()
    first, second = pastes.fold("a\n" * 30), pastes.fold("b\r\n" * 30)
    assert pastes.expand(f"{second} {first}") == "b\n" * 30 + " " + "a\n" * 30


def test_the_editor_gets_pastes_whole_and_gives_the_line_back(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nwc -l < "$1" > {tmp_path}/seen\necho edited > "$1"\n')
    editor.chmod(0o755)
    chat = Chat(HELLO, VISUAL=str(editor)).ready()
    chat.paste(LINES, "[pasted")
    chat.type("\x18\x05", "> edited")
    chat.ask("")
    assert (tmp_path / "seen").read_text().strip() == "311"  # line ends
    assert said()[0] == "edited"


@pytest.mark.parametrize(
    ("commands", "left"),
    [
        ("printf 'caf\\351'", "> caf\N{REPLACEMENT CHARACTER}"),
        ("seq 300", "[pasted 299 lines]"),
        ("echo half of it; exit 1", "> as it was"),
    ],
)
def test_whatever_an_editor_leaves_the_prompt_goes_on(commands: str, left: str, tmp_path: Path) -> None:
    editor = tmp_path / "an editor"
    editor.write_text(f'#!/bin/sh\nexec > "$1"\n{commands}\n')
    editor.chmod(0o755)
    chat = Chat(HELLO, VISUAL="/nowhere/editor", EDITOR=f"'{editor}'").ready()
    chat.type("as it was\x18\x05")
    chat.wait_for(lambda: left in chat.text and chat.raw.count(b"\x1b[?2004h") > 1, f"{left} in a new prompt")
    chat.type(".\r")
    chat.ready(2)
    assert "exception" not in chat.text
    assert said()[0].endswith(".")


def test_two_slashes_send_one(chat: Chat) -> None:
    chat.ask("//etc/hosts is what?")
    assert said()[0] == "/etc/hosts is what?"


def test_up_finds_lines_with_the_same_start(chat: Chat) -> None:
    for line in ("what is tea", "who are you", " what a secret", "other"):
        chat.ask(line)
    chat.type("wh\x1b[A", "> who are you", 2)
    chat.type("\x1b[A", "> what is tea", 2)
    assert "secret" not in (state() / "history.jsonl").read_text()


def test_tab_completes_commands_settings_and_values(chat: Chat) -> None:
    chat.type("/mark\t", "> /markdown")
    chat.type("of\t")
    chat.ask("")
    chat.type("/set overf\t", "> /set overflow")
    chat.type(" st\t", "> /set overflow stop")
    chat.ask("")
    assert "overflow = stop  (session)" in chat.lines


def test_invalid_utf_8_becomes_a_visible_character(chat: Chat) -> None:
    chat.child.send(b"a\xffb")
    chat.ask("")
    assert said()[0] == "a\ufffdb"


def history() -> PromptHistory:
    return PromptHistory(lambda message: pytest.fail(message))


def test_a_history_is_private_and_outlives_a_torn_line() -> None:
    history().append_string("one\nline")
    file = state() / "history.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with file.open("a") as stream:
        stream.write('"tor')
    history().append_string("two")
    assert list(history().load_history_strings()) == ["two", "one\nline"]


def test_histories_side_by_side_lose_nothing() -> None:
    first, second = history(), history()
    for number in range(50):
        first.append_string(f"first {number}")
        second.append_string(f"second {number}")
    assert len(list(history().load_history_strings())) == 100


def test_a_history_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    state().mkdir(parents=True)
    (state() / "history.jsonl").symlink_to(target)
    warnings: list[str] = []
    kept = PromptHistory(warnings.append)
    kept.append_string("one")
    assert (len(warnings), kept.get_strings(), target.read_text()) == (1, ["one"], "")


def test_a_full_disk_is_noted_once_and_the_history_goes_on_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    kept = PromptHistory(warnings.append)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        kept.append_string("one")
        kept.append_string("two")
    assert (len(warnings), kept.get_strings()) == (1, ["one", "two"])
    assert "No space left" in warnings[0]


def test_a_long_message_is_recalled_folded_and_sent_whole(chat: Chat) -> None:
    chat.type("see ")
    chat.paste(LINES)
    chat.ask("")
    chat.type("\x1b[A", "> see [pasted 312 lines]", 2)
    chat.type("\x03")
    assert chat.leave() == 0
    later = Chat(HELLO).ready()
    later.type("\x1b[A", "> see line 0")
    later.expect(". [pasted 311 lines]")
    later.ask("")
    assert said() == [f"see {LINES}"] * 2


@pytest.mark.parametrize("length", [1, 37, 38, 39, 75, 76, 77])
def test_a_message_as_wide_as_the_screen_leaves_no_empty_line(length: int) -> None:
    chat = Chat(HELLO, width=40).ready()
    chat.ask("x" * length)
    assert "" not in chat.lines[chat.lines.index("Hello.") - 3 : chat.lines.index("Hello.")]


def test_a_message_of_several_lines_as_wide_as_the_screen_leaves_no_empty_line() -> None:
    chat = Chat(HELLO, width=40).ready()
    chat.type("x" * 38 + "\n" + "y" * 38, "y" * 38)
    chat.ask("")
    assert chat.lines[-6:-3] == [f"> {'x' * 38}", f". {'y' * 38}", "Hello."]
