"""Fills a decoder from a checkpoint: iterates our parameters and asks the checkpoint for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    is_transposed,
    sources,
)
from gptcli.checkpoint.tensor_source import TensorSource
from gptcli.cuda.int4 import Tinygemm, TinygemmEmbedding, TinygemmLinear, TinygemmMatrix
from gptcli.errors import BrokenCheckpoint
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear, can_compile
from gptcli.kernels.tensors import FLOATS, Library
from gptcli.model.decoder import Decoder, Embedding
from gptcli.model.linear import Linear
from gptcli.model.mlp import Experts
from gptcli.quant.affine import quantize_affine
from gptcli.quant.dense import DenseWeight
from gptcli.quant.packed import (
    PackedEmbedding,
    PackedExperts,
    PackedLinear,
    PackedWeight,
    alike,
    concat_rows,
    stack,
)
from gptcli.quant.weight import StoredWeight

Progress = Callable[[int, int], None]  # bytes read, bytes in all
Packing = Literal["keep", "expand", "dense", "int8", "int4"]  # what becomes of matrices: see `load_decoder`


def load_decoder(
    folder: ModelFolder,
    device: torch.device,
    dtype: torch.dtype,
    packing: Packing,
    on_progress: Progress = lambda done, total: None,
    *,
    library: Library | None = None,
    half: torch.dtype | None = None,
    integers: bool = False,
    tinygemm: Tinygemm | None = None,
) -> Decoder:
    """A decoder with the checkpoint's weights on `device`.

    Packed matrices stay as they are ("keep") or become dense, all of them ("dense") or those that nothing below
    multiplies ("expand"); "int8" and "int4" also pack dense ones, the head of an int4 model in 8 bits. Everything dense
    is of `dtype`, but for norms stored less 1, which stay in fp32. At most one parameter is held twice.
    library: the kernels that multiply, in fp32 on the CPU, what they can of packed matrices and all dense ones, whose
    numbers then stay what they are. half: the precision in which they get all that is or becomes dense instead.
    integers: whether they may round activations to 8 bits for packed ones. tinygemm: the kernel that multiplies, in
    bf16 on CUDA, what it can of packed matrices.
    Raises BrokenCheckpoint where a shape does not fit the config, before any weight is read.
    """
    decoder = empty_decoder(folder)
    total = folder.weight_bytes
    with TensorSource(folder) as source:
        for name, recipe in folder.architecture.parameters.items():
            value: Tensor | StoredWeight = _cook(recipe, source)
            if isinstance(value, Tensor) and packing in ("int8", "int4"):
                value = _quantized(decoder, name, value, packing)
            # 1 + w needs the bits that w alone could be stored without.
            own_dtype = torch.float32 if isinstance(recipe, PlusOne) else dtype
            matrix = None
            if isinstance(value, PackedWeight):
                if tinygemm and packing != "dense" and _can_be_packed(decoder, name):
                    matrix = tinygemm.matrix(value, device)
                multiplied = matrix is not None or (library is not None and can_compile(value))
                if packing == "dense" or (packing == "expand" and not multiplied):
                    value = value.dequantize(own_dtype if half is None or _chooses_experts(name) else half)
            if isinstance(value, Tensor) and library and _can_be_packed(decoder, name):
                value = value if half is None or _chooses_experts(name) else value.to(half)
                value = DenseWeight(value) if value.dtype in FLOATS else value
            compiled = isinstance(value, StoredWeight) and library and can_compile(value)
            _place(decoder, name, value, device, own_dtype, library if compiled else None, integers, matrix)
            on_progress(source.bytes_read, total)
        for name in folder.surplus_biases:
            if source.read(name).any():
                raise BrokenCheckpoint(f"{name} is not zero, but the architecture has no bias there")
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


def _cook(recipe: Recipe, source: TensorSource) -> Tensor | PackedWeight:
    match recipe:
        case Take(name):
            return source.weight(name)
        case Concat(parts, axis):
            return _joined([_cook(part, source) for part in parts], concat_rows, partial(torch.cat, dim=axis))
        case Stack(parts):
            return _joined([_cook(part, source) for part in parts], stack, torch.stack)
        case Transposed(part):
            value = _cook(part, source)
            return _dense(value).mT.contiguous() if is_transposed(part, source.stored) else value
        case PlusOne(part):
            return _dense(_cook(part, source)).float() + 1
        case PairsToHalves(part, heads, dim):
            return _reordered(_cook(part, source), lambda rows: _pairs_to_halves(rows.view(heads, -1), dim))
        case HeadsToParts(part, heads):
            return _reordered(_cook(part, source), lambda rows: rows.view(heads, 3, -1).transpose(0, 1))
        case EvensThenOdds(part):
            value = _cook(part, source)
            order = torch.arange(value.shape[1]).view(-1, 2).t().flatten()
            return value[:, order] if isinstance(value, Tensor) else value.rows(order)


def _dense(value: Tensor | PackedWeight) -> Tensor:
    return value.dequantize(torch.float32) if isinstance(value, PackedWeight) else value


def _joined(
    parts: list[Tensor | PackedWeight],
    join_packed: Callable[[list[PackedWeight]], PackedWeight],
    join_dense: Callable[[list[Tensor]], Tensor],
) -> Tensor | PackedWeight:
    """Parts made one; they stay packed where all are alike."""
    packed = [part for part in parts if isinstance(part, PackedWeight)]
    return join_packed(packed) if len(packed) == len(parts) and alike(packed) else join_dense(list(map(_dense, parts)))


def _reordered(value: Tensor | PackedWeight, order: Callable[[Tensor], Tensor]) -> Tensor | PackedWeight:
    """Rows in the order that `order` makes of their indices."""
    indices = order(torch.arange(value.shape[0])).flatten()
    return value[indices] if isinstance(value, Tensor) else value.rows(indices)


def _pairs_to_halves(rows: Tensor, dim: int) -> Tensor:
    """(heads, head_dim) indices with the evens among the first `dim` in front of the odds."""
    return torch.cat([rows[:, :dim:2], rows[:, 1:dim:2], rows[:, dim:]], dim=1)


def _quantized(decoder: Decoder, name: str, value: Tensor, packing: Literal["int8", "int4"]) -> Tensor | PackedWeight:
    if _chooses_experts(name) or not _can_be_packed(decoder, name):
        return value
    if value.shape[-1] % 32:
        return value
    vocabulary = name in ("embed.weight", "head.weight")
    return quantize_affine(value, bits=4 if packing == "int4" and not vocabulary else 8)


def _chooses_experts(name: str) -> bool:
    """Such weights are small, and a wrong choice costs more than a wrong digit."""
    return name.endswith(("router.weight", "shared_gate.weight"))


def _can_be_packed(decoder: Decoder, name: str) -> bool:
    path, leaf = name.rsplit(".", 1)
    known = isinstance(decoder.get_submodule(path), Linear | Embedding | Experts)
    return known and leaf == "weight" and path != "positions"  # which are added, not multiplied


def _place(
    decoder: Decoder,
    name: str,
    value: Tensor | StoredWeight,
    device: torch.device,
    dtype: torch.dtype,
    library: Library | None,
    integers: bool,
    matrix: TinygemmMatrix | None,
) -> None:
    """Puts a value where it belongs: in the parameter, or, packed, in a module that multiplies with it."""
    path, leaf = name.rsplit(".", 1)
    module = decoder.get_submodule(path)
    if isinstance(value, PackedWeight) and not _can_be_packed(decoder, name):
        value = value.dequantize(dtype)
    if isinstance(value, Tensor):
        setattr(module, leaf, nn.Parameter(value.to(device, dtype), requires_grad=False))
        return
    weight, packed = value if matrix else value.to(device), nn.Module()
    match module:
        case Embedding() if matrix:
            packed = TinygemmEmbedding(matrix)
        case Linear() if matrix:
            packed = TinygemmLinear(matrix, module.bias)
        case Embedding():
            packed = CompiledEmbedding(library, weight) if library else PackedEmbedding(weight, dtype)
        case Experts():
            packed = PackedExperts(weight, module.bias)
            if library:
                packed = CompiledExperts(library, weight, module.bias, integers)
        case Linear():
            packed = PackedLinear(weight, module.bias)
            if library:
                packed = CompiledLinear(library, weight, module.bias, integers and path != "head")
    decoder.set_submodule(path, packed)
