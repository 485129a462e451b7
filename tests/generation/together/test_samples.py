"""Samples that are decoded together: each is what it would be alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli
from gptcli import Finished, LanguageModel, TextDelta
from gptcli.cuda.graph import CapturedSteps
from gptcli.cuda.static_step import Outputs
from gptcli.errors import ContextOverflow, UsageError
from gptcli.generation.steps import SharedSteps
from gptcli.runtime import device_plan as device
from gptcli.runtime import torch_engine as engine
from gptcli.settings import SamplingConfig, StopConfig
from tests.cuda.recorder import capture
from tests.generation.outcomes import Outcome, facts, outcome
from tests.parity.test_families import needed_library

PROMPT = list(range(3, 40))
# Ends at different lengths, if the end of text is not ignored.
VARIED = SamplingConfig(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, logit_bias=((2, 1.5),), seed=3)


@pytest.fixture(scope="module", params=["torch", "captured", "kernels"])
def lm(request: pytest.FixtureRequest, tiny_model: Path) -> LanguageModel:
    kernels = needed_library() if request.param == "kernels" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "kernels", lambda: kernels)
        lm = gptcli.load(tiny_model, device="cpu", dtype="fp32", ctx_size=64)
        if request.param == "captured":
            lm.full_engine()._captured = CapturedSteps(lm.full_engine().decoder, capture)
        return lm


def together(lm: LanguageModel, samplings: list[SamplingConfig], stop: StopConfig, **options: Any) -> list[Outcome]:
    return [outcome(events) for events in lm.streams(PROMPT, samplings, stop, **options)]


def alone(lm: LanguageModel, samplings: list[SamplingConfig], stop: StopConfig) -> list[Outcome]:
    return [outcome(lm.stream(PROMPT, sampling, stop)) for sampling in samplings]


CASES = {
    "ends of text": StopConfig(),
    "a stop text": StopConfig(strings=("e", " th"), ignore_eos=True),
    "a number of tokens": StopConfig(max_tokens=9),
    "no tokens": StopConfig(max_tokens=0),
    "a full context": StopConfig(max_tokens=-1, ignore_eos=True),
    "a full context, which is an error": StopConfig(overflow="error", ignore_eos=True),
    "a context shifted twice": StopConfig(max_tokens=100, overflow="shift", ignore_eos=True),
    "ends of text after a shift": StopConfig(max_tokens=100, overflow="shift"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_sample_is_what_it_would_be_alone(lm: LanguageModel, case: str) -> None:
    samplings = VARIED.for_samples(5)
    got = together(lm, samplings, CASES[case])
    assert [facts(*one) for one in got] == [facts(*one) for one in alone(lm, samplings, CASES[case])]
    if case in ("ends of text", "a stop text", "ends of text after a shift"):
        assert len({len(text) for text, _ in got}) >= 3
    assert any(isinstance(end, ContextOverflow) for _, end in got) == ("error" in case)


def test_each_sample_has_its_own_settings(lm: LanguageModel) -> None:
    samplings = [VARIED, replace(VARIED, temperature=0.0), replace(VARIED, repeat_penalty=1.5, top_k=3)]
    assert [facts(*one) for one in together(lm, samplings, StopConfig())] == [
        facts(*one) for one in alone(lm, samplings, StopConfig())
    ]


def test_the_log_probabilities_of_a_sample_are_those_it_would_have_alone(lm: LanguageModel) -> None:
    samplings = VARIED.for_samples(3)
    wanted = [outcome(lm.stream(PROMPT, sampling, StopConfig(), logprobs=2)) for sampling in samplings]
    for (_, got), (_, want) in zip(together(lm, samplings, StopConfig(), logprobs=2), wanted, strict=True):
        assert isinstance(got, Finished) and isinstance(want, Finished) and got.logprobs and want.logprobs
        for one, other in zip(got.logprobs, want.logprobs, strict=True):
            assert one.chosen.id == other.chosen.id
            assert one.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)
            assert [token.id for token in one.top] == [token.id for token in other.top]


def steps_of(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in each step from now on."""
    steps = list[int]()
    decode, extend = SharedSteps.after, lm.engine.extend
    monkeypatch.setattr(SharedSteps, "after", lambda self, texts: steps.append(len(texts)) or decode(self, texts))
    monkeypatch.setattr(lm.engine, "extend", lambda texts: steps.append(len(texts)) or extend(texts))
    return steps


