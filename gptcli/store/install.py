"""Puts a model in place whole or not at all, and takes it away again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, ModelNotFound, OutputError, UsageError
from gptcli.files import open_regular
from gptcli.store.catalog import RECORD, check_name, find, install_root

_SCRATCH = ".fetch-"
_ABANDONED_S = 24 * 3600


@contextlib.contextmanager
def scratch(name: str | None = None) -> Iterator[Path]:
    """A directory beside the models that is gone afterwards; one with a name stays if it fails, to be resumed.

    Raises OutputError where the models' directory cannot be written, or becomes full.
    """
    root = install_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        if name is None:
            directory = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=root))
        else:
            directory = root / f"{_SCRATCH}{name.replace('/', '--')}"
            directory.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write: {root}: {error.strerror}") from None
    done = name is None
    try:
        yield directory
        done = True
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise OutputError(f"cannot write: {directory}: {error.strerror}") from None
    finally:
        if done:
            shutil.rmtree(directory, ignore_errors=True)


def need_space(size: int) -> None:
    """Raises OutputError unless this many bytes are free where models go."""
    free = shutil.disk_usage(install_root()).free
    if free < size:
        raise OutputError(
            f"no space: {install_root()}: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free",
            hint="set GPTCLI_WEIGHTS to a directory on a larger disk",
        )


def sha256(file: Path) -> str:
    """A file's checksum in hexadecimal."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def install(directory: Path, name: str, source: dict[str, Any]) -> Path:
    """Moves a finished directory to where models live, under its name, replacing the model that had it.

    `source` says where it came from; it is recorded beside the files with their checksums.
    """
    check_name(name)
    checksums = {file.name: sha256(file) for file in sorted(directory.iterdir()) if file.is_file()}
    record = {"source": source, "sha256": checksums}
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    target = install_root() / name
    target.parent.mkdir(exist_ok=True)
    with scratch() as aside:
        if target.exists():
            target.rename(aside / "replaced")
        try:
            directory.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process has installed the same model in between; its copy is as good.
    return target


def remove(name: str) -> Path:
    """Removes a model that gptcli installed; returns where it was. Raises ModelNotFound or UsageError."""
    check_name(name)
    target = install_root() / name
    if not target.is_dir():
        elsewhere = find(name)
        if elsewhere:
            raise UsageError(f"not installed by gptcli: {elsewhere.path}", hint="remove it with its own tool")
        raise ModelNotFound(f"no such model: {name}", hint="run `gptcli models` to see which are")
    with scratch() as aside:
        target.rename(aside / "removed")
    if target.parent != install_root():
        with contextlib.suppress(OSError):  # other models of the same owner
            target.parent.rmdir()
    return target


def changed_files(model: Path, record: dict[str, Any]) -> list[str]:
    """Names of files that are missing or are not what was installed."""
    checksums = record.get("sha256", {})
    if not isinstance(checksums, dict):
        raise InputError(f"cannot read: {model / RECORD}: sha256 must be an object")
    return [
        name for name, checksum in checksums.items() if not (model / name).is_file() or sha256(model / name) != checksum
    ]


def _sweep(root: Path) -> None:
    """Removes what killed processes have left behind."""
    for directory in root.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)
