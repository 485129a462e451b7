"""Mixtures of experts in packed formats, under the names that each format's writer uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcli.model.mlp import Experts
from gptcli.quant.affine import quantize_affine
from gptcli.quant.packed import PackedExperts
from tests.parity.reference import write_reference
from tests.parity.test_families import GPT, GPT_OSS
from tests.quant.repacked import Packed, agrees, decoder_of, logits_of, repack

MOE = {"num_hidden_layers": 2, "num_experts_per_tok": 2}
FAMILIES = {
    "mixtral": MOE | {"num_local_experts": 4, "intermediate_size": 96},
    "qwen2_moe": MOE | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "qwen3_moe": MOE | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 32},
}
MLX = {"quantization": {"group_size": 32, "bits": 4}}


def pack(name: str, weight: Tensor) -> Packed | None:
    """A matrix as MLX stores it, whose router and embeddings are packed too."""
    if weight.dim() < 2 or not name.endswith("weight") or "norm" in name:
        return None
    made = quantize_affine(weight, bits=4)
    tensors = {"weight": made.packed.contiguous().view(torch.uint32), "scales": made.scales, "biases": made.biases}
    return tensors, made.dequantize(torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stacked", [False, True], ids=["a file for each expert", "stacked as MLX does"])
def test_packed_experts_compute_with_what_is_meant(family: str, stacked: bool, tmp_path: Path) -> None:
    path = write_reference(tmp_path / "dense", family, **FAMILIES[family]).path
    packed, meant = repack(path, tmp_path, pack, **MLX)
    if stacked:
        stack_experts(packed / "model.safetensors")
    agrees(packed, meant)
    modules = list(decoder_of(packed, "keep").modules())
    assert sum(isinstance(module, PackedExperts) for module in modules) == 4
    assert not any(isinstance(module, Experts) for module in modules)


def stack_experts(file: Path) -> None:
    """Stacks the experts' tensors of each kind under `switch_mlp`."""
    kinds = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    tensors, stacks = dict[str, Tensor](), dict[str, list[Tensor]]()
    for name, tensor in sorted(load_file(file).items()):
        root, _, rest = name.partition(".experts.")
        if not rest:
            tensors[name] = tensor
            continue
        _, kind, leaf = rest.split(".")
        stacks.setdefault(f"{root}.switch_mlp.{kinds.get(kind, kind)}.{leaf}", []).append(tensor)
    save_file(tensors | {name: torch.stack(each) for name, each in stacks.items()}, file)


def test_gpt_oss_as_mlx_stores_it(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "dense", "gpt_oss", **GPT_OSS, intermediate_size=96).path
    separated = dict[str, Tensor]()
    for name, value in load_file(path / "model.safetensors").items():
        root, _, kind = name.rpartition(".")
        if kind.startswith("gate_up_proj"):
            value = value.mT if value.dim() == 3 else value
            leaf = "bias" if kind.endswith("bias") else "weight"
            separated |= {f"{root}.gate_proj.{leaf}": value[:, ::2], f"{root}.up_proj.{leaf}": value[:, 1::2]}
        elif kind.startswith("down_proj"):
            leaf = "bias" if kind.endswith("bias") else "weight"
            separated[f"{root}.down_proj.{leaf}"] = value if leaf == "bias" else value.mT
        else:
            separated[name] = value
    wanted = logits_of(path)
    save_file({name: value.contiguous() for name, value in separated.items()}, path / "model.safetensors")
    assert logits_of(path).equal(wanted)
    agrees(*repack(path, tmp_path, pack, **MLX))


@pytest.mark.parametrize("packing", ["int8", "int4"])
def test_experts_are_quantized_on_load_and_their_router_is_not(packing: str, tmp_path: Path) -> None:
    path = write_reference(tmp_path, "qwen3_moe", **FAMILIES["qwen3_moe"]).path
    decoder = decoder_of(path, packing)  # type: ignore[arg-type]
    assert isinstance(decoder.blocks[0].mlp.up, PackedExperts)
    assert isinstance(decoder.blocks[0].mlp.router.weight, torch.nn.Parameter)
    wanted = logits_of(path)
    assert 0 < (logits_of(path, packing) - wanted).abs().max() < 0.5 * wanted.abs().max()  # type: ignore[arg-type]


def test_learned_positions_stay_dense_whatever_is_asked(tmp_path: Path) -> None:
    path = write_reference(tmp_path, "gpt2", **GPT).path
    assert isinstance(decoder_of(path, "int8").positions.weight, torch.nn.Parameter)
    wanted = logits_of(path)
    assert (logits_of(path, "int8") - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_gpt2_as_mlx_stores_it_is_not_transposed_again(tmp_path: Path) -> None:
    path = write_reference(tmp_path / "dense", "gpt2", **GPT).path

    def out_in(name: str, weight: Tensor) -> Packed | None:
        made = pack(name, weight.t() if ".h." in name else weight)
        return made and (made[0], made[1].t() if ".h." in name else made[1])

    packed, meant = repack(path, tmp_path, out_in, **MLX)
    agrees(packed, meant)
    renamed = {
        name.replace("transformer.", "model."): value for name, value in load_file(packed / "model.safetensors").items()
    }
    save_file(renamed, packed / "model.safetensors")
    agrees(packed, meant)


def test_gpt_neox_under_the_names_of_mlx(tmp_path: Path) -> None:
    path = write_reference(tmp_path, "gpt_neox").path
    wanted = logits_of(path)
    renamed = {
        "model." + name.removeprefix("gpt_neox.").replace("layers.", "h."): value
        for name, value in load_file(path / "model.safetensors").items()
    }
    save_file(renamed, path / "model.safetensors")
    assert logits_of(path).equal(wanted)
