"""What slash commands do, and that their table is complete."""

from __future__ import annotations

import base64
import json
import re
import resource
from pathlib import Path

import pytest

from gptcli.cli.repl.commands.command_table import COMMANDS
from gptcli.cli.repl.commands.slash_command import find
from gptcli.errors import UsageError
from gptcli.training.documents import Conversation, document_of
from tests.cli.chat_terminal import HELLO, Chat, said, sessions, state
from tests.cli.scripted import Script
from tests.tiny import make_model


def answer_to(chat: Chat, command: str) -> list[str]:
    """The lines that a command prints."""
    prompts = chat.prompts
    chat.ask(command)
    shown = [number for number, line in enumerate(chat.lines) if line.startswith(">")]
    return [line for line in chat.lines[shown[prompts - 1] + 1 : shown[prompts]] if line]


@pytest.fixture
def town(chat: Chat) -> Chat:
    """A conversation of one turn that is saved as `town`."""
    chat.ask("one")
    assert answer_to(chat, "/save town") == ["saved as town"]
    return chat


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_a_help_and_an_example_that_finds_it(command: object) -> None:
    assert command.help.endswith(".")
    assert find(command.example.removeprefix("/").partition(" ")[0], COMMANDS) is command


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("hlep", "help"), ("ex", "exit"), ("marcdown", "markdown"), ("nonsense", None), ("xyzzy", None)],
)
def test_an_unknown_command_suggests_the_nearest(typed: str, meant: str | None) -> None:
    with pytest.raises(UsageError) as error:
        find(typed, COMMANDS)
    assert (f"did you mean /{meant}?" in str(error.value.hint)) == (meant is not None)


def test_an_unknown_command_is_not_sent_to_the_model(chat: Chat) -> None:
    shown = answer_to(chat, "/hlep me")
    assert shown[0] == "error: there is no command /hlep"
    assert "did you mean /help?" in shown[1]
    assert said() == []


def test_help_lists_commands_and_keys_and_explains_a_command(chat: Chat) -> None:
    shown = answer_to(chat, "/help")
    assert [line.split()[0].removeprefix("/") for line in shown[: len(COMMANDS)]] == [each.name for each in COMMANDS]
    assert any(line.startswith("Ctrl-C ") for line in shown[len(COMMANDS) :])
    assert answer_to(chat, "/help seed")[0] == "/seed [N]"
    assert answer_to(chat, "/help exit")[-1].strip() == "also: /quit /q /bye"
    assert all(len(f"{command.usage:17}  {command.help.split('.')[0]}") <= 80 for command in COMMANDS)


def test_help_on_a_narrow_terminal_leaves_arguments_out() -> None:
    shown = answer_to(Chat(HELLO, width=40, height=80).ready(), "/help")
    assert [line.split()[0] for line in shown if line.startswith("/")] == [f"/{each.name}" for each in COMMANDS]
    assert "/seed      Sets the seed, or shows the" in shown
    assert len(shown) < 60


def test_new_begins_another_session(chat: Chat) -> None:
    chat.ask("one")
    chat.ask("/system Be brief.")
    chat.ask("/new")
    chat.ask("two")
    first, second = sessions()
    assert [event["content"] for event in first if event["type"] == "message"] == ["one", "Hello."]
    assert [event["content"] for event in second if "content" in event] == ["Be brief.", "two", "Hello."]


def test_undo_takes_a_turn_back(chat: Chat) -> None:
    chat.ask("one")
    chat.ask("two")
    assert answer_to(chat, "/undo") == ["taken back: two"]
    assert "1 turn" in answer_to(chat, "/context")[0]
    chat.ask("/undo")
    assert answer_to(chat, "/undo") == ["error: there is no turn to take back"]


def test_retry_and_edit_ask_again(chat: Chat) -> None:
    chat.ask("one")
    chat.ask("/retry")
    chat.ask("/edit three")
    chat.type("/edit\r", "edit> three")
    chat.ask(" and four")
    exported = json.loads("\n".join(answer_to(chat, "/export json")))
    assert [message["content"] for message in exported["messages"]] == ["three and four", "Hello."]


