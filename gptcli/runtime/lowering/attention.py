"""Lowers attention: grouped-query attention, and latent attention whose queries are projected to latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gptcli.kernels.bindings import ATTENTION_PRODUCTS, LOGISTIC, Arithmetic, Matrix
from gptcli.model.attention import Attention, alibi_slopes
from gptcli.model.config import (
    AttentionConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
)
from gptcli.model.latent_attention import LatentAttention
from gptcli.model.linear import AdaptedLinear
from gptcli.quant.dense import narrowed
from gptcli.runtime.lowering.operations import Operations, Unsupported, handles
from gptcli.runtime.program import Buffer


def lower_attention(ops: Operations, index: int, attention: nn.Module, x: Buffer, out: Buffer) -> None:
    """Layer number `index`: out = attention(x)."""
    match attention:
        case Attention():
            _grouped(ops, index, attention, x, out)
        case LatentAttention():
            _latent(ops, attention, x, out)
        case _:
            raise Unsupported(type(attention).__name__)


def _grouped(ops: Operations, index: int, attention: Attention, x: Buffer, out: Buffer) -> None:
    config, own = attention.config, attention.own_heads
    handles(
        config, "heads", "kv_heads", "head_dim", "rope", "scale", "window", "chunked", "qkv_bias", "out_bias",
        "qk_norm", "position_scale", "alibi", "clip", "softcap", "sinks", "gated", "out_scale", "v_norm", "keys_of",
    )  # fmt: skip
    width = config.heads * config.head_dim
    gate = width if config.gated else 0
    qkv = Buffer("qkv", gate + width + 2 * own * config.head_dim)
    q, keys, heads = qkv.at(gate), qkv.at(gate + width), Buffer("heads", width)
    ops.linear(attention.qkv, x, qkv)
    if config.clip is not None:
        ops.add("CLAMP", out=qkv, size=qkv.width, factor=config.clip)
    after_rope = config.qk_norm is not None and config.qk_norm.after_rope
    if not after_rope:
        _head_norms(ops, attention, q, keys)
    if config.rope is not None:
        _rotate(ops, config.rope, q, rows=config.heads + own, size=config.head_dim)
    if after_rope:
        _head_norms(ops, attention, q, keys)
    if (scale := config.position_scale) is not None:
        handles(scale, "beta", "original_context", "first")
        ops.add(
            "SCALE_BY_POSITION",
            out=q,
            size=width,
            stride=qkv.width,
            factor=scale.beta,
            rows=scale.original_context,
            table=scale.first,
        )
    if not isinstance(attention.v_norm, nn.Identity) and own:
        values = keys.at(own * config.head_dim)
        ops.norms(attention.v_norm, values, values, rows=own, size=config.head_dim)
    _attend(ops, index, attention, q, heads)
    if config.gated:
        ops.multiply(heads, qkv, width, LOGISTIC)
    ops.linear(attention.out, heads, out)
    ops.scale(out, config.out_scale)


def _attend(ops: Operations, index: int, attention: Attention, q: Buffer, out: Buffer) -> None:
    config, borrows, slopes, rounded = attention.config, 0, None, 0.0
    if config.keys_of is not None:
        source = ops.config.blocks[config.keys_of].attention
        alike = ("kv_heads", "head_dim", "window", "keys_of")
        if not isinstance(source, AttentionConfig) or any(
            getattr(source, name) != (None if name == "keys_of" else getattr(config, name)) for name in alike
        ):
            raise Unsupported("keys of another shape")
        borrows = 1 + ops.attends[config.keys_of]
    if (alibi := config.alibi) is not None:
        handles(alibi, "most", "rounded")
        if config.softcap is not None or config.window is not None or config.sinks:
            raise Unsupported("ALiBi in a window, bounded, or beside sinks")
        slopes, rounded = alibi_slopes(config, alibi, torch.device("cpu")), config.scale if alibi.rounded else 0.0
    ops.attends[index] = ops.add(
        "ATTEND",
        input=q,
        out=out,
        weight=attention.sinks,
        bias=slopes,
        size=config.head_dim,
        stride=q.width,
        table=ops.windows.index(config.window),
        heads=config.heads,
        kv_heads=config.kv_heads,
        window=config.window or 0,
        chunked=config.chunked,
        borrows=borrows,
        factor=config.scale,
        softcap=config.softcap or 0.0,
        rounded=rounded,
        arithmetic=ATTENTION_PRODUCTS[_arithmetic(attention.qkv)],
    )


def _arithmetic(layer: nn.Module) -> Arithmetic:
    """The arithmetic of a layer's products, also for its attention."""
    layer = layer.base if isinstance(layer, AdaptedLinear) else layer
    arithmetic: Arithmetic = getattr(layer, "arithmetic", "fp32")
    return arithmetic


