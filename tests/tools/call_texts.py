"""Separates calls from random texts: `python -m tests.tools.call_texts --seed S --count N`.

Each text has calls of tools in one of the formats, with hostile names and values. Pieces of it are replaced, cut or
repeated. It goes to the splitter whole and in pieces, which must come to the same and raise nothing; every call must
be one that can be written as JSON and read again.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gptcli.tools.definitions import ToolCall, checked_call, checked_tools
from gptcli.tools.formats import FORMATS, ToolUse
from tests.tools.whole_text import in_pieces, split
from tests.trials import Outcome, main, tried

_TYPES = {"f": "string", "g.h": "integer", "rm": "number", "x/y:z-1": "array", "ü": "boolean"}
_TOOLS = checked_tools([{"name": name, "parameters": {"properties": {"a": {"type": _TYPES[name]}}}} for name in _TYPES])
_KEYS = ["a", "b", "", "\0", "a b", "__proto__", "$ref"]
_VALUES: list[Any] = [
    *["x", "$(rm -rf /)", "\0", "\x1b[31m", "\u202e", "\ud800", "]", "}", "{", '"', "'", "\\", "\n", "{{7*7}}"],
    *["</tool_call>", "<tool_call>", '<|"|>', "<escape>", "<think>", "</think>", "<|im_end|>", 1, -1, 0, 2**70],
    *[1e308, -1e308, 1e-320, 10**4299, -(10**4200), True, None, [], {}, [[[[]]]], {"a": {"b": {"c": None}}}],
]
_PIECES = [
    *["0x" + "f" * 5000, "0b" + "1" * 20000, "0o" + "7" * 6000, "9" * 5000, "1e999", "-(1e999)", "--1", "[1e999]"],
    *["inf", "nan", "NaN", "-Infinity", "1_0", "1j", "-" * 3000 + "1", "[" * 5000, "(" * 300 + ")" * 300, "{" * 200],
    *['"\\ud800"', "'\\ud800'", "b'x'", "f'x'", "'a' 'b'", "...", "lambda:0", "a.b.c", "True", "*a", "**a", "{**{}}"],
    *["{1:2}", "{None:1}", "\0", "\\", '"', "'", "'" * 3, '"' * 3, "#", "\n", " " * 200, "\t", ",", ";", "functools["],
    *["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|end|>"],
    *["<|start|>", "to=functions.", "<|", "<", "<think>", "</think>", "<parameter=a>", "</parameter>", "<function=f>"],
    *["</function>", "<arg_key>", "</arg_value>", "call:f{", "<escape>", '<|"|>', "null", "f(a=", '{"name":"f",'],
]
_SPELLED = re.compile(r'(?<=[=:,(\[{ >])("[^"]*"|-?\d+|true|null)')  # a value in the text of a call


def _value(dice: random.Random, depth: int = 0) -> Any:
    match dice.randrange(5) if depth < 3 else 2:
        case 0:
            return {dice.choice(_KEYS): _value(dice, depth + 1) for _ in range(dice.randrange(4))}
        case 1:
            return [_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return dice.choice(_VALUES)


def _call(dice: random.Random) -> ToolCall:
    arguments = {dice.choice("abc"): _value(dice) for _ in range(dice.randrange(4))}
    return ToolCall("id", dice.choice([*_TYPES, "unknown"]), arguments)


def _changed(text: str, dice: random.Random) -> str:
    at, to = sorted(dice.randrange(len(text) + 1) for _ in range(2))
    values = list(_SPELLED.finditer(text))
    match dice.choice(("insert", "insert", "cut", "repeat", "replace", "replace")):
        case "cut":
            return text[:at] + text[at + dice.randrange(1, 30) :]
        case "repeat":
            return text[:to] + text[at:]
        case "replace" if values:
            at, to = dice.choice(values).span()
            return text[:at] + dice.choice(_PIECES) + text[to:]
    return text[:at] + dice.choice(_PIECES) + text[at:]


def _trial(dice: random.Random) -> str:
    format = dice.choice(FORMATS)
    calls = [_call(dice) for _ in range(dice.choice([1, 1, 2, 5]))]
    text = dice.choice(["", "", "Sure. ", "<think>x</think>", " ", '{"answer":1}']) + format.write(calls)
    for _ in range(dice.choice([0, 1, 1, 2, 4])):
        text = _changed(text, dice)
    text = text.encode("utf-8", "replace").decode()  # no model writes half a surrogate pair
    use = ToolUse(_TOOLS, dice.choice(["auto", "required"]), format, dice.random() < 0.7)
    ended = dice.random() < 0.6
    whole = split(text, use, ended=ended)
    parted = in_pieces(text, use, dice.getrandbits(32), ended=ended)
    assert parted == whole, f"{format.name}: {text!r} became {whole}, in pieces {parted}"
    for call in whole.calls:
        written = json.dumps(call.record, ensure_ascii=False, allow_nan=False).encode()
        assert checked_call(json.loads(written), "call") == call
        json.dumps(call.arguments, allow_nan=False)
    return "with calls" if whole.calls else "cut" if whole.cut else "without calls"


def outcomes(seeds: Iterable[int], directory: Path) -> Iterator[Outcome]:
    """What became of each text. directory: is not used."""
    return tried(seeds, _trial)


if __name__ == "__main__":
    sys.exit(main(__doc__, outcomes))
