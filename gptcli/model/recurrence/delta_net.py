"""Gated DeltaNet (Yang et al., 2024): a state for each head that maps keys to values.

A token decays the state s (key_dim, value_dim) to a s, with an a of its own. It writes b times the difference between
its value v and the value stored for its key k: s + k (b (v - k s))^T. Then it reads q s. Within a chunk, the
differences solve a triangular system.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import DeltaNetConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import Norm
from gptcli.model.position import Position, TextPosition
from gptcli.model.recurrence.convolution import Convolution
from gptcli.model.recurrence.scan import CHUNK, decays

LEAST_SQUARE = 1e-6  # added to the squared lengths of q and k


class DeltaNet(nn.Module):
    """Projects to q, k, v, a gate, and each head's b and a; convolves, scans, normalizes, gates, projects back."""

    def __init__(self, config: DeltaNetConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.into = Linear(hidden_size, config.channels + config.width, bias=False)
        self.rates = Linear(hidden_size, 2 * config.heads, bias=False)
        self.convolution = Convolution(config.channels, config.kernel, bias=False)
        self.decay = nn.Parameter(torch.empty(config.heads))  # the logarithm of how fast a falls
        self.step_bias = nn.Parameter(torch.empty(config.heads))
        self.norm = Norm(config.norm, config.value_dim)
        self.out = Linear(config.width, hidden_size, bias=False)

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        mixed, gate = torch.split(self.into(x), [self.config.channels, self.config.width], -1)
        read = position.text_by_text(partial(self._read, block), mixed, self.rates(x))
        scanned = self.norm(read.to(x.dtype))  # (B, T, heads, value_dim)
        gated = scanned.flatten(2) * F.silu(gate.float())
        out: Tensor = self.out(gated.to(x.dtype))
        return out

    def _read(self, block: int, position: TextPosition, mixed: Tensor, rates: Tensor) -> Tensor:
        """What tokens read, (B, T, heads, value_dim). mixed: (B, T, channels); rates: (B, T, 2 * heads)."""
        config, (B, T, _) = self.config, mixed.shape
        b, a = (rate.float().transpose(1, 2) for rate in rates.chunk(2, -1))  # (B, heads, T)
        tail, state = position.states.now[block]
        mixed, tail = self.convolution(mixed, tail)
        keys, values = config.key_heads * config.key_dim, config.width
        q, k, v = (
            heads.reshape(B, T, -1, dim).transpose(1, 2).float()  # (B, heads, T, dim)
            for heads, dim in zip(
                torch.split(F.silu(mixed), [keys, keys, values], -1),
                (config.key_dim, config.key_dim, config.value_dim),
                strict=True,
            )
        )
        shared = config.heads // config.key_heads
        q, k = (
            each.repeat(1, shared, 1, 1) if config.tiled else each.repeat_interleave(shared, 1)
            for each in map(_of_length_1, (q, k))
        )
        q = q * config.key_dim**-0.5
        b, logs = b.sigmoid(), F.softplus(a + self.step_bias.float()[:, None]) * -self.decay.float().exp()[:, None]
        read = []
        for start in range(0, T, CHUNK):
            chunk = slice(start, start + CHUNK)
            some, state = _scan(
                q[:, :, chunk], k[:, :, chunk], v[:, :, chunk], b[:, :, chunk], *decays(logs[:, :, chunk]), state
            )
            read.append(some)
        position.states.put(block, (tail, state))
        return torch.cat(read, 2).transpose(1, 2)


def _of_length_1(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LEAST_SQUARE)


def _scan(
    q: Tensor, k: Tensor, v: Tensor, b: Tensor, left: Tensor, among: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """What a chunk's tokens read (B, heads, T, value_dim), and the state after them.

    q and k: (B, heads, T, key_dim); v: (B, heads, T, value_dim); b: (B, heads, T). left and among: see `decays`.
    """
    depend = b[..., None] * among * (k @ k.mT)  # strict lower triangle: how a token depends on earlier ones
    new = b[..., None] * (v - left[..., None] * (k @ state))
    written = torch.linalg.solve_triangular(depend, new, upper=False, unitriangular=True)
    read = left[..., None] * (q @ state) + (among * (q @ k.mT)) @ written
    state = left[..., -1, None, None] * state + (k * among[..., -1, :, None]).mT @ written
    return read, state
