"""A tiny model for mutators to change: its files as bytes, the safetensors file also as header and data."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

from tests.tiny import make_model

WEIGHTS = "model.safetensors"
GGUF = "model.gguf"
GENERATION = {"temperature": 0.7, "top_p": 0.9, "eos_token_id": [2]}

# The outcome that a mutant must have. "accept" and "either", if accepted, must have the base model's log-probabilities.
# "any" may be another model or none: it must only not crash, hang or babble.
Expected = Literal["reject", "accept", "either", "any"]
Mutator = Callable[[Random, "ModelDir"], Expected | None]  # None: the mutant must be rejected


@dataclass
class ModelDir:
    """A model directory in memory."""

    files: dict[str, bytes]
    odd: dict[str, Callable[[Path], object]] = field(default_factory=dict)  # makes a pipe, a link and the like

    @classmethod
    def base(cls) -> ModelDir:
        """A copy of the model that every mutant starts from."""
        return copy.deepcopy(_base())

    def json(self, name: str = "config.json") -> dict[str, Any]:
        """A JSON file's contents."""
        parsed: dict[str, Any] = json.loads(self.files[name])
        return parsed

    def put(self, name: str, content: object) -> None:
        """Writes a JSON file, which may have NaN."""
        self.files[name] = json.dumps(content).encode()

    def change(self, name: str, **fields: Any) -> None:
        """Changes top-level fields of a JSON file."""
        self.put(name, self.json(name) | fields)

    def header(self, name: str = WEIGHTS) -> tuple[dict[str, Any], bytes]:
        """The header and the data of a safetensors file."""
        data = self.files[name]
        (length,) = struct.unpack("<Q", data[:8])
        return json.loads(data[8 : 8 + length]), data[8 + length :]

    def put_header(self, header: dict[str, Any] | bytes, data: bytes, name: str = WEIGHTS) -> None:
        """Writes a safetensors file."""
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.files[name] = struct.pack("<Q", len(text)) + text + data

    def replace(self, name: str, make: Callable[[Path], object]) -> None:
        """Replaces a file by whatever `make` puts at its path."""
        self.files.pop(name, None)
        self.odd[name] = make

    def entry(self, path: Path) -> Path:
        """The path to give to -m if the directory is written at `path`."""
        return path / GGUF if GGUF in {*self.files, *self.odd} else path

    def write(self, path: Path) -> None:
        """Writes the directory."""
        path.mkdir(parents=True)
        for name, content in self.files.items():
            (path / name).write_bytes(content)
        for name, make in self.odd.items():
            make(path / name)


@cache
def _base() -> ModelDir:
    with TemporaryDirectory() as directory:
        path = make_model(Path(directory) / "base", generation_config=GENERATION)
        return ModelDir({name: (path / name).read_bytes() for name in sorted(os.listdir(path))})
