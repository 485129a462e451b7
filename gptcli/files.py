"""Reads untrusted files safely: regular ones only, no links out of a model, strict JSON. Writes whole ones. Locks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from gptcli.errors import BrokenCheckpoint, GptcliError, InputError, OutputError, UsageError
from gptcli.model_notes import Note

MANIFEST = "gptcli.json"  # in a fetched model's directory: its origin and its files' checksums
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # in an adapter's directory
UNFINISHED = ".part"  # how the name of a file ends until it is written
_FETCHED = (MANIFEST, ".git")  # marks of a directory that was fetched or cloned
_MOST_CONTAINERS = 2_000_000
JSON_LIMIT = 8 << 20  # bytes, far more than any config; tokenizers have another limit


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file for reading. A pipe, device or directory raises InputError at once instead of hanging."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise InputError(f"cannot open: {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"cannot open: {path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def open_own(path: Path) -> BufferedReader:
    """Opens a file as `open_regular` does. Raises InputError also for one that another user could have written."""
    file = open_regular(path)
    status = os.fstat(file.fileno())
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022):
        file.close()
        raise InputError(f"cannot open: {path}: others can write to it")
    return file


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, private to its owner; replaces `path` unless the block raises."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=UNFINISHED, delete=False) as file:
        try:
            yield file
            file.flush()
            os.replace(file.name, path)
        except BaseException:  # Ctrl-C too: half a file is useless
            os.unlink(file.name)
            raise


def identity(path: Path) -> list[int]:
    """Changes whenever a file does: nobody can set the last of these times."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@cache
def program_identity() -> str:
    """Changes whenever a Python file of the program does."""
    package = Path(__file__).parent
    return hashlib.sha256(repr([identity(path) for path in sorted(package.glob("**/*.py"))]).encode()).hexdigest()[:24]


def called_gguf(name: str) -> bool:
    """Whether a file has the name of a GGUF file, in any case."""
    return name[-5:].lower() == ".gguf"


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins as a GGUF file does, or is called one."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        return file.read(4) == b"GGUF" or called_gguf(path.name)


def is_there(path: Path) -> bool:
    """Whether a path exists, if only as a broken link, which `open_within` then refuses."""
    return os.path.lexists(path)


def open_within(path: Path) -> BufferedReader:
    """Opens a file of a model's directory as `open_regular` does.

    Raises InputError for a broken link, and BrokenCheckpoint for one that leads out of the directory. That may be from
    a snapshot in a Hugging Face cache to the cache's blobs, and from a directory of the user's own: see `may_link_out`.
    """
    directory, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    if path.is_symlink() and not target.exists():
        hint = f"run `git annex get {path.name}`" if ".git/annex/" in target.as_posix() else None
        raise InputError(f"cannot open: {path}: its link leads to nothing", hint)
    if not target.is_relative_to(directory) and target.parent not in _hub_blobs(directory, target):
        if not may_link_out(directory, path.name) or not _is_ordinary(target):
            raise BrokenCheckpoint(
                f"cannot open: {path}: a link out of the model's directory",
                hint="put the file itself there; links are followed only out of a folder that you alone can write to, "
                "and that was neither fetched by gptcli nor cloned",
            )
    return open_regular(target)


def read_within(path: Path, limit: int, error: type[GptcliError]) -> bytes:
    """The bytes of a file of a model's directory. Raises `error` for more than `limit`, and as `open_within` does."""
    with open_within(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"cannot read: {path}: larger than {limit >> 20} MB")
    return data


def _hub_blobs(directory: Path, target: Path) -> list[Path]:
    """The directories of blobs that a snapshot of a Hugging Face cache, or a directory in one, may link to.

    A repository's own are in `models--OWNER--NAME/blobs`. Newer clients link from there to a store that all share,
    whose directories have names of two characters.
    """
    for parent in (directory, *directory.parents):
        if parent.parent.name == "snapshots":
            repository = parent.parents[1]
            return [repository / "blobs", repository.parent / "blobs" / target.name[:2]]
    return []


