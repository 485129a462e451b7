"""Grouped-query attention (Ainslie et al., 2023) over a key-value cache."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import Alibi, AttentionConfig, PositionScale, QkNormConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import Norm
from gptcli.model.position import Position, TextPosition, causal_mask
from gptcli.model.rope import rotate

_SPLIT = 512  # keys in one sum over a cache's room; the sums are computed in parallel


class Attention(nn.Module):
    """Projects to q, k and v, rotates, stores k and v, attends, projects back."""

    def __init__(self, config: AttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        self.own_heads = config.kv_heads if config.keys_of is None else 0  # of keys, and of values
        rows = width * (2 if config.gated else 1) + 2 * self.own_heads * config.head_dim
        self.qkv = Linear(hidden_size, rows, bias=config.qkv_bias)  # rows: the gate of q's heads, if gated; q, k, v
        self.out = Linear(width, hidden_size, bias=config.out_bias)
        self.q_norm = _head_norm(config.qk_norm, config.heads, config.head_dim)
        self.k_norm = _head_norm(config.qk_norm if self.own_heads else None, config.kv_heads, config.head_dim)
        self.v_norm = nn.Identity() if config.v_norm is None else Norm(config.v_norm, config.head_dim)
        self.sinks = nn.Parameter(torch.empty(config.heads)) if config.sinks else None

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        config, (B, T, _) = self.config, x.shape
        projected = self.qkv(x)
        if config.clip is not None:
            projected = projected.clamp(-config.clip, config.clip)
        heads = projected.view(B, T, -1, config.head_dim)  # (B, T, q heads + k heads + v heads, head_dim)
        gates = config.heads if config.gated else 0
        gate, qk, v = heads.split([gates, config.heads + self.own_heads, self.own_heads], dim=2)
        if config.qk_norm is not None and not config.qk_norm.after_rope:
            qk = self._normalized(qk, config.qk_norm)
        if config.rope is not None:
            qk = rotate(qk, *position.rotation(config.rope))
        if config.qk_norm is not None and config.qk_norm.after_rope:
            qk = self._normalized(qk, config.qk_norm)
        q, k = qk.split([config.heads, self.own_heads], dim=2)
        if config.position_scale is not None:
            q = q * _position_scales(config.position_scale, position.positions, q)
        attended = position.text_by_text(partial(self._attended, block), q, k, v)
        if config.gated:
            attended = attended * torch.sigmoid(gate.flatten(2))
        out: Tensor = self.out(attended)
        return out if config.out_scale == 1 else out * config.out_scale

    def _attended(self, block: int, position: TextPosition, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        config = self.config
        if config.keys_of is None:  # (B, kv_heads, S, head_dim)
            k, v = position.write(block, k.transpose(1, 2), self.v_norm(v).transpose(1, 2))
        else:
            k, v = position.read(config.keys_of)
        return attend(config, q, k, v, position.mask(config.window, config.chunked), self.sinks)

    def _normalized(self, qk: Tensor, config: QkNormConfig) -> Tensor:
        q, k = qk.split([self.config.heads, self.own_heads], dim=2)
        if config.over != "full":
            return torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
        return torch.cat([self.q_norm(q.flatten(2)), self.k_norm(k.flatten(2))], dim=2).view_as(qk)


def _head_norm(config: QkNormConfig | None, heads: int, head_dim: int) -> nn.Module:
    if config is None:
        return nn.Identity()
    shapes = {"head": (head_dim,), "each_head": (heads, head_dim), "full": (heads * head_dim,)}
    return Norm(config.norm, *shapes[config.over])


def _position_scales(config: PositionScale, positions: Tensor, q: Tensor) -> Tensor:
    """A factor for each position of q, (T, 1, 1)."""
    steps = torch.floor((positions + config.first) / config.original_context)
    return (1 + config.beta * torch.log(1 + steps)).to(q.dtype)[:, None, None]


def attend(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> Tensor:
    """softmax(scale q k) v with the config's additions: (B, T, heads * head_dim).

    q: (B, T, heads, head_dim); k and v: (B, kv_heads, S, head_dim). Without a mask, a single query sees all keys in its
    window, and T = S queries of a whole text each see the keys up to their own. A mask of several queries is bool, true
    where they may see. That of a single query, over a cache's whole room or a window, is added to the scores.
    """
    B, T, heads, head_dim = q.shape
    if T == 1 and mask is not None:
        return _attend_to_room(config, q, k, v, mask, sinks)
    if T == 1 and config.window is not None:
        k, v = k[:, :, -config.window :], v[:, :, -config.window :]
    if config.keeps_scores:
        return _attend_spelled_out(config, q, k, v, mask, sinks)
    if T == 1:
        # The heads that share keys become the query axis: one small product instead of a repeated k.
        q = q.view(B, k.shape[1], heads // k.shape[1], head_dim)
        return F.scaled_dot_product_attention(q, k, v, scale=config.scale).reshape(B, 1, -1)
    if q.is_cuda and heads != k.shape[1]:
        # With a mask, few fused kernels take fewer kv heads than heads; the others would store all scores at once.
        k, v = (each.repeat_interleave(heads // k.shape[1], dim=1) for each in (k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, mask, is_causal=mask is None, scale=config.scale, enable_gqa=heads != k.shape[1]
    )
    return out.transpose(1, 2).reshape(B, T, -1)


def alibi_slopes(config: AttentionConfig, alibi: Alibi, device: torch.device) -> Tensor:
    """What each head's scores gain from one key to the next, (heads,) in fp32."""
    power = 1 << (config.heads - 1).bit_length()  # at least the number of heads
    slopes = torch.exp2(torch.arange(1, power + 1, device=device) * (-alibi.most / power))
    if power != config.heads:
        slopes = torch.cat([slopes[1::2], slopes[::2]])[: config.heads]
    return slopes.bfloat16().float() if alibi.rounded else slopes


