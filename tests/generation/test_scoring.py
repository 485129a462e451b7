from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import gptcli
from gptcli import LanguageModel
from gptcli.errors import ContextOverflow, NonFiniteLogits, UsageError
from gptcli.generation import scoring
from gptcli.generation.events import Finished
from gptcli.generation.score_result import Score
from gptcli.generation.scoring import windows
from gptcli.runtime import program
from gptcli.runtime.engine import Extension, TokenScore
from gptcli.runtime.lowering import decoder
from gptcli.runtime.torch_engine import TorchEngine
from tests.parity.test_families import ROW
from tests.tiny import TEXT, make_model


@pytest.fixture(scope="module")
def short(tiny_model: Path) -> LanguageModel:
    """The tiny llama with a context far shorter than the texts."""
    return gptcli.load(tiny_model, device="cpu", dtype="fp32", ctx_size=24)


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    path = make_model(tmp_path_factory.mktemp("models") / "bos", adds_bos=True)
    return gptcli.load(path, device="cpu", dtype="fp32", ctx_size=24)


def logprob_after(lm: LanguageModel, before: list[int], id: int) -> float:
    """A token's log-probability, computed on its own."""
    return lm.logits(before)[:, : lm.tokenizer.size].double().log_softmax(-1)[-1, id].item()


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_score_each_token_once_after_as_many_as_fit(tokens: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    all_windows = list(windows(tokens, context, stride))
    assert [token for w in all_windows for token in range(w.first, w.end)] == list(range(1, tokens))
    for window in all_windows:
        assert window.end - 1 - window.begin <= context
        assert window.begin == 0 or window.end - 1 - window.begin == context
        assert window.first - window.begin >= min(window.first, context - stride + 1)


@pytest.mark.parametrize("stride", [1, 5, 12, 24, None])
def test_a_long_text_is_scored_as_its_windows_are_one_by_one(short: LanguageModel, stride: int | None) -> None:
    ids = short.tokenizer.encode(TEXT)
    assert len(ids) > 3 * short.ctx_size
    score = short.score(TEXT, stride=stride)
    assert score.ids == tuple(ids)
    assert score.logprobs[0] is None
    step = stride or 24 - 24 // 8
    for position, got in enumerate(score.logprobs[1:], 1):
        # The window that a token is scored in ends at the first border that is not before it.
        ahead = max(0, math.ceil((position - 24) / step))
        end = min(len(ids), 25 + ahead * step)
        assert got == pytest.approx(logprob_after(short, ids[max(0, end - 25) : position], ids[position]), abs=1e-5)


def test_scores_of_a_tiny_checkpoint_are_the_references(tiny_model: Path, tiny: LanguageModel) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    score = tiny.score(TEXT)
    with torch.no_grad():
        wanted = reference(torch.tensor([score.ids])).logits[0, :, : tiny.tokenizer.size].log_softmax(-1)
    expected = [wanted[position, id].item() for position, id in enumerate(score.ids[1:])]
    assert score.logprobs[1:] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_token_is_as_probable_in_a_score_as_when_it_was_generated(adds_bos: bool, tmp_path: Path) -> None:
    lm = gptcli.load(make_model(tmp_path / "tiny", adds_bos=adds_bos), device="cpu", dtype="fp32")
    assert lm.tokenizer.size < lm.folder.architecture.config.vocab_size  # rows that no token has
    ids, prompt = [], lm.tokenizer.encode("In a small")
    for event in lm.generate(prompt, max_tokens=1, temperature=0.0, logprobs=3):
        if isinstance(event, Finished):
            ids, drawn = event.ids, event.logprobs
    assert drawn is not None
    score = lm.score("In a small" + lm.tokenizer.decode(ids).decode(), top=3)
    assert score.ids == (*prompt, *ids)  # else they are not to be compared
    assert score.logprobs[-1] == pytest.approx(drawn[0].chosen.logprob, abs=1e-5)
    assert [token.id for token in score.top[-1]] == [token.id for token in drawn[0].top]
    assert [token.logprob for token in score.top[-1]] == pytest.approx(
        [token.logprob for token in drawn[0].top], abs=1e-5
    )


def test_what_the_tokenizer_puts_before_a_text_begins_every_window_and_has_no_probability(
    with_bos: LanguageModel,
) -> None:
    score = with_bos.score(TEXT, stride=8)
    ids = list(score.ids)
    assert (ids[0], score.logprobs[0]) == (1, None)
    assert score.logprobs[1] == pytest.approx(logprob_after(with_bos, [1], ids[1]), abs=1e-5)
    for position in (30, len(ids) - 1):
        end = min(len(ids), 25 + max(0, math.ceil((position - 24) / 8)) * 8)
        before = [1, *ids[end - 24 : position]]
        assert score.logprobs[position] == pytest.approx(logprob_after(with_bos, before, ids[position]), abs=1e-5)


def test_the_logits_of_a_whole_text_are_never_in_memory(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.score(TEXT, top=2)
    monkeypatch.setattr(program, "CHUNK", 7)
    rows = []
    run = type(tiny.engine)._run

    def watched(*given: object, **named: int) -> torch.Tensor:
        logits = run(*given, **named)  # type: ignore[arg-type]
        rows.append(len(logits))
        return logits

    monkeypatch.setattr(type(tiny.engine), "_run", watched)
    in_pieces = tiny.score(TEXT, top=2)
    assert max(rows) == 7
    assert in_pieces.logprobs[1:] == pytest.approx(whole.logprobs[1:], abs=1e-5)
    assert [[t.id for t in top] for top in in_pieces.top] == [[t.id for t in top] for top in whole.top]


@pytest.mark.parametrize("text", [TEXT, TEXT * 3])
def test_scores_summed_up_in_the_kernels_are_those_of_kept_logits(
    tiny: LanguageModel, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tiny.score(text, top=1)
    monkeypatch.setattr(decoder, "_empty", None)  # makes room for logits
    summed = tiny.score(text)
    assert len(summed.ids) > program.MANY_LOGITS
    assert summed.logprobs[1:] == pytest.approx(kept.logprobs[1:], abs=1e-6)


def test_scores_whose_logits_are_summed_up_are_refused_if_one_is_not_finite(tmp_path: Path) -> None:
    lm = gptcli.load(make_model(tmp_path / "tiny"), device="cpu", dtype="fp32")
    engine = lm.engine
    assert isinstance(engine, TorchEngine)
    with torch.no_grad():
        engine.decoder.final_norm.weight[3] = math.nan
    with pytest.raises(NonFiniteLogits):
        lm.score(TEXT)


def test_the_likeliest_tokens_are_those_at_its_position(tiny: LanguageModel) -> None:
    score = tiny.score("In a small town", top=3)
    logprobs = tiny.logits(score.ids)[:, : tiny.tokenizer.size].log_softmax(-1)
    assert score.top[0] == ()
    for position, top in enumerate(score.top[1:]):
        assert [token.id for token in top] == logprobs[position].topk(3).indices.tolist()
        assert [token.logprob for token in top] == pytest.approx(logprobs[position].topk(3).values.tolist(), abs=1e-5)


def test_a_text_of_one_token_has_no_figures() -> None:
    score = Score((5,), (None,), 3, ((),))
    assert (score.nll, math.copysign(1, score.nll)) == (0, 1)
    assert math.isnan(score.perplexity) and math.isnan(score.bits_per_byte)


@pytest.mark.parametrize(("stride", "top"), [(0, 0), (25, 0), (-1, 0), (1, -1)])
def test_a_stride_or_top_out_of_range_is_refused(short: LanguageModel, stride: int, top: int) -> None:
    with pytest.raises(UsageError, match="stride must be between 1 and 24" if top == 0 else "top must be"):
        short.score("x", stride=stride, top=top)


def test_an_empty_text_is_not_scored(tiny: LanguageModel) -> None:
    with pytest.raises(UsageError, match="nothing to score"):
        tiny.score("")


def test_choices_are_scored_after_the_prompt_and_sum_to_one(tiny: LanguageModel) -> None:
    prompt = tiny.tokenizer.encode("In a small")
    chosen = tiny.choose("In a small", [" town", " clockmaker", " bells and"])
    for choice in chosen:
        before = list(prompt)
        for id, logprob in zip(choice.ids, choice.logprobs, strict=True):
            assert logprob == pytest.approx(logprob_after(tiny, before, id), abs=1e-5)
            before.append(id)
        assert tiny.tokenizer.decode(before) == b"In a small" + choice.text.encode()
    assert sum(choice.probability for choice in chosen) == pytest.approx(1)
    assert [c.probability for c in chosen] == sorted((c.probability for c in chosen), reverse=True)
    ratio = math.exp(chosen[0].logprob - chosen[1].logprob)
    assert chosen[0].probability / chosen[1].probability == pytest.approx(ratio)


def test_a_choice_that_merges_with_the_prompts_end_is_compared_from_the_same_position(tiny: LanguageModel) -> None:
    encode = tiny.tokenizer.encode
    assert encode("In a ")[: len(encode("In a"))] == encode("In a")
    assert encode("In a small")[: len(encode("In a "))] != encode("In a ")  # ` small` is one token
    chosen = {choice.text: choice for choice in tiny.choose("In a ", ["small", "7"])}
    shared = len(encode("In a"))
    for text in ("small", "7"):
        assert list(chosen[text].ids) == encode(f"In a {text}")[shared:]
    directly = {choice.text: choice.logprob for choice in tiny.choose("In a", [" small", " 7"])}
    assert chosen["small"].logprob == pytest.approx(directly[" small"], abs=1e-5)
    assert chosen["7"].logprob == pytest.approx(directly[" 7"], abs=1e-5)


def test_the_prompt_of_many_choices_is_run_once(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    run = type(tiny.engine)._run

    def watched(engine: object, text: Extension, *given: object) -> torch.Tensor:
        ran.append(len(text.tokens))
        return run(engine, text, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tiny.engine), "_run", watched)
    tiny.choose(TEXT, ["In", "there", "bells"])
    prompt = len(tiny.tokenizer.encode(TEXT))
    assert sum(ran) < prompt + 3 * 8
    assert ran[0] > prompt // 2


@pytest.mark.parametrize(("prompt", "choices", "error"), [
    ("In a", ["only"], "at least two choices"),
    ("In a", ["same", "same"], "a choice is there twice: same"),
    ("In a", ["one", ""], "must not be empty"),
    ("", ["one", "two"], "no prompt for the choices"),
])  # fmt: skip
def test_choices_that_cannot_be_compared_are_refused(
    tiny: LanguageModel, prompt: str, choices: list[str], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        tiny.choose(prompt, choices)


def test_a_prompt_and_choice_longer_than_the_context_are_refused(short: LanguageModel) -> None:
    with pytest.raises(ContextOverflow, match="tokens in a context of 24"):
        short.choose(TEXT, ["one", "two"])


def test_a_model_that_adds_bos_can_choose_without_a_prompt(with_bos: LanguageModel) -> None:
    chosen = with_bos.choose("", ["In", "there"])
    for choice in chosen:
        assert choice.logprobs[0] == pytest.approx(logprob_after(with_bos, [1], choice.ids[0]), abs=1e-5)


PROMPTS = [
    "In a",
    "In a small",
    TEXT[:90] + "12",
    TEXT[:90] + "bells",
    "there",
    "3 clocks, and 12 small bells. In a",
    "x",
]


@pytest.fixture(scope="module")
def with_states(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    path = ROW["qwen3_next"].make(tmp_path_factory.mktemp("models") / "states")
    return gptcli.load(path, device="cpu", dtype="fp32")


@pytest.fixture(params=["tiny", "with_bos", "with_states"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A model whose steps are too short for all texts."""
    monkeypatch.setattr(scoring, "_STEP_TOKENS", 40)
    lm: LanguageModel = request.getfixturevalue(request.param)
    return lm


def figures(score: Score) -> tuple[object, ...]:
    known = [logprob for logprob in score.logprobs if logprob is not None]
    return score.ids, len(known), pytest.approx(score.nll, abs=1e-3), [[t.id for t in top] for top in score.top]


@pytest.mark.parametrize("top", [0, 2])
def test_texts_that_are_scored_together_have_the_scores_they_have_alone(many: LanguageModel, top: int) -> None:
    texts = [*PROMPTS, TEXT, *PROMPTS[::-1], TEXT, *PROMPTS, *PROMPTS]
    for text, score in zip(texts, many.score_many(texts, top=top), strict=True):
        assert figures(score) == figures(many.score(text, top=top))


@pytest.mark.parametrize("choices", [["town", "bells"], [" in a small town", "3", " clocks and more"]])
def test_choices_after_many_prompts_are_those_after_each(many: LanguageModel, choices: list[str]) -> None:
    prompts = [
        prompt for prompt in [*PROMPTS, *PROMPTS] if len(many.tokenizer.encode(prompt)) < 14 or many.ctx_size > 24
    ]
    for prompt, found in zip(prompts, many.choose_many(prompts, choices), strict=True):
        wanted = many.choose(prompt, choices)
        assert [one.text for one in found] == [one.text for one in wanted]
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in wanted], abs=1e-3)


@pytest.fixture
def ran(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of each text were run, in steps of 100."""
    counts, score = list[int](), tiny.engine.score_texts

    def counting(texts: list[Extension], *rest: Any) -> list[list[TokenScore]]:
        counts.extend(len(text.tokens) for text in texts)
        return score(texts, *rest)

    monkeypatch.setattr(tiny.engine, "score_texts", counting)
    monkeypatch.setattr(scoring, "_STEP_TOKENS", 100)
    return counts


def test_what_many_prompts_begin_with_is_run_a_few_times_only(tiny: LanguageModel, ran: list[int]) -> None:
    prompts = [f"{TEXT[:150]} {number}" for number in range(20)]
    list(tiny.choose_many(prompts, ["town", "bells"]))
    beginning = len(tiny.tokenizer.encode(TEXT[:150]))
    assert beginning > 25 and sum(tokens >= beginning for tokens in ran) < 6


def test_what_many_texts_begin_with_is_run_for_each_cache_only(tiny: LanguageModel, ran: list[int]) -> None:
    texts = [f"{TEXT[:60]} {number}" for number in range(200)]
    list(tiny.score_many(texts))
    beginning = len(tiny.tokenizer.encode(TEXT[:60]))
    assert beginning > 10 and 0 < sum(tokens >= beginning for tokens in ran) < 60


def test_scores_before_a_text_that_fails_are_given(short: LanguageModel, tiny: LanguageModel) -> None:
    scores = tiny.score_many(["In a", "small", ""])
    assert [next(scores).ids, next(scores).ids] == [tiny.score("In a").ids, tiny.score("small").ids]
    with pytest.raises(UsageError, match="empty text"):
        next(scores)
    chosen = short.choose_many(["In a", TEXT], ["one", "two"])
    assert next(chosen)[0].probability >= 0.5
    with pytest.raises(ContextOverflow):
        next(chosen)
