from __future__ import annotations

import math
from typing import Any

import pytest

from gptcli import ChatSettings
from gptcli.errors import UsageError
from gptcli.settings import SamplingConfig


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"temperature": math.nan}, "temperature must be at least 0"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_p": math.nan}, "top-p"),
        ({"min_p": -0.1}, "min-p must be between 0 and 1"),
        ({"top_k": -1}, "top-k"),
        ({"top_k": 2.5}, "top-k must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"repeat_penalty": 1e-320}, "repeat-penalty"),
        ({"logit_bias": ((5, 1e39),)}, "logit-bias of token 5"),
        ({"repeat_penalty": 0.0}, "repeat-penalty"),
        ({"repeat_last_n": -2}, "repeat-last-n"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logit_bias": ((1, math.nan),)}, "logit-bias"),
        ({"logit_bias": ((1, math.inf),)}, "or -inf"),
        ({"logit_bias": ((-1, 1.0),)}, "logit-bias"),
        ({"presence_penalty": math.inf}, "presence-penalty"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_options_name(field: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        SamplingConfig(**field)


def test_what_the_user_gives_beats_the_model_which_beats_our_defaults() -> None:
    model = {"temperature": 0.6, "top_p": 0.9}
    resolved = SamplingConfig.resolve({"temperature": 0.1, "top_k": None}, model)
    assert (resolved.temperature, resolved.top_p, resolved.top_k) == (0.1, 0.9, SamplingConfig().top_k)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.5", 0.5),
        ("top-k", "7", 7),
        ("seed", "9", 9),
        ("stop", "'a b' c", ("a b", "c")),
        ("logit_bias", "5=-1 6=2.5", ((5, -1.0), (6, 2.5))),
        ("ignore_eos", "on", True),
        ("overflow", "error", "error"),
        ("thinking", "off", False),
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
        ("logit_bias", "5", "ID=BIAS"),
        ("stop", "'open", "text"),
    ],
)
def test_an_unknown_setting_or_value_is_refused(name: str, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        ChatSettings().changed(name, text)
