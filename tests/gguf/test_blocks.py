"""Every type of block against the gguf package, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UnsupportedArchitecture
from gptcli.gguf import blocks
from gptcli.gguf.blocks import BLOCKS, decoded
from gptcli.gguf.reader import GgufFile
from tests.gguf.raw_gguf import RawGguf
from tests.gguf.record_codebooks import PATH, codebooks
from tests.gguf.tiny_gguf import write_gguf


def same_bits(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether all numbers are the same; NaN may be any NaN."""
    numbers = ~np.isnan(theirs)
    assert np.array_equal(np.isnan(ours), ~numbers)
    return np.array_equal(ours[numbers].view(np.uint32), theirs[numbers].astype(np.float32).view(np.uint32))


def reference(name: str, data: np.ndarray) -> np.ndarray:
    if name == "Q1_0":  # which the package does not decode: 16 bytes of signs after a scale
        d, signs = data.reshape(-1, 18)[:, :2].copy().view(np.float16), data.reshape(-1, 18)[:, 2:]
        bits = np.unpackbits(signs, axis=1, bitorder="little")
        return np.where(bits == 1, d, -d).astype(np.float32).reshape(*data.shape[:-1], -1)
    with np.errstate(all="ignore"):
        return dequantize(data, GGMLQuantizationType[name])


@pytest.mark.parametrize("name", BLOCKS)
def test_sizes_are_those_of_the_gguf_package(name: str) -> None:
    block = BLOCKS[name]
    assert GGMLQuantizationType(block.number).name == name
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (block.columns, block.size)


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_have_the_values_of_the_gguf_package(name: str) -> None:
    data = np.random.default_rng(1).integers(0, 256, (300, 2 * BLOCKS[name].size), np.uint8)
    assert same_bits(decoded(name, data), reference(name, data))


@pytest.mark.parametrize("name", BLOCKS)
@given(data=st.data())
def test_any_block_has_the_values_of_the_gguf_package(name: str, data: st.DataObject) -> None:
    size = BLOCKS[name].size
    block = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8).reshape(1, -1)
    assert same_bits(decoded(name, block), reference(name, block))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_decoded_in_chunks_of_any_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(2).integers(0, 256, (2, 7, 3 * BLOCKS[name].size), np.uint8)
    whole = decoded(name, data)
    monkeypatch.setattr(blocks, "_CHUNK", 4 * BLOCKS[name].columns)
    assert whole.shape == (2, 7, 3 * BLOCKS[name].columns)
    assert same_bits(decoded(name, data), whole)


def test_the_codebooks_are_those_of_the_gguf_package() -> None:
    assert json.loads(PATH.read_text()) == codebooks()


def test_every_other_type_of_the_gguf_package_is_refused_by_name(tmp_path: Path) -> None:
    others = [kind for kind in GGMLQuantizationType if kind.name not in BLOCKS]
    assert others
    for kind in others:
        raw = RawGguf.of(write_gguf(tmp_path / "tiny.gguf"))
        raw.tensors["token_embd.weight"].kind = int(kind)
        (tmp_path / "tiny.gguf").write_bytes(raw.written())
        with pytest.raises(UnsupportedArchitecture, match=rf"type {int(kind)} \({kind.name}\)") as raised:
            GgufFile(tmp_path / "tiny.gguf")
        assert "another type" in str(raised.value.hint)
