from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from gptcli import LanguageModel
from gptcli.generation.completion import Completion
from gptcli.generation.sampling.constraint import TokenMask, mask_words
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.tools.definitions import checked_tools
from gptcli.tools.formats import FORMATS, ToolUse
from gptcli.tools.splitter import splitter_of


class Spelling:
    """Allows the tokens of a script in turn, then all; remembers what was drawn.

    forces: whether the script leaves no choice. ends: whether nothing follows it.
    """

    def __init__(self, script: list[int], vocabulary: int, *, forces: bool = False, ends: bool = False) -> None:
        self.script, self.vocabulary, self.accepted = script, vocabulary, list[int]()
        self.forces, self.ends = forces, ends

    @property
    def finished(self) -> bool:
        return self.ends and self.accepted == self.script

    def forced(self) -> Sequence[int]:
        return self.script[len(self.accepted) :] if self.forces else ()

    def fitting(self, tokens: Sequence[int]) -> int:
        asked = zip(tokens, self.script[len(self.accepted) :], strict=False)
        return next((count for count, (token, wanted) in enumerate(asked) if token != wanted), len(tokens))

    def allowed(self) -> TokenMask | None:
        if len(self.accepted) >= len(self.script):
            return None
        mask = array("I", [0] * mask_words(self.vocabulary))
        token = self.script[len(self.accepted)]
        mask[token // 32] |= 1 << token % 32
        return mask

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def completion(lm: LanguageModel, constraint: Spelling | None, **sampling: Any) -> Completion:
    config = SamplingConfig(**{"temperature": 0, **sampling})
    sampler = TorchSampler(config, lm.tokenizer.size, frozenset(), lm.tokenizer.token_bytes)
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


def test_the_end_of_a_constraint_is_that_of_the_text(tiny: LanguageModel) -> None:
    text = completion(tiny, Spelling([40, 70], tiny.tokenizer.size, ends=True))
    while text.reason is None:
        text.take(torch.arange(float(tiny.tokenizer.size)))
    assert (text.ids, text.reason, text.stopped_by, text.forced) == ([40, 70], "stop", None, 0)


def test_a_constraint_that_allows_nothing_ends_the_text_at_once(tiny: LanguageModel) -> None:
    text = completion(tiny, Spelling([], tiny.tokenizer.size, ends=True))
    text.take(torch.arange(float(tiny.tokenizer.size)))
    assert (text.ids, text.reason) == ([], "stop")


@pytest.mark.parametrize("forced", [0, 3])
def test_a_forced_token_is_taken_without_a_random_number(tiny: LanguageModel, forced: int) -> None:
    logits = torch.zeros(tiny.tokenizer.size)
    text = completion(tiny, Spelling([40] * forced, tiny.tokenizer.size, forces=True), temperature=1.0, top_k=0, seed=1)
    for _ in range(forced + 3):
        text.take(logits)
    free = completion(tiny, None, temperature=1.0, top_k=0, seed=1)
    for _ in range(3):
        free.take(logits)
    assert (text.ids[forced:], text.forced) == (free.ids, forced)


NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(("parallel", "calls"), [(True, 2), (False, 1)])
def test_a_text_ends_with_its_first_call_where_there_may_be_no_other(
    tiny: LanguageModel, parallel: bool, calls: int
) -> None:
    tools = checked_tools([{"name": "now"}])
    hermes = next(format for format in FORMATS if format.name == "hermes")
    splitter = splitter_of(ToolUse(tools, "auto", hermes, parallel))
    one = tiny.tokenizer.encode(NOW)
    constraint = Spelling([*one, *one], tiny.tokenizer.size, forces=True, ends=True)
    sampler = TorchSampler(SamplingConfig(temperature=0), tiny.tokenizer.size, frozenset(), tiny.tokenizer.token_bytes)
    text = Completion(tiny.tokenizer, [5], sampler, StopConfig(max_tokens=-1), frozenset({2}), constraint, splitter)
    while text.reason is None:
        text.take(torch.arange(float(tiny.tokenizer.size)))
    assert (text.reason, len(text.tool_calls), len(text.ids)) == ("tool_calls", calls, calls * len(one))
    assert not text.said
