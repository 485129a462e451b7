from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli import Finished, LanguageModel, TextDelta
from gptcli.errors import ContextOverflow, NonFiniteLogits, UsageError
from gptcli.runtime.engine import PromptCache
from gptcli.settings import SamplingConfig, StopConfig
from tests.generation.outcomes import completed

GREEDY = SamplingConfig(temperature=0.0)


def run(lm: LanguageModel, prompt: str | list[int], **options: Any) -> tuple[bytes, Finished]:
    return completed(lm.generate(prompt, **({"temperature": 0.0, "ignore_eos": True} | options)))


def force(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, script: list[int]) -> None:
    """Makes the engine's logits spell a script of tokens."""
    steps = iter(script)

    def logits(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = torch.zeros(lm.folder.architecture.config.vocab_size)
        out[next(steps)] = 50.0
        return out

    monkeypatch.setattr(lm.engine, "prefill", logits)
    monkeypatch.setattr(lm.engine, "step", lambda tokens, cache: [logits()])


def test_greedy_decoding_takes_the_best_token_at_every_position(tiny: LanguageModel) -> None:
    prompt = tiny.tokenizer.encode("In a small")
    _, finished = run(tiny, prompt, max_tokens=12)
    ids = prompt
    for token in finished.ids:
        logits = tiny.logits(ids)[-1][: tiny.tokenizer.size]
        logits[2] = float("-inf")
        assert token == logits.argmax()
        ids = [*ids, token]


def test_the_stop_token_ends_the_text_and_is_not_among_the_ids(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hello = tiny.tokenizer.encode("town")
    force(tiny, monkeypatch, [*hello, 2])
    text, finished = run(tiny, "x", ignore_eos=False)
    assert (text, finished.ids, finished.reason, finished.stop) == (b"town", tuple(hello), "stop", "<|im_end|>")


def test_control_tokens_are_ids_but_no_text(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    force(tiny, monkeypatch, [tiny.tokenizer.encode("a")[0], 0, 1, 2])
    text, finished = run(tiny, "x", ignore_eos=False)
    assert text == b"a"
    assert finished.ids[1:] == (0, 1)


def test_a_stop_text_across_tokens_is_never_shown(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = [tiny.tokenizer.encode(char)[0] for char in "one. STOP two"]
    force(tiny, monkeypatch, spelled)
    text, finished = run(tiny, "x", stop=["STOP", "two"])
    assert (text, finished.reason, finished.stop) == (b"one. ", "stop", "STOP")
    assert len(finished.ids) == len("one. STOP")


def test_a_character_of_many_tokens_comes_whole(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny.tokenizer.encode("🙂é")
    force(tiny, monkeypatch, ids)
    texts = [
        event.text for event in tiny.generate("x", max_tokens=len(ids), temperature=0.0) if isinstance(event, TextDelta)
    ]
    assert texts == ["🙂", "é"]


def test_half_a_character_at_the_end_keeps_its_bytes(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    force(tiny, monkeypatch, tiny.tokenizer.encode("🙂")[:2])
    text, _ = run(tiny, "x", max_tokens=2)
    assert text == "🙂".encode()[:2]


def test_a_full_context_can_forget_its_older_half(tiny: LanguageModel) -> None:
    prompt = list(range(3, 253))
    _, finished = run(tiny, prompt, max_tokens=20, overflow="shift")
    assert len(finished.ids) == 20
    # After the shift the model sees the newer half alone, as a new text.
    seen = [*prompt, *finished.ids[:6]][128:]
    logits = tiny.logits(seen)[-1][: tiny.tokenizer.size]
    logits[2] = float("-inf")
    assert finished.ids[6] == logits.argmax()


@pytest.mark.parametrize(("tokens", "fits"), [(255, True), (256, False), (300, False)])
def test_a_prompt_must_leave_room_for_a_token(tiny: LanguageModel, tokens: int, fits: bool) -> None:
    prompt = [5] * tokens
    if fits:
        assert len(run(tiny, prompt)[1].ids) == 1
    else:
        with pytest.raises(ContextOverflow, match=f"{tokens} tokens.* in a context of 256"):
            run(tiny, prompt)


def test_an_empty_prompt_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        tiny.generate("")


def test_a_bias_outside_the_vocabulary_is_refused(tiny: LanguageModel) -> None:
    size = tiny.tokenizer.size
    with pytest.raises(UsageError, match=f"id {size} is outside the vocabulary of {size}"):
        tiny.generate("x", logit_bias={size: 1.0})


def test_a_cache_that_holds_the_prompt_changes_nothing_but_the_work(tiny: LanguageModel) -> None:
    prompt = tiny.tokenizer.encode("In a small town there lived")
    fresh = run(tiny, prompt, max_tokens=10)[1]
    prompt_cache = PromptCache()
    list(tiny.stream([*prompt[:4], 99, 98], GREEDY, StopConfig(max_tokens=5), cache=prompt_cache))
    *_, reused = tiny.stream(prompt, GREEDY, StopConfig(max_tokens=10, ignore_eos=True), cache=prompt_cache)
    assert isinstance(reused, Finished)
    assert reused.ids == fresh.ids
    cache = prompt_cache.for_engine(tiny.engine)
    assert cache.tokens == [*prompt, *reused.ids][: len(cache.tokens)]


def test_logprobs_are_the_models_own_whatever_the_temperature(tiny: LanguageModel) -> None:
    prompt = tiny.tokenizer.encode("In a")
    _, finished = run(tiny, prompt, temperature=1.5, seed=3, max_tokens=6, logprobs=3, ignore_eos=False)
    assert finished.logprobs is not None and len(finished.logprobs) == len(finished.ids)
    wanted = tiny.logits([*prompt, *finished.ids])[:, : tiny.tokenizer.size].log_softmax(-1)
    for position, step in enumerate(finished.logprobs):
        row = wanted[len(prompt) - 1 + position]
        assert step.chosen.id == finished.ids[position]
        assert step.chosen.logprob == pytest.approx(row[step.chosen.id].item(), abs=1e-4)
        assert [token.id for token in step.top] == row.topk(3).indices.tolist()


def test_nan_is_an_error_with_its_position(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = tiny.engine.decoder.final_norm.weight
    before = weight.clone()
    try:
        weight.fill_(float("nan"))
        with pytest.raises(NonFiniteLogits, match="at token 3 in fp32"):
            run(tiny, [5, 6, 7])
    finally:
        weight.copy_(before)


def test_pieces_of_text_bring_the_tokens_that_they_are_made_of(tiny: LanguageModel) -> None:
    *deltas, finished = tiny.generate("In a", max_tokens=12, seed=1, ignore_eos=True, logprobs=2, explain=True)
    steps = [step for delta in deltas if isinstance(delta, TextDelta) for step in delta.steps]
    assert isinstance(finished, Finished) and finished.logprobs is not None
    assert [step.chosen.id for step in steps] == list(finished.ids)
    assert tuple(steps) == finished.logprobs
    for step in steps:
        assert step.explanation is not None and len(step.top) == 2


def test_padding_rows_of_the_vocabulary_are_never_drawn(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.tokenizer.size < tiny.folder.architecture.config.vocab_size
    force(tiny, monkeypatch, [319, 319, 319])
    _, finished = run(tiny, "x", max_tokens=3)
    assert max(finished.ids) < tiny.tokenizer.size
