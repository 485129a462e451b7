"""Keeps parsed headers of GGUF files in the cache directory, so that the next start need not read their vocabularies.

    32 bytes    the SHA-256 of what follows
    JSON        the key, and the fields of a `ReadFile`

A header is used only while its GGUF file is unchanged, and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from gptcli.checkpoint.safetensors_header import TensorInfo
from gptcli.environment import prepared_directory
from gptcli.errors import InputError
from gptcli.files import identity, open_own, program_identity, replaced
from gptcli.gguf.model_tensor import Edit
from gptcli.model_notes import Note
from gptcli.version import VERSION

_SUFFIX = ".header"
_MOST_HEADERS = 32  # of some 50 KB each


@dataclass(frozen=True)
class HeaderSlot:
    """A GGUF file, the path of its kept header, and the key that the header must have."""

    file: Path
    path: Path
    key: dict[str, Any]


@dataclass(frozen=True)
class ReadFile:
    """The parsed header of a GGUF file. The fields are `ModelFolder`'s."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    notes: list[Note]


def header_slot(file: Path) -> HeaderSlot | None:
    """The slot of a GGUF file; None if headers are not kept, or the file is gone."""
    if os.environ.get("GPTCLI_PREPARED") == "off":
        return None
    target = os.path.realpath(file)
    try:
        key = {"version": [VERSION, program_identity()], "file": target, "identity": identity(file)}
    except OSError:  # it is being replaced, or gone
        return None
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:24]
    return HeaderSlot(file, prepared_directory() / (name + _SUFFIX), key)


def kept_header(slot: HeaderSlot) -> ReadFile | None:
    """The header in a slot; None unless it is whole and has the slot's key."""
    try:
        with open_own(slot.path) as file:
            digest, data = file.read(32), file.read()
    except (OSError, InputError):
        return None
    if hashlib.sha256(data).digest() != digest:
        return None
    return _parsed(data, slot)


def kept_headers() -> dict[Path, Path]:
    """The paths of all kept headers, each with its GGUF file."""
    found = {}
    for path in prepared_directory().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, InputError, ValueError), open_own(path) as file:
            file.seek(32)
            found[path] = Path(json.load(file)["key"]["file"])
    return found


def keep_header(slot: HeaderSlot, read: ReadFile) -> None:
    """Keeps a file's header, unless the file is split or the cache cannot be written.

    slot: the file's slot before it was read.
    """
    if header_slot(slot.file) != slot or {os.path.realpath(each.file) for each in read.tensors.values()} != {
        slot.key["file"]
    }:
        return
    tensors = [
        (name, each.dtype, each.shape, each.offset, each.size, each.edit and astuple(each.edit))
        for name, each in read.tensors.items()
    ]
    notes = [(note.what, note.names) for note in read.notes]
    kept = {"key": slot.key, "config": read.config, "generation": read.generation_config}
    data = json.dumps(kept | {"tensors": tensors, "notes": notes}, separators=(",", ":")).encode()
    if _parsed(data, slot) != read:  # something in it is no JSON
        return
    with contextlib.suppress(OSError):
        slot.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replaced(slot.path) as file:
            file.write(hashlib.sha256(data).digest() + data)
        kept_files = sorted(slot.path.parent.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in kept_files[:-_MOST_HEADERS]:
            path.unlink(missing_ok=True)


def _parsed(data: bytes, slot: HeaderSlot) -> ReadFile | None:
    kept = json.loads(data)
    if kept["key"] != slot.key:
        return None
    target = Path(slot.key["file"])
    tensors = {
        name: TensorInfo(dtype, tuple(shape), target, offset, size, edit and Edit(*edit))
        for name, dtype, shape, offset, size, edit in kept["tensors"]
    }
    notes = [Note(what, tuple(names)) for what, names in kept["notes"]]
    return ReadFile(kept["config"], kept["generation"], tensors, notes)
