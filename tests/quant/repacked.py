"""Checkpoints of any family in packed formats, each with a dense one of the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcli.checkpoint.load import Packing
from gptcli.kernels.tensors import library as kernels
from gptcli.model.decoder import Decoder
from tests.parity.test_families import engine_of, relative_error

IDS = list(range(3, 40))
Packed = tuple[dict[str, Tensor], Tensor]  # tensors by what follows the module's name, and the weight they mean


def repack(path: Path, folder: Path, pack: Callable[[str, Tensor], Packed | None], **config: Any) -> tuple[Path, Path]:
    """Writes a checkpoint twice into a folder: with matrices packed by `pack`, and dense with these matrices' values.

    pack: gets a weight's name and value; None leaves it as it is.
    """
    packed, meant = folder / "packed", folder / "meant"
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
    return packed, meant


def decoder_of(path: Path, packing: Packing) -> Decoder:
    return engine_of(path, packing=packing).decoder


def logits_of(path: Path, packing: Packing = "expand", **how: Any) -> Tensor:
    return engine_of(path, packing=packing, **how).logits(IDS)


def agrees(packed: Path, meant: Path) -> None:
    """Asserts that a packed checkpoint has the dense one's logits on every engine, up to rounded activations."""
    wanted = logits_of(meant)
    assert logits_of(packed, "expand").equal(wanted)
    assert relative_error(logits_of(packed, "keep"), wanted) <= 1e-5
    if (library := kernels()) is not None:
        assert relative_error(logits_of(packed, "keep", library=library), wanted) <= 1e-5
        rounded = logits_of(packed, "keep", library=library, arithmetic="int8")
        # The median: in a mixture a token here and there goes to another expert.
        assert (rounded - wanted).abs().median() <= 0.02 * wanted.abs().max()


def is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight")


def words(values: list[int], bits: int) -> list[int]:
    """Values of `bits` bits as a stream of signed 32-bit words, the first in the lowest bits."""
    stream = sum(value << (bits * index) for index, value in enumerate(values))
    raw = stream.to_bytes(len(values) * bits // 8, "little")
    return [int.from_bytes(raw[start : start + 4], "little", signed=True) for start in range(0, len(raw), 4)]
