"""The spellings of calls between marks: reads them, writes them, and gives their grammars. Stateless."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gptcli.errors import UsageError
from gptcli.tools.call_grammar import LEFT_TO_THE_MODEL, Grammar, cannot_be_held_to, resolved
from gptcli.tools.definitions import Definition, call_id, tool_name, tool_parameters
from gptcli.tools.json_reading import read_value, read_whole
from gptcli.tools.scanning import read_braced, read_pythonic

_BETWEEN = " \t\r\n;,"
_PYTHON = {"True": True, "False": False, "None": None}


class Written(NamedTuple):
    """A call as a model wrote it. id: the model's, if it gave one."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


class Syntax(Protocol):
    """A way to spell calls."""

    @property
    def separator(self) -> str:
        """The text between two calls."""

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """The calls in a text of calls alone. Raises ValueError for anything else."""

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """One call."""

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """One call of a tool, as an expression of a grammar."""


@dataclass(frozen=True)
class JsonCall:
    """`{"name": "f", "arguments": {...}}`, between `before` and `after`; one after another, or in a list."""

    before: str = ""
    after: str = ""
    separator: str = ", "
    name: str = "name"
    arguments: str = "arguments"

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """See `Syntax.read`."""
        calls = list[Written]()
        body = body.strip(_BETWEEN)
        while body:
            value, end = read_value(body)
            calls += map(_call_of, value if isinstance(value, list) else [value])
            body = body[end:].lstrip(_BETWEEN).removeprefix(self.separator.strip())
        return calls

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See `Syntax.write`."""
        return self.before + json.dumps({self.name: name, self.arguments: arguments}, ensure_ascii=False) + self.after

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """See `Syntax.grammar`."""
        head = f'{self.before}{{"{self.name}": "{tool_name(tool)}", "{self.arguments}": '
        return f"{grammar.text(head)} {grammar.json(tool_parameters(tool))} {grammar.text('}' + self.after)}"


@dataclass(frozen=True)
class NamedJson:
    """A name, then its arguments as JSON, with text around them.

    head, tail: written around arguments; head has `{name}`, and perhaps `{id}`. begins, ends: patterns that read them;
    begins has the group `name`, and perhaps `id`.
    """

    head: str
    begins: re.Pattern[str]
    tail: str = ""
    ends: re.Pattern[str] = re.compile("")
    separator: str = ""

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """See `Syntax.read`."""
        calls, at = list[Written](), 0
        while body[at:].strip():
            head = _expect(self.begins, body, at)
            arguments, at = read_value(body, head.end())
            at = _expect(self.ends, body, at).end()
            calls.append(Written(head["name"], _object(arguments), head.groupdict().get("id")))
        return calls

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See `Syntax.write`."""
        head = self.head.replace("{name}", name).replace("{id}", call_id(name, arguments))
        return head + json.dumps(arguments, ensure_ascii=False) + self.tail

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """See `Syntax.grammar`."""
        pieces = self.head.replace("{name}", tool_name(tool)).split("{id}")
        head = " /[a-zA-Z0-9]{9}/ ".join(map(grammar.text, pieces))
        return f"{head} {grammar.json(tool_parameters(tool))} {grammar.text(self.tail)}"


