from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.weights.tensor_source import TensorSource, non_finite_tensors
from gptcli.errors import BrokenCheckpoint, BrokenTokenizer, GptcliError, InputError, UnsupportedArchitecture
from gptcli.gguf import safetensors_writer
from gptcli.gguf.convert import convert
from gptcli.gguf.reader import GgufFile
from gptcli.language_model import LanguageModel
from gptcli.model.config import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from gptcli.quant.affine import AffineWeight
from gptcli.settings import RuntimeConfig
from tests.gguf.raw_gguf import RawGguf
from tests.gguf.tiny_gguf import HEAD_DIM, TOKENS, WIDTH, Kind, imported, random_blocks, shapes, write_gguf

EXACT = [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.F32, Kind.BF16]
MATRICES = {"attn_output": "self_attn.o_proj", "attn_v": "self_attn.v_proj", "ffn_gate": "mlp.gate_proj"}


def converted(path: Path, *args: Any, **changes: Any) -> ModelFolder:
    """A tiny GGUF file, written and converted."""
    return ModelFolder.open(imported(write_gguf(path / "tiny.gguf", *args, **changes), path / "model"))


def value_of(folder: ModelFolder, name: str) -> np.ndarray:
    """A tensor of a converted model in fp32."""
    with TensorSource(folder) as source:
        weight = source.weight(name)
    if isinstance(weight, AffineWeight):
        weight = weight.dequantize(torch.float32)
    return weight.float().numpy()


def originals(file: Path) -> dict[str, np.ndarray]:
    """A GGUF file's tensors in fp32, as the gguf package reads them."""
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}


def our_logits(folder: ModelFolder, ids: list[int]) -> torch.Tensor:
    return LanguageModel("tiny", folder, RuntimeConfig(device="cpu", dtype="fp32", quantize="none")).logits(ids)


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_values_are_exactly_those_in_the_file(kind: Kind, tmp_path: Path) -> None:
    folder = converted(tmp_path, kind)
    expected = originals(tmp_path / "tiny.gguf")
    assert np.array_equal(value_of(folder, "model.embed_tokens.weight"), expected["token_embd.weight"])
    for theirs, ours in MATRICES.items():
        stored = value_of(folder, f"model.layers.1.{ours}.weight")
        assert np.array_equal(stored, expected[f"blk.1.{theirs}.weight"]), theirs


def test_k_quants_are_rounded_to_fp16(tmp_path: Path) -> None:
    folder = converted(tmp_path, {"ffn_down.weight": Kind.F32, "weight": Kind.Q6_K}, width=256)
    expected = originals(tmp_path / "tiny.gguf")["blk.0.ffn_up.weight"]
    assert folder.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "F16"
    assert np.array_equal(value_of(folder, "model.layers.0.mlp.up_proj.weight"), expected.astype(np.float16))


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, "F16"), (Kind.BF16, "BF16"), (Kind.F32, "F32")])
def test_floats_keep_their_type(kind: Kind, dtype: str, tmp_path: Path) -> None:
    assert converted(tmp_path, kind).tensors["model.embed_tokens.weight"].dtype == dtype


def test_packed_blocks_take_no_more_space_than_in_the_file(tmp_path: Path) -> None:
    folder = converted(tmp_path, Kind.Q4_1)
    assert folder.weight_bytes == sum(int(tensor.n_bytes) for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0], ids=lambda kind: kind.name)
def test_blocks_without_a_bias_get_an_exact_one_from_their_scale(kind: Kind, tmp_path: Path) -> None:
    with TensorSource(converted(tmp_path, kind)) as source:
        weight = source.weight("model.layers.1.self_attn.o_proj.weight")
    assert isinstance(weight, AffineWeight)
    assert weight.biases.float().equal(weight.scales.float() * -(2 ** (weight.bits - 1)))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_logits_are_those_of_transformers_reading_the_same_file(kind: Kind, tied: bool, tmp_path: Path) -> None:
    norms = {f"blk.{layer}.attn_norm.weight": np.random.default_rng(layer).normal(1, 0.3, WIDTH) for layer in (0, 1)}
    tensors = {name: norm.astype(np.float32) for name, norm in norms.items()}
    folder = converted(tmp_path, kind, tied=tied, tensors=tensors)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    ids = [5, 17, 200, 3, 99, 2, 150, 260]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    ours = our_logits(folder, ids)
    assert folder.architecture.config.tied_head == tied
    assert (ours - expected).norm() / expected.norm() < 1e-5


