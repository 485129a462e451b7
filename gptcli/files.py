"""Safe reading of untrusted files: regular ones only, no links out of a model, strict JSON; and file locks."""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenCheckpoint, InputError

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


def is_there(path: Path) -> bool:
    """Whether a path exists, if only as a broken link, which `open_within` then refuses."""
    return os.path.lexists(path)


def open_within(path: Path) -> BufferedReader:
    """Opens a file of a model's directory as `open_regular` does.

    Raises BrokenCheckpoint for a link out of the directory. A snapshot in a Hugging Face cache may link to its blobs.
    """
    directory, target = os.path.realpath(path.parent), os.path.realpath(path)
    homes = [directory]
    for model in (directory, os.path.dirname(directory)):  # the file may be in a folder of the model
        if os.path.basename(os.path.dirname(model)) == "snapshots":
            homes.append(os.path.join(os.path.dirname(os.path.dirname(model)), "blobs"))
    if os.path.dirname(target) not in homes:
        raise BrokenCheckpoint(
            f"cannot open: {path}: a link out of the model's directory", hint="put the file itself there"
        )
    return open_regular(Path(target))


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


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """A JSON object from a file of at most `limit` bytes.

    Raises BrokenCheckpoint for anything but one well-formed object without duplicate keys, NaN or infinity.
    """
    with open_within(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BrokenCheckpoint(f"cannot read: {path}: larger than {limit >> 20} MB")
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes, called `where` in errors. Raises BrokenCheckpoint as `read_json` does."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)[:60]!r}")
        return result

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:  # two bytes each here, sixty in memory
        raise BrokenCheckpoint(f"cannot read: {where}: more than {_MOST_CONTAINERS} lists and objects")
    try:
        value = json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=without_duplicates, parse_constant=refuse_constant
        )
        if b"\\ud" in data.lower():  # perhaps a lone surrogate, which UTF-8 cannot encode
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise BrokenCheckpoint(f"cannot read: {where}: nested too deeply") from None
    except ValueError as error:
        raise BrokenCheckpoint(f"cannot read: {where}: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"cannot read: {where}: not a JSON object")
    return value
