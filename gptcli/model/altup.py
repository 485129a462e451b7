"""Alternating updates (Baykal et al., 2023): a layer runs one of several residual streams and predicts the others.

And Gemma 3n's learned residual, parallel to attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptcli.model.config import AltUpConfig, NormConfig
from gptcli.model.linear import Linear
from gptcli.model.norm import Norm

LEAST_SQUARE = 1e-5  # a stream's mean square, whose root divides it, counts as at least this


class Streams(nn.Module):
    """Makes the streams of the embedding, and one stream of all after the last layer."""

    def __init__(self, config: AltUpConfig, hidden_size: int) -> None:
        super().__init__()
        others = range(config.streams - 1)
        self.into = nn.ModuleList(Linear(hidden_size, hidden_size, bias=False) for _ in others)
        self.out = nn.ModuleList(Linear(hidden_size, hidden_size, bias=False) for _ in others)

    def expand(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (streams, B, T, hidden)."""
        return torch.stack([x, *(_with_rms_of(x, project(x)) for project in self.into)])

    def merge(self, streams: Tensor) -> Tensor:
        """(streams, B, T, hidden) to (B, T, hidden)."""
        first, *others = streams
        projected = (project(stream) for project, stream in zip(self.out, others, strict=True))
        return torch.stack([first, *(_with_rms_of(first, each) for each in projected)]).mean(0)


def _with_rms_of(x: Tensor, other: Tensor) -> Tensor:
    rms = other.square().mean(-1, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
    return other * (x.square().mean(-1, keepdim=True) ** 0.5) / rms


class AltUp(nn.Module):
    """Predicts all streams before a layer, and corrects them by what the layer made of the active one."""

    def __init__(self, config: AltUpConfig, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = Norm(norm, hidden_size)
        self.router = Linear(hidden_size, config.streams, bias=False)
        self.prediction = Linear(config.streams, config.streams**2, bias=False)
        self.correction = Linear(config.streams, config.streams, bias=False)
        self.scale = nn.Parameter(torch.empty(hidden_size))

    def predict(self, streams: Tensor) -> Tensor:
        """(streams, B, T, hidden) to the same shape."""
        factors = self.prediction(self._modalities(streams[self.config.active]))
        factors = factors.view(*factors.shape[:-1], self.config.streams, -1)  # (B, T, to, from)
        predicted: Tensor = streams + torch.einsum("btij,jbth->ibth", factors, streams)
        return predicted

    def correct(self, predicted: Tensor, output: Tensor) -> Tensor:
        """All streams (streams, B, T, hidden), from the predicted ones and the layer's output (B, T, hidden)."""
        factors = self.correction(self._modalities(output)) + 1
        corrected: Tensor = predicted + (output - predicted[self.config.active]) * factors.movedim(-1, 0)[..., None]
        return corrected

    def _modalities(self, x: Tensor) -> Tensor:
        return torch.tanh(self.router(self.norm(x) / x.shape[-1]).float()).to(x.dtype)


class Laurel(nn.Module):
    """A learned augmented residual: x plus what is left of it in a few channels (Menghani et al., 2024)."""

    def __init__(self, rank: int, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.down = Linear(hidden_size, rank, bias=False)
        self.up = Linear(rank, hidden_size, bias=False)
        self.norm = Norm(norm, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, hidden) to the same shape."""
        out: Tensor = x + self.norm(self.up(self.down(x)))
        return out