def may_link_out(directory: Path, name: str) -> bool:
    """Whether the link with this name in a model's directory is the user's own, and may lead anywhere.

    It is if link and directory belong to the user or root, nobody else can write to the directory, and the directory
    was neither fetched by gptcli nor cloned. Never on Windows, where owners are unknown.
    """
    if not hasattr(os, "geteuid") or any(os.path.lexists(directory / mark) for mark in _FETCHED):
        return False
    try:
        link, folder = (directory / name).lstat(), directory.stat()
    except OSError:
        return False
    user = os.geteuid()
    return {link.st_uid, folder.st_uid} <= {user, 0} and not _others_can_write(folder, user)


def _others_can_write(folder: os.stat_result, user: int) -> bool:
    """Whether others can write to a folder. A group with the user's own number is the user's alone on many systems."""
    own_group = folder.st_uid == folder.st_gid == user
    return bool(folder.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP))


def _is_ordinary(target: Path) -> bool:
    """Whether a link's target is a data file, not one of the system, where reading can have effects."""
    return target.is_file() and not str(target).startswith(("/proc/", "/sys/", "/dev/"))


def output_file(path: Path, inputs: Iterable[Path] = ()) -> Path:
    """Where a file to write is, links followed. Nothing is made yet.

    Raises OutputError for a directory, device or pipe, and for a name or a place where no file can be; and UsageError
    for the file of an input.
    """
    target = Path(os.path.realpath(path))
    if not os.path.isdir(target.parent):
        raise OutputError(f"cannot write: {path}: {target.parent} is not a directory")
    try:
        there = target.stat()
    except FileNotFoundError:
        return target
    except OSError as error:
        raise OutputError(f"cannot write: {path}: {error.strerror}") from None
    if not stat.S_ISREG(there.st_mode):
        raise OutputError(f"cannot write: {path}: it is not a regular file")
    if any(os.path.exists(each) and os.path.samestat(each.stat(), there) for each in inputs):
        raise UsageError(f"this would replace an input: {path}")
    return target


