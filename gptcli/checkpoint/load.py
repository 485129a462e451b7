"""Fills a decoder from a checkpoint: iterates our parameters and asks the checkpoint for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.recipes import (
    Concat,
    EvensThenOdds,
    HeadsToParts,
    PairsToHalves,
    PlusOne,
    Recipe,
    Stack,
    Take,
    Transposed,
    sources,
)
from gptcli.checkpoint.tensors import TensorSource
from gptcli.errors import BrokenCheckpoint
from gptcli.model.decoder import Decoder
from gptcli.quant.affine import AffineEmbedding, AffineLinear, AffineWeight

Progress = Callable[[int, int], None]  # bytes read, bytes in all
Packing = Literal["keep", "expand", "int8", "int4"]  # what becomes of matrices: see `load_decoder`


def load_decoder(
    folder: ModelFolder,
    device: torch.device,
    dtype: torch.dtype,
    packing: Packing,
    on_progress: Progress = lambda done, total: None,
) -> Decoder:
    """A decoder with the checkpoint's weights on `device`.

    Packed matrices stay as they are ("keep") or become dense ("expand"); "int8" and "int4" also pack dense ones, the
    head of an int4 model in 8 bits. Everything dense is of `dtype`, but for norms stored less 1, which stay in fp32. At
    most one parameter is held twice.
    Raises BrokenCheckpoint where a shape does not fit the config, before any weight is read.
    """
    decoder = empty_decoder(folder)
    total = folder.weight_bytes
    with TensorSource(folder) as source:
        for name, recipe in folder.architecture.parameters.items():
            value = _cook(recipe, source)
            if isinstance(value, AffineWeight) and packing == "expand":
                value = value.dequantize(dtype)
            elif isinstance(value, Tensor) and packing in ("int8", "int4"):
                value = _quantized(name, value, packing)
            # 1 + w needs the bits that w alone could be stored without.
            _place(decoder, name, value, device, torch.float32 if isinstance(recipe, PlusOne) else dtype)
            on_progress(source.bytes_read, total)
    return decoder.eval()


def empty_decoder(folder: ModelFolder) -> Decoder:
    """The decoder without memory for its weights, which all fit it. Raises BrokenCheckpoint where a shape does not."""
    architecture = folder.architecture
    with torch.device("meta"):
        decoder = Decoder(architecture.config)
    expected = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    assert expected.keys() == architecture.parameters.keys(), expected.keys() ^ architecture.parameters.keys()
    wrong = [
        f"{' + '.join(sources(recipe))} is {list(found)}, the config wants {list(expected[name])}"
        for name, recipe in architecture.parameters.items()
        if (found := folder.parameter_shape(recipe)) != expected[name]
    ]
    if wrong:
        raise BrokenCheckpoint(f"{len(wrong)} tensors have another shape: {'; '.join(wrong[:5])}")
    return decoder


def _cook(recipe: Recipe, source: TensorSource) -> Tensor | AffineWeight:
    match recipe:
        case Take(name):
            return source.weight(name)
        case Concat(parts):
            return _concatenated([_cook(part, source) for part in parts])
        case Stack(parts):
            return torch.stack([_dense(_cook(part, source)) for part in parts])
        case Transposed(part):
            return _dense(_cook(part, source)).mT.contiguous()
        case PlusOne(part):
            return _dense(_cook(part, source)).float() + 1
        case PairsToHalves(part, heads, dim):
            return _reordered(_cook(part, source), lambda rows: _pairs_to_halves(rows.view(heads, -1), dim))
        case HeadsToParts(part, heads):
            return _reordered(_cook(part, source), lambda rows: rows.view(heads, 3, -1).transpose(0, 1))
        case EvensThenOdds(part):
            value = _dense(_cook(part, source))
            return torch.cat([value[:, ::2], value[:, 1::2]], dim=1)


def _dense(value: Tensor | AffineWeight) -> Tensor:
    return value.dequantize(torch.float32) if isinstance(value, AffineWeight) else value


def _concatenated(parts: list[Tensor | AffineWeight]) -> Tensor | AffineWeight:
    """Parts one below the other; they stay packed where all are alike."""
    packed = [part for part in parts if isinstance(part, AffineWeight)]
    alike = {(part.bits, part.shape[1] // part.scales.shape[1]) for part in packed}
    if len(packed) == len(parts) and len(alike) == 1:
        return AffineWeight.concat(packed)
    return torch.cat([_dense(part) for part in parts])


def _reordered(value: Tensor | AffineWeight, order: Callable[[Tensor], Tensor]) -> Tensor | AffineWeight:
    """Rows in the order that `order` makes of their indices."""
    indices = order(torch.arange(value.shape[0])).flatten()
    return value[indices] if isinstance(value, Tensor) else value.rows(indices)


def _pairs_to_halves(rows: Tensor, dim: int) -> Tensor:
    """(heads, head_dim) indices with the evens among the first `dim` in front of the odds."""
    return torch.cat([rows[:, :dim:2], rows[:, 1:dim:2], rows[:, dim:]], dim=1)


def _quantized(name: str, value: Tensor, packing: Literal["int8", "int4"]) -> Tensor | AffineWeight:
    if value.dim() != 2 or value.shape[1] % 32:
        return value
    vocabulary = name in ("embed.weight", "head.weight")
    return AffineWeight.quantize(value, bits=4 if packing == "int4" and not vocabulary else 8)


def _place(decoder: Decoder, name: str, value: Tensor | AffineWeight, device: torch.device, dtype: torch.dtype) -> None:
    path, leaf = name.rsplit(".", 1)
    if isinstance(value, Tensor):
        parameter = nn.Parameter(value.to(device, dtype), requires_grad=False)
        setattr(decoder.get_submodule(path), leaf, parameter)
        return
    weight = value.to(device)
    replacement = AffineEmbedding(weight, dtype) if path == "embed" else AffineLinear(weight)
    decoder.set_submodule(path, replacement)
