from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.chat import storage
from gptcli.chat.state_files import state_directory
from gptcli.chat.storage import SessionFile, read_session, session_names, stored_sessions, unused_name
from gptcli.errors import InputError, OutputError, UsageError

EVENTS: list[dict[str, Any]] = [
    {"type": "session", "version": 1},
    {"type": "message", "role": "user", "content": "Grüße \u2028 \ud800"},
    {"type": "message", "role": "assistant", "content": "ä\n" * 20, "model": "tiny"},
]


def begun(session: SessionFile, events: list[dict[str, Any]] = EVENTS) -> SessionFile:
    """Appends events to a session."""
    for event in events:
        session.append(event)
    return session


def written(name: str, events: list[dict[str, Any]] = EVENTS) -> Path:
    """A session on disk that no process has open."""
    session = begun(SessionFile(name), events)
    session.close()
    return session.path


def test_a_session_is_private_and_comes_back_as_it_was() -> None:
    path = written("mine")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(state_directory().stat().st_mode) == 0o700
    session = SessionFile.open("mine")
    assert session.events == EVENTS and not session.repaired
    session.append({"type": "truncate", "messages": 0})
    assert read_session("mine") == session.events == [*EVENTS, {"type": "truncate", "messages": 0}]


def test_nothing_is_on_disk_before_the_first_message() -> None:
    session = begun(SessionFile("mine"), EVENTS[:1])
    assert not session.path.exists()
    session.append(EVENTS[1])
    assert read_session("mine") == EVENTS[:2]


def test_a_file_torn_at_any_byte_keeps_every_whole_event_and_goes_on() -> None:
    path = written("torn")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        session = SessionFile.open("torn")
        whole = data[:size].count(b"\n")
        assert session.events == EVENTS[:whole]
        assert session.repaired == (not data[:size].endswith(b"\n") and size > 0)
        session.append({"type": "new"})
        session.close()
        assert read_session("torn") == [*EVENTS[:whole], {"type": "new"}]


def test_a_last_line_that_is_not_an_event_is_cut_off() -> None:
    path = written("zeros")
    with path.open("ab") as file:
        file.write(b"\0\0\0\n")
    session = SessionFile.open("zeros")
    assert session.repaired and session.events == EVENTS


@pytest.mark.parametrize("damage", [b"[]\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n", b"\n"])
def test_a_file_damaged_before_its_last_line_is_refused_and_left_alone(damage: bytes) -> None:
    path = written("bad")
    data = path.read_bytes()
    path.write_bytes(damage + data)
    with pytest.raises(InputError, match="damaged.*line 1"):
        SessionFile.open("bad")
    assert path.read_bytes() == damage + data


def test_a_session_is_open_once_and_can_be_read_meanwhile() -> None:
    written("mine")
    first = SessionFile.open("mine")
    with pytest.raises(OutputError, match="in use") as caught:
        SessionFile.open("mine")
    assert "--fork" in str(caught.value.hint)
    assert read_session("mine") == EVENTS
    first.close()
    SessionFile.open("mine")


def test_a_name_is_unique_and_can_be_changed() -> None:
    written("mine")
    with pytest.raises(UsageError, match="already"):
        SessionFile("mine")
    session = SessionFile.open("mine")
    with pytest.raises(UsageError, match="already"):
        session.rename("mine")
    session.rename("yours")
    session.append({"type": "new"})
    assert session.name == "yours" and session_names() == ["yours"]
    assert len(read_session("yours")) == 4


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", ".x", "a\n", "x" * 200, "\x1b[31m"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        SessionFile(name)


def test_sessions_are_listed_the_most_recently_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("old", "new")):
        os.utime(written(name), (number, number))
    written("bad").write_bytes(b"{}\n[]\n{}\n")
    undone = [*EVENTS, {"type": "truncate", "messages": 0}, *EVENTS[1:]]
    os.utime(written("undone", undone), (5, 5))
    bad, *listed = stored_sessions()
    assert bad.error and "line 2" in bad.error
    assert [session.name for session in listed] == ["undone", "new", "old"]
    assert {(session.turns, session.model) for session in listed} == {(1, "tiny")}
    assert listed[0].question == "Grüße \u2028 ?"


