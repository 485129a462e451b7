"""Grouped-query attention (Ainslie et al., 2023) over a key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.cache import KVCache
from gptcli.model.config import AttentionConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import RMSNorm
from gptcli.model.rope import rotate


class Attention(nn.Module):
    """Projects to q, k and v, rotates, stores k and v, attends, projects back."""

    def __init__(self, config: AttentionConfig, hidden_size: int, norm_eps: float) -> None:
        super().__init__()
        self.config = config
        width = config.heads * config.head_dim
        self.qkv = Linear(hidden_size, width + 2 * config.kv_heads * config.head_dim, bias=config.qkv_bias)
        self.out = Linear(width, hidden_size, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache, block: int
    ) -> Tensor:
        """x: (B, T, hidden). rope: cos and sin of these positions. mask: (T, length + T), None as `attend` says."""
        config, (B, T, _) = self.config, x.shape
        heads = self.qkv(x).view(B, T, -1, config.head_dim)  # (B, T, q heads + k heads + v heads, head_dim)
        qk, v = heads.tensor_split([config.heads + config.kv_heads], dim=2)
        if config.qk_norm:
            q, k = qk.tensor_split([config.heads], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.tensor_split([config.heads], dim=2)
        k, v = cache.write(block, k.transpose(1, 2), v.transpose(1, 2))  # (B, kv_heads, length + T, head_dim)
        return self.out(attend(q, k, v, mask, config.window))  # type: ignore[no-any-return]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v: (B, T, heads * head_dim).

    q: (B, T, heads, head_dim); k and v: (B, kv_heads, S, head_dim). Without a mask the T queries are either one, which
    sees all keys in its window, or the first T = S of a text, each of which sees itself and those before.
    """
    B, T, heads, head_dim = q.shape
    if T == 1:
        if window is not None:
            k, v = k[:, :, -window:], v[:, :, -window:]
        # The heads that share keys take the place of the positions: one small product instead of a repeated k.
        q = q.view(B, k.shape[1], heads // k.shape[1], head_dim)
        return F.scaled_dot_product_attention(q, k, v).reshape(B, 1, -1)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != k.shape[1]
    )
    return out.transpose(1, 2).reshape(B, T, -1)


def causal_mask(length: int, T: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys T new queries behind `length` tokens may see, (T, length + T); None where `attend` needs none."""
    if T == 1 or (length == 0 and (window is None or T <= window)):
        return None
    age = torch.arange(length, length + T, device=device)[:, None] - torch.arange(length + T, device=device)
    return age >= 0 if window is None else (age >= 0) & (age < window)