def test_modules_with_other_bits_than_most_are_named_in_the_config(tmp_path: Path) -> None:
    folder = converted(tmp_path, {"token_embd.weight": Kind.Q8_0, "weight": Kind.Q4_0})
    assert folder.config["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    assert folder.weights["model.embed_tokens.weight"].shape == (len(TOKENS), WIDTH)
    assert folder.architecture.config.vocab_size == len(TOKENS)


def test_a_dense_matrix_may_be_among_packed_ones(tmp_path: Path) -> None:
    folder = converted(tmp_path, {"attn_v.weight": Kind.F16, "weight": Kind.Q4_0})
    assert not folder.weights["model.layers.0.self_attn.v_proj.weight"].about
    assert our_logits(folder, [1, 2, 3]).isfinite().all()


def test_a_large_model_is_split_into_shards_that_their_index_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = converted(tmp_path, Kind.Q4_0)
    monkeypatch.setattr(safetensors_writer, "_SHARD_BYTES", 20_000)
    target = imported(tmp_path / "tiny.gguf", tmp_path / "sharded")
    index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert set(index.values()) == set(files)
    sharded = ModelFolder.open(target)
    assert torch.equal(our_logits(sharded, [4, 5, 6]), our_logits(whole, [4, 5, 6]))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_scale_whose_bias_would_overflow_fp16_makes_the_matrix_dense(kind: Kind, tmp_path: Path) -> None:
    blocks = random_blocks((WIDTH, WIDTH), kind, seed=1)
    blocks[0, :2] = np.frombuffer(np.float16(30_000).tobytes(), np.uint8)
    folder = converted(tmp_path, kind, tensors={"blk.0.attn_output.weight": (blocks, kind)})
    stored = value_of(folder, "model.layers.0.self_attn.o_proj.weight")
    assert folder.tensors["model.layers.0.self_attn.o_proj.weight"].dtype == "F32"
    assert np.isfinite(stored).all()
    assert np.array_equal(stored, dequantize(blocks, kind))


def test_a_scale_that_is_not_a_number_is_kept_for_verify_to_find(tmp_path: Path) -> None:
    blocks = random_blocks((WIDTH, WIDTH), Kind.Q4_1, seed=1)
    blocks[3, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    folder = converted(tmp_path, Kind.Q4_1, tensors={"blk.1.attn_v.weight": (blocks, Kind.Q4_1)})
    assert non_finite_tensors(folder) == ["model.layers.1.self_attn.v_proj.weight"]


def llama3_factors(factor: float, theta: float = 500_000.0) -> np.ndarray:
    """The rope_freqs.weight that convert_hf_to_gguf.py writes for Llama 3.1 (factor 8) and 3.2 (factor 32)."""
    low_wavelength, high_wavelength = 8192 / 1.0, 8192 / 4.0
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM):
        wavelength = 2 * np.pi / frequency
        if wavelength < high_wavelength:
            factors.append(1.0)
        elif wavelength > low_wavelength:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_factors_are_recognised(factor: float, tmp_path: Path) -> None:
    tensors = {"rope_freqs.weight": llama3_factors(factor)}
    folder = converted(tmp_path, tensors=tensors, llama__rope__freq_base=500_000.0)
    rope = folder.architecture.config.blocks[0].attention.rope
    assert rope is not None and rope.scaling == Llama3Scaling(
        factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
    )


def test_other_rope_factors_are_kept_as_they_are(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)
    folder = converted(tmp_path, tensors={"rope_freqs.weight": factors})
    rope = folder.architecture.config.blocks[0].attention.rope
    assert rope is not None and isinstance(rope.scaling, LongRopeScaling)
    assert np.array_equal(np.float32(rope.scaling.short), factors) and rope.scaling.short == rope.scaling.long
    assert rope.scaling.magnitude == 1.0 and rope.border is None  # the same factors for texts of any length


def test_rope_factors_for_other_heads_are_refused(tmp_path: Path) -> None:
    folder = converted(tmp_path, tensors={"rope_freqs.weight": np.ones(3, np.float32)})
    with pytest.raises(BrokenCheckpoint, match="a list of 8 numbers"):
        _ = folder.architecture


def test_a_yarn_rope_is_kept(tmp_path: Path) -> None:
    changes = {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 24.0}
    folder = converted(tmp_path, **{f"llama__rope__scaling__{name}": value for name, value in changes.items()})
    rope = folder.architecture.config.blocks[0].attention.rope
    magnitude = 0.1 * np.log(4) + 1
    expected = YarnScaling(factor=4.0, original_context=16, magnitude=magnitude, beta_fast=24.0)
    assert rope is not None and rope.scaling == expected


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    folder = converted(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.5)
    rope = folder.architecture.config.blocks[0].attention.rope
    assert rope is not None and rope.scaling == LinearScaling(factor=2.5)


REFUSED: dict[str, tuple[dict[str, Any], type[GptcliError], str]] = {
    "another architecture": ({"general__architecture": "mamba"}, UnsupportedArchitecture, "'mamba'"),
    "yarn": ({"llama__rope__scaling__type": "yarn"}, UnsupportedArchitecture, "'yarn'"),
    "part of a split file": ({"split__count": 3}, UnsupportedArchitecture, "one of 3 parts"),
    "values of another size": ({"llama__attention__value_length": 8}, UnsupportedArchitecture, "values of another"),
    "an unknown field": ({"llama__logit_scale": 2.0}, UnsupportedArchitecture, "llama.logit_scale"),
    "heads by layer": ({"llama__attention__head_count": [4, 2]}, UnsupportedArchitecture,
         "differs from layer to layer"),
    "no heads": ({"llama__attention__head_count": 0}, BrokenCheckpoint, "0 attention heads"),
    "uneven heads": ({"llama__attention__head_count": 3}, BrokenCheckpoint, "no multiple of 6"),
    "no context length": ({"llama__context_length": None}, BrokenCheckpoint, "context_length is missing"),
    "no epsilon": ({"llama__attention__layer_norm_rms_epsilon": None}, BrokenCheckpoint, "epsilon of its norms"),
    "an infinite epsilon": ({"llama__attention__layer_norm_rms_epsilon": float("inf")}, BrokenCheckpoint,
         "rms_epsilon must be of type float"),
    "a tokenizer of words": ({"tokenizer__ggml__model": "bert"}, BrokenTokenizer, "tokenizer 'bert'"),
    "a SentencePiece tokenizer without scores": ({"tokenizer__ggml__model": "llama"}, BrokenCheckpoint,
         "scores is missing"),
    "scores that are no numbers": ({"tokenizer__ggml__model": "llama",
         "tokenizer__ggml__scores": [0.0] * (len(TOKENS) - 1) + [float("nan")]}, BrokenCheckpoint, "are no numbers"),
    "an unknown pre-tokenizer": ({"tokenizer__ggml__pre": "superbpe"}, BrokenTokenizer, "'superbpe'"),
    "merges that make no token": ({"tokenizer__ggml__merges": ["x y"]}, BrokenTokenizer, "not there"),
    "a merge of one": ({"tokenizer__ggml__merges": ["x"]}, BrokenTokenizer, "not there"),
    "a token twice": ({"tokenizer__ggml__tokens": ["a"] * len(TOKENS)}, BrokenCheckpoint, "occurs twice"),
    "too few types": ({"tokenizer__ggml__token_type": [1, 1]}, BrokenCheckpoint, "token types do not match"),
    "a stop token outside": ({"tokenizer__ggml__eot_token_id": 9999}, BrokenCheckpoint, "outside the vocabulary"),
    "a BOS without a name": ({"tokenizer__ggml__bos_token_id": None, "tokenizer__ggml__add_bos_token": True},
         BrokenCheckpoint, "BOS is to be added"),
    "an unknown tensor": ({"tensors": {"blk.0.ssm_in.weight": np.ones((2, 2), np.float32)}}, UnsupportedArchitecture,
         "'blk.0.ssm_in.weight'"),
    "a kind nobody reads": ({"tensors": {"output.weight": (np.ones((2, 2), np.int32), Kind.I32)}},
         UnsupportedArchitecture, "type 26"),
    "rows that heads do not divide": ({"tensors": {"blk.0.attn_q.weight": np.ones((WIDTH + 1, WIDTH), np.float32)}},
         BrokenCheckpoint, "'blk.0.attn_q.weight' has 65 rows"),
    "no embeddings": ({"tensor_shapes": {name: shapes()[name] for name in shapes() if name != "token_embd.weight"}},
         BrokenCheckpoint, r"token_embd\.weight' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused_by_name(what: str, tmp_path: Path) -> None:
    changes, error, message = REFUSED[what]
    with pytest.raises(error, match=message) as raised:
        converted(tmp_path, **changes)
    assert type(raised.value) is error
    assert str(tmp_path / "tiny.gguf") in raised.value.message


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot open"):
        convert(tmp_path / "none.gguf", tmp_path, lambda done, total: None)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GG", b"\0" * 4096, b"GGUF" + b"\xff" * 4096, b"not a model " * 99])
def test_garbage_is_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "garbage.gguf"
    file.write_bytes(data)
    with pytest.raises((BrokenCheckpoint, UnsupportedArchitecture), match="cannot read"):
        convert(file, tmp_path, lambda done, total: None)


def test_a_list_longer_than_the_file_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "list.gguf"
    name = b"tokenizer.ggml.scores"
    field = struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, 0, 1 << 60)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field)
    with pytest.raises(BrokenCheckpoint, match="lists of 1152921504606846976 values"):
        convert(file, tmp_path, lambda done, total: None)


@pytest.mark.parametrize(("tensors", "fields"), [(0, 200_000), (200_000, 0), (1 << 63, 0)])
def test_more_tensors_or_fields_than_any_model_has_are_refused_unread(
    tensors: int, fields: int, tmp_path: Path
) -> None:
    file = tmp_path / "names.gguf"
    names = b"".join(struct.pack("<Q", 6) + b"%06x" % each + struct.pack("<IB", 7, 1) for each in range(fields))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + names)
    with pytest.raises(BrokenCheckpoint, match=f"{tensors} tensors and {fields} fields"):
        convert(file, tmp_path, lambda done, total: None)


