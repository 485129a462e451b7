from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any, get_type_hints

import pytest

from gptcli import ChatSettings
from gptcli.errors import UsageError
from gptcli.settings import SAMPLING_FIELDS, SamplingConfig, SamplingKeywords


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"min_p": -0.1}, "min-p must be between 0 and 1"),
        ({"typical_p": 0}, "typical-p must be above 0 and at most 1"),
        ({"top_k": 2.5}, "top-k must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"repeat_penalty": 1e-320}, "repeat-penalty"),
        ({"logit_bias": ((5, 1e39),)}, "logit-bias of token 5"),
        ({"logit_bias": ((1, math.inf),)}, "or -inf"),
        ({"logit_bias": ((-1, 0.0),)}, "logit-bias id must be at least 0"),
        ({"presence_penalty": math.inf}, "presence-penalty"),
        ({"suppress_tokens": (-1,)}, "suppress-tokens: an id must be at least 0"),
        ({"begin_suppress_tokens": (1.5,)}, "begin-suppress-tokens: an id must be a whole number"),
        ({"bad_words_ids": ((),)}, "bad-words-ids: a word must have at least one token"),
        ({"no_repeat_ngram_size": -1}, "no-repeat-ngram-size must be at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_options_name(field: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as error:
        SamplingConfig(**field)
    assert [error.value.setting] == list(field)


def test_what_the_user_gives_beats_the_model_which_beats_our_defaults() -> None:
    model = {"temperature": 0.6, "top_p": 0.9}
    resolved = SamplingConfig.resolve({"temperature": 0.1, "top_k": None}, model)
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == (0.1, 0.9, SamplingConfig().top_k)


def test_sampling_options_are_the_fields_of_the_config() -> None:
    fields, options = get_type_hints(SamplingConfig), get_type_hints(SamplingKeywords)
    assert list(options) == list(SAMPLING_FIELDS) == list(fields)
    for name in SAMPLING_FIELDS:
        dictionary = Mapping[int, float] if name == "logit_bias" else None
        assert options[name] == fields[name] | dictionary | None


def test_ids_may_be_lists_and_a_bias_a_dictionary() -> None:
    given = {"suppress_tokens": [5], "bad_words_ids": [[1, 2], [3]], "logit_bias": {5: -1.0}}
    taken = {"suppress_tokens": (5,), "bad_words_ids": ((1, 2), (3,)), "logit_bias": ((5, -1.0),)}
    assert SamplingConfig.resolve(given, {}) == SamplingConfig(**taken)
    assert ChatSettings(given=given) == ChatSettings(given=taken)
    assert ChatSettings.from_record(json.loads(json.dumps(ChatSettings(given=given).record))) == ChatSettings(
        given=given
    )


@pytest.mark.parametrize("make", [ChatSettings, lambda **given: SamplingConfig.resolve(given, {})])
def test_an_option_of_an_unknown_name_is_refused(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="heat"):
        make(heat=1.0)


def test_settings_of_a_chat_are_read_by_name_and_cannot_be_assigned() -> None:
    chat = ChatSettings(temperature=0.5, max_tokens=9)
    assert (chat.temperature, chat.top_k, chat.max_tokens, chat.overflow) == (0.5, None, 9, "shift")
    with pytest.raises(AttributeError, match="heat"):
        _ = chat.heat
    with pytest.raises(FrozenInstanceError):
        chat.temperature = 1.0
    assert copy.deepcopy(chat) == chat


def test_some_settings_of_a_chat_are_replaced_and_the_others_stay() -> None:
    chat = ChatSettings(temperature=0.5, seed=3, max_tokens=9)
    replaced = ChatSettings(temperature=1.0, seed=3, max_tokens=9, stop=("x",))
    assert replace(chat, temperature=1.0, stop=("x",)) == replaced
    assert replace(chat, temperature=None) == ChatSettings(seed=3, max_tokens=9)
    with pytest.raises(UsageError, match="temperature"):
        replace(chat, temperature=-1.0)


def test_a_record_of_a_chats_settings_has_what_differs_from_the_defaults() -> None:
    chat = ChatSettings(stop=("x",), overflow="stop", thinking=False, seed=3, logit_bias=((5, -1.0),), top_p=0.5)
    assert json.dumps(chat.record) == (
        '{"top_p": 0.5, "logit_bias": [[5, -1.0]], "seed": 3, "stop": ["x"], "overflow": "stop", "thinking": false}'
    )
    assert ChatSettings.from_record(json.loads(json.dumps(chat.record))) == chat
    assert ChatSettings().record == ChatSettings(temperature=None, max_tokens=1024).record == {}
    with pytest.raises(UsageError, match="no setting heat"):
        ChatSettings.from_record({"heat": 1.0})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("top-k", "7", 7),
        ("seed", "9", 9),
        ("stop", "'a b' c", ("a b", "c")),
        ("logit_bias", "5=-1 6=2.5", ((5, -1.0), (6, 2.5))),
        ("suppress_tokens", "5, 6 7", (5, 6, 7)),
        ("suppress_tokens", "none", ()),
        ("bad-words-ids", "5,6 7", ((5, 6), (7,))),
        ("bad_words_ids", "none", ()),
        ("no_repeat_ngram_size", "3", 3),
        ("ignore_eos", "on", True),
        ("overflow", "error", "error"),
        ("thinking", "off", False),
        ("reasoning_effort", "high", "high"),
        ("max_tokens", "default", 1024),
    ],
)
def test_a_setting_is_changed_as_a_user_spells_it(name: str, text: str, value: object) -> None:
    changed = ChatSettings(max_tokens=5).changed(name, text)
    assert getattr(changed, name.replace("-", "_")) == value
    assert ChatSettings.from_record(changed.record) == changed


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("heat", "1", "no setting heat"),
        ("temperature", "hot", "a number"),
        ("temperature", "-1", "at least 0"),
        ("top_k", "1.5", "whole number"),
        ("thinking", "maybe", "on or off"),
        ("overflow", "never", "one of"),
        ("reasoning_effort", "most", "reasoning-effort must be one of low, medium, high"),
        ("logit_bias", "5", "ID=BIAS"),
        ("begin_suppress_tokens", "5,x", "begin-suppress-tokens must be token ids, such as 5,42, not 5 x"),
        ("stop", "'open", "text"),
    ],
)
def test_an_unknown_setting_or_value_is_refused(name: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        ChatSettings().changed(name, text)


def test_an_unknown_setting_is_told_the_near_one_or_all() -> None:
    for name, hint in (("temp", "did you mean temperature?"), ("xyzzy", "temperature, top_k")):
        with pytest.raises(UsageError) as error:
            ChatSettings().changed(name, "1")
        assert hint in error.value.hint
