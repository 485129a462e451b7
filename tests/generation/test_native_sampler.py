"""Compiled draws against those in torch, whose filters have tests of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.generation.sampling.filters import Sampler
from gptcli.generation.sampling.native_sampler import CompiledPicker
from gptcli.kernels.bindings import Functions, functions
from gptcli.settings import SamplingConfig

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def library() -> Functions:
    built = functions()
    if built is None:
        pytest.skip("the kernels are not built")
    return built


def in_torch(
    logits: torch.Tensor, config: SamplingConfig, never: set[int], history: list[int], count: int
) -> list[int]:
    sampler = Sampler(config)
    logits = logits.clone()
    logits[list(never)] = -math.inf
    return [int(sampler(logits, history)) for _ in range(count)]


def compiled(
    library: Functions, logits: torch.Tensor, config: SamplingConfig, never: set[int], history: list[int], count: int
) -> list[int]:
    picker = CompiledPicker(library, config, len(logits), frozenset(never))
    return [picker.pick(logits, history)[0] for _ in range(count)]


@settings(max_examples=200)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 7, 900, 1024, 1025, 5000]),
    st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7, 1e30]),
        top_k=st.sampled_from([0, 1, 2, 40, 4999, 10**9]),
        top_p=st.sampled_from([1e-9, 0.4, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
        repeat_penalty=st.sampled_from([0.5, 1.0, 1.3]),
        repeat_last_n=st.sampled_from([-1, 0, 3]),
        presence_penalty=st.sampled_from([0.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, 0.4, -0.4]),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.data(),
)
def test_compiled_draws_are_those_of_torch(
    library: Functions, seed: int, size: int, config: SamplingConfig, data: st.DataObject
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
    ids = st.integers(0, size - 1)
    never = data.draw(st.sets(ids, max_size=min(4, size - 1)))
    config = replace(
        config, logit_bias=tuple((id, data.draw(st.sampled_from([-2.5, 4.0]))) for id in range(0, size, 400))
    )
    history = data.draw(st.lists(ids, max_size=9))
    assert compiled(library, logits, config, never, history, 5) == in_torch(logits, config, never, history, 5)


def test_draws_follow_the_distribution(library: Functions) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    for filters in ({}, {"top_k": 3}, {"top_p": 0.9999}, {"min_p": 0.01}):
        config = SamplingConfig(**(OFF | filters), seed=1)
        drawn = torch.tensor(compiled(library, probabilities.log(), config, set(), [], 5000))
        assert (torch.bincount(drawn, minlength=3) / 5000).allclose(probabilities, atol=0.03)


def test_a_flat_distribution_is_not_cut_to_the_first_candidates(library: Functions) -> None:
    config = SamplingConfig(**OFF | {"top_p": 0.99}, seed=1)
    assert len(set(compiled(library, torch.zeros(5000), config, set(), [], 4000))) > 2000


def test_what_must_not_be_drawn_is_not_however_hot(library: Functions) -> None:
    config = SamplingConfig(**OFF | {"temperature": 1e300}, logit_bias=((2, -math.inf),), seed=1)
    assert set(compiled(library, torch.zeros(5), config, {0, 1}, [], 200)) == {3, 4}


def test_of_equals_the_first_is_taken(library: Functions) -> None:
    for config in (SamplingConfig(temperature=0), SamplingConfig(**OFF | {"top_k": 1})):
        assert compiled(library, torch.tensor([0.0, 2.0, 2.0, 1.0]), config, set(), [], 1) == [1]
        for place in (0, 5, 127, 128, 700):
            logits = torch.full((1001,), -math.inf)
            logits[place] = logits[701] = logits[1000] = -3.0
            assert compiled(library, logits, config, set(), [], 1) == [place]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_found_wherever_it_is(library: Functions, wrong: float) -> None:
    values = torch.full((1003,), -3e38)
    assert library.all_finite(values.data_ptr(), len(values))
    for place in (0, 500, 1002):
        broken = values.clone()
        broken[place] = wrong
        assert not library.all_finite(broken.data_ptr(), len(broken))
