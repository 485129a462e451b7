"""Reads sampling defaults from a model's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptcli.errors import BrokenCheckpoint, UsageError
from gptcli.settings import SamplingConfig

_SAME_NAME = ("temperature", "top_k", "top_p", "min_p")
MODEL_SETTINGS = (*_SAME_NAME, "repeat_penalty", "repeat_last_n")  # SamplingConfig's fields that a model can set


def sampling_defaults(fields: Mapping[str, Any]) -> dict[str, int | float]:
    """Defaults for those of MODEL_SETTINGS that the model sets. Raises BrokenCheckpoint for bad values."""
    defaults = {name: fields[name] for name in _SAME_NAME if fields.get(name) is not None}
    if fields.get("repetition_penalty") is not None:
        # transformers applies it to the whole context.
        defaults |= {"repeat_penalty": fields["repetition_penalty"], "repeat_last_n": -1}
    if fields.get("do_sample") is False:
        defaults["temperature"] = 0.0
    for name, value in defaults.items():
        if type(value) not in (int, float):
            raise BrokenCheckpoint(f"generation_config.json: {name} must be a number, not {str(value)[:40]!r}")
    try:
        SamplingConfig.resolve({}, defaults)
    except UsageError as error:
        raise BrokenCheckpoint(f"generation_config.json: {error.message}") from None
    return defaults
