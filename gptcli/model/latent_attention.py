"""Multi-head latent attention (DeepSeek-AI, 2024) over a cache of latents."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.attention import attend
from gptcli.model.config import LatentAttentionConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import Norm
from gptcli.model.position import Position, TextPosition
from gptcli.model.rope import rotate


class LatentAttention(nn.Module):
    """Projects to queries and a latent, rotates, stores the latent, attends, projects back.

    A few queries are projected to latents and attend to the cached latents. For many, these are expanded to keys and
    values.
    """

    def __init__(self, config: LatentAttentionConfig, hidden_size: int) -> None:
        super().__init__()
        self.config, rank = config, config.query_rank
        self.q_down = None if rank is None else Linear(hidden_size, rank, bias=config.bias)
        self.q_norm = None if rank is None else Norm(config.norm, rank)
        self.q = Linear(rank or hidden_size, config.heads * config.head_dim, bias=False)
        self.latent = Linear(hidden_size, config.latent_dim + config.rope.dim, bias=config.bias)
        self.latent_norm = Norm(config.norm, config.latent_dim)
        self.kv = HeadMatrices(config.latent_dim, config.heads * (config.plain_dim + config.value_dim), bias=False)
        self.out = Linear(config.heads * config.value_dim, hidden_size, bias=config.bias)

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        config, (B, T, _) = self.config, x.shape
        rotation = position.rotation(config.rope)
        q = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        plain, rotated = self.q(q).view(B, T, config.heads, -1).tensor_split([config.plain_dim], -1)
        latent, key = self.latent(x).tensor_split([config.latent_dim], -1)
        new = torch.cat([self.latent_norm(latent), rotate(key[:, :, None], *rotation)[:, :, 0]], -1)
        rotated = rotate(rotated, *rotation)
        out: Tensor = self.out(position.text_by_text(partial(self._attended, block), plain, rotated, new))
        return out

    def _attended(self, block: int, position: TextPosition, plain: Tensor, rotated: Tensor, new: Tensor) -> Tensor:
        new = new[:, None]
        cached, _ = position.write(block, new, new[..., :0])  # (B, 1, S, latent_dim + rope.dim)
        run = self._absorbed if plain.shape[1] < self.config.expands_from else self._expanded
        return run(plain, rotated, cached, position.mask(None))

    def _absorbed(self, plain: Tensor, rotated: Tensor, cached: Tensor, mask: Tensor | None) -> Tensor:
        """Scores plain (B, T, heads, plain_dim) and rotated queries with latents: (B, T, heads * value_dim)."""
        config = self.config
        for_keys, for_values = self.kv.by_head(config.heads).tensor_split([config.plain_dim], 1)
        q = torch.cat([torch.einsum("bthp,hpl->bthl", plain, for_keys), rotated], -1)
        # The cached rows are also the values: kernels want values as wide as keys.
        latents = attend(config.absorbed, q, cached, cached, mask, None).view(q.shape)[..., : config.latent_dim]
        return torch.einsum("bthl,hvl->bthv", latents, for_values).flatten(2)

    def _expanded(self, plain: Tensor, rotated: Tensor, cached: Tensor, mask: Tensor | None) -> Tensor:
        """The same with the keys and values of each head."""
        config = self.config
        latents, keys = cached.tensor_split([config.latent_dim], -1)
        expanded = torch.einsum("bsl,hdl->bhsd", latents[:, 0], self.kv.by_head(config.heads))
        k, v = expanded.tensor_split([config.plain_dim], -1)
        q, k = torch.cat([plain, rotated], -1), torch.cat([k, keys.expand(-1, config.heads, -1, -1)], -1)
        wide = F.pad(v, (0, max(0, config.head_dim - config.value_dim)))  # kernels want values as wide as keys
        out = attend(config.expanded, q, k, wide, mask, None).view(*q.shape[:-1], -1)
        return out[..., : config.value_dim].flatten(2)


class HeadMatrices(nn.Linear):
    """A matrix whose rows belong to heads, each of which multiplies from either side; so it is never packed."""

    def reset_parameters(self) -> None:
        """Does nothing: see `Linear`."""

    def by_head(self, heads: int) -> Tensor:
        """(heads, rows / heads, columns)."""
        return self.weight.view(heads, -1, self.in_features)
