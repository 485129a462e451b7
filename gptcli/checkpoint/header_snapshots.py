"""Snapshots of the parsed headers of GGUF files, so that the next start need not read their vocabularies."""

from __future__ import annotations

import json
import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from gptcli.checkpoint.safetensors_header import TensorInfo
from gptcli.gguf.model_tensor import Edit
from gptcli.model_notes import Note
from gptcli.snapshot_format import SnapshotFile

HEADERS = ".header"  # how the names of their files end
_MOST_HEADERS = 32  # of some 50 KB each


@dataclass(frozen=True)
class ReadFile:
    """The parsed header of a GGUF file. The fields are `ModelFolder`'s."""

    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    notes: list[Note]


def header_slot(file: Path) -> SnapshotFile | None:
    """The slot of a GGUF file; None if snapshots are off or the file is gone."""
    return SnapshotFile.of(file, HEADERS, [Path(os.path.realpath(file))])


def read_header_snapshot(slot: SnapshotFile) -> ReadFile | None:
    """The header in a slot, if it is whole and has the slot's key."""
    found = slot.read()
    if found is None:
        return None
    fields, target = found[0], Path(os.path.realpath(slot.model))
    tensors = {
        name: TensorInfo(dtype, tuple(shape), target, offset, size, edit and Edit(*edit))
        for name, dtype, shape, offset, size, edit in fields["tensors"]
    }
    notes = [Note(what, tuple(names)) for what, names in fields["notes"]]
    return ReadFile(fields["config"], fields["generation"], tensors, notes)


def write_header_snapshot(slot: SnapshotFile, read: ReadFile) -> None:
    """Writes a file's header; not of a split file, nor of one that was replaced since its slot was made."""
    files = {os.path.realpath(each.file) for each in read.tensors.values()}
    if header_slot(slot.model) != slot or files != {os.path.realpath(slot.model)}:
        return
    if not _survives([read.config, read.generation_config]):
        return
    tensors = [
        (name, each.dtype, each.shape, each.offset, each.size, each.edit and astuple(each.edit))
        for name, each in read.tensors.items()
    ]
    notes = [(note.what, note.names) for note in read.notes]
    fields = {"config": read.config, "generation": read.generation_config, "tensors": tensors, "notes": notes}
    slot.write(fields, b"", most=_MOST_HEADERS)


def _survives(value: object) -> bool:
    """Whether JSON gives a value back as it is."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except TypeError:
        return False
