"""Writes safetensors from streams of arrays: one file, or shards and their index."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]  # by the name to store them under

_SHARD_BYTES = 2 << 30
# numpy has no bf16, so its bits are uint16.
_DTYPES = {"uint32": "U32", "float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16"}


class SafetensorsWriter:
    """Writes model.safetensors in a directory, or several shards if it is large. All raise OSError."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._shards: list[list[str]] = []  # the names in each
        self._shard: Arrays = {}

    def add(self, arrays: Arrays) -> None:
        """Adds tensors. No more than a shard is kept in memory."""
        self._shard |= arrays
        if sum(array.nbytes for array in self._shard.values()) > _SHARD_BYTES:
            self._write()

    def close(self) -> None:
        """Writes what is left, and the index."""
        if self._shard or not self._shards:
            self._write()
        target, count = self._target, len(self._shards)
        if count == 1:
            (target / "shard-0").rename(target / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, members in enumerate(self._shards):
            name = f"model-{index + 1:05}-of-{count:05}.safetensors"
            (target / f"shard-{index}").rename(target / name)
            weight_map |= dict.fromkeys(members, name)
        write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})

    def _write(self) -> None:
        _write_shard(self._shard, self._target / f"shard-{len(self._shards)}")
        self._shards.append(list(self._shard))
        self._shard = {}


def _write_shard(tensors: Arrays, path: Path) -> None:
    # Widest dtype first, and a header padded to 8 bytes: so every tensor is aligned, as the format recommends.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in ordered:
            file.write(array.data)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object. Raises OSError."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