def test_more_than_fit_into_a_step_take_turns_and_run_the_prompt_once(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_ROWS", 3)
    prefilled, steps = list[int](), steps_of(lm, monkeypatch)
    if lm.engine.new_rows() is not None:
        run = lm.engine.prefill
        monkeypatch.setattr(lm.engine, "prefill", lambda ids, *rest: prefilled.append(len(ids)) or run(ids, *rest))
    else:
        extend = lm.engine.extend
        monkeypatch.setattr(
            lm.engine, "extend", lambda texts: prefilled.extend(len(text.tokens) for text in texts) or extend(texts)
        )
    samplings = VARIED.for_samples(7)
    got = together(lm, samplings, StopConfig())
    assert prefilled[0] == len(PROMPT) and set(prefilled[1:]) == {1}
    assert max(steps) == 3
    assert [facts(*one) for one in got] == [facts(*one) for one in alone(lm, samplings, StopConfig())]


def test_samples_whose_steps_cannot_be_captured_go_on_as_texts_of_any_length(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(device, "kernels", lambda: None)
    monkeypatch.setattr(engine, "MOST_ROWS", 3)
    lm = gptcli.load(tiny_model, device="cpu", dtype="fp32", ctx_size=64)
    full = lm.full_engine()
    full._captured = CapturedSteps(full.decoder, refused)
    steps, extend = list[int](), full.extend
    monkeypatch.setattr(full, "extend", lambda texts: steps.append(len(texts)) or extend(texts))
    samplings = VARIED.for_samples(7)
    got = together(lm, samplings, StopConfig())
    assert full.new_rows() is None and max(steps) == 3
    assert [facts(*one) for one in got] == [facts(*one) for one in alone(lm, samplings, StopConfig())]


def test_the_first_sample_comes_while_the_others_still_run(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(lm, monkeypatch)
    streams = lm.streams(PROMPT, VARIED.for_samples(4), StopConfig(ignore_eos=True))
    first = next(streams)
    assert isinstance(next(first), TextDelta)
    assert len(steps) < 5
    outcome(first)
    done = len(steps)
    for events in streams:
        outcome(events)
    assert len(steps) <= done + 1  # they were decoded along with the first, which began a step before


def test_an_interrupt_ends_all_that_were_begun(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOST_ROWS", 3)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 6

    samplings, endless = VARIED.for_samples(6), StopConfig(ignore_eos=True)
    got = together(lm, samplings, endless, cancelled=cancelled)
    whole = alone(lm, samplings[:3], endless)
    assert len(got) == 3
    for (text, end), (all_of_it, _) in zip(got, whole, strict=True):
        assert isinstance(end, Finished)
        assert end.reason == "interrupt" and len(end.ids) in (5, 6)  # which began with the prompt, or a step later
        assert text and all_of_it.startswith(text)


def test_as_many_share_a_step_as_fit_into_the_memory(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    row = lm.engine.decoder.config.cache_bytes(64, 4)
    for free, rows in ((10**9, 32), (3 * 5 * row, 5), (1, 1)):
        monkeypatch.setattr(engine, "free_bytes", lambda device, free=free: free)
        assert lm.engine.most_rows(64) == lm.engine.most_rows(1000) == rows


def test_seeds_count_up_from_a_random_one_and_start_again_after_the_highest() -> None:
    assert [config.seed for config in replace(VARIED, seed=2**64 - 1).for_samples(3)] == [2**64 - 1, 0, 1]
    first, second = replace(VARIED, seed=None).for_samples(2)
    assert first.seed is not None and second.seed == first.seed + 1


def test_one_bad_config_is_refused_before_anything_runs(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="outside the vocabulary"):
        lm.streams(PROMPT, [VARIED, replace(VARIED, logit_bias=((10**6, 1.0),))], StopConfig())


def test_an_interrupted_prompt_leaves_samples_without_text(lm: LanguageModel) -> None:
    got = together(lm, VARIED.for_samples(3), StopConfig(), cancelled=lambda: True)
    assert [(text, end.reason) for text, end in got if isinstance(end, Finished)] == [(b"", "interrupt")] * 3
