"""Reads calls that are spelled neither as JSON nor between tags: Python's, and Gemma's with braces."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from gptcli.tools.json_reading import read_value, whole

_END = re.compile(r"\s*,?\s*\)")
_CALL = re.compile(r"\s*([\w./:-]+)\s*\(")
_KEY = re.compile(r"\s*(\w+)\s*=\s*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_WORDS = {"true": True, "false": False, "null": None}
_DEEPEST = 50
_BARE_KEY = re.compile(r"\s*([^\s:,{}\[\]]+)\s*:")


def read_pythonic(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Calls such as `f(a=1), g()`, in brackets or without. Raises ValueError for anything else."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    calls, at = list[tuple[str, dict[str, Any]]](), 0
    while text[at:].strip(" \t\r\n,;"):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,;"))
        head = _CALL.match(text, at)
        if head is None:
            raise ValueError("a call has a name and parentheses")
        at = head.end()
        arguments = dict[str, Any]()
        while not (end := _END.match(text, at)):
            at += text[at : at + 1] == "," if arguments else 0
            key = _KEY.match(text, at)
            if key is None:
                raise ValueError("an argument has a name")
            stop = _end_of_value(text, key.end())
            arguments[key[1]] = _literal(text[key.end() : stop])
            at = stop
        calls.append((head[1], arguments))
        at = end.end()
    return calls


def _end_of_value(text: str, at: int) -> int:
    """The index of a Python value's end: a comma or bracket outside its quotes and brackets. Raises ValueError."""
    waiting = list[str]()
    while at < len(text):
        char = text[at]
        if char in "'\"":
            at += 1
            while at < len(text) and text[at] != char:
                at += 2 if text[at] == "\\" else 1
        elif char in _CLOSING:
            waiting.append(_CLOSING[char])
        elif not waiting and char in ",)":
            return at
        elif char in ")]}" and (not waiting or waiting.pop() != char):
            raise ValueError("a bracket closes nothing")
        at += 1
    raise ValueError("a value does not end")


def _literal(text: str) -> Any:
    try:
        value, end = read_value(text)
        if not text[end:].strip():
            return value
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unknown escape, such as "\d"
            tree = ast.parse(text.strip(), mode="eval").body
        value = whole(_value_of(tree))
        json.dumps(value, allow_nan=False)  # refuses infinity, and hexadecimal integers that are too long in decimal
        return value
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("not a literal") from None


def _value_of(node: ast.expr) -> Any:
    """The value of a literal, with JSON's words among Python's. Raises ValueError for anything else."""
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as value):
            return value
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return list(map(_value_of, items))
        case ast.Dict(keys=keys, values=values):
            return {_key_of(key): _value_of(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("not a literal")


def _key_of(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key is a text")


def read_braced(text: str, at: int, quote: str, depth: int = 0) -> tuple[dict[str, Any], int]:
    """An object such as `{a:1,b:<|"|>x<|"|>}` at an index, and the index of its end. Raises ValueError."""
    members = dict[str, Any]()
    at = _skip(text, at) + 1
    while text[(at := _skip(text, at)) : at + 1] != "}":
        if text.startswith(quote, at):
            key, at = _quoted(text, at, quote)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise ValueError("a key has a colon")
            at += 1
        elif bare := _BARE_KEY.match(text, at):
            key, at = bare[1].strip('"'), bare.end()
        else:
            raise ValueError("a member has a key")
        members[key], at = _braced_value(text, at, quote, depth + 1)
        at = _after_comma(text, at, "}")
    return members, at + 1


def _braced_value(text: str, at: int, quote: str, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("too deeply nested")
    at = _skip(text, at)
    if text.startswith(quote, at):
        return _quoted(text, at, quote)
    if text[at : at + 1] == "{":
        return read_braced(text, at, quote, depth)
    if text[at : at + 1] == "[":
        items, at = list[Any](), at + 1
        while text[(at := _skip(text, at)) : at + 1] != "]":
            item, at = _braced_value(text, at, quote, depth + 1)
            items.append(item)
            at = _after_comma(text, at, "]")
        return items, at + 1
    return read_value(text, at)


def _quoted(text: str, at: int, quote: str) -> tuple[str, int]:
    start = at + len(quote)
    end = text.find(quote, start)
    if end < 0:
        raise ValueError("a text does not end")
    return text[start:end], end + len(quote)


def _after_comma(text: str, at: int, closing: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return at + 1
    if text[at : at + 1] != closing:
        raise ValueError(f"{closing} or a comma is missing")
    return at


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
