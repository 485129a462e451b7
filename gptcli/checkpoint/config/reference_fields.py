"""The fields of a config.json that transformers reads: a table made from its source, opened for unknown fields only."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_suffix(".json")  # written by `python -m tests.checkpoint.reference_fields`


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(PATH.read_text())
    return table


def reads(model_type: str, name: str) -> bool:
    """Whether any code of transformers for this type may read this field; True for a type that is not in the table."""
    table = _table()
    return name in table["shared"] or name in table["read"].get(model_type, (name,))


def has_class(model_type: str, name: str) -> bool:
    """Whether transformers has a class of this name for this type, whatever its case and underscores.

    Models' own code has PhiMoEConfig and Ernie4_5_Config, transformers PhimoeConfig and Ernie4_5Config.
    """
    return _plain(name) in map(_plain, _table()["classes"].get(model_type, ()))


def causal_class(model_type: str) -> str | None:
    """The name of transformers' class of this type that continues texts."""
    endings = ("ForCausalLM", "LMHeadModel")
    return next((name for name in _table()["classes"].get(model_type, ()) if name.endswith(endings)), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