@dataclass(frozen=True)
class Tagged:
    """A name, then each argument between tags; texts stand as they are, all else is JSON.

    head, key, closer, tail: the texts to write, with `{name}` in the first two. begins, item, ends: patterns to read;
    begins has the group `name`, item the groups `name` and `value`.
    """

    head: str
    key: str
    closer: str
    tail: str
    begins: re.Pattern[str]
    item: re.Pattern[str]
    ends: re.Pattern[str] = re.compile("")
    separator: str = "\n"

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """See `Syntax.read`."""
        calls, at = list[Written](), 0
        while body[at:].strip():
            head = _expect(self.begins, body, at)
            arguments, at = dict[str, Any](), head.end()
            while item := self.item.match(body, at):
                arguments[item["name"]] = _typed(item["value"], head["name"], item["name"], tools)
                at = item.end()
            at = _expect(self.ends, body, at).end()
            calls.append(Written(head["name"], arguments))
        return calls

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See `Syntax.write`."""
        text = self.head.replace("{name}", name)
        for key, value in arguments.items():
            spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text += self.key.replace("{name}", key) + spelled + self.closer
        return text + self.tail

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """See `Syntax.grammar`."""
        schema = tool_parameters(tool)
        items = []
        _check_members(schema, _NAME)
        for key, value in _properties(tool).items():
            head = grammar.text(self.key.replace("{name}", key))
            match value:
                case {"enum": [*choices]} if all(isinstance(choice, str) for choice in choices):
                    spelled = f"{grammar.any_of(map(json.dumps, choices))} {grammar.text(self.closer)}"
                case {"type": "string"}:
                    spelled = grammar.until(self.closer, value)
                case _:
                    spelled = f"{grammar.json(resolved(value, schema))} {grammar.text(self.closer)}"
            items.append((f"{head} {spelled}", key in schema.get("required", ())))
        head = grammar.text(self.head.replace("{name}", tool_name(tool)))
        return f"{head} {grammar.members(items, '')} {grammar.text(self.tail)}"


@dataclass(frozen=True)
class Pythonic:
    """`f(a=1, b="x")`; values are Python's or JSON's."""

    separator: str = ", "

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """See `Syntax.read`."""
        return [Written(*call) for call in read_pythonic(body)]

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See `Syntax.write`."""
        given = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
        return f"{name}({', '.join(given)})"

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """See `Syntax.grammar`."""
        schema = tool_parameters(tool)
        _check_members(schema, _IDENTIFIER)
        items = [
            (f"{grammar.text(key + '=')} {grammar.json(resolved(value, schema))}", key in schema.get("required", ()))
            for key, value in _properties(tool).items()
        ]
        return f"{grammar.text(tool_name(tool) + '(')} {grammar.members(items, ', ')} {grammar.text(')')}"