def alibi_bias(config: AttentionConfig, alibi: Alibi, keys: int, device: torch.device) -> Tensor:
    """What is added to the scores of a text's first keys, the same for all queries: (heads, keys) in fp32."""
    slopes = alibi_slopes(config, alibi, device)
    if alibi.rounded:
        return (slopes[:, None].bfloat16() * torch.arange(keys, device=device)).float() * config.scale
    return slopes[:, None] * torch.arange(1 - keys, 1, device=device)


def _attend_to_room(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None
) -> Tensor:
    """One query per row over a cache's whole room, as products that a GPU parallelizes over the keys.

    torch's attention would use one multiprocessor per group of heads, however many keys there are.
    """
    (B, _, _, head_dim), (kv_heads, S) = q.shape, k.shape[1:3]
    q = q.reshape(B * kv_heads, -1, head_dim)  # (B * kv_heads, group, head_dim)
    k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B * kv_heads, S, head_dim)
    if config.alibi is not None:
        mask = mask + alibi_bias(config, config.alibi, S, q.device).to(mask.dtype).view(kv_heads, -1, S).repeat(B, 1, 1)
    if config.softcap is None:
        scores = torch.baddbmm(mask, q, k.mT, alpha=config.scale)  # (B * kv_heads, group, S)
    else:
        scores = torch.tanh(torch.bmm(q, k.mT).float() * (config.scale / config.softcap)) * config.softcap + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype).view(kv_heads, -1, 1).repeat(B, 1, 1)], -1)
    weights = scores.softmax(-1)[..., :S].to(v.dtype)
    if S % _SPLIT or S == _SPLIT:
        out = torch.bmm(weights, v)
    else:
        weights = weights.view(*weights.shape[:2], -1, _SPLIT).transpose(1, 2)  # (B * kv_heads, splits, group, _SPLIT)
        out = (weights @ v.view(len(v), -1, _SPLIT, head_dim)).sum(1)
    return out.view(B, 1, -1)


def _attend_spelled_out(
    config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None
) -> Tensor:
    B, T, heads, head_dim = q.shape
    kv_heads, S = k.shape[1:3]
    if mask is None and T > 1:
        mask = causal_mask(S - T, T, None, q.device, always=True)
    q = q.view(B, T, kv_heads, -1, head_dim).permute(0, 2, 3, 1, 4)  # (B, kv_heads, group, T, head_dim)
    scores = (q @ k.mT[:, :, None]).float() * config.scale  # (B, kv_heads, group, T, S)
    if config.softcap is not None:
        scores = torch.tanh(scores / config.softcap) * config.softcap
    if config.alibi is not None:
        scores = scores + alibi_bias(config, config.alibi, S, q.device).view(kv_heads, -1, 1, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        sink = sinks.float().view(kv_heads, -1, 1, 1).expand(B, -1, -1, T, 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    out = weights.to(v.dtype) @ v[:, :, None]  # (B, kv_heads, group, T, head_dim)
    return out.permute(0, 3, 1, 2, 4).reshape(B, T, -1)
