"""Fills a decoder from a checkpoint, parameter by parameter. A weight's way from its file into a kernel:

1. `weights/tensor_source.py` reads its tensors: a dense tensor, or a packed weight of `quant/`.
2. `weights/evaluate_recipe.py` applies the family's recipe: joins q, k and v, say.
3. `_form` decides the form that it is multiplied in: dense, packed, or in the layout of torch's int4 kernel.
4. `_module` wraps the form in a layer, such as `CompiledLinear`; `_Slot.fill` puts that into the decoder.
5. `kernels/layers.py` hands it to `kernels/tensors.py`; `kernels/c/weights/matrix.c` repacks it, or reads it in place.
6. `runtime/lowering/` passes the matrix to the operations that multiply with it: `kernels/c/linear.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import Ggml
from gptcli.checkpoint.rank_shard import RankShard
from gptcli.checkpoint.recipes import PlusOne, Recipe, sources
from gptcli.checkpoint.weights.evaluate_recipe import concatenated, dense, evaluate, stored_apart
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.cuda.int4 import Tinygemm, TinygemmEmbedding, TinygemmLinear, TinygemmMatrix
from gptcli.errors import BrokenCheckpoint
from gptcli.kernels.bindings import Arithmetic
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear, JoinedLinear, can_compile
from gptcli.kernels.tensors import FLOATS, Library
from gptcli.model.decoder import Decoder
from gptcli.model.linear import Embedding, Linear
from gptcli.model.mlp import Experts, Moe
from gptcli.quant.affine import quantize_affine
from gptcli.quant.dense import DenseWeight
from gptcli.quant.ggml import GgmlWeight
from gptcli.quant.packed import PackedEmbedding, PackedExperts, PackedLinear, PackedWeight
from gptcli.quant.weight import StoredWeight

_NEVER_ROUNDED = (".correction", ".decay", ".step_bias")

Progress = Callable[[int, int], None]  # bytes read, bytes in all
Packing = Literal["keep", "expand", "dense", "int8", "int4"]  # see WeightPlan


@dataclass(frozen=True)
class WeightPlan:
    """The device, precision and form of weights, and what multiplies with them.

    dtype: of everything dense, except what needs fp32, such as norms stored less 1 and decays.
    packing: "keep" leaves packed matrices packed; "dense" expands all, "expand" those that no kernel below multiplies.
    "int8" and "int4" also pack dense matrices; int4 packs embedding and head in 8 bits.
    library: the CPU's kernels, for every matrix they can multiply.
    half: what dense matrices are rounded to for the kernels; None: they keep their stored precision.
    arithmetic: of the kernels, for more than a few tokens.
    exact: weights expanded from ggml's blocks stay in fp32; else they are rounded to fp16, half the memory.
    tinygemm: torch's int4 kernel on CUDA, for every packed matrix it can multiply, in bf16.
    """

    device: torch.device
    dtype: torch.dtype
    packing: Packing
    library: Library | None = None
    half: torch.dtype | None = None
    arithmetic: Arithmetic = "fp32"
    exact: bool = False
    tinygemm: Tinygemm | None = None


def load_decoder(
    folder: ModelFolder,
    plan: WeightPlan,
    on_progress: Progress = lambda done, total: None,
    shard: RankShard | None = None,
) -> Decoder:
    """A decoder with the checkpoint's weights, or one rank's shard of it.

    At most one parameter is in memory twice. Raises BrokenCheckpoint if a shape does not fit the config, before any
    weight is read, and UsageError if the decoder cannot be split.
    """
    decoder = empty_decoder(folder)
    if shard is not None:
        with torch.device("meta"):
            decoder = Decoder(shard.config)
    total = folder.weight_bytes // (shard.ranks if shard else 1)
    with TensorSource(folder) as source:
        for name, whole in folder.architecture.parameters.items():
            recipe = shard.recipe(name, whole) if shard else whole
            # 1 + w needs more bits than w. So do choices between nearly equal scores, and exponents.
            wide = isinstance(whole, PlusOne) or _is_never_rounded(decoder, name)
            dtype = torch.float32 if wide else plan.dtype
            slot, zero = _Slot(decoder, name, dtype), shard is not None and not shard.adds(name)
            parts = stored_apart(recipe, source) if slot.is_joined(plan) else (recipe,)
            slot.fill(_holder(slot, [_value(part, source, zero) for part in parts], plan))
            on_progress(min(source.bytes_read, total), total)
        for name in folder.surplus_biases:
            if source.read(name).any():
                raise BrokenCheckpoint(f"{name} is not zero, but the architecture has no bias there")
    return decoder.eval()


def _is_never_rounded(decoder: Decoder, name: str) -> bool:
    path, of_router, _ = name.rpartition(".router.")
    mixture = decoder.get_submodule(path) if of_router else None
    return name.endswith(_NEVER_ROUNDED) or (isinstance(mixture, Moe) and mixture.config.wide_router)


def empty_decoder(folder: ModelFolder) -> Decoder:
    """The decoder without memory for its weights. Raises BrokenCheckpoint if a weight's shape does not fit it."""
    architecture = folder.architecture
    try:
        with torch.device("meta"):
            decoder = Decoder(architecture.config)
    except RuntimeError as error:  # a size of more than 63 bits
        raise BrokenCheckpoint(f"config.json: no weights are so large: {error}") from None
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


