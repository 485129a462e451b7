"""Reads JSON that a model wrote among other text, strictly."""

from __future__ import annotations

import json
import math
from typing import Any


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number[:40]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def read_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at a place, after blanks, and where it ends. Raises ValueError where there is none."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    try:
        value, end = _DECODER.raw_decode(text, start)
        return without_surrogates(value), end
    except RecursionError:
        raise ValueError("too deeply nested") from None


def read_whole(text: str) -> Any:
    """A text that is one JSON value. Raises ValueError."""
    value, end = read_value(text)
    if text[end:].strip():
        raise ValueError(f"more than one value: at character {end}")
    return value


def without_surrogates(value: Any) -> Any:
    """A value without lone surrogates, which no text can have: U+FFFD in their place."""
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list():
            return list(map(without_surrogates, value))
        case dict():
            return {without_surrogates(name): without_surrogates(each) for name, each in value.items()}
    return value
