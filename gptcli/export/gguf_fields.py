"""The fields of a GGUF file for a decoder, checked by reading them back.

All fields that a decoder has values for are offered; the reader's own code shows which of them an architecture reads.
It must then read the same decoder with the same recipes, so nothing is lost in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import Shape
from gptcli.checkpoint.recipes import Recipe
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import GptcliError, UnsupportedArchitecture
from gptcli.export.llama_cpp_limits import WITHOUT_WINDOWS, condition_of_llama_cpp
from gptcli.gguf.families.registry import ARCHITECTURES
from gptcli.gguf.families.rope_scaling import llama3_factors
from gptcli.gguf.model import GgufModel
from gptcli.gguf.model_tensor import Edit
from gptcli.gguf.reader import GgufFile, GgufTensor
from gptcli.model.config import (
    AttentionConfig,
    DecoderConfig,
    LatentAttentionConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlpConfig,
    MoeConfig,
    RopeConfig,
    ShortConvolutionConfig,
    YarnScaling,
)
from gptcli.model_notes import Note

# Fields that llama.cpp alone reads.
_KEPT = frozenset({"vocab_size", "expert_count", "expert_used_count", "rope.dimension_count"})
_DIVIDES = ("granite", "granitemoe")  # by the scale of logits
_TOLERANCE = 1e-6  # relative, of numbers that files have in fp32
Floats = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class GgufConfig:
    """A file's fields for a decoder, its tensors of RoPE factors, the edits of its other tensors, and notes on it."""

    fields: dict[str, Any]
    factors: Floats
    edits: dict[str, Edit]
    notes: list[Note]


def gguf_config(name: str, folder: ModelFolder, shapes: Mapping[str, Shape], taken: Mapping[str, Recipe]) -> GgufConfig:
    """The fields of a file of architecture `name` with tensors of these shapes.

    taken: our parameters' recipes over the tensors of the file. Raises UnsupportedArchitecture if what llama.cpp and we
    would read is not this decoder.
    """
    config = folder.architecture.config
    if not config.attentions:
        raise UnsupportedArchitecture("cannot write as GGUF: no layer has attention")
    factors = _rope_factors(config)
    shapes = {**shapes, **{each: values.shape for each, values in factors.items()}}
    offered = {f"{name}.{field}": value for field, value in _offered(name, config) if value is not None}
    offered["general.architecture"] = name
    notes = []
    try:
        draft = _Draft(offered, shapes, factors)
        GgufModel(draft)
        unread = set(draft.never_read(f"{name}.")) - {f"{name}.{field}" for field in _KEPT}
        if name in WITHOUT_WINDOWS:
            unread |= offered.keys() & {f"{name}.attention.sliding_window"}
        chosen = {field: value for field, value in offered.items() if field not in unread}
        window = min((attention.window for attention in config.attentions if attention.window), default=0)
        if f"{name}.attention.sliding_window" in unread and window < config.max_context:
            chosen[f"{name}.context_length"] = window
            config = replace(config, max_context=window)
            notes.append(Note(f"the context is {window} tokens in the file: {name} has no sliding windows there"))
        model = GgufModel(_Draft(chosen, shapes, factors, strict=True))
        read = architecture_of(HfConfig(model.config), model.tensors)
    except GptcliError as error:
        raise UnsupportedArchitecture(f"cannot write as GGUF: {error.message}") from None
    difference = next(_differences(_plain(config), _plain(read.config), ""), None)
    if difference is None and dict(read.parameters) != dict(taken):
        difference = "another arrangement of tensors"
    if difference is not None:
        raise UnsupportedArchitecture(
            f"cannot write as GGUF: in a file of architecture {name} this model would have {difference}"
        )
    if (condition := condition_of_llama_cpp(name, config)) is not None:
        raise UnsupportedArchitecture(f"cannot write as GGUF: llama.cpp reads {name} only {condition}")
    return GgufConfig(chosen, factors, _edits(model), notes)


