"""Constrained texts, with a model: they are what they have to be, and otherwise what they would have been."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli import Finished, LanguageModel
from gptcli.errors import UsageError
from tests.generation.constrained import SCHEMAS, check, text_of


@pytest.fixture(scope="module")
def closing(tiny: LanguageModel) -> dict[int, float]:
    """A bias to what ends strings, lists and objects: random models rarely do."""
    ids = range(tiny.tokenizer.size)
    return {id: 6.0 for id in ids if tiny.tokenizer.token_bytes(id) in (b'"', b"]", b"}")}


def generated(lm: LanguageModel, **options: Any) -> tuple[str, Finished]:
    """A text and how it ended."""
    *deltas, finished = lm.generate("In a small town", **options)
    assert isinstance(finished, Finished)
    return b"".join(event.data for event in deltas if not isinstance(event, Finished)).decode(), finished


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_ends_by_itself_is_what_its_schema_says(
    tiny: LanguageModel, closing: dict[int, float], name: str
) -> None:
    ended = 0
    for seed in range(6):
        options = {"temperature": 1.5, "logit_bias": closing, "max_tokens": 150, "top_k": 0, "min_p": 0.0}
        text, finished = text_of(tiny, "In", SCHEMAS[name], seed=seed, **options)
        if finished.reason == "stop":
            ended += 1
            check(text, SCHEMAS[name])
    assert ended