def test_lists_that_are_too_long_together_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "lists.gguf"
    count = 3_000_000
    fields = b"".join(struct.pack("<Q1sIIQ", 1, name, 9, 0, count) + bytes(count) for name in (b"a", b"b"))
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + fields)
    with pytest.raises(BrokenCheckpoint, match="lists of 6000000 values"):
        convert(file, tmp_path, lambda done, total: None)


def test_a_tensor_that_does_not_begin_where_the_one_before_ends_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "whole.gguf", Kind.F32)
    raw = RawGguf.of(file)
    norm = raw.tensors["blk.0.attn_norm.weight"]
    for change in ({"data": norm.data + bytes(32)}, {"kind": int(Kind.F16)}):
        hole = RawGguf(raw.fields, raw.tensors | {"blk.0.attn_norm.weight": replace(norm, **change)})
        file.write_bytes(hole.written())
        with pytest.raises(BrokenCheckpoint, match=r"does not begin where 'blk\.0\.attn_norm\.weight' ends"):
            convert(file, tmp_path, lambda done, total: None)


def test_every_cut_of_a_file_is_a_broken_checkpoint(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", Kind.Q4_0).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, len(whole) - 32, 997), len(whole) - 64]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BrokenCheckpoint):
            convert(cut, tmp_path, lambda done, total: None)


def test_a_damaged_file_raises_nothing_but_our_errors(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", Kind.Q4_0).read_bytes()
    damaged = tmp_path / "damaged.gguf"
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            data[chance.randrange(9000)] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        damaged.write_bytes(data)
        try:
            convert(damaged, tmp_path, lambda done, total: None)
        except GptcliError:
            refused += 1
    assert refused > 100


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(write_gguf(tmp_path / "tiny.gguf"), tmp_path, lambda done, total: seen.append((done, total)))
    done = [progress[0] for progress in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1] > 0


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    """Otherwise a small file could become a model of any size."""
    file = write_gguf(tmp_path / "x.gguf")
    data = bytearray(file.read_bytes())
    first, second = GgufFile(file).tensors["blk.0.attn_q.weight"], GgufFile(file).tensors["blk.1.attn_q.weight"]
    start = min(tensor.offset for tensor in GgufFile(file).tensors.values())
    offset = data.index(struct.pack("<Q", second.offset - start), data.index(b"blk.1.attn_q.weight"))
    data[offset : offset + 8] = struct.pack("<Q", first.offset - start)
    file.write_bytes(data)
    with pytest.raises(BrokenCheckpoint, match="overlap"):
        GgufFile(file)
