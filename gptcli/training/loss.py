"""The loss of texts, the mean of their learned tokens' negative log-likelihoods, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.model.decoder import Decoder

_CHUNK = 1 << 24  # logits held at once: those of all tokens would take more memory than a small model


def loss_of(decoder: Decoder, tokens: Tensor, learned: Tensor) -> Tensor:
    """The sum of the learned tokens' losses, in nats, without gradients. See `add_gradients`."""
    with torch.no_grad():
        hidden, targets = _before_learned(decoder, tokens, learned)
        return sum((_sum(decoder, *chunk) for chunk in _chunks(decoder, hidden, targets)), hidden.new_zeros(()))


def add_gradients(decoder: Decoder, tokens: Tensor, learned: Tensor, total: int) -> Tensor:
    """Adds the gradient of the sum of losses / total to the parameters' gradients; returns that sum, in nats.

    tokens: (B, T) ids, rows padded at their end with any. learned: (B, T) bool, which tokens the model is to say.
    total: how many tokens of all batches of the step are. The logits of a few tokens are held at a time.
    """
    hidden, targets = _before_learned(decoder, tokens, learned)
    leaf = hidden.detach().requires_grad_()
    losses = hidden.new_zeros(())
    for chunk in _chunks(decoder, leaf, targets):
        loss = _sum(decoder, *chunk)
        (loss / total).backward()
        losses += loss.detach()
    if hidden.requires_grad and leaf.grad is not None:
        hidden.backward(leaf.grad)
    return losses


def _before_learned(decoder: Decoder, tokens: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states after which the learned tokens come, (n, hidden), and those tokens (n,)."""
    follows = learned[:, 1:]
    return decoder.run_whole(tokens[:, :-1])[follows], tokens[:, 1:][follows]


def _chunks(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK // decoder.config.vocab_size)
    return zip(torch.split(hidden, size), torch.split(targets, size), strict=True)


def _sum(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(decoder.logits(hidden), targets, reduction="sum")