def _head_norms(ops: Operations, attention: Attention, q: Buffer, keys: Buffer) -> None:
    qk_norm, dim = attention.config.qk_norm, attention.config.head_dim
    if qk_norm is None:
        return
    handles(qk_norm, "norm", "over", "after_rope")
    if qk_norm.over not in ("full", "head", "each_head"):
        raise Unsupported(qk_norm.over)
    sides = (attention.q_norm, q, attention.config.heads), (attention.k_norm, keys, attention.own_heads)
    for norm, heads, count in sides:
        if count and qk_norm.over == "full":
            ops.norms(norm, heads, heads, rows=1, size=count * dim)
        elif count:
            ops.norms(norm, heads, heads, rows=count, size=dim, weight_step=dim if qk_norm.over == "each_head" else 0)


def _latent(ops: Operations, attention: LatentAttention, x: Buffer, out: Buffer) -> None:
    config = attention.config
    handles(
        config, "heads", "latent_dim", "plain_dim", "value_dim", "rope", "scale", "norm", "query_rank", "bias",
    )  # fmt: skip
    latent = Buffer("latent", config.latent_dim + config.rope.dim)
    q, values = Buffer("q", config.heads * config.head_dim), Buffer("heads", config.heads * config.value_dim)
    absorbed, read = (Buffer(name, config.heads * latent.width) for name in ("absorbed", "read"))
    if attention.q_down is not None and attention.q_norm is not None and config.query_rank is not None:
        low_rank = Buffer("query_latent", config.query_rank)
        ops.linear(attention.q_down, x, low_rank)
        ops.linear(attention.q, ops.norm(attention.q_norm, low_rank, low_rank), q)
    else:
        ops.linear(attention.q, x, q)
    ops.linear(attention.latent, x, latent)
    ops.norms(attention.latent_norm, latent, latent, rows=1, size=config.latent_dim)
    _rotate(ops, config.rope, q.at(config.plain_dim), rows=config.heads, size=config.head_dim)
    _rotate(ops, config.rope, latent.at(config.latent_dim), rows=1, size=config.rope.dim)
    by_head = attention.kv.by_head(config.heads).detach()
    for_keys, for_values = by_head.tensor_split([config.plain_dim], 1)
    arithmetic = _arithmetic(attention.q)
    values_of = _head_matrices(ops, for_values, arithmetic)
    expands_from = math.ceil(config.expands_from) if config.is_expanded_in_kernels else 0
    _by_head(ops, _head_matrices(ops, for_keys.mT, arithmetic), q, absorbed, expands_from, copied=config.rope.dim)
    attends = ops.add(
        "ATTEND",
        input=absorbed,
        keys=latent,
        out=read,
        size=latent.width,
        stride=absorbed.width,
        table=ops.windows.index(None),
        heads=config.heads,
        kv_heads=1,
        factor=config.scale,
        arithmetic=ATTENTION_PRODUCTS[arithmetic],
        expands_from=expands_from,
    )
    _by_head(ops, values_of, read, values, expands_from)
    if expands_from:
        ops.add(
            "EXPAND",
            matrices=_head_matrices(ops, for_keys, arithmetic) + values_of,
            input=q,
            out=values,
            size=config.head_dim,
            stride=q.width,
            table=ops.windows.index(None),
            heads=config.heads,
            borrows=1 + attends,
            factor=config.scale,
            arithmetic=ATTENTION_PRODUCTS[arithmetic],
            expands_from=expands_from,
        )
    ops.linear(attention.out, values, out)


def _head_matrices(ops: Operations, weights: Tensor, arithmetic: Arithmetic) -> list[Matrix]:
    """A matrix for each head of (heads, rows, columns), in bf16 or fp16 if that is exact."""
    if weights.dtype != torch.float32:
        raise Unsupported("heads that are not in fp32")
    matrices = [ops.library.dense(weight) for weight in narrowed(weights.contiguous())]
    for matrix in matrices:
        ops.library.set_arithmetic(matrix, arithmetic)
    return matrices


def _by_head(
    ops: Operations, matrices: list[Matrix], x: Buffer, out: Buffer, expands_from: int, copied: int = 0
) -> None:
    """Multiplies each head of x by its matrix. copied: numbers of x after these, copied after the result."""
    ops.add(
        "BY_HEAD",
        matrices=matrices,
        input=x,
        out=out,
        heads=len(matrices),
        size=x.width // len(matrices),
        stride=x.width,
        out_step=out.width // len(matrices),
        out_stride=out.width,
        copied=copied,
        expands_from=expands_from,
    )


def _rotate(ops: Operations, rope: RopeConfig, heads: Buffer, *, rows: int, size: int) -> None:
    handles(rope, "theta", "dim", "scaling", "backward")
    match rope.scaling:
        case None:
            pass
        case LinearScaling() as scaling:
            handles(scaling, "factor")
        case Llama3Scaling() as scaling:
            handles(scaling, "factor", "low_freq_factor", "high_freq_factor", "original_context")
        case YarnScaling() as scaling:
            handles(scaling, "factor", "original_context", "magnitude", "beta_fast", "beta_slow", "truncate")
        case LongRopeScaling() as scaling:
            handles(scaling, "short", "long", "original_context", "magnitude")
        case ProportionalScaling() as scaling:
            handles(scaling, "rotated", "factor")
        case _:
            raise Unsupported("a scaling of RoPE")
    ops.add("ROTATE", out=heads, rows=rows, size=size, stride=heads.width, table=ops.ropes.index(rope))