def test_ctrl_d_gives_up_an_edit(chat: Chat) -> None:
    chat.ask("one")
    prompts = chat.prompts
    chat.type("/edit\r", "edit> one")
    chat.type("\x04\x03\x03\x04")
    chat.ready(prompts + 1)
    assert said() == ["one", "Hello."]
    assert chat.leave() == 0


def test_a_long_question_is_edited_folded() -> None:
    pasted = "\n".join(f"line {number}" for number in range(300))
    chat = Chat(HELLO).ready()
    chat.paste(pasted, "[pasted 300 lines]")
    chat.type("\r")
    chat.ready(2)
    chat.type("/edit\r", "[pasted 299 lines]")
    chat.type("!\r")
    chat.ready(3)
    assert said()[-1] == f"{pasted}!"


def test_an_argument_of_a_command_without_any_is_refused(chat: Chat) -> None:
    chat.ask("one")
    assert answer_to(chat, "/set parameter top-k 5") == ["top_k = 5  (session)"]
    assert answer_to(chat, "/undo 2") == ["error: /undo takes no arguments"]
    assert said() == ["one", "Hello."]


def test_the_system_message_is_shown_set_and_removed(chat: Chat) -> None:
    assert answer_to(chat, "/system") == ["system: (none)"]
    assert answer_to(chat, "/system Be brief.") == ["system: Be brief."]
    assert answer_to(chat, "/system none") == ["system: (none)"]
    assert answer_to(chat, "/set system Be kind.") == ["system: Be kind."]


def test_settings_are_shown_changed_and_refused_with_their_range(chat: Chat) -> None:
    assert "temperature = 0.8  (default)" in answer_to(chat, "/set")
    assert answer_to(chat, "/set temperature 0.2") == ["temperature = 0.2  (session)"]
    assert "at least 0" in answer_to(chat, "/set temperature -1")[0]
    assert answer_to(chat, "/set temperature default") == ["temperature = 0.8  (default)"]
    assert "there is no setting heat" in answer_to(chat, "/set heat")[0]
    assert answer_to(chat, "/set stop 'a b' c") == ["stop = 'a b' 'c'  (session)"]


def test_settings_say_how_long_they_stay(tmp_path: Path) -> None:
    (config := tmp_path / "config.toml").write_text("[chat]\nmin-p = 0.1\n")
    chat = Chat(HELLO, "-t", "0.3", "--top-k", "9", GPTCLI_CONFIG=str(config)).ready()
    answer_to(chat, "/set top_k 5")
    assert answer_to(chat, "/set")[:4] == [
        "temperature = 0.3  (this call)",
        "top_k = 5  (session)",
        "top_p = 0.95  (default)",
        "min_p = 0.1  (configuration file)",
    ]
    assert answer_to(chat, "/set show_thinking off") == ["show_thinking = off  (this call)"]


def test_a_seed_is_set_and_the_last_one_shown(chat: Chat) -> None:
    assert answer_to(chat, "/seed 42") == ["seed = 42  (session)"]
    chat.ask("one")
    assert answer_to(chat, "/seed") == ["the last answer was drawn with seed 42"]


def test_another_model_goes_on_with_the_conversation(chat: Chat, tmp_path: Path) -> None:
    make_model(tmp_path / "weights" / "other", seed=1)
    chat.ask("one")
    assert "  other" in answer_to(chat, "/model")
    assert answer_to(chat, "/model other")[-1] == "model: other, context of 256 tokens"
    chat.ask("two")
    assert said() == ["one", "Hello.", "two", "Hello."]
    refused = answer_to(chat, "/model nonesuch")
    assert refused == ["error: no such model: nonesuch", "hint: /model lists them"]
    assert sessions()[0][-1]["model"] == "other"


def test_a_session_is_saved_under_a_name_and_loaded_with_its_last_turn(town: Chat) -> None:
    town.ask("/new")
    assert "town" in answer_to(town, "/sessions")[0]
    town.ask("/load town")
    loaded = town.lines.index("session town: 1 turn so far")
    assert town.lines[loaded + 1 : loaded + 3] == ["> one", "Hello."]
    town.ask("two")
    assert town.leave() == 0
    assert [file.name for file in (state() / "sessions").iterdir()] == ["town.jsonl"]
    assert said() == ["one", "Hello.", "two", "Hello."]


