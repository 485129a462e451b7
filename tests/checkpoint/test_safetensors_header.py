from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from gptcli.checkpoint.safetensors_header import read_header
from gptcli.errors import BrokenCheckpoint

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body)) + body + bytes(32))
    return path


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | fields}


def test_a_header_gives_dtype_shape_and_offset(tmp_path: Path) -> None:
    file = write(tmp_path / "x", GOOD | {"__metadata__": {"format": "pt"}})
    tensors = read_header(file)
    start = file.stat().st_size - 32
    assert [(t.dtype, t.shape, t.offset, t.size) for t in tensors.values()] == [
        ("F32", (2, 3), start, 24),
        ("BF16", (4,), start + 24, 8),
    ]


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (changed("a", dtype="F7"), "dtype 'F7' is not known"),
        (changed("a", dtype=["F32"]), "dtype"),
        (changed("a", shape=[-2, -3]), "shape"),
        (changed("a", shape=[2.0, 3]), "shape"),
        (changed("a", shape=[True, 6]), "shape"),
        (changed("a", shape=[2**63, 3]), "shape"),
        (changed("a", shape="23"), "shape"),
        (changed("a", data_offsets=[0, 20]), "takes 24 bytes"),
        (changed("a", data_offsets=[24, 0]), "takes 24 bytes"),
        (changed("a", data_offsets=[-24, 0]), "takes 24 bytes"),
        (changed("a", data_offsets=[0.0, 24]), "two numbers"),
        (changed("a", data_offsets=[0]), "two numbers"),
        (changed("b", data_offsets=[20, 28]), "overlaps"),
        (changed("b", data_offsets=[28, 36]), "hole"),
        (changed("b", data_offsets=[0, 8]), "overlaps"),
        (GOOD | {"a": {"dtype": "F32", "shape": [6]}}, "needs dtype, shape and data_offsets"),
        (GOOD | {"a": None}, "needs dtype, shape and data_offsets"),
        (b"[]", "not a JSON object"),
        (b"{", "header"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "header"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, complaint: str) -> None:
    with pytest.raises(BrokenCheckpoint, match=complaint):
        read_header(write(tmp_path / "x", header))
