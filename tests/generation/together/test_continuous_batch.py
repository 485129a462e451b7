"""Texts that share steps: each is what it would be alone, whatever else runs, comes, ends and fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptcli
from gptcli import Finished, LanguageModel, Request, TextDelta
from gptcli.cuda.graph import CapturedSteps
from gptcli.errors import ContextOverflow, NonFiniteLogits, OutOfMemory
from gptcli.generation.together import continuous_batch
from gptcli.generation.together.continuous_batch import ContinuousBatch
from gptcli.generation.together.job import Job
from gptcli.runtime import device_plan
from gptcli.runtime.engine import Extended, Extension
from gptcli.settings import SamplingConfig
from tests.cuda.recorder import capture
from tests.generation.outcomes import facts, outcome
from tests.parity.test_families import ROW, needed_library
from tests.tiny import CONFIG, make_model, make_weights

_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
CONFIGS: dict[str, dict[str, Any]] = {
    "windows": {"model_type": "mistral", "sliding_window": 20, "head_dim": 8},
    "borders": {"rope_parameters": _LONGROPE | {"original_max_position_embeddings": 30, "factor": 4.0}},
}
BEGINNINGS = [[], list(range(3, 40)), [*range(3, 30), *range(60, 72)], list(range(90, 110))]


IN_TORCH = ["torch", "windows in torch", "borders in torch", "captured", "qwen3_next", "deepseek_v3"]


@pytest.fixture(scope="module", params=["kernels", "windows", "borders", *IN_TORCH])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageModel]:
    kernels = None if request.param in IN_TORCH else needed_library()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_plan, "kernels", lambda: kernels)
        patch.setattr(continuous_batch, "STEP_TOKENS", 24)
        path = tmp_path_factory.mktemp("model")
        if row := ROW.get(request.param):
            row.make(path)
        else:
            make_model(path, **CONFIGS.get(request.param.split()[0], {}))
        lm = gptcli.load(path, device="cpu", dtype="fp32", ctx_size=64)
        if request.param == "captured":
            lm.full_engine()._captured = CapturedSteps(lm.full_engine().decoder, capture)
        yield lm


def alone(lm: LanguageModel, request: Request) -> tuple[Any, ...]:
    def events() -> Iterator[TextDelta | Finished]:  # whose refusal is an outcome, too
        sampling = SamplingConfig.resolve(request.given, {})
        how: dict[str, Any] = {"constraint": request.constraint, "logprobs": request.logprobs}
        yield from lm.stream(request.prompt, sampling, request.stopping, **how)  # type: ignore[arg-type]

    return facts(*outcome(events()))


def some_request(random: Random) -> Request:
    prompt = random.choice(BEGINNINGS) + random.choices(range(3, 304), k=random.randint(1, 12))
    overflow = random.choice(["stop", "stop", "error", "shift"])
    forms: list[dict[str, Any]] = [{}] * 3 + [{"regex": "(ab|cd)+ small"}, {"choices": ("a clockmaker", "a town")}]
    return Request(
        prompt,
        max_tokens=random.choice([0, 1, 5, 20, 60, 60 if overflow == "shift" else -1]),
        stop=random.choice([(), ("e", " th")]),
        ignore_eos=random.random() < 0.5,
        overflow=overflow,
        logprobs=random.choice([None, None, 2]),
        temperature=random.choice([0.0, 1.5]),
        seed=random.randint(0, 99),
        logit_bias={2: 2.0},
        repeat_penalty=random.choice([1.0, 1.3]),
        **random.choice(forms),
    )


@settings(max_examples=6)
@given(st.integers(0, 2**32))
def test_each_text_is_what_it_would_be_alone_whatever_comes_and_goes(lm: LanguageModel, seed: int) -> None:
    random = Random(seed)
    batch = ContinuousBatch(random.choice([2, 4, 8]))
    asked = [some_request(random) for _ in range(random.randint(1, 8))]
    wanted = [alone(lm, request) for request in asked]
    jobs, heard, cancelled = dict[Job, int](), list[list[Any]](), set[int]()
    while len(jobs) < len(asked) or not batch.idle:
        if len(jobs) < len(asked) and random.random() < 0.5:
            job = lm.job(asked[len(jobs)])
            jobs[job] = len(heard)
            heard.append([])
            batch.add(job)
        if jobs and random.random() < 0.05 and not (job := random.choice(list(jobs))).ended:
            job.cancelled = True
            cancelled.add(jobs[job])
        for job in batch.step():
            heard[jobs[job]] += job.events()
    for index, events in enumerate(heard):
        found = facts(*outcome(events))
        if index in cancelled:
            whole = wanted[index][1]
            assert found[2] == "interrupt" and (whole is ContextOverflow or whole[: len(found[1])] == found[1])
        else:
            assert found == wanted[index]


def steps_of(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each text in each step from now on."""
    steps, extend = list[list[int]](), lm.engine.extend

    def counting(texts: list[Extension]) -> list[Extended]:
        steps.append([len(text.tokens) for text in texts])
        return extend(texts)

    monkeypatch.setattr(lm.engine, "extend", counting)
    return steps


