from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from rich.cells import cell_len

from gptcli.chat.state_files import state_directory
from gptcli.chat.storage import SessionFile, StoredSession, read_session, session_names
from gptcli.cli.repl import stored_sessions
from tests.cli.conftest import SCRIPTED, Cli
from tests.cli.scripted import Script
from tests.tiny import make_model


@pytest.fixture
def chat(cli: Cli, tiny_model: Path) -> Cli:
    """`gptcli chat` with the tiny model, greedily and briefly."""
    return partial(cli, "chat", "-m", tiny_model, "-t", "0", "-n", "8", stdin=b"")


def said(role: str) -> list[str]:
    """What the user or the assistant has said in session `s`."""
    return [event["content"] for event in read_session("s") if event.get("role") == role]


def test_a_question_gets_one_answer_and_nothing_else(chat: Cli, cli: Cli, tiny_model: Path) -> None:
    asked = chat("In a town")
    generated = cli("generate", "--chat", "-m", tiny_model, "-t", "0", "-n", "8", "In a town", stdin=b"")
    assert (asked.code, asked.err) == (0, "")
    assert asked.out == generated.out != b""


def test_what_is_piped_in_comes_before_the_question(chat: Cli) -> None:
    assert chat("sum up", stdin=b"notes\n").out == chat("notes\n\nsum up").out
    assert chat(stdin=b"notes\n\nsum up").out == chat("notes\n\nsum up").out


def test_a_named_session_remembers(chat: Cli) -> None:
    assert session_names() == []
    for turn in ("one", "two"):
        assert chat("--session", "s", turn).code == 0
    assert said("user") == ["one", "two"]
    first = chat("one", "--json").json
    both = chat("--continue", "three", "--json").json
    assert both["prompt_tokens"] > 2 * first["prompt_tokens"]


def test_a_session_keeps_its_model_and_system_message_but_no_options(cli: Cli, tiny_model: Path) -> None:
    given = ["-m", tiny_model, "-t", "0", "-n", "3", "--system", "Be brief."]
    first = cli("chat", "--session", "s", *given, "one", "--json", stdin=b"").json
    assert (first["completion_tokens"], first["settings"]["temperature"]) == (3, 0)
    record = cli("chat", "--session", "s", "two", "--ignore-eos", "-n", "4", "--json", stdin=b"").json
    assert (record["completion_tokens"], record["settings"]["temperature"]) == (4, 0.8)
    assert [event["type"] for event in read_session("s")].count("system") == 1
    assert [event["type"] for event in read_session("s")].count("settings") == 0


