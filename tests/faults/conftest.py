"""A fault leaves stdout empty and gives one line of error, perhaps a hint, and a documented exit code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, cli, tiny_by_default
from tests.tiny import make_model

__all__ = ["cli", "tiny_by_default"]

Refuses = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model for one test to damage."""
    return make_model(tmp_path / "model")


@pytest.fixture
def refuses(cli: Cli, model: Path) -> Refuses:
    """Runs `gptcli generate` with the damaged model, asserts that it is refused with a code, and returns stderr."""

    def call(code: int, *options: str, prompt: str = "In a small town") -> str:
        result = cli("generate", "-m", model, "-n", "3", "-t", "0", *options, prompt)
        result.fails(code)
        assert "note: " not in result.err
        return result.err

    return call


def read_weights(model: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a model's weights."""
    data = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_weights(model: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """Writes a model's weights."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_tensor(model: Path, name: str, **fields: Any) -> None:
    """Changes what the header of a model's weights says of a tensor."""
    header, data = read_weights(model)
    header[name] |= fields
    write_weights(model, header, data)
