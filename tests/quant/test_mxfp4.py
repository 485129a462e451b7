from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint
from gptcli.export.dense_folder import write_dense
from gptcli.quant.mxfp4 import Mxfp4Weight, mxfp4_weight
from gptcli.runtime.device_plan import plan_for
from gptcli.settings import RuntimeConfig
from tests.parity.reference import write_reference
from tests.parity.test_families import GPT_OSS
from tests.quant.repacked import Packed, agrees, decoder_of, repack

SETTINGS = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}}


def e2m1(code: int) -> float:
    """The value of a sign, two bits of exponent and one of mantissa, after the standard's table."""
    sign, exponent, mantissa = -1 if code & 8 else 1, code >> 1 & 3, code & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def test_every_code_and_exponent_means_what_the_standard_says() -> None:
    codes = torch.arange(16).repeat(2).view(2, 16)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).flatten().to(torch.uint8)  # 32 columns
    exponents = torch.arange(100, 150, dtype=torch.uint8)
    weight = mxfp4_weight(packed.expand(50, 1, 16), exponents.view(50, 1))
    wanted = [[math.ldexp(e2m1(code), int(exponent) - 127) for code in [*range(16)] * 2] for exponent in exponents]
    assert weight.shape == (50, 32)
    assert weight.dequantize(torch.float32).tolist() == wanted


def pack(name: str, weight: Tensor) -> Packed | None:
    """Random blocks and scales for the experts' matrices, and transformers' values of them."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return None
    experts, inputs, outputs = weight.shape
    blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.randint(121, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
    meant = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return {"_blocks": blocks, "_scales": scales}, meant


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("gpt_oss"), "gpt_oss", **GPT_OSS, intermediate_size=96).path


def test_a_gpt_oss_in_mxfp4_computes_with_what_transformers_reads(gpt_oss: Path, tmp_path: Path) -> None:
    packed, meant = repack(gpt_oss, tmp_path, pack, **SETTINGS)
    agrees(packed, meant)
    experts = decoder_of(packed, "keep").blocks[0].mlp.up
    assert isinstance(experts.weight, Mxfp4Weight) and experts.weight.shape == (6, 192, 64)


def test_experts_stay_packed_unless_they_are_to_be_expanded(gpt_oss: Path, tmp_path: Path) -> None:
    folder = ModelFolder.open(repack(gpt_oss, tmp_path, pack, **SETTINGS)[0])
    plans = [plan_for(folder, RuntimeConfig(device="cpu", quantize=quantize)) for quantize in ("auto", "none")]
    assert [plan.weights.packing for plan in plans] == ["keep", "dense"]


def test_a_dense_copy_has_the_tensors_that_transformers_makes_of_the_blocks(gpt_oss: Path, tmp_path: Path) -> None:
    packed, meant = repack(gpt_oss, tmp_path, pack, **SETTINGS)
    (copy := tmp_path / "copy").mkdir()
    write_dense(ModelFolder.open(packed), copy, lambda parameter: None)
    written, wanted = (load_file(path / "model.safetensors") for path in (copy, meant))
    assert written.keys() == wanted.keys()
    assert all(written[name].equal(wanted[name]) for name in wanted)


def test_blocks_without_their_scales_are_refused(gpt_oss: Path, tmp_path: Path) -> None:
    def without_scales(name: str, weight: Tensor) -> Packed | None:
        made = pack(name, weight)
        return made and ({"_blocks": made[0]["_blocks"]}, made[1])

    packed, _ = repack(gpt_oss, tmp_path, without_scales, **SETTINGS)
    with pytest.raises(BrokenCheckpoint, match="scales are missing"):
        _ = ModelFolder.open(packed).architecture
