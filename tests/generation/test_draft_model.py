"""A smaller model that drafts: the text is the same, whatever it drafts; both caches are as if nothing was drafted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli
from gptcli import Finished, LanguageModel
from gptcli.errors import UsageError
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.generation.speculation import DraftModel
from gptcli.generation.steps import SingleSteps
from gptcli.runtime.engine import PromptCache
from gptcli.runtime.torch_engine import TorchEngine
from gptcli.settings import SamplingConfig, StopConfig
from tests.generation.outcomes import completed
from tests.parity.reference import write_reference
from tests.parity.test_families import engine_of
from tests.tiny import make_model

PROMPT = list(range(3, 20))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model with the same tokens, whose weights, layers and context are its own."""
    path = tmp_path_factory.mktemp("other") / "other"
    return make_model(path, seed=1, num_hidden_layers=1, max_position_embeddings=128)


def generated(model: Path, draft_model: Path | None = None, **options: Any) -> Finished:
    lm = gptcli.load(model, dtype="fp32", ctx_size=options.pop("ctx_size", None), draft_model=draft_model)
    settings: dict[str, Any] = {"max_tokens": 60, "temperature": 0.0, "ignore_eos": True, "seed": 3}
    return completed(lm.generate(PROMPT, **(settings | options)))[1]


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.2, "top_k": 0},
    "with penalties": {"repeat_penalty": 1.3},
    "until the context is full": {"max_tokens": -1},
    "beyond the draft's context": {"max_tokens": 150},
    "in a context that is shifted": {"ctx_size": 40, "max_tokens": 90, "overflow": "shift"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("draft", ["itself", "another"])
def test_a_draft_model_does_not_change_the_text(tiny_model: Path, other_model: Path, draft: str, case: str) -> None:
    drafted = generated(tiny_model, tiny_model if draft == "itself" else other_model, **CASES[case])
    assert drafted.ids == generated(tiny_model, **CASES[case]).ids
    assert drafted.usage.drafted_tokens > 0


class EveryStep:
    """A pace that always wants to draft, so that timing decides nothing."""

    def __init__(self, most: int) -> None:
        self.most = most

    def wanted(self) -> int:
        return self.most

    def learn(self, drafted: int, kept: int, seconds: float) -> None:
        pass


@pytest.fixture
def _always_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.generation.steps.Pace", EveryStep)


@pytest.mark.usefixtures("_always_drafting")
def test_a_model_drafts_all_that_it_says_itself(tiny_model: Path) -> None:
    usage = generated(tiny_model, tiny_model, max_tokens=61).usage
    assert usage.drafted_tokens == usage.kept_tokens == 48  # four of each five


@pytest.mark.usefixtures("_always_drafting")
def test_nothing_is_drafted_beyond_the_drafts_context(tiny_model: Path, other_model: Path) -> None:
    within = generated(tiny_model, other_model, max_tokens=111).usage.drafted_tokens
    assert generated(tiny_model, other_model, max_tokens=200).usage.drafted_tokens == within


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_logits_and_caches_are_those_of_one_token_at_a_time(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.generation.steps.Pace", EveryStep)
    monkeypatch.setattr("gptcli.model.cache.kv_cache.CACHE_STEP", 6)
    window = {} if family == "llama" else {"sliding_window": 8}
    engine = engine_of(write_reference(tmp_path / "target", family, **window).path)
    draft = engine_of(write_reference(tmp_path / "draft", family, num_hidden_layers=1, **window).path)
    # A text of which the draft is right about some tokens and wrong about others.
    text = list(PROMPT)
    while len(text) < 48:
        following = draft.logits(text)[-1]
        text.append(int(following.argmax()) if len(text) % 5 else (7 * len(text)) % 90 + 3)
    plain, ahead, drafts = engine.new_cache(), engine.new_cache(), draft.new_cache()
    one = SingleSteps(engine, plain, None, 0)
    several = SingleSteps(engine, ahead, DraftModel(draft, drafts, greedy_sampler(96)), 3)
    for end in range(1, len(text)):
        [wanted], [got] = one.after([text[:end]]), several.after([text[:end]])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert ahead.tokens[:end] == text[:end]
    assert 0 < several.kept < several.drafted
    drafter = DraftModel(draft, drafts, greedy_sampler(96))
    assert drafter.draft(text, 3) == greedy(draft, text, 3)


def greedy(engine: TorchEngine, text: list[int], count: int) -> list[int]:
    drafted: list[int] = []
    for _ in range(count):
        drafted.append(int(engine.logits([*text, *drafted])[-1].argmax()))
    return drafted


def greedy_sampler(vocabulary: int) -> TorchSampler:
    return TorchSampler(SamplingConfig(temperature=0.0), vocabulary, frozenset(), lambda id: b"")


def drafter_of(lm: LanguageModel, **how: Any) -> DraftModel:
    return DraftModel(lm.engine, lm.engine.new_cache(), greedy_sampler(lm.tokenizer.size), **how)


def test_a_draft_goes_on_from_any_text(tiny: LanguageModel) -> None:
    drafter = drafter_of(tiny)
    first = drafter.draft(PROMPT, 4)
    kept, wrong = [*PROMPT, *first], [*PROMPT, first[0], 99, 98]
    assert drafter.draft(kept, 4) == drafter_of(tiny).draft(kept, 4)
    drafter.forget()
    assert drafter.draft(wrong, 4) == drafter_of(tiny).draft(wrong, 4)


def test_a_cancelled_draft_is_none(tiny: LanguageModel) -> None:
    assert drafter_of(tiny, cancelled=lambda: True).draft(PROMPT, 4) == []


def test_a_draft_keeps_its_cache_from_one_generation_to_the_next_of_a_conversation(
    tiny_model: Path, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = gptcli.load(tiny_model, dtype="fp32", draft_model=other_model)
    smaller = lm._draft_model
    assert smaller is not None
    run = list[int]()
    prefill = smaller.engine.prefill
    monkeypatch.setattr(
        smaller.engine, "prefill", lambda ids, *rest, **named: run.append(len(ids)) or prefill(ids, *rest, **named)
    )
    cache = PromptCache()
    for _ in range(2):
        stop = StopConfig(max_tokens=8, ignore_eos=True)
        list(lm.stream(PROMPT, SamplingConfig(temperature=0.0), stop, cache=cache))
    assert max(run) == run[0] >= len(PROMPT) and run.count(max(run)) == 1


def test_other_tokens_are_refused_with_the_first_that_differs(tiny_model: Path, tmp_path: Path) -> None:
    path = make_model(tmp_path / "renamed")
    file = path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(UsageError, match=r"other tokens: .*renamed: token 0 is '<\|end\|>', not '<\|endoftext\|>'"):
        gptcli.load(tiny_model, draft_model=path)
