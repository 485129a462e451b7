from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.quant.affine import AffineWeight
from gptcli.quant.gptq import gptq_weight
from tests.parity.reference import write_reference
from tests.quant.repacked import Packed, agrees, decoder_of, is_matrix, repack, words

SIZES = {"intermediate_size": 96, "num_hidden_layers": 2}


def pack(
    name: str, weight: Tensor, *, bits: int, group_size: int = 32, shuffled: bool = False, zero_offset: int = 1
) -> Packed | None:
    """A random GPTQ matrix of the weight's shape in AutoGPTQ's layout: words run down the inputs."""
    if not is_matrix(name):
        return None
    outputs, inputs = weight.shape
    group_size = inputs if group_size == -1 else group_size
    group_of = torch.arange(inputs) // group_size
    if shuffled:
        group_of = group_of[torch.randperm(inputs)]
    groups = -(-inputs // group_size)
    q = torch.randint(0, 2**bits, (inputs, outputs))
    zeros = torch.randint(0, 2**bits, (groups, outputs))
    scales = (torch.rand(groups, outputs) * 0.02 + 0.01).half()
    meant = scales[group_of].float() * (q - zeros[group_of])
    stored_zeros = (zeros - zero_offset) % 2**bits
    tensors = {
        "qweight": torch.tensor([words(column, bits) for column in q.t().tolist()], dtype=torch.int32).t(),
        "qzeros": torch.tensor([words(row, bits) for row in stored_zeros.tolist()], dtype=torch.int32),
        "scales": scales,
        "g_idx": group_of.int(),
    }
    return tensors, meant.t()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference(tmp_path_factory.mktemp("llama"), "llama", **SIZES).path


def settings(**fields: object) -> dict[str, object]:
    return {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, **fields}}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_a_gptq_model_computes_with_what_is_meant(llama: Path, tmp_path: Path, bits: int, group_size: int) -> None:
    how = {"bits": bits, "group_size": group_size}
    packed, meant = repack(llama, tmp_path, partial(pack, **how), **settings(**how))
    agrees(packed, meant)
    stays = [module for module in decoder_of(packed, "keep").modules() if hasattr(module, "weight")]
    assert sum(isinstance(module.weight, AffineWeight) for module in stays) == 8


def test_columns_quantized_out_of_order_find_their_group(llama: Path, tmp_path: Path) -> None:
    agrees(*repack(llama, tmp_path, partial(pack, bits=4, shuffled=True), **settings(desc_act=True)))


def test_the_second_format_stores_zeros_as_they_are(llama: Path, tmp_path: Path) -> None:
    how = partial(pack, bits=4, zero_offset=0)
    agrees(*repack(llama, tmp_path, how, **settings(checkpoint_format="gptq_v2")))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_that_the_model_has_not_may_only_be_zero(llama: Path, tmp_path: Path, value: float) -> None:
    def with_bias(name: str, weight: Tensor) -> Packed | None:
        made = pack(name, weight, bits=4)
        return made and (made[0] | {"bias": torch.full((weight.shape[0],), value)}, made[1])

    packed, meant = repack(llama, tmp_path, with_bias, **settings())
    if value:
        with pytest.raises(BrokenCheckpoint, match="bias is not zero"):
            decoder_of(packed, "keep")
    else:
        agrees(packed, meant)


@pytest.mark.parametrize(("fields", "complaint", "kind"), [
    ({"bits": 5}, "bits = 5", UnsupportedArchitecture),
    ({"checkpoint_format": "marlin"}, "checkpoint_format = marlin", UnsupportedArchitecture),
    ({"dynamic": {"+:.*": {"bits": 8}}}, "dynamic", UnsupportedArchitecture),
    ({"bits": 8}, ".qzeros is", BrokenCheckpoint),
    ({"group_size": 64}, ".qzeros is", BrokenCheckpoint),
    ({"group_size": 0}, "group_size must be", BrokenCheckpoint),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(
    llama: Path, tmp_path: Path, fields: dict[str, object], complaint: str, kind: type[Exception]
) -> None:
    packed, _ = repack(llama, tmp_path, partial(pack, bits=4), **settings(**fields))
    with pytest.raises(kind, match=complaint):
        _ = ModelFolder.open(packed).architecture


def test_a_group_that_is_not_there_is_refused() -> None:
    made = pack("q_proj.weight", torch.empty(32, 64), bits=4)
    assert made is not None
    tensors = made[0] | {"g_idx": torch.full((64,), 2)}
    with pytest.raises(BrokenCheckpoint, match="a group that is not there"):
        gptq_weight(*tensors.values(), bits=4, group_size=32, zero_offset=1)


def test_a_group_of_any_size_is_no_larger_than_the_matrix() -> None:
    zeros = {"qweight": torch.zeros(8, 8, dtype=torch.int32), "qzeros": torch.zeros(1, 1, dtype=torch.int32)}
    of_size = {
        size: gptq_weight(**zeros, scales=torch.ones(1, 8), group_of=None, bits=4, group_size=size, zero_offset=1)
        for size in (65, 10**400)
    }
    assert of_size[65].equal(of_size[10**400])
