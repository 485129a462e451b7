"""The objects that `--json` and `--stats=json` write, as plain dictionaries."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from gptcli.generation.events import Finished, StepLogprobs, TokenLogprob
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.language_model import LanguageModel
from gptcli.settings import SamplingConfig, StopConfig


def json_line(record: dict[str, Any]) -> bytes:
    """A record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def _number(value: float) -> float | None:
    """A number that JSON can spell: None for infinity and NaN."""
    return value if math.isfinite(value) else None


def sample_record(
    lm: LanguageModel,
    text: bytes,
    finished: Finished,
    sampling: SamplingConfig,
    stopping: StopConfig,
    *,
    logprobs: bool = False,
    explain: bool = False,
    tools: bool = False,
) -> dict[str, Any]:
    """One sample, as `generate --json` writes it. logprobs, explain, tools: whether the record has these fields."""
    settings = {
        **asdict(replace(sampling, seed=finished.seed)),
        "logit_bias": [(token, _number(bias)) for token, bias in sampling.logit_bias],
        "max_tokens": stopping.max_tokens,
        "stop": stopping.strings,
        "ignore_eos": stopping.ignore_eos,
        "overflow": stopping.overflow,
        "device": lm.engine.device_name,
        "dtype": lm.engine.dtype_name,
        "quantize": lm.runtime.quantize,
        "ctx_size": lm.ctx_size,
    }
    record = {
        "model": lm.name,
        "prompt_tokens": finished.usage.prompt_tokens,
        "completion_tokens": finished.usage.completion_tokens,
        "ids": finished.ids,
        "text": text.decode("utf-8", "replace"),
        **({"tool_calls": [call.record for call in finished.tool_calls]} if tools else {}),
        "finish_reason": finished.reason,
        "stop": finished.stop,
        "seed": finished.seed,
        "settings": settings,
        "timings": {name: value for name, value in asdict(finished.usage).items() if not name.endswith("_tokens")},
    }
    steps = finished.logprobs or ()
    if logprobs:
        record["logprobs"] = [step_record(step) for step in steps]
    if explain:
        record["explain"] = [explanation_record(step) for step in steps]
    return record


def stats_record(finished: Finished) -> dict[str, Any]:
    """One sample's figures, as `--stats=json` writes them."""
    end = {"finish_reason": finished.reason, "stop": finished.stop, "seed": finished.seed}
    return asdict(finished.usage) | end


def step_record(step: StepLogprobs) -> dict[str, Any]:
    """A generated token and its alternatives, as `--logprobs` adds them."""
    return {**token_record(step.chosen), "top": [token_record(token) for token in step.top]}


def explanation_record(step: StepLogprobs) -> dict[str, Any]:
    """A generated token and what each sampling filter did there, as `--explain` adds them."""
    assert step.explanation is not None
    return {**token_record(step.chosen), **asdict(step.explanation)}


def token_record(token: TokenLogprob) -> dict[str, Any]:
    """A token with its bytes in hexadecimal."""
    return _token(token.id, token.data, _number(token.logprob))


def _token(id: int, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"id": id, "token": data.decode("utf-8", "replace"), "bytes": data.hex(), "logprob": logprob}


def score_record(lm: LanguageModel, score: Score, source: dict[str, str], *, top: bool) -> dict[str, Any]:
    """A scored text, as `score --json` writes it. source: names it. top: whether tokens have their likeliest."""
    tokens = []
    for id, logprob, likeliest in zip(score.ids, score.logprobs, score.top, strict=True):
        token = _token(id, lm.tokenizer.token_bytes(id), logprob)
        tokens.append(token | {"top": list(map(token_record, likeliest))} if top else token)
    return {
        "model": lm.name,
        **source,
        "tokens": tokens,
        "nll": score.nll,
        "perplexity": _number(score.perplexity),
        "bits_per_byte": _number(score.bits_per_byte),
    }


def choices_record(lm: LanguageModel, scores: Sequence[ChoiceScore], source: dict[str, str]) -> dict[str, Any]:
    """Scored choices, as `score --choices --json` writes them."""
    choices = [
        {
            "choice": score.text,
            "probability": score.probability,
            "logprob": score.logprob,
            "tokens": [
                _token(id, lm.tokenizer.token_bytes(id), logprob)
                for id, logprob in zip(score.ids, score.logprobs, strict=True)
            ],
        }
        for score in scores
    ]
    return {"model": lm.name, **source, "choices": choices}
