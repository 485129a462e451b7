"""Reads JSON that a model wrote among other text, strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number[:40]} is too large")
    return value


_DEEPEST = 100  # templates and grammars take no more
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def read_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at an index, after blanks, and the index of its end. Raises ValueError without one."""
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    return whole(value), end


def read_whole(text: str) -> Any:
    """A text that is one JSON value. Raises ValueError."""
    value, end = read_value(text)
    if text[end:].strip():
        raise ValueError(f"more than one value: at character {end}")
    return value


def whole(value: Any, depth: int = 0) -> Any:
    """A value with U+FFFD for lone surrogates. Raises ValueError if it is nested too deeply."""
    if depth > _DEEPEST:
        raise ValueError("too deeply nested")
    match value:
        case str():
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case list() | tuple():
            return [whole(each, depth + 1) for each in value]
        case Mapping():
            return {whole(name): whole(each, depth + 1) for name, each in value.items()}
    return value