@contextlib.contextmanager
def written_whole(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A file beside `path` to write: replaces `path` if the block ends well, else is deleted.

    A link is followed. new: a file that another process made meanwhile is not replaced. Raises OutputError as
    `output_file` does, for such a file, and for what the system refuses.
    """
    path = output_file(path)
    draft: Path | None = None
    try:
        # A name has 255 bytes at most, a character up to four.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:50]}-", suffix=UNFINISHED, dir=path.parent)
        draft = Path(name)
        os.close(descriptor)
        draft.chmod(0o666 & ~_umask())  # not fchmod, which Windows lacks before Python 3.13
        yield draft
        if new:
            _move_to_new(draft, path)
        else:
            draft.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write: {path}: {error.strerror or error}") from None
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def _move_to_new(draft: Path, path: Path) -> None:
    """Gives a file a name that none has. Raises OutputError if one has it, and OSError."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise made_meanwhile(path) from None
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise made_meanwhile(path) from None
        draft.replace(path)


@contextlib.contextmanager
def made_directory(directory: Path) -> Iterator[None]:
    """Makes a directory and its parents; afterwards removes new ones that are empty. Raises OutputError."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Locks a file or directory until it is closed. Returns False if another process has locked it.

    wait: waits for the other process instead. On Windows nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked_directory(directory: Path, busy: str | None = None) -> Iterator[None]:
    """Runs the block in one process at a time for a directory. On Windows, which cannot open directories, in any.

    busy: what another process does there, for an OutputError; None waits for it.
    """
    if os.name == "nt":
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    try:
        if not lock(descriptor, wait=busy is None):
            raise OutputError(f"cannot write: {directory}: {busy}")
        yield
    finally:
        os.close(descriptor)


def made_meanwhile(path: Path) -> OutputError:
    """The error for what was not there when a command began."""
    return OutputError(f"cannot write: {path}: another process made it meanwhile", "--force replaces it")


class NotJson(BrokenCheckpoint):
    """A file that should be JSON and is not, to any reader."""


class Unusable:
    """A JSON value that cannot be meant: NaN, infinity, or two values of one key.

    It is harmless until read: no reader accepts its type, and comparing it raises BrokenCheckpoint.
    """

    def __init__(self, where: str, what: str) -> None:
        self._where = where
        self._what = what

    def __repr__(self) -> str:
        return self._what

    def __eq__(self, other: object) -> bool:
        raise BrokenCheckpoint(f"cannot read: {self._where}: the value {self._what[:80]}")

    def __bool__(self) -> bool:
        return self == True  # noqa: E712 - raises

    __hash__ = None  # type: ignore[assignment]  # comparing raises


def read_json(
    path: Path, limit: int = JSON_LIMIT, *, notes: list[Note] | None = None, contradictions: bool = False
) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes. Raises BrokenCheckpoint for anything else.

    notes: collects what JSON forbids and other readers accept: a key given twice with one value, and NaN and infinity,
    which become `Unusable`. Without notes all are refused. contradictions: a key with two values becomes `Unusable`,
    too; for callers that check the type of every value they read.
    """
    oddities = None if notes is None else _Oddities(path, notes, contradictions)
    return parse_json(read_within(path, limit, BrokenCheckpoint), str(path), oddities)


class _Oddities:
    """Accepts and notes what JSON forbids and other readers accept."""

    def __init__(self, path: Path, notes: list[Note], contradictions: bool) -> None:
        self._path = path
        self._notes = notes
        self._contradictions = contradictions
        self._twice = dict[str, None]()
        self._not_finite = dict[str, None]()
        self._constant_seen = False

    def constant(self, name: str) -> Unusable:
        """For NaN and infinity."""
        self._constant_seen = True
        return Unusable(str(self._path), name)

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object of these keys and values. Raises ValueError for two values of a key, unless they are accepted."""
        result: dict[str, Any] = {}
        for name, value in pairs:
            if self._constant_seen and _is_not_finite(value):
                self._not_finite[name] = None
            if name in result:
                self._twice[name] = None
                before, now = (json.dumps(each, default=repr) for each in (result[name], value))
                if before != now:
                    if not self._contradictions:
                        raise ValueError(f"the key {name[:60]!r} has two values: {before[:60]} and {now[:60]}")
                    value = Unusable(str(self._path), f"{before[:60]} and {now[:60]}")
            result[name] = value
        self._constant_seen = False
        return result

    def note(self) -> None:
        """Adds to the notes what was found."""
        for what, names in (("keys given twice", self._twice), ("NaN or infinity", self._not_finite)):
            if names:
                self._notes.append(Note(f"{self._path.name}: {what}", tuple(name[:60] for name in names)))


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, Unusable) or (isinstance(value, list) and any(map(_is_not_finite, value)))


def parse_json(data: bytes, where: str, oddities: _Oddities | None = None) -> dict[str, Any]:
    """A JSON object from bytes, called `where` in errors. Raises BrokenCheckpoint for anything else but `oddities`."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise ValueError(f"duplicate key {next(name for name, count in counts.items() if count > 1)[:60]!r}")
        return result

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:  # two bytes each here, sixty in memory
        raise BrokenCheckpoint(f"cannot read: {where}: more than {_MOST_CONTAINERS} lists and objects")
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=oddities.take if oddities else without_duplicates,
            parse_constant=oddities.constant if oddities else refuse_constant,
        )
        if b"\\ud" in data.lower():  # perhaps a lone surrogate, which UTF-8 cannot encode
            json.dumps(value, ensure_ascii=False, default=repr).encode()
    except RecursionError:
        raise BrokenCheckpoint(f"cannot read: {where}: nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NotJson(f"cannot read: {where}: {str(error)[:200]}") from None
    except ValueError as error:
        raise BrokenCheckpoint(f"cannot read: {where}: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"cannot read: {where}: not a JSON object")
    if oddities:
        oddities.note()
    return value
