"""Opens and lists stored sessions for the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gptcli.chat.storage import SessionFile, read_session, session_names, stored_sessions, unused_name
from gptcli.cli.terminal.columns import fitted, terminal_columns, width
from gptcli.cli.terminal.stderr import print_note
from gptcli.cli.terminal.tables import print_records
from gptcli.errors import InputError, OutputError

_SHORT, _LONG = ("name", "modified"), ("name", "modified", "turns", "model")
_QUESTION = 24  # least columns of a question

_Events = Sequence[Mapping[str, Any]]


@contextlib.contextmanager
def opened(name: str | None, last: bool, fork: bool, at_prompt: bool) -> Iterator[tuple[SessionFile | None, _Events]]:
    """Yields the session's file, None if it is not kept, and its events so far.

    name: None is a new session, kept only at the prompt. last: takes the session used last. fork: goes on with a copy.
    Raises OutputError at the end if the file could not be written.
    """
    if last:
        names = session_names()
        if not names:
            raise InputError("there is no session to go on with")
        name = names[0]
    if name is None and not at_prompt:
        yield None, []
        return
    if name is None:
        try:
            events, file = [], SessionFile()
        except OutputError as error:
            print_note(f"nothing of this conversation is kept: {error.message}")
            yield None, []
            return
    elif fork:
        events, file = read_session(name), SessionFile(unused_name(name))
    else:
        file = SessionFile.open(name, create=True)
        events = list(file.events)
        if file.repaired:
            print_note(f"session {name}: its last line was torn, and was cut off")
    with contextlib.closing(file):
        yield file, events
        file.check_written()


def print_sessions(as_json: bool) -> None:
    """Lists the sessions, the last used first."""
    sessions = [
        asdict(session) | {"modified": session.modified.isoformat(" ", "minutes")} for session in stored_sessions()
    ]
    shown = _columns(sessions)
    room = terminal_columns() - _taken(sessions, shown)
    print_records(sessions, as_json, lambda session: _row(session, shown, room))
    if not sessions and not as_json:
        print_note("no sessions yet")


def _columns(sessions: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fields shown before the questions: fewer on a narrow terminal, so that a session is one line."""
    room = terminal_columns() - _QUESTION
    choices = (_LONG[:count] for count in range(len(_LONG), len(_SHORT), -1))
    return next((columns for columns in choices if _taken(sessions, columns) <= room), _SHORT)


def _taken(sessions: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """Columns of the terminal that fields take, with the gaps after them."""
    return sum(2 + max([width(key), *(width(str(session[key])) for session in sessions)]) for key in columns)


def _row(session: Mapping[str, Any], columns: Sequence[str], room: int) -> dict[str, str]:
    shown = {key: str(session[key]) for key in columns}
    if room < _QUESTION:
        return shown
    question = " ".join((session["error"] or session["question"]).split())
    return shown | {"question": fitted(question, room).rstrip()}
