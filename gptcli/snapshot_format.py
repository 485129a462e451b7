"""Snapshots: files in the cache directory that make the next start of a model fast. Any may be deleted at any time.

    32 bytes    the SHA-256 of the rest
    8 bytes     size of the header, little-endian
    header      JSON: the key, the model, and what else the kind of file has; padded to a multiple of 8 bytes
    content

A file is used only while its key is the wanted one: the program and the model's files are unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import platformdirs

from gptcli.environment import switched_off
from gptcli.errors import InputError
from gptcli.files import identity, open_own, program_identity, replaced
from gptcli.version import VERSION

_CHECKSUM, _SIZE = 32, 8  # bytes


def snapshot_directory() -> Path:
    """The directory of all snapshots."""
    return platformdirs.user_cache_path("gptcli", appauthor=False) / "prepared"


def fast_start_is_off() -> bool:
    """Whether the user has switched off all snapshots. Raises as `switched_off` does."""
    return switched_off("GPTCLI_PREPARED")


def hash_of(text: str) -> str:
    """24 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:24]


def hash_of_model(model: Path) -> str:
    """The beginning of the names of all snapshots of a model's directory or GGUF file."""
    return hash_of(os.path.realpath(model))


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot, and the key that it must have now. model: a directory or GGUF file."""

    model: Path
    path: Path
    key: dict[str, Any]

    @classmethod
    def of(cls, model: Path, suffix: str, files: Iterable[Path], *versions: str) -> Self | None:
        """The file with a suffix; None if snapshots are switched off or one of the model's files is gone."""
        if fast_start_is_off():
            return None
        try:
            identities = {str(file): identity(file) for file in files}
        except OSError:  # it is being replaced
            return None
        key = {"version": [VERSION, program_identity(), *versions], "files": identities}
        return cls(model, snapshot_directory() / (hash_of_model(model) + suffix), key)

    def read(self) -> tuple[dict[str, Any], memoryview] | None:
        """Header and content; None unless the file is whole and has the key."""
        try:
            header, content = _read(self.path)
        except (OSError, InputError, ValueError, RecursionError):
            return None
        if header.get("key") != self.key:
            return None
        with contextlib.suppress(OSError):  # it may be read-only, or just removed
            os.utime(self.path)  # the least recently used are removed first
        return header, content

    def write(self, header: dict[str, Any], content: bytes, *, most: int) -> None:
        """Writes the file, and removes all others with its suffix but the `most` last used.

        Writes nothing where the system refuses it, or if the header is no JSON.
        """
        whole = {"key": self.key, "model": str(self.model), **header}
        try:
            encoded = json.dumps(whole, separators=(",", ":")).encode()
        except TypeError:
            return
        encoded += b" " * (-len(encoded) % 8)
        data = len(encoded).to_bytes(_SIZE, "little") + encoded + content
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replaced(self.path) as file:
                file.write(hashlib.sha256(data).digest() + data)
            kept = sorted(self.path.parent.glob(f"*{self.path.suffix}"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-most]:
                path.unlink(missing_ok=True)


def models_with_snapshots(suffix: str) -> dict[Path, Path]:
    """The model's directory or GGUF file, by the snapshot with a suffix."""
    found = {}
    for path in snapshot_directory().glob(f"*{suffix}"):
        with contextlib.suppress(OSError, InputError, ValueError, KeyError, TypeError, RecursionError):
            found[path] = Path(_read(path)[0]["model"])
    return found


def _read(path: Path) -> tuple[dict[str, Any], memoryview]:
    """Header and content. Raises OSError, InputError and ValueError, which also means another version's layout."""
    with open_own(path) as file:
        digest, data = file.read(_CHECKSUM), memoryview(file.read())
    end = _SIZE + int.from_bytes(data[:_SIZE], "little")
    if hashlib.sha256(data).digest() != digest or end > len(data):
        raise ValueError("damaged")
    header = json.loads(bytes(data[_SIZE:end]))
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, data[end:]
