"""Explains a draw from the stages that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.generation.events import Explanation, FilterEffect
from gptcli.generation.sampling.filters import Stage


def explain(logits: Tensor, passed: Sequence[Stage], token: int) -> Explanation:
    """The effect of each of `filters.stages` on the token and on the model's distribution, of logits (vocab,)."""
    probabilities = logits.softmax(0)
    count, mass = int((logits > -math.inf).sum()), 1.0
    effects = []
    for stage in passed:
        left = stage.logits > -math.inf
        of_token = stage.logits.softmax(0)[token if stage.ids is None else stage.ids == token]
        kept = int(left.sum())
        kept_mass = float((probabilities if stage.ids is None else probabilities[stage.ids])[left].sum())
        effects.append(FilterEffect(stage.name, kept, count - kept, max(0.0, mass - kept_mass), float(of_token)))
        count, mass = kept, kept_mass
    return Explanation(
        entropy=float(torch.special.entr(probabilities).sum()),
        rank=int((logits > logits[token]).sum()) + 1,
        filters=tuple(effects),
    )
