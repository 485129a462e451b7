"""Fills a decoder from a checkpoint: iterates our parameters and asks the checkpoint for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.recipes import Concat, Recipe, Take
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
    head of an int4 model in 8 bits. Everything dense is of `dtype`. At most one parameter is held twice.
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
            _place(decoder, name, value, device, dtype)
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
        f"{' + '.join(recipe.sources)} is {list(found)}, the config wants {list(expected[name])}"
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
        case Concat(names):
            parts = [source.weight(name) for name in names]
            packed = [part for part in parts if isinstance(part, AffineWeight)]
            alike = {(part.bits, part.shape[1] // part.scales.shape[1]) for part in packed}
            if len(packed) == len(parts) and len(alike) == 1:
                return AffineWeight.concat(packed)
            return torch.cat(
                [part.dequantize(torch.float32) if isinstance(part, AffineWeight) else part for part in parts]
            )


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
