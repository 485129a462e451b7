from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.generation.sampling.filters import Sampler, add_bias, explain, keep_min_p, keep_top_k, keep_top_p, penalize
from gptcli.settings import SamplingConfig

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

logit_lists = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60)


def descending(values: list[float]) -> torch.Tensor:
    return torch.tensor(sorted(values, reverse=True))


def draws(logits: torch.Tensor, count: int, **config: Any) -> torch.Tensor:
    """How often each token was drawn."""
    sampler = Sampler(SamplingConfig(**(OFF | config), seed=0))
    tokens = torch.cat([sampler(logits, []) for _ in range(count)])
    return torch.bincount(tokens, minlength=len(logits))


@given(logit_lists, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p_and_never_none(values: list[float], p: float) -> None:
    ordered = descending(values)
    kept = keep_top_p(ordered, p, ordered.logsumexp(0))
    probabilities = ordered.double().softmax(0)
    assert 1 <= len(kept) <= len(ordered)
    assert kept.equal(ordered[: len(kept)])
    slack = 1e-5
    assert probabilities[: len(kept)].sum() >= p - slack or len(kept) == len(ordered)
    assert probabilities[: len(kept) - 1].sum() < p + slack


@given(logit_lists, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_within_its_share_of_the_best(values: list[float], p: float) -> None:
    ordered = descending(values)
    kept = len(keep_min_p(ordered, p))
    share = (ordered.double() - ordered[0].double()).exp()
    assert kept >= 1
    assert (share[:kept] >= p - 1e-5).all()
    assert (share[kept:] <= p + 1e-5).all()


@given(logit_lists, st.integers(0, 100))
def test_top_k_keeps_the_k_greatest(values: list[float], k: int) -> None:
    logits = torch.tensor(values)
    kept, ids = keep_top_k(logits, k)
    assert kept.tolist() == sorted(values, reverse=True)[: k or None]
    assert logits[ids].equal(kept)


@given(logit_lists, st.floats(0.5, 2.0), st.floats(0, 2), st.floats(0, 2), st.data())
def test_penalties_touch_recent_tokens_alone(
    values: list[float], repeat: float, presence: float, frequency: float, data: st.DataObject
) -> None:
    logits = torch.tensor(values)
    recent = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=10))
    out = penalize(logits, torch.tensor(recent, dtype=torch.int64), repeat, presence, frequency)
    for token, value in enumerate(values):
        count = recent.count(token)
        penalized = (value / repeat if value > 0 else value * repeat) - presence - frequency * count
        assert out[token].item() == pytest.approx(penalized if count else value, rel=1e-4, abs=1e-4)


@settings(max_examples=200)
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=50),
    st.builds(
        SamplingConfig,
        temperature=st.floats(0, sys.float_info.max),
        top_k=st.integers(0, 10**20),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repeat_penalty=st.floats(0.01, 100),
        repeat_last_n=st.integers(-1, 10**20),
        presence_penalty=st.floats(-100, 100),
        frequency_penalty=st.floats(-100, 100),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.data(),
)
def test_any_settings_draw_a_token_that_is_not_forbidden(
    values: list[float], config: SamplingConfig, data: st.DataObject
) -> None:
    ids = st.integers(0, len(values) - 1)
    forbidden = data.draw(st.sets(ids, max_size=len(values) - 1))
    config = replace(config, logit_bias=tuple((id, -math.inf) for id in forbidden))
    history = data.draw(st.lists(ids, max_size=9))
    token = int(Sampler(config)(torch.tensor(values), history))
    assert 0 <= token < len(values)
    assert token not in forbidden