class _Draft(GgufFile):
    """A file that is not written yet, with all tensors in fp32. strict: `unread` tells, as in a file that exists."""

    def __init__(
        self, fields: dict[str, Any], shapes: Mapping[str, Shape], factors: Floats, *, strict: bool = False
    ) -> None:
        self.path = Path("the GGUF file")
        self._read = set()
        self.fields = fields
        self.tensors = {name: GgufTensor(name, "F32", shape, self.path, at, 4 * math.prod(shape))
                        for at, (name, shape) in enumerate(shapes.items())}  # fmt: skip
        self._factors = factors
        self._strict = strict

    def data(self, tensor: GgufTensor) -> np.ndarray[Any, Any]:
        return self._factors[tensor.name].view(np.uint8)

    def unread(self, prefix: str) -> list[str]:
        return self.never_read(prefix) if self._strict else []

    def never_read(self, prefix: str) -> list[str]:
        """`unread`, strict or not."""
        return super().unread(prefix)


def _edits(model: GgufModel) -> dict[str, Edit]:
    """Edits by the names of the file's tensors; in a `_Draft`, an offset is an index. Norms have 1 added already."""
    names = list(model.file.tensors)
    return {
        names[tensor.offset]: tensor.edit
        for tensor in model.tensors.values()
        if tensor.edit is not None and not tensor.edit.minus
    }


def _offered(name: str, config: DecoderConfig) -> Iterator[tuple[str, Any]]:
    """Every field that a decoder may have a value for, by its name without the architecture's; None: it has none."""
    first, blocks = config.blocks[0], config.blocks
    attention = config.attentions[0]
    assert isinstance(attention, AttentionConfig)
    moe = next((block.mlp for block in blocks if isinstance(block.mlp, MoeConfig)), None)
    dense = next((block.mlp for block in blocks if isinstance(block.mlp, MlpConfig)), moe.expert if moe else None)
    assert dense is not None
    yield "context_length", config.max_context
    yield "embedding_length", config.hidden_size
    yield "block_count", len(blocks)
    yield "vocab_size", config.vocab_size
    yield "feed_forward_length", dense.width
    yield "attention.head_count", attention.heads
    attends = [block.attention is not None for block in blocks]
    yield "attention.head_count_kv", attention.kv_heads if all(attends) else [attention.kv_heads * at for at in attends]
    yield "attention.key_length", attention.head_dim
    yield "attention.value_length", attention.head_dim
    yield f"attention.layer_norm_{'rms_' if ARCHITECTURES[name].eps == 'rms_norm_eps' else ''}epsilon", config.norm.eps
    yield "attention.max_alibi_bias", 8.0 if attention.alibi else None
    yield "attention.scale", attention.scale
    yield "attention.clamp_kqv", attention.clip
    yield "attn_logit_softcapping", attention.softcap
    yield "final_logit_softcapping", config.logit_softcap
    yield "attention.sliding_window", next((each.window for each in config.attentions if each.window), None)
    yield "use_parallel_residual", first.residual in ("parallel", "shared")
    yield "embedding_scale", config.embedding_scale
    yield "residual_scale", first.residual_scale
    yield "logit_scale", config.logit_scale if name not in _DIVIDES else 1 / config.logit_scale
    if moe is not None:
        yield "expert_count", moe.experts
        yield "expert_used_count", moe.top_k
        yield "expert_feed_forward_length", moe.expert.width
        yield "expert_shared_feed_forward_length", moe.shared.width if moe.shared else None
        yield "expert_shared_count", moe.shared.width // moe.expert.width if moe.shared else None
        yield "expert_group_count", moe.groups if moe.groups > 1 else None
        yield "expert_group_used_count", moe.top_groups if moe.groups > 1 else None
        yield "expert_gating_func", {"softmax": 1, "sigmoid": 2}.get(moe.router)
        yield "expert_weights_norm", moe.renormalize
        yield "expert_weights_scale", moe.scale
        dense_first = next(at for at, block in enumerate(blocks) if isinstance(block.mlp, MoeConfig))
        yield "leading_dense_block_count", dense_first
        yield "interleave_moe_layer_step", 1
    state = next((block.state for block in blocks if block.state is not None), None)
    if isinstance(state, ShortConvolutionConfig):
        yield "shortconv.l_cache", state.kernel
    if attention.position_scale is not None:
        yield "attention.temperature_scale", attention.position_scale.beta
    full = _rope(config, sliding=False)
    if full is not None:
        yield from _offered_rope(full)
        local = _rope(config, sliding=True)
        yield "rope.freq_base_swa", local.theta if local and local.theta != full.theta else None