@dataclass(frozen=True)
class _Slot:
    """A parameter of the decoder, to be filled. dtype: its precision if it becomes dense."""

    decoder: Decoder
    name: str
    dtype: torch.dtype

    @property
    def path(self) -> str:
        """Its module's path in the decoder."""
        return self.name.rsplit(".", 1)[0]

    @property
    def multiplied_by(self) -> Linear | Embedding | Experts | None:
        """The module that multiplies with it; None for biases, norms, and positions, which are added."""
        module = self.decoder.get_submodule(self.path)
        is_matrix = self.name.endswith(".weight") and self.path != "positions"
        return module if is_matrix and isinstance(module, Linear | Embedding | Experts) else None

    def is_joined(self, plan: WeightPlan) -> bool:
        """Whether its module can have rows in several forms."""
        return plan.library is not None and plan.packing != "dense" and isinstance(self.multiplied_by, Linear)

    @property
    def chooses_experts(self) -> bool:
        """Whether it is a router's or a gate's weight: small and decisive, so neither packed nor rounded to `half`."""
        return self.name.endswith(("router.weight", "shared_gate.weight"))

    def fill(self, holder: nn.Parameter | nn.Module) -> None:
        """Sets the parameter, or replaces its module by one with the value in another form."""
        if isinstance(holder, nn.Parameter):
            setattr(self.decoder.get_submodule(self.path), self.name.rsplit(".", 1)[1], holder)
        else:
            self.decoder.set_submodule(self.path, holder)


@dataclass(frozen=True)
class _Value:
    """A parameter's value, or that of some of its rows. of_blocks: whether it was stored in ggml's blocks."""

    content: Tensor | PackedWeight
    of_blocks: bool


def _value(recipe: Recipe, source: TensorSource, zero: bool) -> _Value:
    """zero: replaces the recipe's result by zeros."""
    content = evaluate(recipe, source)
    of_blocks = any(isinstance(source.stored(name), Ggml) for name in sources(recipe))
    return _Value(torch.zeros_like(dense(content)) if zero else content, of_blocks)


def _holder(slot: _Slot, values: list[_Value], plan: WeightPlan) -> nn.Parameter | nn.Module:
    """A dense parameter with a value, or a module that multiplies with it in another form.

    values: of one or more parts, whose rows follow each other.
    """
    if len(values) > 1 and (joined := _joined(slot, values, plan)) is not None:
        return joined
    value = _Value(concatenated([each.content for each in values]), any(each.of_blocks for each in values))
    content = value.content
    if (module := slot.multiplied_by) is not None:
        form = _form(slot, value, plan)
        if not isinstance(form, Tensor):
            return _module(slot, module, form, plan)
        content = form
    numbers = content.dequantize(slot.dtype) if isinstance(content, PackedWeight) else content
    return nn.Parameter(numbers.to(plan.device, slot.dtype), requires_grad=False)


