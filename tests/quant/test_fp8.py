from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptcli
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.quant.fp8 import fp8_weight
from tests.parity.reference import write_reference
from tests.parity.test_families import DEEPSEEK, GROUPS, IDS, engine_of, relative_error
from tests.tiny import CONFIG, make_model, make_weights

BLOCK = (16, 8)
SCALES = {
    "tensor": lambda rows, columns: torch.rand(1) + 0.1,
    "channel": lambda rows, columns: torch.rand(rows, 1) + 0.1,
    "block": lambda rows, columns: torch.rand(-(-rows // BLOCK[0]), -(-columns // BLOCK[1])) + 0.1,
}


def spelled_out(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    out = torch.empty(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            if scale.numel() == 1:
                factor = scale.flatten()[0]
            elif scale.shape == (weight.shape[0], 1):
                factor = scale[row, 0]
            else:
                factor = scale[row // BLOCK[0], column // BLOCK[1]]
            out[row, column] = weight[row, column].float() * factor.float()
    return out


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("shape", [(32, 24), (33, 20), (7, 5), (32, 128)])
def test_every_weight_is_multiplied_by_its_own_scale(kind: str, shape: tuple[int, int]) -> None:
    weight, scale = torch.randn(shape).to(torch.float8_e4m3fn), SCALES[kind](*shape)
    assert fp8_weight(weight, scale, BLOCK).dequantize(torch.float32).equal(spelled_out(weight, scale))


def test_blocks_larger_than_memory_are_cut_to_the_matrix() -> None:
    weight, scales = torch.randn(32, 24).to(torch.float8_e4m3fn), torch.tensor([[2.0], [3.0]])
    expected = weight.float() * scales.repeat_interleave(16, 0)
    assert fp8_weight(weight, scales, (16, 1 << 45)).dequantize(torch.float32).equal(expected)
    assert (
        fp8_weight(weight, scales[:1].expand(1, 2), (1 << 45, 12)).dequantize(torch.float32).equal(2 * weight.float())
    )


def fp8_model(path: Path, kind: str, end: str, settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny model with FP8 matrices, and its weights' values."""
    torch.manual_seed(0)
    stored, meant = {}, {}
    for name, array in make_weights(CONFIG).items():
        dense = torch.from_numpy(array)
        if "_proj" not in name:
            stored[name] = meant[name] = dense
            continue
        weight, scale = dense.to(torch.float8_e4m3fn), SCALES[kind](*dense.shape)
        stored |= {name: weight, name + end: scale}
        meant[name] = spelled_out(weight, scale)
    make_model(path, quantization_config=settings)
    save_file(stored, path / "model.safetensors")
    return path, meant


@pytest.mark.parametrize(
    ("kind", "end", "settings"),
    [
        ("block", "_scale_inv", {"quant_method": "fp8", "weight_block_size": list(BLOCK), "fmt": "e4m3"}),
        ("channel", "_scale", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
        ("tensor", "_scale", {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    ],
)
def test_an_fp8_model_computes_with_what_is_meant(kind: str, end: str, settings: Any, tmp_path: Path) -> None:
    path, meant = fp8_model(tmp_path / "fp8", kind, end, settings)
    dense = make_model(tmp_path / "dense")
    save_file(meant, dense / "model.safetensors")
    ids = list(range(3, 50))
    assert gptcli.load(path, dtype="fp32").logits(ids).equal(gptcli.load(dense, dtype="fp32").logits(ids))


def test_an_fp8_matrix_without_scales_is_refused(tmp_path: Path) -> None:
    path, _ = fp8_model(tmp_path, "tensor", "_other", {"quant_method": "fp8"})
    with pytest.raises(BrokenCheckpoint, match="without its scales"):
        gptcli.load(path)


def test_scales_of_another_shape_are_refused(tmp_path: Path) -> None:
    path, _ = fp8_model(tmp_path, "block", "_scale_inv", {"quant_method": "fp8", "weight_block_size": [4, 4]})
    with pytest.raises(BrokenCheckpoint, match="no scales of .* have shape"):
        gptcli.load(path)


def test_integers_in_compressed_tensors_are_refused(tmp_path: Path) -> None:
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    path, _ = fp8_model(tmp_path, "tensor", "_scale", settings)
    with pytest.raises(UnsupportedArchitecture, match="'compressed-tensors'"):
        gptcli.load(path)


def test_latent_attention_in_fp8_computes_with_what_is_meant(tmp_path: Path) -> None:
    """As in DeepSeek V3's checkpoint, borders of heads and of rotated channels lie inside blocks."""
    settings = {"quant_method": "fp8", "weight_block_size": list(BLOCK), "fmt": "e4m3"}
    dense = write_reference(tmp_path / "dense", "deepseek_v3", **DEEPSEEK | GROUPS).path
    fp8 = tmp_path / "fp8"
    fp8.mkdir()
    stored, meant = {}, {}
    for name, weight in load_file(dense / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if "_proj" in name:
            scale = SCALES["block"](*weight.shape)
            stored |= {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
            meant[name] = spelled_out(stored[name], scale)
    config = json.loads((dense / "config.json").read_text())
    (fp8 / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    save_file(stored, fp8 / "model.safetensors")
    save_file(meant, dense / "model.safetensors")
    assert relative_error(engine_of(fp8).logits(IDS), engine_of(dense).logits(IDS)) < 1e-6
