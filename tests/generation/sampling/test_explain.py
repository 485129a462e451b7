from __future__ import annotations

import math
from array import array
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.generation.events import Explanation
from gptcli.generation.sampling.explain import explain
from gptcli.generation.sampling.filters import stages
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.settings import SamplingConfig


def explained(logits: torch.Tensor, token: int, **config: Any) -> Explanation:
    return explain(logits, list(stages(logits, None, None, SamplingConfig(**config), whole=True)), token)


@settings(max_examples=50)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 5, 3000]),
    st.sampled_from([0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 0.7, 1.0, 3.0]),
)
def test_the_token_explained_is_the_one_drawn_without_explaining(
    seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) * 3
    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=1.2, seed=seed % 1000
    )
    plain, explaining = (
        TorchSampler(config, len(logits), frozenset(), lambda id: b"", explain=wanted) for wanted in (False, True)
    )
    for _ in range(3):
        token, step = explaining.sample(logits, [1, 2, 3])
        assert plain.sample(logits, [1, 2, 3]) == (token, None)
        assert step is not None and step.explanation is not None
        filters = step.explanation.filters
        assert filters[-1].probability > 0
        kept = [effect.kept for effect in filters]
        assert kept == sorted(kept, reverse=True) and kept[-1] >= 1
        assert sum(effect.removed for effect in filters) == 2000 - kept[-1]


def test_an_explanation_tells_rank_entropy_and_what_each_filter_removed() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1])
    logits = probabilities.log()
    explanation = explained(logits, 2, temperature=2.0, top_k=4, top_p=0.8, min_p=0.5)
    assert explanation.rank == 2
    assert explanation.entropy == pytest.approx(-(probabilities * logits).sum().item())
    by_name = {effect.name: effect for effect in explanation.filters}
    assert list(by_name) == ["top_k", "top_p", "min_p", "temperature"]
    assert [(e.kept, e.removed) for e in explanation.filters] == [(4, 1), (3, 1), (2, 1), (2, 0)]
    removed = [effect.removed_probability for effect in explanation.filters]
    assert removed == pytest.approx([0.05, 0.1, 0.15, 0], abs=1e-6)
    assert by_name["top_k"].probability == pytest.approx(0.3 / 0.95)
    assert by_name["min_p"].probability == pytest.approx(0.3 / 0.7)
    assert by_name["temperature"].probability == pytest.approx(0.3**0.5 / (0.3**0.5 + 0.4**0.5))


def test_an_explanation_of_greedy_decoding_names_what_banned_a_token() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0])
    explanation = explained(logits, 1, temperature=0, logit_bias=((0, -math.inf),))
    assert explanation.rank == 2
    assert [(e.name, e.kept, e.removed) for e in explanation.filters] == [("logit_bias", 2, 1), ("greedy", 1, 1)]
    assert explanation.filters[0].removed_probability == pytest.approx(logits.softmax(0)[0].item())
    assert explanation.filters[1].probability == 1


def test_banned_tokens_leave_the_entropy_a_number() -> None:
    explanation = explained(torch.tensor([0.0, 0.0, -math.inf]), 0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    assert explanation.entropy == pytest.approx(math.log(2))
    assert explanation.filters[0].kept == 2


def test_an_explanation_tells_what_a_constraint_removed_and_log_probabilities_stay_the_models_own() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    sampler = TorchSampler(SamplingConfig(temperature=0), 3, frozenset(), lambda id: b"", logprobs=1, explain=True)
    token, step = sampler.sample(logits, [], bytearray(array("I", [0b010])))
    assert token == 1 and step is not None and step.explanation is not None
    assert step.chosen.logprob == pytest.approx(math.log(0.25)) and step.top[0].id == 0
    first = step.explanation.filters[0]
    assert (first.name, first.kept, first.removed) == ("constraint", 1, 2)
    assert first.removed_probability == pytest.approx(0.75)