@dataclass(frozen=True)
class Braced:
    """Gemma's `call:f{a:1,b:<|"|>x<|"|>}`. quote: the mark around texts, and in FunctionGemma around every value."""

    quote: str
    quotes_all: bool = False
    separator: str = ""

    def read(self, body: str, tools: Sequence[Definition]) -> list[Written]:
        """See `Syntax.read`."""
        calls, at = list[Written](), 0
        while body[at:].strip():
            head = _expect(_BRACED_NAME, body, at)
            arguments, at = read_braced(body, head.end(), self.quote)
            if self.quotes_all:
                arguments = {
                    key: _typed(value, head["name"], key, tools) if isinstance(value, str) else value
                    for key, value in arguments.items()
                }
            calls.append(Written(head["name"], arguments))
        return calls

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See `Syntax.write`."""
        return f"call:{name}{self._spelled(dict(arguments), top=True)}"

    def _spelled(self, value: Any, *, top: bool = False) -> str:
        match value:
            case str():
                return f"{self.quote}{value}{self.quote}"
            case list():
                return f"[{','.join(map(self._spelled, value))}]"
            case dict():
                members = (f"{key}:{self._spelled(each)}" for key, each in sorted(value.items()))
                return "{" + ",".join(members) + "}"
        return json.dumps(value)

    def grammar(self, tool: Definition, grammar: Grammar) -> str:
        """See `Syntax.grammar`."""
        schema = {**tool_parameters(tool), "type": "object"}
        return f"{grammar.text('call:' + tool_name(tool))} {self._value(schema, schema, grammar)}"

    def _value(self, schema: Mapping[str, Any], root: Mapping[str, Any], grammar: Grammar) -> str:
        match schema:
            case {"enum": [*choices]}:
                quote = f" {grammar.text(self.quote)} "  # the only control token in a choice
                return grammar.any_of(
                    quote.join(map(json.dumps, self._spelled(choice).split(self.quote))) for choice in choices
                )
            case {"type": "object", "properties": dict(properties)}:
                _check_members(schema, _NAME)
                required = schema.get("required", ())
                items = [
                    (f"{grammar.text(key + ':')} {self._value(properties[key], root, grammar)}", key in required)
                    for key in sorted(properties)
                ]
                return f"{grammar.text('{')} {grammar.members(items, ',')} {grammar.text('}')}"
            case {"type": "array", "items": dict(item)}:
                each = grammar.rule(self._value(item, root, grammar))
                least, most = schema.get("minItems", 0), schema.get("maxItems", "")
                if most == 0:
                    return '"[]"'
                rest = f'("," {each}){{{max(least - 1, 0)},{most and most - 1}}}'
                return f'"[" ({each} {rest}){"" if least else "?"} "]"'
            case {"type": "integer" | "number" | "boolean" | "null"}:
                return grammar.json(resolved(schema, root))
            case {"type": "object"}:
                _check_members(schema, _NAME)
                return '"{}"'
            case {"type": kind} if "string" not in kind:
                raise UsageError(
                    f"tools: this model's calls cannot be held to type {json.dumps(kind)} alone",
                    hint=LEFT_TO_THE_MODEL,
                    setting="tools",
                )
        return f"{grammar.text(self.quote)} {grammar.until(self.quote, schema)}"


_BRACED_NAME = re.compile(r"\s*call:\s*(?P<name>[^\s{]+)\s*(?={)")


_NAME, _IDENTIFIER = re.compile(r"[\w.-]+"), re.compile(r"[^\W\d]\w*")


# Keywords that limit an object's members, beside each member's own schema.
_OF_MEMBERS = frozenset(
    "$ref allOf anyOf const enum maxProperties minProperties oneOf patternProperties propertyNames".split()
)


def _check_members(schema: Mapping[str, Any], wanted: re.Pattern[str]) -> None:
    """Raises UsageError for keywords that only JSON can be held to, and for names that need quotes."""
    properties = schema.get("properties", {})
    if unmet := (_OF_MEMBERS & schema.keys()) | {
        "required" for name in schema.get("required", ()) if name not in properties
    }:
        raise cannot_be_held_to(min(unmet))
    for key in properties:
        if not wanted.fullmatch(key):
            raise UsageError(
                f"tools: this model's calls cannot spell the argument {json.dumps(key, ensure_ascii=False)}",
                hint=LEFT_TO_THE_MODEL,
                setting="tools",
            )


def _properties(tool: Definition) -> Mapping[str, Any]:
    properties = tool_parameters(tool).get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _call_of(value: object) -> Written:
    """The call in a JSON object. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("a call is an object")
    name = next((value[key] for key in ("name", "tool_name", "function") if isinstance(value.get(key), str)), None)
    if not name:
        raise ValueError("a call has a name")
    arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    id = next((value[key] for key in ("id", "tool_call_id") if isinstance(value.get(key), str)), None)
    return Written(name, _object(arguments), id)


def _object(arguments: object) -> dict[str, Any]:
    """Arguments as an object; None or a blank text is empty, another text is JSON. Raises ValueError."""
    if isinstance(arguments, str):
        arguments = read_whole(arguments) if arguments.strip() else None
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise ValueError("arguments are an object")
    return arguments


def _typed(text: str, name: str, key: str, tools: Sequence[Definition]) -> Any:
    """A value without quotes: a text if the tool's schema wants one, else JSON, a word of Python, or a text."""
    properties = next((_properties(tool) for tool in tools if tool_name(tool) == name), {})
    schema = properties.get(key)
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    if text.strip() in _PYTHON:
        return _PYTHON[text.strip()]
    try:
        return read_whole(text)
    except ValueError:
        return text


def _expect(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        raise ValueError(f"at {at}")
    return match