def test_another_model_for_one_call_is_not_the_sessions(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    spoken = [
        cli("chat", "--session", "s", *given, "-n", "2", "--json", "say", stdin=b"").json["model"]
        for given in (["-m", tiny_model], ["-m", other], [])
    ]
    assert spoken == [str(tiny_model), str(other), str(tiny_model)]


def test_a_sessions_settings_beat_the_configuration_file(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("max-tokens = 2\ntemperature = 0.5")
    monkeypatch.setenv("GPTCLI_CONFIG", str(tmp_path / "config.toml"))
    assert cli("chat", "--session", "s", "-m", tiny_model, "--ignore-eos", "one", stdin=b"").code == 0
    with contextlib.closing(SessionFile.open("s")) as file:
        file.append({"type": "settings", "settings": {"max_tokens": 3, "ignore_eos": True}})
    record = cli("chat", "--session", "s", "two", "--json", stdin=b"").json
    assert (record["completion_tokens"], record["settings"]["temperature"]) == (3, 0.5)


def test_a_configured_system_message_leaves_a_sessions_own(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('system = "From the file."')
    for configured in ("off", str(tmp_path / "config.toml")):
        monkeypatch.setenv("GPTCLI_CONFIG", configured)
        own = ["--system", "Its own."] if configured == "off" else []
        assert cli("chat", "--session", "s", "-m", tiny_model, *own, "-n", "1", "hi", stdin=b"").code == 0
    assert [event["content"] for event in read_session("s") if event["type"] == "system"] == ["Its own."]


@pytest.mark.parametrize("others", [["hello"], ["--session", "a"], ["--list"]])
def test_deleting_does_nothing_else(chat: Cli, others: list[str]) -> None:
    chat("--session", "s", "one")
    assert chat("--delete", "s", *others).code == 2
    assert session_names() == ["s"]


def test_a_session_can_be_deleted_unless_it_is_open(chat: Cli) -> None:
    chat("--session", "s", "one")
    with contextlib.closing(SessionFile.open("s")):
        assert chat("--delete", "s").code == 8
    assert chat("--delete", "s").code == 0
    assert session_names() == []
    assert chat("--delete", "s").code == 4


def test_a_model_that_has_changed_is_noted(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    assert cli("chat", "-m", model, "--session", "s", "-n", "2", "one", stdin=b"").err == ""
    make_model(model, seed=1)
    assert "is not what it was" in cli("chat", "--session", "s", "-n", "2", "two", stdin=b"").err


def test_a_session_in_use_is_refused_and_can_be_forked(chat: Cli) -> None:
    chat("--session", "s", "one")
    with contextlib.closing(SessionFile.open("s")):
        chat("--session", "s", "two").fails(8, "in use", "--fork")
        assert chat("--session", "s", "--fork", "two").code == 0


def test_a_session_is_taken_at_once_and_a_kill_frees_its_name(tiny_model: Path, tmp_path: Path) -> None:
    mark = tmp_path / "loading"
    environment = Script(pieces=["Hi."], load_s=600, mark=str(mark)).environment()
    quick = Script(pieces=["Hi."]).environment()
    command = [*SCRIPTED, "chat", "-m", str(tiny_model), "--session", "new", "hello"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL) as first:
        while not mark.exists():
            assert first.poll() is None
            time.sleep(0.01)
        others = [subprocess.Popen(command, env=quick, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in "23"]
        complaints = [other.communicate()[1].splitlines()[0] for other in others]
        first.kill()
    assert complaints == [b"gptcli: error: in use: session new: another gptcli has it open"] * 2
    assert [other.returncode for other in others] == [8, 8]
    assert session_names() == []
    subprocess.run(command, env=quick, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    assert session_names() == ["new"]


def test_a_torn_session_is_repaired_and_says_so(chat: Cli) -> None:
    chat("--session", "s", "one")
    (file,) = (state_directory() / "sessions").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    result = chat("--session", "s", "two")
    assert result.code == 0 and "torn" in result.err
    assert said("user") == ["one", "two"]


@pytest.mark.parametrize("state", ["nothing-yet", "/dev/null"])
def test_listing_no_sessions_writes_nothing(chat: Cli, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", os.path.join(os.environ["XDG_STATE_HOME"], state))
    result = chat("--list")
    assert (result.code, result.err) == (0, "gptcli: note: no sessions yet\n")
    assert state == "/dev/null" or not os.path.exists(os.environ["XDG_STATE_HOME"])


def test_sessions_are_listed_for_scripts(chat: Cli) -> None:
    assert chat("--list").out == b""
    chat("--session", "s", "What is\ta town?\nAnd")
    [[name, _, turns, model, question, error]] = chat("--list").rows
    assert (name, turns, question, error) == ("s", "1", "What is a town? And", "")
    assert Path(model).is_dir()
    assert chat("--list", "--json").json["question"] == "What is\ta town?\nAnd"


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(120, "name modified turns model question"), (70, "name modified turns question"), (40, "name modified")],
)
def test_on_a_terminal_a_session_is_a_line_that_fits(
    columns: int, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at = datetime.datetime(2026, 1, 1, 12)
    session = StoredSession("2026-01-01-120000", at, 3, "a-model-with-a-name", "Why is it\nthere? 排序 " * 20)
    monkeypatch.setattr(stored_sessions, "stored_sessions", lambda: [session, session])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    stored_sessions.print_sessions(as_json=False)
    heading, *lines = re.sub(r"\x1b\[[0-9;]*m", "", capfd.readouterr().out).splitlines()
    assert heading.split() == shown.split()
    assert len(lines) == 2 and max(map(cell_len, [heading, *lines])) <= columns


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--continue", "x"], 4, "no session"),
        (["--fork", "x"], 2, "--fork needs"),
        ([], 2, ""),
        (["--session", "a", "--continue", "x"], 2, "exclude"),
        (["--session", "a/b", "x"], 2, "has no slashes"),
        (["--session", "a", "--fork", "x"], 4, "no such session"),
        (["--system", "a", "--system-file", "b", "x"], 2, "exclude"),
        (["--top-p", "0", "x"], 2, "top-p"),
        (["--no-think", "x"], 2, "no switch"),
        (["long " * 400], 6, "does not fit"),
    ],
)
def test_senseless_options_are_refused_before_anything_is_loaded(
    arguments: list[str], code: int, complaint: str, chat: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.language_model.LanguageModel.load", lambda *_: pytest.fail("loaded"))
    chat(*arguments).fails(code, complaint)


def test_turns_that_no_longer_fit_are_dropped_with_a_note(chat: Cli) -> None:
    asked = [chat("--session", "s", f"In a small town there lived a clockmaker {turn}") for turn in range(9)]
    assert any("no longer sees the oldest" in each.err for each in asked)


SCRIPT = '''
In a town

"""
two lines
/ of text
"""
//help is a word
'''


def test_the_replies_to_a_script_stand_below_each_other(chat: Cli, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(SCRIPT)
    assert chat("--session", "s", "--script", tmp_path / "script").code == 0
    assert said("user") == ["In a town", "two lines\n/ of text", "/help is a word"]
    replies = said("assistant")
    written = chat("--script", tmp_path / "script").text
    assert written == "".join(reply + "\n" * (not reply.endswith("\n")) for reply in replies[:-1]) + replies[-1]
    assert chat("--script", "-", stdin=SCRIPT.encode()).text == written
    records = chat("--script", tmp_path / "script", "--json").out.splitlines()
    assert [json.loads(record)["text"] for record in records] == replies


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("", "no message"), ("\n \n", "no message"), ('"""\nopen', "does not end"), ("hello\n/set seed 1", "line 2")],
)
def test_a_malformed_script_is_refused(script: str, complaint: str, chat: Cli, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script)
    chat("--script", tmp_path / "script").fails(2, complaint)


def test_a_script_ends_at_the_first_error_and_keeps_what_came_before(chat: Cli, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("one\n" + "long " * 400 + "\nthree\n")
    result = chat("--session", "s", "--script", tmp_path / "script")
    assert result.code == 6 and "does not fit" in result.err
    assert said("user")[0] == "one"
    assert chat("--session", "s", "and then").code == 0


def test_the_prompt_report_shows_the_whole_conversation(chat: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    chat("--session", "s", "--system", "Be brief.", "one")
    monkeypatch.setattr("gptcli.language_model.LanguageModel.load", lambda *_: pytest.fail("loaded"))
    report = chat("--session", "s", "--prompt-report", "--json", "two").json
    assert report["text"].index("Be brief.") < report["text"].index("two")
    assert len([event for event in read_session("s") if event.get("role") == "user"]) == 1
