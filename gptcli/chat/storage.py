"""Sessions on disk: a file of JSON lines for each, a line for each event, locked while in use."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gptcli.chat.events import History, Record
from gptcli.chat.state_files import AppendOnlyFile, state_directory, state_path
from gptcli.errors import GptcliError, InputError, OutputError, UsageError
from gptcli.files import open_regular
from gptcli.models.catalog import is_name

_SUFFIX = ".jsonl"
_CONTINUE = "gptcli chat --session"


class SessionFile:
    """The file of a session's events. Nothing is written before the first message.

    problem: why the last write failed; None if everything is written. Failed writes are tried again.
    """

    def __init__(self, name: str | None = None) -> None:
        """A new session, by default named by the current time.

        Raises UsageError for a bad or taken name, and OutputError if the state directory cannot be used.
        """
        self.path = _path(unused_name(_now()) if name is None else name)
        if _is_taken(self.path):
            raise UsageError(
                f"there is a session {name} already", hint=f"continue it with {_CONTINUE} {shlex.quote(str(name))}"
            )
        self.events: list[Record] = []
        self.repaired = False  # whether an incomplete last line was cut off
        self.problem: OSError | None = None
        self._file: AppendOnlyFile | None = None
        self._begun = False  # whether events go to the file

    @classmethod
    def open(cls, name: str, *, create: bool = False) -> Self:
        """Opens a session on disk for this process alone.

        create: begins a missing one. Its file, which reserves the name, is removed if no message comes. Raises
        InputError if it is missing or damaged, and OutputError if another process has it open.
        """
        path = _path(name) if create else _existing(name)
        session = cls()
        session.path = path
        session._file = file = _opened_alone(path, name)
        try:
            data = file.read()
            session._begun = bool(data) or not create
            session.events, whole = _parsed(data, path)
            session.repaired = whole < len(data)
            if session.repaired:
                file.truncate(whole)
        except BaseException:  # Ctrl-C too: an open file would stay locked
            file.close()
            raise
        return session

    @property
    def name(self) -> str:
        """The session's name."""
        return self.path.name.removesuffix(_SUFFIX)

    def append(self, event: Record) -> None:
        """Writes the next event, once there is a message."""
        self.events.append(event)
        if self._begun:
            if self._file is not None:
                self._write(self._file, [event])
        elif event.get("type") == "message":
            self._begin()

    def sync(self) -> None:
        """Waits until everything is on disk."""
        if not self._begun:
            self._begin()
        if self._file is not None:
            self._file.sync()
            self.problem = self._file.problem

    def check_written(self) -> None:
        """Raises OutputError if the last write failed."""
        if self.problem is not None:
            raise OutputError(f"cannot write: {self.path}: {self.problem.strerror}")

    def rename(self, name: str) -> None:
        """Renames the session. Raises UsageError for a bad or taken name, and OutputError."""
        target = SessionFile(name).path
        if self._file is not None:
            try:
                self.path.rename(target)
            except OSError as error:
                raise OutputError(f"cannot write: {target}: {error.strerror}") from None
        self.path = target

    def delete(self) -> None:
        """Removes the file; nothing more is written. Raises OutputError."""
        if self._file is not None and self._file.is_at(self.path):
            _remove(self.path)
        self.problem, self._begun = None, True
        self.close()

    def close(self) -> None:
        """Closes the file, so that other processes can open the session."""
        file, self._file = self._file, None
        if file is None:
            return
        if not self._begun and file.is_at(self.path):
            with contextlib.suppress(OSError):  # Windows removes no file that is open
                self.path.unlink()
        file.close()

    def _begin(self) -> None:
        """Writes the events so far, under another name if another process took this one meanwhile."""
        file = self._file
        try:
            if file is None:
                file = AppendOnlyFile(self.path)
                while not file.try_lock() or not file.is_at(self.path) or file.read():
                    file.close()
                    self.path = _path(unused_name(self.name))
                    file = AppendOnlyFile(self.path)
        except OSError as error:
            self.problem = error
        else:
            self._file, self._begun = file, True
            self._write(file, self.events)

    def _write(self, file: AppendOnlyFile, events: Sequence[Record]) -> None:
        for event in events:
            file.append(json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self.problem = file.problem


@dataclass(frozen=True)
class StoredSession:
    """A row of the list of sessions. model: the last. question: the first. error: why it cannot be read."""

    name: str
    modified: datetime.datetime
    turns: int = 0
    model: str = ""
    question: str = ""
    error: str | None = None


def read_session(name: str) -> list[Record]:
    """The events of a session, even if it is open elsewhere. Raises InputError if it is missing or damaged."""
    path = _existing(name)
    with open_regular(path) as file:
        return _parsed(file.read(), path)[0]


def session_names() -> list[str]:
    """Names of all sessions with a message, the most recently used first."""
    modified = dict[str, int]()
    if not os.path.lexists(state_path()):  # listing makes no directory
        return []
    for path in _directory().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size and is_name(path.name):
                modified[path.name.removesuffix(_SUFFIX)] = status.st_mtime_ns
    return sorted(modified, key=modified.__getitem__, reverse=True)


def stored_sessions() -> list[StoredSession]:
    """All sessions, the most recently used first."""
    stored = list[StoredSession]()
    for name in session_names():
        with contextlib.suppress(FileNotFoundError):  # removed or renamed meanwhile
            stored.append(_stored(name))
    return stored


def _stored(name: str) -> StoredSession:
    """A row of the list. Raises FileNotFoundError if the session is gone."""
    history, error = History(), None
    try:
        # Unchecked, for speed, and so that a session that cannot be continued is still listed.
        for event in read_session(name):
            if event.get("type") == "message":
                history.add_message(event)
            elif event.get("type") == "truncate":
                history.truncate(event["messages"])
    except GptcliError as failure:
        error = failure.message
    except (KeyError, TypeError):
        error = f"not a session: {_path(name)}"
    modified = datetime.datetime.fromtimestamp(_path(name).stat().st_mtime)
    if error is not None:
        return StoredSession(name, modified, error=error)
    return StoredSession(
        name,
        modified,
        turns=len(history.turns) // 2,
        model=last_model(history.turns)[0],
        # A file can contain lone surrogates, which cannot be printed.
        question=str(history.turns[0].get("content")).encode("utf-8", "replace").decode() if history.turns else "",
    )


def delete_session(name: str) -> None:
    """Removes a session's file. Raises InputError if it is missing, and OutputError if it is open elsewhere."""
    path = _existing(name)
    try:
        file = _opened_alone(path, name)
    except OutputError as error:
        raise OutputError(error.message) from None  # without the hint: a copy does not help
    with contextlib.closing(file):
        _remove(path)


def last_model(events: Sequence[Record]) -> tuple[str, str]:
    """The name or path of the model that replied last, and its fingerprint; empty strings without a reply.

    A borrowed model does not count.
    """
    for event in reversed(events):
        if "model" in event and not event.get("borrowed"):
            return str(event["model"]), str(event.get("fingerprint"))
    return "", ""


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise OutputError(f"cannot remove: {path}: {error.strerror}") from None


def _directory() -> Path:
    directory = state_directory() / "sessions"
    try:
        directory.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    return directory


def _path(name: str) -> Path:
    """The file of a session. Raises UsageError for a bad name."""
    if "/" in name or not is_name(name):
        raise UsageError(f"a session's name has no slashes and does not begin with a dot, not {name!r}")
    return _directory() / f"{name}{_SUFFIX}"


def _existing(name: str) -> Path:
    path = _path(name)
    if not os.path.lexists(path):
        raise InputError(f"no such session: {name}", hint="`gptcli chat --list` shows which there are")
    return path


def _opened_alone(path: Path, name: str) -> AppendOnlyFile:
    """A session's file, locked. Raises OutputError."""
    while True:
        try:
            file = AppendOnlyFile(path)
        except OSError as error:
            raise OutputError(f"cannot open: {path}: {error.strerror}") from None
        if not file.try_lock():
            file.close()
            raise OutputError(
                f"in use: session {name}: another gptcli has it open",
                hint=f"{_CONTINUE} {shlex.quote(name)} --fork opens a copy",
            )
        if file.is_at(path):
            return file
        file.close()  # its process has removed it between the two steps


def _is_taken(path: Path) -> bool:
    """Whether this is the file of a session, or reserved for one. A killed process may leave it empty and unlocked."""
    if not os.path.lexists(path):
        return False
    if path.is_symlink() or not path.is_file() or path.stat().st_size:
        return True
    try:
        file = AppendOnlyFile(path)
    except OSError:
        return True
    with contextlib.closing(file):
        return not file.try_lock()


def unused_name(name: str) -> str:
    """This name if no session has it, else the first free one of name-2, name-3 and so on."""
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(name for name in names if not _is_taken(_path(name)))


def _now() -> str:
    return datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")


def _parsed(data: bytes, path: Path) -> tuple[list[Record], int]:
    """The events and the number of their bytes, without an incomplete last line. Raises InputError."""
    events, whole = list[Record](), 0
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
