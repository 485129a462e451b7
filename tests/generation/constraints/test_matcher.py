"""Texts of a model under constraints: each meets its constraint, and else is what it would be without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli import (
    ChatSettings,
    ConstraintConfig,
    Finished,
    LanguageModel,
    SamplingConfig,
    Session,
    StopConfig,
    TextDelta,
)
from gptcli.errors import UsageError
from gptcli.settings import RuntimeConfig
from tests.generation.constraints.many_schemas import SCHEMAS, check, text_of
from tests.generation.outcomes import completed
from tests.tiny import make_model


@pytest.fixture(scope="module")
def closing(tiny: LanguageModel) -> dict[int, float]:
    """A bias to what ends strings, lists and objects: random models rarely do."""
    ids = range(tiny.tokenizer.size)
    return {id: 6.0 for id in ids if tiny.tokenizer.token_bytes(id) in (b'"', b"]", b"}")}


def generated(lm: LanguageModel, **options: Any) -> tuple[str, Finished]:
    """A text and how it ended."""
    text, finished = completed(lm.generate("In a small town", **options))
    return text.decode("utf-8", "replace"), finished


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_text_that_ends_by_itself_meets_its_schema(tiny: LanguageModel, closing: dict[int, float], name: str) -> None:
    ended = 0
    for seed in range(6):
        options = {"temperature": 1.5, "logit_bias": closing, "max_tokens": 150, "top_k": 0, "min_p": 0.0}
        text, finished = text_of(tiny, "In", SCHEMAS[name], seed=seed, **options)
        if finished.reason == "stop":
            ended += 1
            check(text, SCHEMAS[name])
    assert ended


def test_a_text_that_was_cut_says_so(tiny: LanguageModel) -> None:
    text, finished = generated(tiny, json_schema={"type": "string", "minLength": 50}, max_tokens=10)
    assert finished.reason == "length"
    with pytest.raises(ValueError):
        json.loads(text)


@pytest.mark.parametrize("seed", range(4))
def test_a_constraint_that_the_text_meets_anyway_changes_nothing(tmp_path: Path, seed: int) -> None:
    lm = gptcli.load(make_model(tmp_path / "model", seed=seed), device="cpu")
    texts = {id: lm.tokenizer.token_bytes(id) for id in range(lm.tokenizer.size)}
    ascii = {id: 100.0 for id, text in texts.items() if text.isascii() and not lm.tokenizer.is_control(id)}
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "logit_bias": ascii}
    text, free = generated(lm, **options)
    for regex in ("(?s).*", f"[{re.escape(text)}]*", f"(?s){re.escape(text[0])}.*", rf"[\x00-\x7f]{{{len(text)}}}.*"):
        same_text, same = generated(lm, regex=regex, **options)
        assert (same_text, same.ids) == (text, free.ids)


@pytest.mark.real
def test_the_default_models_own_text_is_the_same_as_a_choice(real: LanguageModel) -> None:
    for prompt in ("In a small town", "The capital of France is", "def add(a, b):"):
        free = list(real.generate(prompt, max_tokens=16, temperature=0.0))
        text = "".join(event.text for event in free if isinstance(event, TextDelta))
        last = list(real.generate(prompt, temperature=0.0, choices=[text, "x" + text, "12"]))[-1]
        assert isinstance(last, Finished) and isinstance(free[-1], Finished)
        assert last.ids == free[-1].ids


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("name", ["person", "oneOf by kind", "tree"])
def test_recording_probabilities_changes_nothing(
    tiny: LanguageModel, closing: dict[int, float], name: str, temperature: float
) -> None:
    options: dict[str, Any] = {"temperature": temperature, "seed": 2, "logit_bias": closing, "max_tokens": 60}
    text, plain = text_of(tiny, "In", SCHEMAS[name], **options)
    recorded_text, recorded = text_of(tiny, "In", SCHEMAS[name], logprobs=2, explain=True, **options)
    assert (recorded_text, recorded.ids) == (text, plain.ids)
    assert recorded.logprobs is not None and len(recorded.logprobs) == len(recorded.ids)
    forced = 0
    for step in recorded.logprobs:
        assert step.explanation is not None
        effect = step.explanation.filters[0]
        assert effect.name == "constraint" and effect.removed > 0
        forced += len(step.explanation.filters) == 1
    assert forced == recorded.usage.forced_tokens > 0


@pytest.mark.parametrize("name", ["person", "people", "oneOf by kind"])
def test_drafts_change_nothing_and_are_cut_where_the_constraint_forbids_them(
    tiny_model: Path, closing: dict[int, float], name: str
) -> None:
    def text(**runtime: Any) -> tuple[str, Finished]:
        lm = gptcli.load(tiny_model, dtype="fp32", **runtime)
        prompt = '{"name": "In a", "kind": "circle", "name": "In a small", "r": 12, "kind": '
        return text_of(lm, prompt, SCHEMAS[name], temperature=0.9, seed=5, logit_bias=closing, max_tokens=80)

    plain_text, plain = text()
    for runtime in ({"speculate": 7}, {"draft_model": tiny_model}):
        drafted_text, drafted = text(**runtime)
        assert (drafted_text, drafted.ids) == (plain_text, plain.ids)
        assert drafted.usage.forced_tokens == plain.usage.forced_tokens


def test_each_sample_has_a_constraint_of_its_own(tiny: LanguageModel, closing: dict[int, float]) -> None:
    config = SamplingConfig(temperature=1.5, seed=7, logit_bias=tuple(closing.items()))
    constraint = ConstraintConfig(json_schema=SCHEMAS["person"])
    prompt, stop = tiny.tokenizer.encode("In"), StopConfig(max_tokens=80)
    streams = tiny.streams(prompt, config.for_samples(4), stop, constraint=constraint)
    together = [list(stream)[-1] for stream in streams]
    alone = [list(tiny.stream(prompt, own, stop, constraint=constraint))[-1] for own in config.for_samples(4)]
    assert [last.ids for last in together] == [last.ids for last in alone]
    assert len({last.ids for last in together}) > 1


def test_forced_tokens_are_run_in_one_step(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runs = tiny.engine, list[int]()
    step = engine.step

    def counted(tokens: Any, cache: Any) -> Any:
        runs.append(len(tokens))
        return step(tokens, cache)

    monkeypatch.setattr(engine, "step", counted)
    choice = "The clockmaker had 3 clocks, and 12 small bells."
    text, finished = generated(tiny, choices=[choice])
    assert text == choice
    assert finished.usage.forced_tokens == len(finished.ids) > 4
    assert len(runs) == 1 and runs[0] >= len(finished.ids) - 2


def test_a_stop_text_still_ends_a_text(tiny: LanguageModel) -> None:
    text, finished = generated(tiny, choices=["a small town"], stop="all")
    assert (text, finished.reason, finished.stop) == ("a sm", "stop", "all")


def test_padding_of_the_models_vocabulary_is_never_drawn(tmp_path: Path) -> None:
    lm = gptcli.load(make_model(tmp_path / "padded", vocab_size=400), dtype="fp32")
    for seed in range(3):
        text, finished = generated(lm, regex="(?s).{20}", temperature=5.0, top_k=0, min_p=0.0, seed=seed)
        assert max(finished.ids) < lm.tokenizer.size < 400 and len(text) == 20


@pytest.mark.parametrize("ban", [{"suppress_tokens": (70,)}, {"logit_bias": {70: float("-inf")}}])
def test_a_banned_token_is_not_taken_where_the_constraint_forces_it(tiny: LanguageModel, ban: dict[str, Any]) -> None:
    forced = tiny.tokenizer.token_bytes(70).decode()
    with pytest.raises(UsageError, match="no token is left"):
        generated(tiny, choices=[forced], **ban)


@pytest.mark.parametrize("opens", [True, False])
def test_a_constraint_begins_after_thoughts_that_the_template_opens(tmp_path: Path, opens: bool) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}" + "<think>\n" * opens
    lm = gptcli.load(make_model(tmp_path / "thinker", template=template), dtype="fp32")
    chat = lm.session(settings=ChatSettings(choices=["yes"], temperature=5.0, max_tokens=30))
    text = "".join(event.text for event in chat.send("Is it?") if isinstance(event, TextDelta))
    [finished] = chat.finished
    assert (text == "yes", finished.reason) == ((False, "length") if opens else (True, "stop"))


def test_a_conversation_keeps_its_constraint(tiny: LanguageModel) -> None:
    chat = tiny.session(settings=ChatSettings(choices=["yes", "no"]))
    chat.change("regex", "default")
    for question in ("Is it?", "And now?"):
        list(chat.send(question))
    assert {message.content for message in chat.messages if message.role == "assistant"} <= {"yes", "no"}
    assert Session.restored(tiny, chat.events).settings.constraint == ConstraintConfig(choices=("yes", "no"))
    with pytest.raises(UsageError, match="one form"):
        chat.change("regex", "a+")
    chat.change("choices", "default")
    chat.change("regex", "[0-9]{2}")
    assert "".join(event.text for event in chat.send("How many?") if isinstance(event, TextDelta)).isdecimal()


@pytest.mark.parametrize(
    "form", [{}, {"regex": "a", "grammar": "b"}, {"choices": ["a", ""]}, {"choices": "ab", "json_object": True}]
)
def test_a_constraint_has_one_form(form: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConstraintConfig(**form)


def test_a_constraint_that_cannot_be_met_is_refused_before_the_weights_are_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LanguageModel.open(str(tiny_model), RuntimeConfig())
    monkeypatch.setattr(LanguageModel, "load", lambda self, *given: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match="#/items: not supported: not"):
        lm.generate("In", json_schema={"items": {"not": {}}})


def test_a_mask_is_made_only_where_the_likeliest_token_is_not_allowed(
    tiny: LanguageModel, closing: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.generation.constraints.matcher import Grammar

    masks, allowed = list[bool](), Grammar.allowed
    monkeypatch.setattr(Grammar, "allowed", lambda self: (masks.append(True), allowed(self))[1])
    ascii = {id: 100.0 for id in range(tiny.tokenizer.size) if tiny.tokenizer.token_bytes(id).isascii()}
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "logit_bias": ascii, "ignore_eos": True}
    assert generated(tiny, regex="(?s).*", **options)[1].ids == generated(tiny, **options)[1].ids
    assert not masks
    text, finished = generated(tiny, temperature=0.0, logit_bias=closing, json_schema=SCHEMAS["person"])
    assert 0 < len(masks) < len(finished.ids)
