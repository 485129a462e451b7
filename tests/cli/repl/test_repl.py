"""A conversation at a prompt, as a person sees it."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from tests.cli.chat_terminal import HELLO, Chat, said, sessions, state
from tests.cli.conftest import GPTCLI, SCRIPTED
from tests.cli.scripted import Script
from tests.cli.terminal.pty_terminal import Terminal

ENDLESS = Script(pieces=["word "] * 1000, piece_s=0.02)


@pytest.fixture
def endless() -> Chat:
    """A conversation in the middle of an answer that never ends."""
    chat = Chat(ENDLESS).ready()
    chat.type("go\r", "word word word")
    return chat


def test_a_line_typed_before_the_prompt_is_sent_and_several_lines_wait() -> None:
    chat = Chat(HELLO)
    chat.type("one\r", "Hello.")
    several = Chat(HELLO)  # the first one is not closed before the lines are typed, which takes time
    several.type("one\rtwo\r", ". two")
    several.type("\r", "Hello.")


def test_a_message_is_answered_in_another_weight_and_the_prompt_comes_again(chat: Chat) -> None:
    chat.ask("good morning")
    assert chat.lines[1:5] == ["> good morning", "Hello.", "", ">"]
    assert [chat.screen.buffer[row][2].bold for row in (1, 2)] == [True, False]
    assert chat.leave() == 0
    assert said() == ["good morning", "Hello."]


def test_what_is_typed_while_the_model_loads_is_answered() -> None:
    chat = Chat(Script(pieces=["Hello"], load_s=1.0)).ready()
    chat.expect("loading 33%")
    chat.ask("good morning")
    assert "Hello" in chat.lines
    assert chat.leave() == 0


def test_a_model_that_cannot_be_loaded_ends_the_chat_with_an_error() -> None:
    chat = Chat(Script(load_error="the model needs 9.9 GB", load_s=0.3)).ready()
    assert chat.end() == 5
    assert chat.lines[-1] == "gptcli: error: the model needs 9.9 GB"


def test_a_blank_line_is_not_sent(chat: Chat) -> None:
    chat.ask("")
    chat.ask("   ")
    assert chat.leave() == 0
    assert sessions() == []


def test_ctrl_c_stops_an_answer_keeps_it_and_the_chat_goes_on(endless: Chat) -> None:
    endless.type("\x03", "interrupted")
    endless.ready(2)
    endless.type("and so on\r", "word", 20)
    endless.type("\x03")
    endless.ready(3)
    assert endless.leave() == 0
    [events] = sessions()
    replies = [event for event in events if event.get("role") == "assistant"]
    assert [reply["interrupted"] for reply in replies] == [True, True]
    assert replies[0]["content"].startswith("word word word")
    again = Chat(HELLO, "--continue").ready(2)
    assert "note: interrupted" in again.lines


def test_ctrl_c_clears_the_line_and_hints_at_ctrl_d_on_an_empty_one(chat: Chat) -> None:
    chat.type("something", "> something")
    chat.type("\x03")
    chat.wait_for(lambda: "something" not in chat.text, "cleared line")
    assert "Ctrl-D" not in chat.lines[-1]
    chat.type("\x03")
    chat.wait_for(lambda: "Ctrl-D" in chat.lines[-1], "hint")
    chat.type("x")
    chat.wait_for(lambda: "Ctrl-D" not in chat.lines[-1], "cleared hint")
    chat.type("\x7f")
    assert chat.leave() == 0
    assert said() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_the_prompt_kills_the_chat(signum: int, chat: Chat) -> None:
    chat.ask("good morning")
    chat.type("half a line", "half a line")
    chat.child.kill(signum)
    chat.end()
    assert chat.child.signalstatus == signum
    assert said() == ["good morning", "Hello."]


@pytest.mark.parametrize(("markdown", "signum"), [("on", signal.SIGTERM), ("off", signal.SIGHUP)])
def test_a_signal_during_an_answer_keeps_the_answer_so_far(markdown: str, signum: int) -> None:
    chat = Chat(ENDLESS).ready()
    chat.ask(f"/markdown {markdown}")
    chat.type("go\r", "word word word")
    chat.child.kill(signum)
    chat.end()
    assert chat.child.signalstatus == signum
    assert said()[1].startswith("word word word")


def test_a_closed_window_keeps_the_answer_so_far(endless: Chat) -> None:
    endless.child.close(force=False)
    ends = time.monotonic() + 10
    while len(said()) < 2:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert said()[1].startswith("word word word")


def test_what_is_typed_during_an_answer_is_not_echoed_and_comes_next() -> None:
    chat = Chat(Script(pieces=["word "] * 20, piece_s=0.05)).ready()
    chat.type("one\r", "word word")
    chat.type("two\r")
    chat.paste("three\nlines\nlong", "word", 10)
    assert "two" not in chat.text and "lines" not in chat.text
    chat.expect("> two")
    chat.expect(". long")
    assert said()[::2] == ["one", "two"]
    chat.type("\r", "word", 60)
    chat.ready()
    assert said()[4] == "three\nlines\nlong"


def test_what_is_typed_during_an_interrupted_answer_is_not_sent(endless: Chat) -> None:
    endless.type("two\r")
    time.sleep(0.2)
    endless.type("\x03", "> two")
    assert endless.prompts == 2
    assert said()[::2] == ["go"]


def test_a_suspended_answer_leaves_the_terminal_to_the_shell_and_goes_on() -> None:
    shell = Terminal("bash", "--norc", "-i", environment=ENDLESS.environment() | {"PS1": "$ "})
    shell.expect("$")
    modes = shell.modes()
    shell.type(f"{' '.join(SCRIPTED)} chat\r", ">")
    shell.type("go\r", "word word")
    shell.type("\x1a", "Stopped")
    shell.wait_for(lambda: shell.modes() == modes, "the shell's own modes")
    count = shell.text.count("word")
    shell.type("fg\r", "word", count + 10)
    shell.type("echo\r\x03", "interrupted")
    shell.expect("> echo")
    shell.type("\x1a", "Stopped", 2)
    shell.wait_for(lambda: shell.modes() == modes, "the shell's own modes")
    shell.type("fg\r")
    shell.wait_for(lambda: shell.lines[-2] == "> echo", "prompt as it was")
    shell.type("\x03\x04")
    shell.wait_for(lambda: shell.lines[-1] == "$", "shell")
    shell.wait_for(lambda: shell.modes() == modes, "the shell's own modes")
    shell.type("exit\r")
    shell.finish()


@pytest.mark.parametrize(("command", "keys"), [("chat", "go\r"), ("generate --markdown go", "")])
def test_a_resumed_answer_erases_nothing_of_the_shell(command: str, keys: str) -> None:
    shell = Terminal("bash", "--norc", "-i", environment=ENDLESS.environment() | {"PS1": "$ "}, height=40)
    shell.expect("$")
    shell.type(f"{' '.join(SCRIPTED)} {command}\r")
    if keys:
        shell.expect("\n>")
        shell.type(keys)
    shell.wait_for(lambda: shell.text.count("word") > 40, "several lines")
    shell.expect("Ctrl-C stops")
    shell.type("\x1a")
    shell.expect("Stopped")
    assert "Ctrl-C stops" not in shell.text
    shell.type("echo one; echo two; fg\r")
    shell.expect("two\n")
    count = shell.text.count("word")
    shell.expect("word", count + 20)
    assert [line for line in shell.lines if line in ("one", "two")] == ["one", "two"]
    assert "$ echo one; echo two; fg" in shell.lines
    shell.type("\x03")
    shell.child.kill(signal.SIGHUP)
    shell.finish()


@pytest.mark.parametrize("markdown", ["on", "off"])
def test_a_window_may_shrink_and_grow_in_mid_answer(markdown: str) -> None:
    chat = Chat(Script(pieces=[f"word{number} " for number in range(60)], piece_s=0.02)).ready()
    chat.ask(f"/markdown {markdown}")
    chat.type("go\r", "word5")
    for width in (20, 1, 40):
        chat.resize(width)
        time.sleep(0.2)
    chat.expect("word59")
    chat.ready()
    assert chat.leave() == 0
    assert said()[1].split() == [f"word{number}" for number in range(60)]


def test_a_dumb_terminal_gets_plain_lines() -> None:
    chat = Chat(HELLO, TERM="dumb")
    chat.expect(">")
    chat.type("good morning\r", "Hello.")
    chat.expect(">", 2)
    assert chat.leave() == 0
    assert b"\x1b" not in chat.raw
    assert said() == ["good morning", "Hello."]


def test_without_colour_nothing_is_coloured() -> None:
    chat = Chat(Script(pieces=["<think>", "hm", "</think>", "`code`"]), NO_COLOR="1").ready()
    chat.ask("go")
    chat.ask("/nonsense")
    cells = [cell for row in chat.screen.buffer.values() for cell in row.values()]
    assert {cell.fg for cell in cells} == {"default"}
    assert "hm" in chat.lines and "<think>" in chat.lines


def test_a_model_text_cannot_drive_the_terminal() -> None:
    chat = Chat(Script(pieces=["a\x1b[2Jb [red] \u202e"])).ready()
    chat.ask("/markdown off")
    chat.ask("go")
    assert "a␛[2Jb [red] <U+202E>" in chat.lines


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(pieces=["some"], overflows=True), "the context of 8 tokens is full"),
        (Script(turn_error="out of memory on cpu"), "out of memory on cpu"),
    ],
    ids=["in mid-answer", "before the answer"],
)
def test_an_error_ends_the_turn_and_the_chat_goes_on(script: Script, error: str) -> None:
    chat = Chat(script).ready()
    chat.ask("one")
    chat.ask("two")
    assert chat.lines.count(f"error: {error}") == 2
    assert chat.leave() == 0


def test_a_state_directory_that_cannot_be_written_is_noted_once() -> None:
    state().parent.mkdir()
    state().write_text("in the way")
    chat = Chat(HELLO).ready()
    chat.ask("one")
    chat.ask("two")
    assert chat.leave() == 0
    assert chat.text.replace("\n", "").count("File exists") == 1


def test_two_chats_at_once_are_both_stored() -> None:
    first, second = Chat(HELLO).ready(), Chat(HELLO).ready()
    first.ask("one")
    second.ask("two")
    assert (first.leave(), second.leave()) == (0, 0)
    assert len(sessions()) == 2
    third = Chat(HELLO).ready()
    third.type("\x1b[A", "> two")
    third.type("\x1b[A", "> one")


def test_a_full_disk_is_noted_once_and_an_error_at_the_end() -> None:
    command = f"ulimit -f 1; {' '.join(SCRIPTED)} chat; echo code $?"
    shell = Terminal("bash", "-c", command, environment=HELLO.environment(), width=300)
    for number in range(1, 6):
        shell.wait_for(lambda: shell.lines[-2:-1] == [">"], "prompt")
        shell.type(f"{number}\r", "Hello.", number)
    shell.wait_for(lambda: shell.lines[-2:-1] == [">"], "prompt")
    assert shell.text.count("note: not saved:") == 1
    shell.type("\x04")
    shell.finish()
    assert "error: cannot write" in shell.lines[-2]
    assert shell.lines[-1] == "code 8"


@pytest.mark.parametrize("space_again", [False, True])
def test_an_unsaved_conversation_is_saved_at_the_end_if_possible(space_again: bool) -> None:
    chat = Chat(HELLO, "--session", "mine", width=200).ready()
    chat.ask("one")
    limit_files_of(chat, 100)
    chat.ask("two")
    chat.expect("note: not saved")
    chat.ask("/new")
    if space_again:
        limit_files_of(chat, resource.RLIM_INFINITY)
    assert chat.leave() == (0 if space_again else 8)
    assert ("mine.jsonl: File too large" in chat.lines[-1]) == (not space_again)
    assert said() == ["one", "Hello.", *(["two", "Hello."] if space_again else [])]


def limit_files_of(chat: Chat, size: int) -> None:
    """Limits the bytes of each file that the program writes, as a full disk does."""
    resource.prlimit(chat.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_shrinking_window_shows_nothing_twice() -> None:
    chat = Chat(Script(pieces=[f"word{number} " for number in range(40)], piece_s=0.02, reason="stop")).ready()
    chat.type("go\r", "word9")
    chat.resize(20)
    chat.ready(2)
    words = chat.text.split()
    assert [words.count(f"word{number}") for number in range(40)] == [1] * 40


def test_the_tiny_model_talks() -> None:
    environment = {**os.environ, "TERM": "xterm-256color"}
    terminal = Terminal(*GPTCLI, "chat", "-n", "8", "-t", "0", "--stats", environment=environment)
    terminal.expect(">")
    terminal.type("In a small town\r", "8 tok ")
    terminal.type("/probs on\r", "shaded by probability from now on")
    terminal.type("/retry\r", "probability  under 0.1 ")
    terminal.type("/stats\r", "still in the cache, 1 run")
    terminal.type("\x04")
    terminal.finish()
    assert terminal.child.exitstatus == 0
    assert [event.get("instead") for event in sessions()[0] if event.get("role") == "user"] == [None, True]


def test_ctrl_c_right_after_enter_stops_the_answer_too() -> None:
    chat = Chat(ENDLESS).ready()
    chat.type("go\r\x03", "interrupted")
    chat.ready(2)
    assert chat.leave() == 0


def test_a_message_can_be_called_back_while_the_model_loads() -> None:
    chat = Chat(Script(pieces=["Hello"], load_s=1.5)).ready()
    chat.type("go\r", "100 MB/300 MB · Ctrl-C stops")
    chat.type("\x03")
    chat.ready(2)
    assert chat.lines[2] == "note: not sent: the model is still loading"
    assert chat.leave() == 0
    assert said() == []
