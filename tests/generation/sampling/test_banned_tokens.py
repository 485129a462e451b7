"""Bans are those of transformers' logits processors of the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from gptcli.errors import UsageError
from gptcli.generation.sampling.banned_tokens import always_banned, banned_next
from gptcli.generation.sampling.native_sampler import NativeSampler
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.kernels.bindings import functions
from gptcli.settings import SamplingConfig

SIZE = 9  # of a vocabulary in which histories repeat themselves
STOP = 3
ids = st.integers(0, SIZE - 1)
id_lists = st.lists(ids, max_size=3)
words = st.lists(st.lists(ids, min_size=1, max_size=3), max_size=4)
histories = st.lists(ids, min_size=1, max_size=30)


def config_of(suppressed: list[int], first: list[int], bad: list[list[int]], size: int, **other: Any) -> SamplingConfig:
    given = {"suppress_tokens": suppressed, "begin_suppress_tokens": first, "bad_words_ids": bad}
    return SamplingConfig.resolve({**given, "no_repeat_ngram_size": size, **other}, {}).sparing({STOP})


def processors(
    suppressed: list[int], first: list[int], bad: list[list[int]], size: int, prompt: int
) -> LogitsProcessorList:
    """The logits processors that transformers' `generate` makes of these settings."""
    made: list[Any] = [SuppressTokensLogitsProcessor(suppressed), SuppressTokensAtBeginLogitsProcessor(first, prompt)]
    if size > 0:
        made.append(NoRepeatNGramLogitsProcessor(size))
    if any(word != [STOP] for word in bad):
        made.append(NoBadWordsLogitsProcessor(bad, STOP))
    return LogitsProcessorList(made)


@settings(max_examples=150, deadline=None)
@given(id_lists, id_lists, words, st.integers(0, 4), histories, st.booleans(), st.integers(0, 2**32))
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    suppressed: list[int],
    first: list[int],
    bad: list[list[int]],
    size: int,
    history: list[int],
    begins: bool,
    seed: int,
) -> None:
    config = config_of(suppressed, first, bad, size, temperature=0)
    prompt = len(history) if begins else len(history) - 1
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    scores = processors(suppressed, first, bad, size, prompt)(torch.tensor([history]), logits[None])[0]
    banned = always_banned(config) | {*banned_next(config, history, begins=begins)}
    assert banned == {*(scores == -torch.inf).nonzero().flatten().tolist()}
    if library := functions():
        for sampler in (
            TorchSampler(config, SIZE, frozenset(), lambda id: b""),
            NativeSampler(library, config, SIZE, frozenset()),
        ):
            sampler._begins = begins
            if len(banned) == SIZE:
                with pytest.raises(UsageError, match="no token is left"):
                    sampler.sample(logits, history)
            else:
                assert sampler.sample(logits, history)[0] == int(scores.argmax())


def test_only_the_first_token_is_not_one_of_those_suppressed_at_the_beginning() -> None:
    config = SamplingConfig(temperature=0, begin_suppress_tokens=(1,))
    sampler = TorchSampler(config, 3, frozenset(), lambda id: b"")
    logits = torch.tensor([0.0, 2.0, 1.0])
    assert [sampler.sample(logits, [0])[0] for _ in range(3)] == [2, 1, 1]


def test_ids_beyond_the_vocabulary_ban_nothing() -> None:
    config = SamplingConfig(temperature=0, suppress_tokens=(2, 99), begin_suppress_tokens=(10**12,))
    logits = torch.tensor([0.0, 1.0, 2.0])
    for sampler in (
        TorchSampler(config, 3, frozenset(), lambda id: b""),
        *([NativeSampler(library, config, 3, frozenset())] if (library := functions()) else []),
    ):
        assert sampler.sample(logits, [0])[0] == 1


def test_an_explanation_counts_what_was_banned() -> None:
    config = SamplingConfig(temperature=0, suppress_tokens=(2,), no_repeat_ngram_size=1)
    sampler = TorchSampler(config, 4, frozenset(), lambda id: b"", explain=True)
    token, step = sampler.sample(torch.tensor([0.0, 1.0, 2.0, 3.0]), [3])
    assert token == 1 and step is not None and step.explanation is not None
    assert [(effect.name, effect.removed) for effect in step.explanation.filters] == [("banned", 2), ("greedy", 1)]
