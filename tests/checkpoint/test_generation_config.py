"""Every field of a generation_config.json is applied, noted or ignored on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM, LogitsProcessorList

from gptcli import LanguageModel, load
from gptcli.checkpoint.generation_config import (
    DONE,
    MODEL_SETTINGS,
    NOTED,
    WITHOUT_EFFECT,
    generation_notes,
    sampling_defaults,
)
from gptcli.errors import BrokenCheckpoint
from gptcli.settings import SAMPLING_FIELDS, RuntimeConfig
from tests.generation.outcomes import completed
from tests.tiny import make_model

WHERE = "generation_config.json"
PROMPT = [10, 11, 12, 10, 11]


def noted(fields: dict[str, Any], context: int = 64) -> tuple[str, ...]:
    return tuple(name for note in generation_notes(fields, WHERE, context) for name in note.names)


def drawn(path: Path, **sampling: Any) -> list[int]:
    lm: LanguageModel = load(str(path), device="cpu", dtype="fp32")
    return list(completed(lm.generate(PROMPT, max_tokens=24, temperature=0.0, **sampling))[1].ids)


def test_every_field_of_transformers_is_done_noted_or_without_effect() -> None:
    theirs = set(vars(GenerationConfig())) - {"_original_object_hash", "_commit_hash"}
    assert theirs == DONE | NOTED.keys() | WITHOUT_EFFECT
    assert not DONE & NOTED.keys() and not (DONE | NOTED.keys()) & WITHOUT_EFFECT
    assert set(MODEL_SETTINGS) <= set(SAMPLING_FIELDS)


def test_transformers_own_defaults_are_noted_nowhere() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    assert noted(defaults) == noted(GenerationConfig().to_dict()) == ()
    for name in NOTED:
        assert noted({name: None}) == noted({name: -1}) == ()
        assert noted({name: 7.5}) == (name,)


def test_a_length_of_the_whole_context_is_not_noted() -> None:
    assert [noted({"max_length": length}) for length in (63, 64, 4096)] == [("max_length",), (), ()]


FIRST = 150  # the tiny model's first token


@pytest.mark.parametrize("fields", [
    {},
    {"suppress_tokens": [FIRST, 5, -1, 10**9]},
    {"begin_suppress_tokens": [FIRST]},
    {"bad_words_ids": [[FIRST], [2], [11, 12]]},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2, "suppress_tokens": [FIRST], "bad_words_ids": [[10, 11]]},
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("file", [WHERE, "config.json"])
def test_a_model_says_what_transformers_makes_it_say(fields: dict[str, Any], file: str, tmp_path: Path) -> None:
    here = {"generation_config": fields | {"eos_token_id": 2}} if file == WHERE else fields
    model = make_model(tmp_path / "model", **here)
    reference: Any = LlamaForCausalLM.from_pretrained(model)
    assert reference.generation_config.no_repeat_ngram_size == fields.get("no_repeat_ngram_size")
    size = load(str(model)).tokenizer.size

    def without_padding(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.arange(size, scores.shape[1]), -torch.inf)

    ids = reference.generate(
        torch.tensor([PROMPT]),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([without_padding]),
    )
    wanted = ids[0, len(PROMPT) :].tolist()
    assert drawn(model) == [id for id in wanted if id != 2]
    assert (wanted[0] == FIRST) == (str(FIRST) not in str(fields))


def test_config_json_says_nothing_beside_a_generation_config(tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "model", generation_config={"top_k": 3, "do_sample": True}, temperature=0.3, num_beams=4
    )
    lm = LanguageModel.open(str(model), RuntimeConfig())
    assert lm.sampling_defaults == {"top_k": 3}
    assert [note.names for note in lm.notes] == [("num_beams", "temperature")]
    (model / WHERE).unlink()
    lm = LanguageModel.open(str(model), RuntimeConfig())
    assert lm.sampling_defaults == {"temperature": 0.3}
    assert str(lm.notes[0]) == "not done, though config.json asks for it: num_beams"


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[1,", '{"top_k": 3,}', b"\xff{}"])
def test_a_generation_config_that_is_no_json_is_noted_and_config_json_read_instead(
    text: str | bytes, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", no_repeat_ngram_size=3)
    (model / WHERE).write_bytes(text if isinstance(text, bytes) else text.encode())
    reference: Any = LlamaForCausalLM.from_pretrained(model)
    lm = LanguageModel.open(str(model), RuntimeConfig())
    assert lm.sampling_defaults == {"no_repeat_ngram_size": reference.generation_config.no_repeat_ngram_size}
    assert [WHERE in str(note) for note in lm.notes] == [True]


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.3}, {"top_k": 5, "top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.9}], ids=str
)
@pytest.mark.parametrize("do_sample", [True, False, None])
def test_sampling_without_do_sample_is_noted(fields: dict[str, Any], do_sample: bool | None) -> None:
    notes = generation_notes(fields | {"do_sample": do_sample}, WHERE, 100)
    assert [note.names for note in notes] == ([tuple(fields)] if do_sample is None else [])


def test_an_option_overrides_the_models_ban_and_an_empty_one_lifts_it(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config={"suppress_tokens": [1], "no_repeat_ngram_size": 1})
    free = drawn(make_model(tmp_path / "free"))
    assert drawn(model) != free == drawn(model, suppress_tokens=(), no_repeat_ngram_size=0)


@pytest.mark.parametrize(
    "fields",
    [{"top_k": -1}, {"top_p": -1}, {"min_p": -1}, {"no_repeat_ngram_size": -1}, {"suppress_tokens": -1}]
    + [{"suppress_tokens": None}, {"temperature": None}, {"bad_words_ids": None}],
    ids=str,
)
def test_minus_one_and_null_are_off(fields: dict[str, Any]) -> None:
    assert sampling_defaults(fields) == {}


def test_a_typical_p_above_one_is_off_as_in_transformers() -> None:
    assert sampling_defaults({"typical_p": 7.5}) == {"typical_p": 1.0}


def test_a_top_p_of_nothing_leaves_the_likeliest() -> None:
    assert 0 < sampling_defaults({"top_p": 0.0})["top_p"] < 1e-6


@pytest.mark.parametrize(("fields", "reason"), [
    ({"suppress_tokens": 5}, "suppress_tokens must be a list of token ids"),
    ({"suppress_tokens": ["5"]}, "suppress_tokens must be a list of token ids"),
    ({"begin_suppress_tokens": [True]}, "begin_suppress_tokens must be a list"),
    ({"bad_words_ids": [5]}, "bad_words_ids must be a list of lists"),
    ({"bad_words_ids": [[5.0]]}, "bad-words-ids: an id must be a whole number"),
    ({"bad_words_ids": [[]]}, "at least one token"),
    ({"bad_words_ids": [[-1]]}, "bad-words-ids: an id must be at least 0"),
    ({"no_repeat_ngram_size": 2.5}, "no-repeat-ngram-size must be a whole number"),
    ({"no_repeat_ngram_size": "2"}, "no_repeat_ngram_size must be a number"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenCheckpoint, match=f"^generation_config.json: .*{reason}"):
        sampling_defaults(json.loads(json.dumps(fields)))
