from __future__ import annotations

from array import array

import torch

from gptcli import LanguageModel
from gptcli.generation.completion import Completion
from gptcli.generation.sampling.constraint import TokenMask, mask_words
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.settings import SamplingConfig, StopConfig


class Spelling:
    """Allows the tokens of a script in turn, then all; remembers what was drawn."""

    def __init__(self, script: list[int], vocabulary: int) -> None:
        self.script, self.vocabulary, self.accepted = script, vocabulary, list[int]()

    def allowed(self) -> TokenMask | None:
        if len(self.accepted) >= len(self.script):
            return None
        mask = array("I", [0] * mask_words(self.vocabulary))
        token = self.script[len(self.accepted)]
        mask[token // 32] |= 1 << token % 32
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def completion(lm: LanguageModel, constraint: Spelling | None) -> Completion:
    sampler = TorchSampler(SamplingConfig(temperature=0), lm.tokenizer.size, frozenset(), lm.tokenizer.token_bytes)
    return Completion(lm.tokenizer, [5], sampler, StopConfig(max_tokens=9), frozenset({2}), constraint)


def test_a_constraint_limits_each_token_and_is_told_it_the_end_too(tiny: LanguageModel) -> None:
    size = tiny.tokenizer.size
    constraint = Spelling([40, 70, 2], size)
    text = completion(tiny, constraint)
    while text.reason is None:
        text.take(torch.arange(float(size)))  # without a mask, the last token is the likeliest
    assert (text.ids, constraint.accepted) == ([40, 70], [40, 70, 2])
    assert (text.reason, text.stopped_by) == ("stop", tiny.tokenizer.token_name(2))


def test_a_constraint_may_allow_everything(tiny: LanguageModel) -> None:
    size = tiny.tokenizer.size
    constraint = Spelling([40], size)
    constrained, free = completion(tiny, constraint), completion(tiny, None)
    for _ in range(3):
        constrained.take(torch.arange(float(size)))
        free.take(torch.arange(float(size)))
    assert free.ids == [size - 1] * 3
    assert constrained.ids == constraint.accepted == [40, size - 1, size - 1]