def _joined(slot: _Slot, values: list[_Value], plan: WeightPlan) -> nn.Module | None:
    """A module that multiplies with values whose rows follow each other; None if the kernels cannot take all."""
    module, forms = slot.multiplied_by, [_form(slot, value, plan) for value in values]
    weights = [form for form in forms if isinstance(form, StoredWeight) and can_compile(form)]
    if len(weights) < len(forms):
        return None
    assert isinstance(module, Linear) and plan.library is not None
    parts = [CompiledLinear(plan.library, weight, None, plan.arithmetic) for weight in weights]
    return JoinedLinear(parts, module.bias)


def _form(slot: _Slot, given: _Value, plan: WeightPlan) -> Tensor | StoredWeight | TinygemmMatrix:
    """The form in which a matrix is multiplied: dense, packed, or in the layout of torch's int4 kernel."""
    value = given.content
    if isinstance(value, GgmlWeight) and (plan.library is None or not can_compile(value)):
        value = value.dequantize(torch.float32)
    if isinstance(value, Tensor) and plan.packing in ("int8", "int4"):
        bits = _bits(slot, value.shape[-1], plan.packing)
        value = value if bits is None else quantize_affine(value, bits)
    in_bf16 = plan.packing != "dense" and slot.dtype == plan.dtype
    if isinstance(value, PackedWeight) and plan.tinygemm is not None and in_bf16:
        matrix = plan.tinygemm.matrix(value, plan.device)
        if matrix is not None:
            return matrix
    half = None if slot.chooses_experts else plan.half
    if isinstance(value, PackedWeight):
        in_kernels = plan.library is not None and can_compile(value)
        if plan.packing == "dense" or (plan.packing == "expand" and not in_kernels):
            value = value.dequantize(half or slot.dtype)
    if isinstance(value, Tensor) and plan.library is not None:
        if half is not None:
            value = value.to(half)
        elif given.of_blocks and plan.packing != "dense" and not plan.exact:
            value = _halved(value)
        return DenseWeight(value) if value.dtype in FLOATS else value
    return value


def _halved(value: Tensor) -> Tensor:
    """In fp16, far finer than the few bits of ggml's blocks; as it is if a value is too large."""
    halves = value.half()
    return halves if halves.isfinite().all() else value


def _bits(slot: _Slot, columns: int, packing: Literal["int8", "int4"]) -> int | None:
    if slot.chooses_experts or columns % 32:
        return None
    is_vocabulary = slot.path in ("embed", "head")
    return 4 if packing == "int4" and not is_vocabulary else 8


def quantized_bits(decoder: Decoder, name: str, columns: int, packing: Literal["int8", "int4"]) -> int | None:
    """The bits in which `load_decoder` packs a dense parameter of a decoder; None if it stays dense."""
    slot = _Slot(decoder, name, torch.float32)
    return None if slot.multiplied_by is None else _bits(slot, columns, packing)


def _module(
    slot: _Slot, module: Linear | Embedding | Experts, matrix: StoredWeight | TinygemmMatrix, plan: WeightPlan
) -> nn.Module:
    """The module that replaces the decoder's own and multiplies with a matrix in its form."""
    if isinstance(matrix, TinygemmMatrix):
        return TinygemmEmbedding(matrix) if isinstance(module, Embedding) else TinygemmLinear(matrix, module.bias)
    weight = matrix.to(plan.device)
    library = plan.library if can_compile(weight) else None
    match module:
        case Embedding():
            return CompiledEmbedding(library, weight) if library else PackedEmbedding(weight, slot.dtype)
        case Experts(bias=bias):
            return CompiledExperts(library, weight, bias, plan.arithmetic) if library else PackedExperts(weight, bias)
        case Linear(bias=bias):
            arithmetic: Arithmetic = "fp32" if slot.path == "head" else plan.arithmetic
            return CompiledLinear(library, weight, bias, arithmetic) if library else PackedLinear(weight, bias)