def finished(lm: LanguageModel, requests: list[Request]) -> list[tuple[Any, ...]]:
    """The outcomes of requests that run together, in their order."""
    batch, jobs = ContinuousBatch(len(requests)), [lm.job(request) for request in requests]
    heard = {job: list[Any]() for job in jobs}
    for job in jobs:
        batch.add(job)
    while not batch.idle:
        for job in batch.step():
            heard[job] += job.events()
    return [facts(*outcome(events)) for events in heard.values()]


@pytest.mark.parametrize("overflow", ["stop", "error", "shift"])
def test_tokens_that_a_form_forces_end_where_the_context_does(lm: LanguageModel, overflow: str) -> None:
    request = Request([9] * 6, regex="(abcd){30}", max_tokens=70, overflow=overflow, seed=1)
    assert finished(lm, [request, Request([5], max_tokens=2, seed=1)])[0] == alone(lm, request)


def test_a_common_beginning_is_run_once_and_a_prompt_waits_for_it(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of(lm, monkeypatch)
    common = list(range(3, 43))
    asked = [Request([*common, last, 7], max_tokens=2, seed=1, ignore_eos=True) for last in (50, 51, 52)]
    found = finished(lm, asked)
    assert [own[1] for own in found] == [alone(lm, request)[1] for request in asked]
    if not lm.folder.architecture.config.keeps_states and not any(
        attention.window for attention in lm.folder.architecture.config.attentions
    ):
        assert steps == [[24], [18], [1, 2, 2], [1, 1]]


def test_samples_of_a_short_prompt_run_it_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(lm, monkeypatch)
    asked = [Request(list(range(3, 11)), max_tokens=2, seed=seed, ignore_eos=True) for seed in range(3)]
    found = finished(lm, asked)
    assert [own[1] for own in found] == [alone(lm, request)[1] for request in asked]
    if not lm.folder.architecture.config.keeps_states:
        assert steps[:2] == [[8], [1, 1, 1]]


def test_no_text_waits_for_longer_than_a_step_while_others_are_prefilled(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, drawing = ContinuousBatch(3), lm.job(Request([5], max_tokens=20, temperature=0.0, ignore_eos=True))
    batch.add(drawing)
    batch.step()
    steps = steps_of(lm, monkeypatch)
    for start in (100, 200):
        batch.add(lm.job(Request(list(range(start, start + 60)), max_tokens=3, temperature=0.0, ignore_eos=True)))
    for count in range(2, 8):
        batch.step()
        assert len(drawing.completion.ids) == count
    last = 13 if lm.folder.architecture.config.keeps_states else 14  # a state waits before a prompt's last token
    assert steps[:3] == [[1, 23], [1, 23], [1, last, 23 - last]]
    assert max(map(sum, steps)) <= 24


def test_a_text_of_nan_ends_alone(tmp_path: Path) -> None:
    weights = make_weights(CONFIG | {"tie_word_embeddings": False})
    weights["model.embed_tokens.weight"][7] = np.nan
    lm = gptcli.load(make_model(tmp_path, weights=weights, tie_word_embeddings=False), dtype="fp32")
    common = list(range(20, 50))
    asked = [Request([*common, token], max_tokens=5, seed=1, logit_bias={7: -100}) for token in (3, 7, 4)]
    found = finished(lm, asked)
    assert found[1][1] is NonFiniteLogits
    assert [own[:2] for own in found[::2]] == [alone(lm, request)[:2] for request in asked[::2]]


@pytest.mark.parametrize("fit", [0, 1, 2])
def test_texts_that_do_not_fit_run_later_and_one_that_never_fits_fails(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, fit: int
) -> None:
    asked = [Request([5 + n] * 20, max_tokens=9, seed=n, ignore_eos=True) for n in range(4)]
    wanted, extend = [alone(lm, request) for request in asked], lm.engine.extend
    monkeypatch.setattr(
        lm.engine,
        "extend",
        lambda texts: extend(texts) if len(texts) <= fit else [OutOfMemory("out of memory")] * len(texts),
    )
    found = finished(lm, asked)
    assert found == wanted if fit else [own[1] for own in found] == [OutOfMemory] * 4


def test_as_many_texts_run_as_the_memory_holds(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.engine, "most_rows", lambda tokens: 60 // tokens)
    batch = ContinuousBatch(8)
    for length in (20, 20, 5, 30, 5):
        batch.add(lm.job(Request([9] * length, max_tokens=10, temperature=0.0, ignore_eos=True)))
    assert len(batch.step()) <= 2 and len(batch._running) == 2