@pytest.mark.parametrize("away", ["/exit", "/new"])
def test_an_emptied_conversation_is_not_kept(town: Chat, away: str) -> None:
    town.ask("/undo")
    assert len(sessions()) == 1
    town.type(f"{away}\r")
    town.wait_for(lambda: sessions() == [], "removal of the session")


@pytest.mark.parametrize("away", ["/exit", "/new"])
def test_a_session_saved_before_its_first_message_stays(chat: Chat, away: str) -> None:
    chat.ask("/system Be a pirate.")
    chat.ask("/save pirate")
    if away == "/exit":
        assert chat.leave() == 0
    else:
        chat.ask(away)
    assert [event["content"] for events in sessions() for event in events if event["type"] == "system"]


def test_a_session_may_be_saved_again_but_not_loaded_into_itself(town: Chat) -> None:
    assert answer_to(town, "/save town") == ["saved as town"]
    assert answer_to(town, "/load town") == ["error: session town is the one that goes on here"]
    [line] = answer_to(town, "/sessions")
    assert re.fullmatch(r"\* town  \d{4}-\d\d-\d\d \d\d:\d\d    1 turn   one", line)


def test_a_fork_leaves_the_session_as_it_was(town: Chat) -> None:
    assert answer_to(town, "/fork plan-b") == ["goes on as plan-b; the other stays as it is"]
    town.ask("two")
    assert [len([event for event in events if event["type"] == "message"]) for events in sessions()] == [4, 2]


def test_a_session_is_deleted_after_a_question(town: Chat) -> None:
    town.type("/delete town\r", "for good? [y/N]")
    town.type("\r", "nothing deleted")
    town.ready(town.prompts)
    assert len(sessions()) == 1
    town.type("/delete\r", "for good? [y/N]", 2)
    town.type("y\r", "deleted: town")
    assert sessions() == []


def test_a_conversation_is_left_and_continued(town: Chat) -> None:
    assert town.leave() == 0
    assert town.lines[-1] == "to go on: gptcli chat --session town"
    again = Chat(HELLO, "--session", "town")
    again.wait_for(lambda: again.prompts == 2, "prompt")
    assert again.lines[1:3] == ["> one", "Hello."]
    assert again.screen.buffer[1][2].bold and not again.screen.buffer[2][0].bold


def test_the_code_of_an_answer_is_copied() -> None:
    chat = Chat(Script(pieces=["So:\n\n```py\nx = 1\n```\n\nor\n\n~~~~\n```\n~~~~\n"])).ready()
    chat.ask("code?")
    assert answer_to(chat, "/copy code") == ["copied 10 characters through the terminal (OSC 52)"]
    assert b"\x1b]52;c;" + base64.b64encode(b"x = 1\n\n```") + b"\x07" in chat.raw
    assert answer_to(chat, "/copy") == ["copied 40 characters through the terminal (OSC 52)"]


def test_an_export_is_a_new_file(chat: Chat, tmp_path: Path) -> None:
    chat.ask("one")
    file = tmp_path / "chat.md"
    answer_to(chat, f"/export {file}")
    about, text = re.sub(r"\s+", " ", file.read_text()).split(" ## ", 1)
    assert about.startswith("- model: /") and text == "User one ## Assistant Hello. "
    assert "File exists" in " ".join(answer_to(chat, f"/export md {file}"))


