from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from gptcli.checkpoint.safetensors_header import read_header
from gptcli.errors import BrokenCheckpoint, InputError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def write(path: Path, header: Any, data: int = 32, length: int | None = None) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(body) if length is None else length) + body + bytes(data))
    return path


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return GOOD | {name: GOOD[name] | fields}


def test_a_header_gives_dtype_shape_and_place(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10_000])
def test_a_header_longer_than_the_file_is_refused_without_reading_it(tmp_path: Path, length: int) -> None:
    with pytest.raises(BrokenCheckpoint, match="truncated or damaged"):
        read_header(write(tmp_path / "x", GOOD, length=length))


def test_a_truncated_download_says_how_much_is_there(tmp_path: Path) -> None:
    file = write(tmp_path / "x", GOOD, data=31)
    with pytest.raises(BrokenCheckpoint, match=f"{file.stat().st_size} of {file.stat().st_size + 1} bytes"):
        read_header(file)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="1 bytes belong to no tensor"):
        read_header(write(tmp_path / "x", GOOD, data=33))


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BrokenCheckpoint, match=f"{len(content)} bytes are no safetensors file"):
        read_header(tmp_path / "x")


def test_a_git_lfs_pointer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(BrokenCheckpoint) as caught:
        read_header(tmp_path / "x")
    assert caught.value.hint is not None and "git lfs pull" in caught.value.hint


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "x")
    with pytest.raises(InputError, match="not a regular file"):
        read_header(tmp_path / "x")
