from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gptcli
from gptcli.generation.events import Finished
from gptcli.generation.speculation import Pace, PromptLookup
from gptcli.generation.steps import SingleSteps
from gptcli.runtime.engine import keep_common
from gptcli.runtime.torch_engine import TorchEngine
from tests.generation.outcomes import completed
from tests.parity.reference import write_reference
from tests.parity.test_families import LONGROPE, engine_of

REPEATED = [5, 6, 7, 8, 9, 10, 11, 12] * 4


def test_a_draft_is_what_followed_the_latest_repetition() -> None:
    lookup = PromptLookup()
    assert lookup.draft([1, 2, 3, 50, 51, 1, 2, 3, 60, 61, 62, 1, 2, 3], 2) == [60, 61]
    assert lookup.draft([1, 2, 3, 50, 51, 1, 2, 3, 60, 61, 62, 1, 2, 3, 9, 1, 2], 2) == [3, 9]


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 4, 5], [7, 7]])
def test_a_text_that_repeats_nothing_has_no_draft(text: list[int]) -> None:
    assert PromptLookup().draft(text, 4) == []


def drafted(pace: Pace, kept: float, step_s: float, steps: int) -> list[int]:
    """The drafts that a pace wants in each step. kept: the share that comes true. step_s: of steps with a draft."""
    lengths = []
    for _ in range(steps):
        lengths.append(wanted := pace.wanted())
        pace.learn(wanted, int(kept * wanted), step_s if wanted else 1.0)
    return lengths


def test_drafts_grow_while_they_come_true() -> None:
    assert drafted(Pace(8), 1.0, 1.5, 6) == [0, 2, 4, 8, 8, 8]


def test_drafts_pause_longer_and_longer_where_they_do_not_come_true() -> None:
    lengths = drafted(Pace(8), 0.0, 1.5, 41)
    assert [step for step, length in enumerate(lengths) if length] == [1, 6, 15, 32]
    assert set(lengths) == {0, 1, 2}


def test_a_draft_that_pays_makes_the_next_pause_short_again() -> None:
    pace = Pace(8)
    drafted(pace, 0.0, 1.5, 33)
    while not pace.wanted():
        pass
    pace.learn(1, 1, 1.5)
    pace.learn(pace.wanted(), 0, 1.5)
    assert [pace.wanted() for _ in range(5)] == [0, 0, 0, 0, 1]


def test_drafts_that_come_true_in_part_pause_where_they_take_longer_than_they_save() -> None:
    assert sum(drafted(Pace(4), 0.5, 1.9, 100)) > 150
    assert sum(drafted(Pace(4), 0.5, 2.1, 100)) < 20


def test_an_ordinary_step_is_timed_again_now_and_then() -> None:
    lengths = drafted(Pace(8), 1.0, 1.5, 100)
    assert [step for step, length in enumerate(lengths) if not length] == [0, 33, 66, 99]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    return engine_of(write_reference(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=2).path)


@pytest.mark.parametrize("seed", range(2))
def test_logits_are_those_of_one_token_at_a_time_whatever_is_drafted(engine: TorchEngine, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 90, (10,), generator=random).repeat(6)
    text[torch.randint(0, 60, (6,), generator=random)] = 95  # drafts come true now and then
    text = text.tolist()
    plain, ahead = engine.new_cache(), engine.new_cache()
    one, several = SingleSteps(engine, plain, None, 0), SingleSteps(engine, ahead, PromptLookup(), 7)
    for end in range(1, len(text)):
        [wanted], [got] = one.after([text[:end]]), several.after([text[:end]])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert ahead.tokens[:end] == text[:end]
    assert 0 < several.kept < several.drafted


def test_nothing_is_drafted_across_a_border_of_longrope_or_past_the_context(tmp_path: Any) -> None:
    config = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 60}
    engine = engine_of(write_reference(tmp_path, "phi3", **config).path)
    engine.ctx_size = 100
    cache = engine.new_cache()
    for length, most in ((50, 9), (59, 0), (60, 0), (61, 38), (99, 0)):
        cache.texts = [[0] * length]
        assert engine.most_ahead(cache) == most


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("overflow", ["stop", "shift"])
def test_drafts_from_the_text_itself_do_not_change_it(tiny_model: Any, temperature: float, overflow: Any) -> None:
    def generated(speculate: int) -> Finished:
        lm = gptcli.load(tiny_model, dtype="fp32", ctx_size=64, speculate=speculate)
        how: dict[str, Any] = {"temperature": temperature, "overflow": overflow}
        return completed(lm.generate(REPEATED, max_tokens=100, top_k=2, seed=3, ignore_eos=True, **how))[1]

    plain, speculative = generated(0), generated(7)
    assert speculative.ids == plain.ids
    assert plain.usage.drafted_tokens == 0 < speculative.usage.drafted_tokens


def test_an_interrupted_run_ahead_leaves_a_cache_that_can_be_used_again(engine: TorchEngine) -> None:
    cache = engine.new_cache()
    steps = SingleSteps(engine, cache, PromptLookup(), 7)
    engine.prefill(REPEATED[:-2], cache)
    steps.after([REPEATED[:-1]])
    steps.after([REPEATED])
    assert cache.length > len(REPEATED)
    keep_common(cache, [*REPEATED, 40])
    got: Tensor = engine.decode(40, cache)
    fresh = engine.new_cache()
    wanted = engine.prefill([*REPEATED, 40], fresh)
    assert wanted is not None
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