def _rope(config: DecoderConfig, *, sliding: bool) -> RopeConfig | None:
    """RoPE of the layers with a window, or of those without one; of any layer if there are no such layers."""
    ropes = [(attention.window is not None, attention.rope) for attention in config.attentions]
    rotated = [(windowed, rope) for windowed, rope in ropes if rope is not None]
    return next((rope for windowed, rope in rotated if windowed == sliding), rotated[0][1] if rotated else None)


def _offered_rope(rope: RopeConfig) -> Iterator[tuple[str, Any]]:
    yield "rope.dimension_count", rope.dim
    yield "rope.freq_base", rope.theta
    match rope.scaling:
        case LinearScaling(factor=factor):
            yield "rope.scaling.type", "linear"
            yield "rope.scaling.factor", factor
        case YarnScaling() as yarn:
            yield "rope.scaling.type", "yarn"
            yield "rope.scaling.factor", yarn.factor
            yield "rope.scaling.original_context_length", yarn.original_context
            yield "rope.scaling.yarn_beta_fast", yarn.beta_fast if yarn.beta_fast != 32 else None
            yield "rope.scaling.yarn_beta_slow", yarn.beta_slow if yarn.beta_slow != 1 else None
            yield "rope.scaling.yarn_log_multiplier", 1.0 if yarn.magnitude == 1 else None
        case LongRopeScaling() as scaling:
            yield "rope.scaling.original_context_length", scaling.original_context
            yield "rope.scaling.attn_factor", scaling.magnitude


def _rope_factors(config: DecoderConfig) -> Floats:
    rope = _rope(config, sliding=False)
    match rope and rope.scaling:
        case LongRopeScaling(short=short, long=long):
            return {
                "rope_factors_long.weight": np.array(long, np.float32),
                "rope_factors_short.weight": np.array(short, np.float32),
            }
        case Llama3Scaling() as scaling:
            assert rope is not None
            return {"rope_freqs.weight": _llama3_factors(rope, scaling).astype(np.float32)}
    return {}


def _llama3_factors(rope: RopeConfig, scaling: Llama3Scaling) -> Any:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return llama3_factors(rope.dim, rope.theta, scaling.factor, low, high, scaling.original_context)


def _plain(config: DecoderConfig) -> DecoderConfig:
    """The decoder without windows that no text fills, and with Llama 3's RoPE as its factors."""

    def plain(attention: AttentionConfig | LatentAttentionConfig) -> AttentionConfig:
        assert isinstance(attention, AttentionConfig)
        window, rope = attention.window, attention.rope
        if rope is not None and isinstance(rope.scaling, Llama3Scaling):
            factors = tuple(map(float, _llama3_factors(rope, rope.scaling)))
            scaling = LongRopeScaling(
                short=factors, long=factors, original_context=max(2, config.max_context), magnitude=1.0
            )
            rope = replace(rope, scaling=scaling)
        return replace(attention, window=None if window and window >= config.max_context else window, rope=rope)

    blocks = tuple(replace(block, attention=block.attention and plain(block.attention)) for block in config.blocks)
    return replace(config, blocks=blocks)


def _differences(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    """Where two configs differ, in words."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        for each in fields(ours):
            name = f"{where}.{each.name}".lstrip(".")
            yield from _differences(getattr(ours, each.name), getattr(theirs, each.name), name)
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(mine, other, f"{where}[{index}]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        if not math.isclose(ours, theirs, rel_tol=_TOLERANCE):
            yield f"{where} = {theirs!r}, not {ours!r}"
    elif ours != theirs:
        yield f"{where} = {str(theirs)[:60]}, not {str(ours)[:60]}"