def test_an_export_that_does_not_fit_leaves_no_file(chat: Chat, tmp_path: Path) -> None:
    chat.ask("one")
    file = tmp_path / "chat.html"
    for size, there in (100, False), (resource.RLIM_INFINITY, True):
        resource.prlimit(chat.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        said = "".join("".join(answer_to(chat, f"/export {file}")).split())  # lines break at any place
        assert (f"writtento{file}" if there else "Filetoolarge") in said
        assert file.exists() == there


def test_an_export_has_the_settings_in_effect_and_those_that_nobody_changed(chat: Chat, tmp_path: Path) -> None:
    chat.ask("/set top_k 7")
    chat.ask("one")
    for ending in ("md", "txt", "html", "json"):
        answer_to(chat, f"/export {tmp_path}/chat.{ending}")
    for ending in ("md", "txt", "html"):
        text = (tmp_path / f"chat.{ending}").read_text()
        assert re.search(r"top_k: 7\b", text) and re.search(r"max_tokens: 1024\b", text) and ": none" not in text
    exported = json.loads((tmp_path / "chat.json").read_text())
    assert (exported["top_k"], exported["max_tokens"], exported["regex"]) == (7, 1024, None)
    assert len(exported["messages"]) == 2


def test_an_exported_page_escapes_what_was_said(chat: Chat, tmp_path: Path) -> None:
    chat.ask("<script>1 & 2</script>")
    answer_to(chat, f"/export {tmp_path}/chat.HTML")
    page = (tmp_path / "chat.HTML").read_text()
    assert '<p dir="auto">&lt;script&gt;1 &amp; 2&lt;/script&gt;</p>' in page and "<script" not in page


def test_an_exported_line_is_training_data(chat: Chat, tmp_path: Path) -> None:
    chat.ask("/system Be brief.")
    chat.ask("one")
    answer_to(chat, f"/export {tmp_path}/chat.jsonl")
    (line,) = (tmp_path / "chat.jsonl").read_text().splitlines()
    document, used = document_of(json.loads(line), "chat.jsonl")
    assert isinstance(document, Conversation) and used == {"messages", "tools"}
    assert [message.content for message in document.messages] == ["Be brief.", "one", "Hello."]


def test_an_export_in_another_form_is_refused_with_those_there_are(chat: Chat, tmp_path: Path) -> None:
    chat.ask("one")
    shown = " ".join(answer_to(chat, f"/export {tmp_path}/chat.pdf"))
    assert "error: export as what?" in shown and ".md, .txt, .html, .json, .jsonl" in shown
    assert not list(tmp_path.glob("chat.*"))


def test_a_dumb_terminal_has_no_clipboard() -> None:
    chat = Chat(HELLO, TERM="dumb").ready()
    chat.ask("one")
    assert answer_to(chat, "/copy")[0].startswith("error: nothing to copy with")
    assert b"\x1b" not in chat.raw


def test_stats_are_shown_once_or_after_each_answer(chat: Chat) -> None:
    assert answer_to(chat, "/stats") == ["no answer yet"]
    chat.ask("/stats on")
    assert "1 tok" in "".join(answer_to(chat, "one"))
    assert answer_to(chat, "/stats off")[2].startswith("answer   1 tokens at")
    assert "tok/s" not in "".join(answer_to(chat, "two"))


def test_tokens_of_a_text_and_of_the_last_message(chat: Chat) -> None:
    assert answer_to(chat, "/tokens ab c") == ["a·b·␠·c", "4 tokens"]
    chat.ask("one")
    assert answer_to(chat, "/tokens")[-1].endswith("tokens")


def test_the_screen_is_cleared_and_the_conversation_stays(chat: Chat) -> None:
    chat.ask("one")
    chat.type("/clear\r")
    chat.wait_for(lambda: "one" not in "".join(chat.screen.display), "cleared screen")
    chat.ready()
    chat.ask("two")
    assert said()[::2] == ["one", "two"]
    assert len(sessions()) == 1
    assert "the conversation goes on; /new begins another" in chat.lines


def test_a_file_is_sent_with_a_question(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "my notes").write_text("# Notes\nmilk\n")
    chat.ask(f"/read '{tmp_path}/my notes' What's \"milk\"?")
    chat.ask(f"/read {tmp_path}/my\\ notes")
    assert said()[::2] == ['# Notes\nmilk\n\nWhat\'s "milk"?', "# Notes\nmilk\n"]
    assert answer_to(chat, "/read")[0] == "error: which file?"
    assert answer_to(chat, "/read 'notes")[0] == "error: a quote is not closed"
    assert "No such file" in "".join(answer_to(chat, "/read notes"))


def test_exit_leaves(chat: Chat) -> None:
    chat.type("/exit\r")
    assert chat.end() == 0


def test_a_session_that_another_chat_has_open_is_refused(town: Chat) -> None:
    refused = " ".join(answer_to(Chat(HELLO).ready(), "/load town"))
    assert "in use" in refused and "gptcli chat --session town --fork opens a copy" in refused
