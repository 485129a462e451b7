from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import gptcli
from gptcli import Finished, LanguageModel, TextDelta
from gptcli.cli.commands.generate import generate as command
from gptcli.errors import ModelNotFound, UsageError
from gptcli.settings import SAMPLING_FIELDS
from tests.tiny import make_model


def test_a_generation_is_text_and_then_how_it_ended(tiny: LanguageModel) -> None:
    *deltas, finished = tiny.generate("In a small", max_tokens=8, temperature=0.0, ignore_eos=True)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert isinstance(finished, Finished)
    assert (len(finished.ids), finished.reason, finished.usage.completion_tokens) == (8, "length", 8)
    assert b"".join(delta.data for delta in deltas) == tiny.tokenizer.decode(finished.ids)


def test_names_and_defaults_are_the_command_lines() -> None:
    ours = inspect.signature(LanguageModel.generate).parameters
    theirs = inspect.signature(command).parameters
    for name in set(ours) - {"self", "prompt", "stop", "options"}:
        assert ours[name].default == theirs[name].default, name
    assert all(theirs[name].default is None for name in SAMPLING_FIELDS)
    for name in set(inspect.signature(gptcli.load).parameters) - {"model"}:
        assert inspect.signature(gptcli.load).parameters[name].default == theirs[name].default, name


def test_logits_have_a_row_a_token(tiny: LanguageModel) -> None:
    logits = tiny.logits([3, 4, 5])
    assert (logits.shape, logits.dtype) == ((3, 320), torch.float32)


def test_an_unknown_model_and_a_bad_value_are_errors_that_say_so(tiny: LanguageModel) -> None:
    with pytest.raises(ModelNotFound, match="no such model: nothing"):
        gptcli.load("nothing")
    with pytest.raises(UsageError, match="dtype must be one of"):
        gptcli.load("nothing", dtype="fp8")
    with pytest.raises(UsageError, match="top-p"):
        tiny.generate("x", top_p=0.0)


def test_the_models_sampling_defaults_hold_unless_overridden(tmp_path: Path) -> None:
    asked = {"do_sample": False, "repetition_penalty": 1.3, "eos_token_id": [0, 7]}
    lm = gptcli.load(make_model(tmp_path, generation_config=asked))
    assert lm.sampling_defaults == {"temperature": 0.0, "repeat_penalty": 1.3, "repeat_last_n": -1}
    assert lm.stop_ids == {0, 2, 7}
    first, second = ([*lm.generate("In a", max_tokens=9)][-1] for _ in range(2))
    assert first.ids == second.ids and first.seed != second.seed


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32(tiny_model: Path, tiny: LanguageModel, dtype: str) -> None:
    ids = list(range(3, 60))
    logits, wanted = gptcli.load(tiny_model, dtype=dtype).logits(ids), tiny.logits(ids)
    assert 0 < (logits - wanted).abs().max() / wanted.abs().max() < 0.05


@pytest.mark.parametrize("ids", [[], [320], [-1], [1.5]])
def test_what_is_no_token_is_refused(tiny: LanguageModel, ids: list[int]) -> None:
    with pytest.raises(UsageError):
        tiny.logits(ids)
    with pytest.raises(UsageError):
        tiny.generate(ids)
