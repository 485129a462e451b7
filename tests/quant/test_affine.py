from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gptcli
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.quant.affine import AffineWeight, quantize_affine
from gptcli.quant.packed import PackedLinear, packed_linear
from tests.tiny import CONFIG, make_model, make_weights


def spelled_out(weight: AffineWeight) -> torch.Tensor:
    """scale * q + bias, one weight at a time, with q from the row's bits in MLX's layout."""
    rows, columns = weight.shape
    group = columns // weight.scales.shape[1]
    out = torch.empty(rows, columns)
    for row in range(rows):
        bits = int.from_bytes(bytes(weight.packed[row].tolist()), "little")
        for column in range(columns):
            q = (bits >> (weight.bits * column)) & (2**weight.bits - 1)
            scale, bias = weight.scales[row, column // group], weight.biases[row, column // group]
            out[row, column] = scale.float() * q + bias.float()
    return out


def pack_mlx(weight: AffineWeight, name: str) -> dict[str, torch.Tensor]:
    words = weight.packed.contiguous().view(torch.uint32)
    return {f"{name}.weight": words, f"{name}.scales": weight.scales, f"{name}.biases": weight.biases}


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_width_of_mlx_expands_to_what_its_bits_say(bits: int, group_size: int) -> None:
    packed = torch.randint(0, 256, (5, 128 * bits // 8), dtype=torch.uint8)
    scales, biases = torch.randn(2, 5, 128 // group_size).half()
    weight = AffineWeight(packed, scales, biases, bits)
    assert weight.shape == (5, 128)
    assert weight.dequantize(torch.float32).equal(spelled_out(weight))


@pytest.mark.parametrize("size", [1e-4, 1, 1e4])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantizing_moves_no_weight_by_more_than_half_a_step(bits: int, size: float) -> None:
    dense = torch.randn(64, 64) * size
    groups = dense.view(64, 2, 32)
    least, most = groups.amin(-1), groups.amax(-1)
    step = (most - least) / 15 if bits == 4 else torch.maximum(-least, most) / 127
    moved = (quantize_affine(dense, bits).dequantize(torch.float32) - dense).view(64, 2, 32).abs().amax(-1)
    rounding = torch.maximum(-least, most) * 2**-10 + 2**-24  # scales and biases are rounded to fp16 besides
    assert (moved <= step * 0.5 + rounding).all()


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1, 1e4])
def test_in_8_bits_128_stands_for_zero_and_the_scales_imply_the_biases(size: float) -> None:
    torch.manual_seed(0)  # without a value between two levels, which may go to either when mirrored
    dense = torch.randn(64, 64) * size
    dense[3, 5] = dense[9, 32:] = 0
    weight = quantize_affine(dense, 8)
    assert weight.biases.float().equal(weight.scales.float() * -128)
    rounded = weight.dequantize(torch.float32)
    assert rounded[3, 5] == 0 and not rounded[9, 32:].any()
    assert quantize_affine(-dense, 8).dequantize(torch.float32).equal(-rounded)


def test_a_group_beyond_what_a_bias_in_fp16_reaches_is_spread_from_its_least() -> None:
    dense = torch.randn(4, 64)
    dense[1, 40] = 200_000
    weight = quantize_affine(dense, 8)
    centred = weight.biases.float() == weight.scales.float() * -128
    assert centred.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert (weight.dequantize(torch.float32) - dense).abs().amax() <= 200_000 / 255 / 2 + 200_000 * 2**-11


def test_a_constant_group_keeps_its_value() -> None:
    weight = quantize_affine(torch.full((2, 32), 0.5), 4)
    assert weight.dequantize(torch.float32).equal(torch.full((2, 32), 0.5))


def test_a_packed_product_is_the_dense_one_whatever_the_rows_a_chunk() -> None:
    weight = quantize_affine(torch.randn(2500, 512), 4)  # more than one chunk
    x = torch.randn(3, 512)
    assert packed_linear(x, weight, None).allclose(x @ weight.dequantize(torch.float32).T, atol=1e-4)


@pytest.fixture
def packed_model(tmp_path: Path) -> Path:
    """A tiny model with 4-bit matrices, 8-bit embeddings, a dense o_proj, and v in 8 bits beside q and k in 4."""
    tensors: dict[str, torch.Tensor] = {}
    overrides = {}
    config = CONFIG | {"intermediate_size": 64}
    for name, array in make_weights(config).items():
        module, dense = name.removesuffix(".weight"), torch.from_numpy(array)
        if dense.dim() == 2 and "o_proj" not in name:
            bits = 8 if "embed" in name or "v_proj" in name else 4
            if bits == 8:
                overrides[module] = {"group_size": 32, "bits": 8}
            tensors |= pack_mlx(quantize_affine(dense, bits), module)
        else:
            tensors[name] = dense
    quantization = {"group_size": 32, "bits": 4, **overrides}
    make_model(tmp_path, intermediate_size=64, quantization=quantization, quantization_config=quantization)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_packed_and_expanded_weights_give_the_same_logits(packed_model: Path) -> None:
    ids = list(range(3, 60))
    expanded = gptcli.load(packed_model, quantize="none", dtype="fp32")
    packed = gptcli.load(packed_model, quantize="none", dtype="fp32")
    packed.engine.decoder = load_decoder(packed.folder, WeightPlan(torch.device("cpu"), torch.float32, "keep"))
    assert any(isinstance(module, PackedLinear) for module in packed.engine.decoder.modules())
    assert packed.logits(ids).allclose(expanded.logits(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("quantize", "agreement"), [("int8", 0.05), ("int4", 0.6)])
def test_quantizing_on_load_stays_near_the_dense_model(tiny_model: Path, quantize: str, agreement: float) -> None:
    ids = list(range(3, 60))
    dense = gptcli.load(tiny_model, dtype="fp32").logits(ids)
    rough = gptcli.load(tiny_model, dtype="fp32", quantize=quantize).logits(ids)  # type: ignore[arg-type]
    assert 0 < (rough - dense).abs().max() / dense.abs().max() < agreement


@pytest.mark.parametrize(("quantization", "complaint", "kind"), [
    ({"group_size": 32, "bits": 7}, "7 bits in groups of 32", UnsupportedArchitecture),
    ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, "mode 'mxfp4'", UnsupportedArchitecture),
    (None, "`quantization` is missing", BrokenCheckpoint),
    ({"group_size": 64, "bits": 4}, "scales are missing or of another shape", BrokenCheckpoint),
    ([], "must be an object", BrokenCheckpoint),
])  # fmt: skip
def test_settings_that_do_not_fit_the_weights_are_refused(
    packed_model: Path, quantization: object, complaint: str, kind: type[Exception]
) -> None:
    config = json.loads((packed_model / "config.json").read_text())
    del config["quantization_config"]
    (packed_model / "config.json").write_text(json.dumps(config | {"quantization": quantization}))
    with pytest.raises(kind, match=complaint):
        gptcli.load(packed_model)
