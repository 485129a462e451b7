"""GGUF files that are not a language model, or not valid: the error names what they are and gives a hint."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFEndian, GGUFWriter

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import InvalidModel
from gptcli.models.catalog import fingerprint
from gptcli.models.install import install
from gptcli.text.tokenizer import Tokenizer
from tests.gguf.raw_gguf import RawGguf
from tests.gguf.tiny_gguf import add_field, finish, write_gguf

MATRIX = np.ones((32, 32), np.float32)
KINDS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a projector": ("clip", {"general.type": "mmproj"}, "v.patch_embd.weight", "reads images"),
    "an adapter": ("llama", {"general.type": "adapter", "adapter.type": "lora"}, "blk.0.attn_q.weight.lora_a",
         "adapter"),
    "an importance matrix": ("", {"general.type": "imatrix"}, "blk.0.attn_q.weight.in_sum2", "importance matrix"),
    "a control vector": ("controlvector", {"controlvector.model_hint": "llama"}, "direction.1", "control vector"),
    "a model of embeddings": ("nomic-bert", {"nomic-bert.block_count": 2}, "token_embd.weight", "writes no text"),
    "a vocabulary": ("llama", {"llama.block_count": 2}, "", "a vocabulary"),
}  # fmt: skip


def write(file: Path, architecture: str, fields: dict[str, Any], tensor: str) -> Path:
    writer = GGUFWriter(file, architecture)
    for name, value in fields.items():
        add_field(writer, name, value)
    if tensor:
        writer.add_tensor(tensor, MATRIX)
    finish(writer)
    return file


@pytest.mark.parametrize("what", KINDS)
def test_what_is_no_language_model_is_named(what: str, tmp_path: Path) -> None:
    architecture, fields, tensor, message = KINDS[what]
    file = write(tmp_path / "other.gguf", architecture or "llama", fields, tensor)
    if not architecture:
        raw = RawGguf.of(file)
        del raw.fields["general.architecture"]
        file.write_bytes(raw.written())
    with pytest.raises(InvalidModel, match=message) as raised:
        ModelFolder.open(file)
    assert raised.value.hint


@pytest.mark.parametrize(("start", "message"), [
    (b"GGUF" + struct.pack(">I", 3), "big-endian"),
    (b"GGUF" + struct.pack("<I", 1), "GGUF version 1"),
    (b"tjgg" + struct.pack("<I", 3), "before GGUF"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
])  # fmt: skip
def test_what_looks_like_a_gguf_file_is_named(start: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(start + bytes(64))
    with pytest.raises(InvalidModel, match=message) as raised:
        ModelFolder.open(file)
    assert raised.value.hint


def test_a_file_of_a_big_endian_machine_is_named(tmp_path: Path) -> None:
    finish(GGUFWriter(tmp_path / "big.gguf", "llama", endianess=GGUFEndian.BIG))
    with pytest.raises(InvalidModel, match="big-endian"):
        ModelFolder.open(tmp_path / "big.gguf")


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_data_may_be_aligned_in_other_ways(alignment: int, tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "plain.gguf")
    changed = write_gguf(tmp_path / "aligned.gguf", general__alignment=alignment)
    assert changed.read_bytes() != plain.read_bytes()
    ours, theirs = (ModelFolder.open(file).gguf for file in (changed, plain))
    assert ours is not None and theirs is not None
    for name, tensor in theirs.file.tensors.items():
        assert np.array_equal(ours.file.data(ours.file.tensors[name]), theirs.file.data(tensor)), name


@pytest.mark.parametrize("kind", [None, "none"])
def test_a_file_without_a_tokenizer_says_so(kind: str | None, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="no tokenizer"):
        Tokenizer.open(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__model=kind))


def test_a_file_beside_an_installed_one_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    write_gguf(fetched / "installed.gguf")
    directory = install(fetched, "tiny", {"hub": "owner/tiny"})
    beside = write_gguf(directory / "other.gguf", llama__context_length=32)
    assert fingerprint(beside) != fingerprint(directory / "installed.gguf")
