"""Sessions on disk: a file of JSON lines each, one an event, locked while in use. Knows little of what events mean."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gptcli.chat.state_files import AppendOnlyFile, state_directory
from gptcli.errors import GptcliError, InputError, OutputError, UsageError
from gptcli.files import open_regular
from gptcli.models.catalog import is_name

_SUFFIX = ".jsonl"
_CONTINUE = "gptcli chat --session"

Event = Mapping[str, Any]


class SessionFile:
    """Where a session's events go. A new one is on disk from its first message on.

    problem: why the last write failed, for a warning; None when everything is written. What failed is tried again.
    """

    def __init__(self, name: str | None = None) -> None:
        """A new session; without a name it is called after the time.

        Raises UsageError for what can be no name or is one already, OutputError where no state can be kept.
        """
        self.path = _path(unused_name(_now()) if name is None else name)
        if os.path.lexists(self.path):
            raise UsageError(f"there is a session {name} already", hint=f"continue it with {_CONTINUE} {name}")
        self.events: list[Event] = []
        self.repaired = False  # whether its end was torn, and was cut off
        self.problem: OSError | None = None
        self._file: AppendOnlyFile | None = None

    @classmethod
    def open(cls, name: str) -> Self:
        """A session on disk, for this process alone.

        Raises InputError where there is none or it is damaged, and OutputError where another process has it open.
        """
        path = _existing(name)
        session = cls()
        session.path = path
        try:
            session._file = file = AppendOnlyFile(path)
        except OSError as error:
            raise OutputError(f"cannot open: {path}: {error.strerror}") from None
        try:
            if not file.try_lock():
                raise OutputError(f"in use: session {name}: another gptcli has it open", hint="--fork opens a copy")
            data = file.read()
            session.events, whole = _parsed(data, path)
            session.repaired = whole < len(data)
            if session.repaired:
                file.truncate(whole)
        except BaseException:  # whatever it is, nobody else would close the file, which would stay locked
            file.close()
            raise
        return session

    @property
    def name(self) -> str:
        """What the session is called."""
        return self.path.name.removesuffix(_SUFFIX)

    def append(self, record: Event) -> None:
        """Takes the next event."""
        self.events.append(record)
        if self._file is not None:
            self._write(self._file, [record])
        elif record.get("type") == "message":
            self._create()

    def sync(self) -> None:
        """Waits until everything is on disk."""
        if self._file is None:
            self._create()
        if self._file is not None:
            self._file.sync()
            self.problem = self._file.problem

    def rename(self, name: str) -> None:
        """Gives the session another name. Raises UsageError as a new one does, and OutputError."""
        target = SessionFile(name).path
        if self._file is not None:
            try:
                self.path.rename(target)
            except OSError as error:
                raise OutputError(f"cannot write: {target}: {error.strerror}") from None
        self.path = target

    def close(self) -> None:
        """Lets other processes open the session."""
        if self._file is not None:
            self._file.close()

    def _create(self) -> None:
        try:
            file = AppendOnlyFile(self.path)
            while not file.try_lock() or file.read():  # since we chose it, another process has taken the name
                file.close()
                self.path = _path(unused_name(self.name))
                file = AppendOnlyFile(self.path)
        except OSError as error:
            self.problem = error
        else:
            self._file = file
            self._write(file, self.events)

    def _write(self, file: AppendOnlyFile, events: Sequence[Event]) -> None:
        for event in events:
            file.append(json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self.problem = file.problem


@dataclass(frozen=True)
class StoredSession:
    """A session on disk: its turns, the model that spoke last, what was asked first; or why it cannot be read."""

    name: str
    modified: datetime.datetime
    turns: int = 0
    model: str = ""
    question: str = ""
    error: str | None = None


def read_session(name: str) -> list[Event]:
    """The events of a session, whoever has it open. Raises InputError where there is none or it is damaged."""
    path = _existing(name)
    with open_regular(path) as file:
        return _parsed(file.read(), path)[0]


def session_names() -> list[str]:
    """Names of all sessions, the last used one first."""
    modified = dict[str, int]()
    for path in _directory().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed at this moment
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and is_name(path.name):
                modified[path.name.removesuffix(_SUFFIX)] = status.st_mtime_ns
    return sorted(modified, key=modified.__getitem__, reverse=True)


def stored_sessions() -> list[StoredSession]:
    """All sessions, the last used one first."""
    return [_stored(name) for name in session_names()]


def _stored(name: str) -> StoredSession:
    modified = datetime.datetime.fromtimestamp(_path(name).stat().st_mtime)
    messages, replaced = list[Event](), list[Event]()
    try:
        for event in read_session(name):
            if event.get("type") == "message":
                if event.get("instead"):
                    messages, replaced = messages[:-2], messages[-2:]
                elif event.get("role") == "assistant":
                    replaced = []
                messages.append(event)
            elif event.get("type") == "truncate":
                messages[event["messages"] :] = replaced
                replaced = []
    except GptcliError as error:
        return StoredSession(name, modified, error=error.message)
    except (KeyError, TypeError):
        return StoredSession(name, modified, error=f"not a session: {_path(name)}")
    return StoredSession(
        name,
        modified,
        turns=len(messages) // 2,
        model=last_model(messages)[0],
        # A file can spell lone surrogates, which can be neither said nor shown.
        question=str(messages[0].get("content")).encode("utf-8", "replace").decode() if messages else "",
    )


def last_model(events: Sequence[Event]) -> tuple[str, str]:
    """What finds the model that spoke last, and its fingerprint; empty where none has spoken."""
    for event in reversed(events):
        if "model" in event:
            return str(event["model"]), str(event.get("fingerprint"))
    return "", ""


def _directory() -> Path:
    directory = state_directory() / "sessions"
    try:
        directory.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    return directory


def _path(name: str) -> Path:
    """Raises UsageError for what can be no name."""
    if "/" in name or not is_name(name):
        raise UsageError(f"a session's name is a word without slashes, not {name!r}")
    return _directory() / f"{name}{_SUFFIX}"


def _existing(name: str) -> Path:
    path = _path(name)
    if not os.path.lexists(path):
        raise InputError(f"no such session: {name}", hint="`gptcli chat --list` shows which there are")
    return path


def unused_name(name: str) -> str:
    """A name that no session has: this one, or with a number behind it."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(_path(name)))


def _now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def _parsed(data: bytes, path: Path) -> tuple[list[Event], int]:
    """Events, and how many bytes they take; behind them is at most a torn line. Raises InputError."""
    events, whole = list[Event](), 0
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not rest:
                break
            raise InputError(f"damaged: {path}: line {number}: {error}") from None
        events.append(event)
        whole += len(line) + 1
    return events, whole
