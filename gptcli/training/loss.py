"""The loss of texts, the mean negative log-likelihood of their learned tokens, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from gptcli.model.decoder import Decoder

_CHUNK = 1 << 24  # logits in memory at once; all tokens' would take more than a small model


def loss_of(decoder: Decoder, tokens: Tensor, learned: Tensor) -> Tensor:
    """The sum of the learned tokens' losses, in nats, without gradients. See `add_gradients`."""
    with torch.no_grad():
        hidden, targets = _before_learned(decoder, tokens, learned)
        return sum((_sum(decoder, *chunk) for chunk in _chunks(decoder, hidden, targets)), hidden.new_zeros(()))


def add_gradients(decoder: Decoder, tokens: Tensor, learned: Tensor, total: int) -> Tensor:
    """Adds the gradient of (sum of losses) / total to the parameters' gradients; returns the sum, in nats.

    tokens: (B, T) ids, padded at the end of rows with any. learned: (B, T) bool, which tokens are learned. total: the
    learned tokens of all batches of the step. Only a few tokens' logits are in memory at a time.
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
    """The hidden states before the learned tokens, (n, hidden), and these tokens, (n,)."""
    follows = learned[:, 1:]
    return decoder.run_whole(tokens[:, :-1])[follows], tokens[:, 1:][follows]


def _chunks(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, _CHUNK // decoder.config.vocab_size)
    return zip(torch.split(hidden, size), torch.split(targets, size), strict=True)


def _sum(decoder: Decoder, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(decoder.logits(hidden), targets, reduction="sum")
