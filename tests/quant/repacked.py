"""Checkpoints of any family in packed formats, each with a dense one of the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import Packing, WeightPlan, load_decoder
from gptcli.kernels.bindings import Arithmetic
from gptcli.kernels.tensors import Library
from gptcli.kernels.tensors import library as kernels
from gptcli.model.decoder import Decoder
from gptcli.runtime.device_plan import DevicePlan
from gptcli.runtime.torch_engine import TorchEngine

IDS = list(range(3, 40))
Packed = tuple[dict[str, Tensor], Tensor]  # tensors by what follows the module's name, and the weight they mean


def repack(path: Path, packed: Path, meant: Path, pack: Callable[[str, Tensor], Packed | None], **config: Any) -> None:
    """Writes a checkpoint twice: with matrices packed by `pack`, and dense with the packed matrices' values.

    pack: gets a weight's name and value; None leaves it as it is.
    """
    stored, dense = dict[str, Tensor](), dict[str, Tensor]()
    for name, value in load_file(path / "model.safetensors").items():
        made = pack(name, value)
        if made is None:
            stored[name] = dense[name] = value
            continue
        tensors, dense[name] = made
        stored |= {name.removesuffix("weight") + leaf: tensor for leaf, tensor in tensors.items()}
    fields = json.loads((path / "config.json").read_text())
    for folder, weights, extra in ((packed, stored, config), (meant, dense, {})):
        folder.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(fields | extra))


def decoder_of(
    path: Path, packing: Packing, library: Library | None = None, arithmetic: Arithmetic = "fp32"
) -> Decoder:
    plan = WeightPlan(torch.device("cpu"), torch.float32, packing, library, arithmetic=arithmetic)
    return load_decoder(ModelFolder.open(path), plan)


def logits_of(
    path: Path, packing: Packing = "expand", library: Library | None = None, arithmetic: Arithmetic = "fp32"
) -> Tensor:
    decoder = decoder_of(path, packing, library, arithmetic)
    plan = DevicePlan(WeightPlan(torch.device("cpu"), torch.float32, packing, library), library)
    return TorchEngine(decoder, plan, decoder.config.max_context, load_s=0.0).logits(IDS)


def agrees(packed: Path, meant: Path) -> None:
    """Asserts that a packed checkpoint has the dense one's logits on every engine, up to rounded activations."""
    wanted = logits_of(meant)
    assert logits_of(packed, "expand").equal(wanted)
    assert (logits_of(packed, "keep") - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    if (library := kernels()) is not None:
        assert (logits_of(packed, "keep", library) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        # The median: in a mixture a token here and there goes to another expert.
        assert (
            logits_of(packed, "keep", library, arithmetic="int8") - wanted
        ).abs().median() <= 0.02 * wanted.abs().max()


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def words(values: list[int], bits: int) -> list[int]:
    """Values of `bits` bits as a stream of signed 32-bit words, the first in the lowest bits."""
    stream = sum(value << (bits * index) for index, value in enumerate(values))
    raw = stream.to_bytes(len(values) * bits // 8, "little")
    return [int.from_bytes(raw[start : start + 4], "little", signed=True) for start in range(0, len(raw), 4)]
