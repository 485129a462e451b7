from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TypicalLogitsWarper

from gptcli.generation.sampling import filters
from gptcli.generation.sampling.filters import keep_min_p, keep_top_k, keep_top_p, keep_typical_p, penalize, stages
from gptcli.settings import SamplingConfig

logit_lists = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60)


def descending(values: list[float]) -> torch.Tensor:
    return torch.tensor(sorted(values, reverse=True))


@given(logit_lists, st.floats(0.5, 2.0), st.floats(0, 2), st.floats(0, 2), st.data())
def test_penalties_change_recent_tokens_alone(
    values: list[float], repeat: float, presence: float, frequency: float, data: st.DataObject
) -> None:
    logits = torch.tensor(values)
    recent = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=10))
    out = penalize(logits, torch.tensor(recent, dtype=torch.int64), repeat, presence, frequency)
    for token, value in enumerate(values):
        count = recent.count(token)
        penalized = (value / repeat if value > 0 else value * repeat) - presence - frequency * count
        assert out[token].item() == pytest.approx(penalized if count else value, rel=1e-4, abs=1e-4)


@given(logit_lists, st.integers(0, 100))
def test_top_k_keeps_the_k_greatest(values: list[float], k: int) -> None:
    logits = torch.tensor(values)
    kept, ids = keep_top_k(logits, k)
    assert kept.tolist() == sorted(values, reverse=True)[: k or None]
    assert logits[ids].equal(kept)


@given(logit_lists, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p_and_at_least_one(values: list[float], p: float) -> None:
    ordered = descending(values)
    kept = ordered[keep_top_p(ordered, p, ordered.logsumexp(0))]
    probabilities = ordered.double().softmax(0)
    assert 1 <= len(kept) <= len(ordered)
    assert kept.equal(ordered[: len(kept)])
    slack = 1e-5
    assert probabilities[: len(kept)].sum() >= p - slack or len(kept) == len(ordered)
    assert probabilities[: len(kept) - 1].sum() < p + slack


def test_a_top_p_of_one_keeps_every_token_however_unlikely() -> None:
    ordered = torch.linspace(30, -30, 2000)
    assert keep_top_p(ordered, 1.0, ordered.logsumexp(0)).all()


@given(logit_lists, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_within_its_share_of_the_best(values: list[float], p: float) -> None:
    ordered = descending(values)
    marks = keep_min_p(ordered, p)
    kept = int(marks.sum())
    assert marks[:kept].all()
    share = (ordered.double() - ordered[0].double()).exp()
    assert kept >= 1
    assert (share[:kept] >= p - 1e-5).all()
    assert (share[kept:] <= p + 1e-5).all()


@given(logit_lists, st.floats(0.01, 0.99))
def test_typical_p_keeps_what_transformers_keeps(values: list[float], p: float) -> None:
    ordered = descending(values)
    theirs = TypicalLogitsWarper(p)(torch.zeros(1, 0, dtype=torch.int64), ordered[None])[0]
    assert keep_typical_p(ordered, p).equal(theirs > -torch.inf)


def test_typical_p_may_leave_the_likeliest_token_out() -> None:
    logits = torch.tensor([0.4, 0.05, 0.07, 0.08, 0.09, 0.11, 0.2]).log()  # whose entropy is that of a token of 0.18
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=0.8, min_p=0.0, typical_p=0.3)
    typical, top_p, last = stages(logits, None, None, config)
    assert [stage.name for stage in (typical, top_p, last)] == ["typical_p", "top_p", "temperature"]
    assert typical.ids is not None and typical.ids.tolist() == [6, 5]
    assert top_p.ids is not None and top_p.ids.tolist() == [6, 5]  # 0.2 is 0.65 of what is left
    assert last.logits.softmax(0).tolist() == pytest.approx([20 / 31, 11 / 31])


def test_typical_p_sees_the_whole_vocabulary() -> None:
    logits = torch.linspace(1, 0, 5000)
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=0.01, min_p=0.0, typical_p=0.5)
    typical, *_ = stages(logits, None, None, config)
    theirs = TypicalLogitsWarper(0.5)(torch.zeros(1, 0, dtype=torch.int64), logits[None])[0]
    assert typical.ids is not None and typical.ids.equal((theirs > -torch.inf).nonzero()[:, 0])


def test_a_new_filter_is_applied_where_all_others_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((5000,), -20.0)
    logits[7] = 20.0  # with all of the probability
    config = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    cut = ("half", lambda ordered, total: torch.arange(len(ordered)) < len(ordered) // 2)
    monkeypatch.setattr(filters, "cuts", lambda config: [cut])
    *_, half, last = stages(logits, None, None, config)
    assert half.name == "half" and half.ids is not None and half.ids[0] == 7
    assert len(half.logits) == len(last.logits) == 2500
