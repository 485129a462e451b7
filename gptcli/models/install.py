"""Installs a model, whole or not at all, and removes it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, InvalidModel, OutputError, UsageError
from gptcli.files import MANIFEST, locked_directory, made_directory, made_meanwhile, open_regular, open_within
from gptcli.models.catalog import SCRATCH, find, find_named, first_gguf, install_root, is_name, missing, roots

_ABANDONED_S = 24 * 3600


def check_name(name: str) -> None:
    """Raises UsageError if a model's name is invalid, or something else is at its place."""
    if not is_name(name):
        raise UsageError(f"a model's name is NAME or OWNER/NAME, not {name!r}")
    target = install_root() / name
    if os.path.lexists(target) and not (target / "config.json").is_file() and first_gguf(target) is None:
        raise UsageError(f"in the way, and not a model: {target}", hint="choose another name")
    if "/" in name and any((target.parent / each).exists() for each in ("config.json", MANIFEST)):
        raise UsageError(f"in the way: {target.parent} is a model itself", hint="choose another name")


@contextlib.contextmanager
def scratch(name: str | None = None) -> Iterator[Path]:
    """A temporary directory among the models. A named one stays if the block is interrupted, to be resumed.

    Raises OutputError if the models' directory cannot be written, or becomes full.
    """
    root = install_root()
    directory = root
    done = name is None
    with made_directory(root):
        try:
            _sweep(root)
            if name is None:
                directory = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=root))
            else:
                directory = root / f"{SCRATCH}{name.replace('/', '--')}"
                directory.mkdir(exist_ok=True)
            with locked_directory(directory, "another process is fetching the same model"):
                yield directory
            done = True
        except InvalidModel:
            done = True  # nothing to resume
            raise
        except OSError as error:
            raise OutputError(f"cannot write: {directory}: {error.strerror or error}") from None
        finally:
            if done and directory != root:
                shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Runs the block in one process at a time; others wait. Raises OutputError as `scratch` does."""
    lock = install_root() / ".lock"
    with made_directory(lock), locked_directory(lock):
        yield


def need_space(size: int) -> None:
    """Raises OutputError unless this many bytes are free for models."""
    free = shutil.disk_usage(install_root()).free
    if free < size:
        raise OutputError(
            f"no space: {install_root()}: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free",
            hint="set GPTCLI_WEIGHTS to a directory on a larger disk",
        )


def sha256(file: Path) -> str:
    """A file's checksum in hexadecimal."""
    return _checksum(open_regular(file))


def _checksum(file: BufferedReader) -> str:
    with file as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def install(directory: Path, name: str, source: dict[str, Any], *, replace: bool = True) -> Path:
    """Moves a finished directory to the models, replacing one of the same name. Returns its new path.

    source: its origin, which is recorded with the files' checksums. Without `replace`, raises OutputError if another
    process installed one of this name meanwhile.
    """
    checksums = {file.name: sha256(file) for file in sorted(directory.iterdir()) if file.is_file()}
    record = {"source": source, "sha256": checksums}
    (directory / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    directory.chmod(0o755)  # a temporary directory is private
    target = install_root() / name
    with locked_directory(install_root()), scratch() as aside:
        check_name(name)
        if not replace and os.path.lexists(target):
            raise made_meanwhile(target)
        target.parent.mkdir(exist_ok=True)
        replaced = aside / "replaced"
        if target.exists():
            target.rename(replaced)
        try:
            directory.rename(target)
        except BaseException:  # after Ctrl-C, too, the replaced model comes back
            if replaced.exists():
                replaced.rename(target)
            raise
    return target


def install_whole(
    name: str, size: int, fill: Callable[[Path], None], source: dict[str, Any], *, replace: bool = True
) -> Path:
    """Installs a model of about `size` bytes that `fill` writes to a directory. Raises as `install` and `fill` do."""
    check_name(name)
    with scratch() as directory:
        need_space(size)
        model = directory / "model"
        model.mkdir()
        fill(model)
        return install(model, name, source, replace=replace)


def remove(name: str) -> Path:
    """Removes a model that gptcli installed. Returns its former path. Raises ModelNotFound or UsageError."""
    model = find_named(name)
    if model is None and find(name):
        raise UsageError(
            f"not a model's name: {name}",
            hint="rm removes what gptcli installed, by its name",
        )
    if model is None:
        raise missing(name, wanted=False)
    target = model.directory
    root = next((root for root in roots() if root / name == target), None)
    if root is None or not (target / MANIFEST).is_file():
        raise UsageError(f"not installed by gptcli: {target}", hint="remove it as it came")
    with scratch() as aside:
        shutil.move(target, aside / "removed")
    if target.parent != root:
        with contextlib.suppress(OSError):  # the owner has other models
            target.parent.rmdir()
    return target


def changed_files(model: Path, record: dict[str, Any]) -> list[str]:
    """Names of files that are missing or changed since installation. Raises BrokenCheckpoint for a link out."""
    checksums = record.get("sha256", {})
    if not isinstance(checksums, dict):
        raise InputError(f"cannot read: {model / MANIFEST}: sha256 must be an object")
    return [
        name
        for name, checksum in checksums.items()
        # A record may have come with the model: it must not name files elsewhere.
        if Path(name).name != name or not (model / name).is_file() or _checksum(open_within(model / name)) != checksum
    ]


def _sweep(root: Path) -> None:
    """Removes old temporary directories of killed processes."""
    for directory in root.glob(f"{SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(directory, ignore_errors=True)