def test_a_question_that_replaces_another_is_one_turn() -> None:
    question, reply = {**EVENTS[1], "content": "again", "instead": True}, EVENTS[2]
    for rest, asked in ([question, reply], "again"), ([question, {"type": "truncate", "messages": 0}], "Grüße"):
        path = written("mine", [*EVENTS, *rest])
        [listed] = stored_sessions()
        assert listed.turns == 1 and listed.question.startswith(asked)
        path.unlink()


def test_what_is_no_session_file_is_neither_listed_nor_opened() -> None:
    directory = written("mine").parent
    written("odd", [{"type": "truncate"}, EVENTS[1]])
    (directory / "-name.jsonl").touch()
    (directory / "directory.jsonl").mkdir()
    (directory / "link.jsonl").symlink_to(directory / "mine.jsonl")
    os.mkfifo(directory / "pipe.jsonl")
    assert {session.name: session.error is None for session in stored_sessions()} == {"mine": True, "odd": False}
    for name in ("link", "directory", "pipe"):
        with pytest.raises(OutputError, match="cannot open"):
            SessionFile.open(name)


def test_events_that_a_full_disk_refused_are_written_once_there_is_room() -> None:
    session = begun(SessionFile("mine"), EVENTS[:2])
    size = session.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        session.append(EVENTS[2])
        session.append({"type": "new"})
        session.sync()
        assert session.problem is not None
        assert read_session("mine") == EVENTS[:2]
        assert session.path.stat().st_size == size  # no partial line
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    session.sync()
    assert session.problem is None
    assert read_session("mine") == [*EVENTS, {"type": "new"}]


def test_a_state_directory_that_is_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "gptcli").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "link"))
    with pytest.raises(OutputError, match="link"):
        SessionFile("mine")


def test_a_name_is_reserved_at_once_and_freed_if_nothing_is_said() -> None:
    first = SessionFile.open("new", create=True)
    first.append(EVENTS[0])
    with pytest.raises(OutputError, match="in use: session new"):
        SessionFile.open("new", create=True)
    with pytest.raises(UsageError, match="already"):
        SessionFile("new")
    assert session_names() == [] and unused_name("new") == "new-2"
    first.close()
    assert list(first.path.parent.iterdir()) == [] and unused_name("new") == "new"
    begun(SessionFile.open("new", create=True), EVENTS[:2]).close()
    assert read_session("new") == EVENTS[:2]


def test_a_session_that_is_removed_while_they_are_listed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written("mine")
    monkeypatch.setattr(storage, "session_names", lambda: ["gone", "mine"])
    assert [(session.name, session.error) for session in stored_sessions()] == [("mine", None)]


def test_an_empty_file_that_a_kill_left_is_no_session_and_blocks_no_name() -> None:
    path = written("mine").with_name("left.jsonl")
    path.touch()
    assert session_names() == ["mine"] and unused_name("left") == "left"
    lazy = SessionFile("left")
    lazy.append(EVENTS[1])
    assert (lazy.name, read_session("left")) == ("left", [EVENTS[1]])
    path.with_name("other.jsonl").touch()
    session = SessionFile.open("mine")
    session.rename("other")
    assert len(read_session("other")) == len(EVENTS)


# Takes and releases a name again and again; fails if another process has it meanwhile.
TAKER = """
import os, sys
from gptcli.chat.storage import SessionFile
from gptcli.errors import OutputError
print("ready", flush=True)
sys.stdin.readline()
taken = 0
while taken < 100:
    try:
        session = SessionFile.open("new", create=True)
    except OutputError:
        continue
    alone = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)  # fails if another process has the session, too
    os.close(alone)
    os.remove(sys.argv[1])
    session.close()
    taken += 1
"""


def test_processes_that_begin_a_session_at_once_take_turns(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path / "alone")]
    takers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    assert all(taker.stdout and taker.stdout.readline() == b"ready\n" for taker in takers)
    for taker in takers:
        taker.communicate(b"\n")
    assert [taker.returncode for taker in takers] == [0, 0, 0]
    assert session_names() == [] and unused_name("new") == "new"


def test_sessions_that_chose_one_name_become_several_files() -> None:
    first, second, third = SessionFile("town"), SessionFile("town"), SessionFile("town")
    for file in (first, second, third):
        file.append(EVENTS[1])
    assert [file.name for file in (first, second, third)] == ["town", "town-2", "town-3"]
    assert [len(read_session(name)) for name in ("town", "town-2", "town-3")] == [1, 1, 1]