def test_a_bias_is_added_and_minus_infinity_forbids() -> None:
    out = add_bias(torch.zeros(4), [(1, 2.5), (3, -math.inf)])
    assert out.tolist() == [0, 2.5, 0, -math.inf]


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-6])
def test_a_temperature_near_zero_takes_the_best(temperature: float) -> None:
    assert draws(torch.tensor([1.0, 1.001, 0.0]), 50, temperature=temperature).tolist() == [0, 50, 0]


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    counts = draws(logits, 3000) / 3000
    assert counts.allclose(torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_temperature_sharpens_after_the_filters() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    wanted = torch.tensor([0.25, 0.09, 0.04])
    assert (draws(logits, 3000, temperature=0.5) / 3000).allclose(wanted / wanted.sum(), atol=0.03)


def test_a_huge_vocabulary_gives_the_same_tokens_as_sorting_it_all() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 3
    ordered, ids = keep_top_k(logits, 0)
    allowed = set(ids[: len(keep_top_p(ordered, 0.6, logits.logsumexp(0)))].tolist())
    drawn = set(draws(logits, 2000, top_p=0.6).nonzero().flatten().tolist())
    assert drawn <= allowed and len(drawn) > 0.5 * len(allowed)


def test_a_flat_distribution_over_a_huge_vocabulary_is_not_cut_to_the_first_candidates() -> None:
    drawn = draws(torch.zeros(5000), 4000, top_p=0.99).nonzero().flatten()
    assert len(drawn) > 2000


def test_the_same_seed_draws_the_same_tokens_and_another_does_not() -> None:
    logits = torch.zeros(1000)

    def sequence(seed: int) -> list[int]:
        sampler = Sampler(SamplingConfig(**OFF, seed=seed))
        return [int(sampler(logits, [])) for _ in range(20)]

    assert sequence(7) == sequence(7) != sequence(8)


def test_a_seed_that_nobody_gave_is_told_and_repeats_the_text() -> None:
    first = Sampler(SamplingConfig(**OFF))
    again = Sampler(SamplingConfig(**OFF, seed=first.seed))
    logits = torch.zeros(1000)
    assert [int(first(logits, [])) for _ in range(9)] == [int(again(logits, [])) for _ in range(9)]


def test_the_window_of_penalties_is_the_last_n_tokens() -> None:
    logits = torch.tensor([1.0, 0.9])
    config = SamplingConfig(temperature=0, repeat_penalty=2.0, repeat_last_n=2)
    sampler = Sampler(config)
    assert int(sampler(logits, [0, 1, 1])) == 0
    assert int(sampler(logits, [1, 0, 0])) == 1


def test_a_top_p_of_one_keeps_every_token_however_unlikely() -> None:
    ordered = torch.linspace(30, -30, 2000)
    assert len(keep_top_p(ordered, 1.0, ordered.logsumexp(0))) == 2000
    assert draws(torch.cat([torch.tensor([30.0]), torch.zeros(5000)]), 3000, temperature=100.0).count_nonzero() > 1500


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"temperature": math.nan}, "temperature must be at least 0"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
        ({"min_p": -0.1}, "min-p must be between 0 and 1"),
        ({"top_k": -1}, "top-k"),
        ({"top_k": 2.5}, "top-k must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"repeat_penalty": 1e-320}, "repeat-penalty"),
        ({"logit_bias": ((5, 1e39),)}, "logit-bias of token 5"),
        ({"repeat_penalty": 0.0}, "repeat-penalty"),
        ({"repeat_last_n": -2}, "repeat-last-n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logit_bias": ((1, math.nan),)}, "logit-bias"),
        ({"logit_bias": ((1, math.inf),)}, "or -inf"),
        ({"logit_bias": ((-1, 1.0),)}, "logit-bias"),
        ({"presence_penalty": math.inf}, "presence-penalty"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_options_name(field: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        SamplingConfig(**field)


def test_what_the_user_gives_beats_the_model_which_beats_our_defaults() -> None:
    model = {"temperature": 0.6, "top_p": 0.9}
    resolved = SamplingConfig.resolve({"temperature": 0.1, "top_k": None}, model)
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == (0.1, 0.9, SamplingConfig().top_k)


@settings(max_examples=50)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 5, 3000]),
    st.sampled_from([0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.0, 0.7, 1.0, 3.0]),
)
def test_what_is_explained_is_what_is_drawn_without_explaining(
    seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) * 3
    config = SamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=1.2, seed=seed % 1000
    )
    plain, explaining = Sampler(config), Sampler(config)
    for _ in range(3):
        stages = explaining.stages(logits, [1, 2, 3], whole=True)
        token = explaining.draw(stages[-1])
        assert token.equal(plain(logits, [1, 2, 3]))
        explanation = explain(logits, stages, int(token))
        assert explanation.filters[-1].probability > 0
        kept = [effect.kept for effect in explanation.filters]
        assert kept == sorted(kept, reverse=True) and kept[-1] >= 1
        assert sum(effect.removed for effect in explanation.filters) == 2000 - kept[-1]


def test_an_explanation_tells_rank_entropy_and_what_each_filter_removed() -> None:
    probabilities = torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1])
    logits = probabilities.log()
    config = SamplingConfig(temperature=2.0, top_k=4, top_p=0.8, min_p=0.5, seed=0)
    stages = Sampler(config).stages(logits, [], whole=True)
    explanation = explain(logits, stages, 2)
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


def test_an_explanation_of_greedy_decoding_names_what_forbade_a_token() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0])
    config = SamplingConfig(temperature=0, logit_bias=((0, -math.inf),))
    explanation = explain(logits, Sampler(config).stages(logits, []), 1)
    assert explanation.rank == 2
    assert [(e.name, e.kept, e.removed) for e in explanation.filters] == [("logit_bias", 2, 1), ("greedy", 1, 1)]
    assert explanation.filters[0].removed_probability == pytest.approx(logits.softmax(0)[0].item())
    assert explanation.filters[1].probability == 1


def test_forbidden_tokens_leave_the_entropy_a_number() -> None:
    logits = torch.tensor([0.0, 0.0, -math.inf])
    explanation = explain(logits, Sampler(SamplingConfig(**OFF)).stages(logits, [], whole=True), 0)
    assert explanation.entropy == pytest.approx(math.log(2))
    assert explanation.filters[0].kept == 2
