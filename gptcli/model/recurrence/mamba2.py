"""Mamba 2 (Dao and Gu, 2024): a state for each head, which decays by a step that the token chooses.

The state h of a head is (head_dim, state_dim). A token with input x, step d and vectors b and c, which heads of a group
share, makes it exp(-a d) h + d x b^T, and reads h c.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.model.config import Mamba2Config
from gptcli.model.linear import Linear
from gptcli.model.position import Position, TextPosition
from gptcli.model.recurrence.convolution import Convolution
from gptcli.model.recurrence.scan import CHUNK, decays


class Mamba2(nn.Module):
    """Projects to a gate, inputs, b, c and steps; convolves, scans, gates and normalizes; projects back."""

    def __init__(self, config: Mamba2Config, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.parts = (config.width, config.width, config.shared_width, config.shared_width, config.heads)
        self.into = Linear(hidden_size, sum(self.parts), bias=config.bias)
        self.convolution = Convolution(config.channels, config.kernel, config.convolution_bias)
        self.decay = nn.Parameter(torch.empty(config.heads))  # the logarithm of a
        self.step_bias = nn.Parameter(torch.empty(config.heads))
        self.skip = nn.Parameter(torch.empty(config.heads))  # how much of x is added to what is read
        self.norm_weight = nn.Parameter(torch.empty(config.width)) if config.norm_eps is not None else None
        self.out = Linear(config.width, hidden_size, bias=config.bias if config.out_bias is None else config.out_bias)

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        config = self.config
        projected = self.into(x)
        if config.part_scales is not None:
            parts = zip(torch.split(projected, list(self.parts), -1), config.part_scales, strict=True)
            projected = torch.cat([part * scale for part, scale in parts], -1)
        gate, mixed, steps = torch.split(projected, [config.width, config.channels, config.heads], -1)
        scanned = position.text_by_text(partial(self._scanned, block), mixed, steps)
        out: Tensor = self.out(self._gated(scanned.flatten(2), gate.float()).to(x.dtype))
        return out if config.out_scale == 1 else out * config.out_scale

    def _scanned(self, block: int, position: TextPosition, mixed: Tensor, steps: Tensor) -> Tensor:
        """What tokens read, (B, T, heads, head_dim). mixed: (B, T, channels); steps: (B, T, heads)."""
        config, (B, T, _) = self.config, mixed.shape
        tail, state = position.states.now[block]
        mixed, tail = self.convolution(mixed, tail)
        values, b, c = torch.split(F.silu(mixed).float(), list(self.parts[1:4]), -1)
        values = values.view(B, T, config.heads, -1)
        b, c = (shared.view(B, T, config.groups, -1) for shared in (b, c))
        steps = F.softplus(steps.float() + self.step_bias.float()).clamp(*config.step_limits)  # (B, T, heads)
        read = []
        for start in range(0, T, CHUNK):
            chunk = slice(start, start + CHUNK)
            some, state = self._scan(values[:, chunk], steps[:, chunk], b[:, chunk], c[:, chunk], state)
            read.append(some)
        position.states.put(block, (tail, state))
        return torch.cat(read, 1) + values * self.skip.float()[:, None]

    def _scan(self, x: Tensor, steps: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What a chunk's tokens read (B, T, heads, head_dim), and the state after them."""
        groups = self.config.groups
        x, b, c = (each.transpose(1, 2) for each in (x * steps[..., None], b, c))  # (B, heads or groups, T, ...)
        left, among = decays((steps * -self.decay.float().exp()).transpose(1, 2))
        # Heads of a group share b and c: those are multiplied once for all of them.
        per_group = (x, left, among, state)
        x, left, among, state = (each.reshape(len(each), groups, -1, *each.shape[2:]) for each in per_group)
        b, c = b[:, :, None], c[:, :, None]
        within = (c @ b.mT) * among @ x  # (B, groups, heads of a group, T, head_dim)
        read = within + left[..., None] * (c @ state.mT)
        state = left[..., -1, None, None] * state + (x * among[..., -1, :, None]).mT @ b
        return read.flatten(1, 2).transpose(1, 2), state.flatten(1, 2)

    def _gated(self, scanned: Tensor, gate: Tensor) -> Tensor:
        """(B, T, width) with the gate and, if there is one, the norm over each group's channels."""
        config, gate = self.config, F.silu(gate)
        if self.norm_weight is None:
            return scanned * gate
        assert config.norm_eps is not None
        x = scanned if config.norm_before_gate else scanned * gate
        x = F.rms_norm(x.view(*x.shape[:2], config.groups, -1), (config.width // config.groups,), eps=config.norm_eps)
        x = x.flatten(-2) * self.norm_weight.float()
        return x * gate if config.norm_before_gate else x
