"""The spellings of calls between marks: reads them, writes them, and gives their grammars. Stateless."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gptcli.errors import UsageError
from gptcli.tools.call_grammar import LEFT_TO_THE_MODEL, OF_VALUES, Grammar, refuse, resolved
from gptcli.tools.definitions import Definition, call_id, tool_name, tool_parameters, tool_properties
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
        calls, at, body = list[Written](), 0, body.strip(_BETWEEN)
        between = re.compile(f"[{_BETWEEN}]*(?:{re.escape(self.separator.strip())})?")
        while at < len(body):
            value, at = read_value(body, at)
            calls += map(_call_of, value if isinstance(value, list) and (value or calls) else [value])
            at = _expect(between, body, at).end()
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
        for key, value in _members(schema, _NAME).items():
            head = grammar.text(self.key.replace("{name}", key))
            if _types(value) != {"string"}:
                spelled = f"{grammar.json(resolved(value, schema))} {grammar.text(self.closer)}"
            elif "enum" in value:
                spelled = f"{grammar.any_of(map(json.dumps, _choices(value)))} {grammar.text(self.closer)}"
            else:
                spelled = grammar.until(self.closer, value)
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
        items = [
            (f"{grammar.text(key + '=')} {grammar.json(resolved(value, schema))}", key in schema.get("required", ()))
            for key, value in _members(schema, _IDENTIFIER).items()
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
        schema = tool_parameters(tool)
        return f"{grammar.text('call:' + tool_name(tool))} {self._value(schema, schema, grammar)}"

    def _value(self, schema: Mapping[str, Any], root: Mapping[str, Any], grammar: Grammar) -> str:
        match schema:
            case {"enum": _}:
                quote = f" {grammar.text(self.quote)} "  # the only control token in a choice
                return grammar.any_of(
                    quote.join(map(json.dumps, self._spelled(choice).split(self.quote))) for choice in _choices(schema)
                )
            case {"type": "object"}:
                required = schema.get("required", ())
                items = [
                    (f"{grammar.text(key + ':')} {self._value(value, root, grammar)}", key in required)
                    for key, value in sorted(_members(schema, _NAME).items())
                ]
                return f"{grammar.text('{')} {grammar.members(items, ',')} {grammar.text('}')}"
            case {"type": "array", "items": dict() | False as item}:
                refuse((OF_VALUES | {"prefixItems"}) & schema.keys())
                least, most = schema.get("minItems", 0), schema.get("maxItems", "")
                if item is False or most == 0:
                    return '"[]"'
                each = grammar.rule(self._value(item, root, grammar))
                rest = f'("," {each}){{{max(least - 1, 0)},{most and most - 1}}}'
                return f'"[" ({each} {rest}){"" if least else "?"} "]"'
            case {"type": "integer" | "number" | "boolean" | "null"}:
                return grammar.json(resolved(schema, root))
            case {"type": type} if "string" not in type:
                raise UsageError(
                    f"tools: this model's calls cannot be held to type {json.dumps(type)} alone", hint=LEFT_TO_THE_MODEL
                )
        return f"{grammar.text(self.quote)} {grammar.until(self.quote, schema)}"


_BRACED_NAME = re.compile(r"\s*call:\s*(?P<name>[^\s{]+)\s*(?={)")


_NAME, _IDENTIFIER = re.compile(r"[\w.-]+"), re.compile(r"[^\W\d]\w*")


# Keywords that limit an object's members, beside each member's own schema, and choices, beside their type.
_OF_MEMBERS = OF_VALUES | frozenset("maxProperties minProperties patternProperties propertyNames".split())
_OF_CHOICES = (OF_VALUES - {"enum"}) | frozenset(
    "additionalProperties exclusiveMaximum exclusiveMinimum format items maximum maxItems maxLength maxProperties "
    "minItems minLength minProperties minimum multipleOf pattern patternProperties prefixItems properties "
    "required".split()
)
_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def _members(schema: Mapping[str, Any], wanted: re.Pattern[str]) -> dict[str, Mapping[str, Any]]:
    """The schemas of the members that a valid schema lets an object have, by name.

    Raises UsageError for what only JSON can be held to, and for names that a call without quotes cannot spell.
    """
    properties = schema.get("properties", {})
    refuse(_OF_MEMBERS & schema.keys() | {"required" for name in schema.get("required", ()) if name not in properties})
    members = {key: {} if value is True else value for key, value in properties.items() if _can_be(value)}
    for key in members:
        if not wanted.fullmatch(key):
            raise UsageError(
                f"tools: this model's calls cannot spell the argument {json.dumps(key, ensure_ascii=False)}",
                hint=LEFT_TO_THE_MODEL,
            )
    return members


def _can_be(schema: bool | Mapping[str, Any]) -> bool:
    """Whether an argument may be there: `false` allows no value, nor do choices that are all of another type."""
    if isinstance(schema, bool):
        return schema
    return "enum" not in schema or bool(_of_type(schema))


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    """The values of a valid schema's enum. Raises UsageError for what only JSON can be held to, or if none is left."""
    refuse(_OF_CHOICES & schema.keys())
    if not (choices := _of_type(schema)):
        raise UsageError("tools: none of an argument's choices is of its type", hint=LEFT_TO_THE_MODEL)
    return choices


def _of_type(schema: Mapping[str, Any]) -> list[Any]:
    types = _types(schema)
    return [choice for choice in schema["enum"] if _type(choice) in types]


def _types(schema: object) -> set[str]:
    """The types of JSON that a schema names, or that its choices have; none where it says neither, or is none."""
    match schema:
        case {"type": str(name)}:
            names = {name}
        case {"type": [*listed]}:
            names = {name for name in listed if isinstance(name, str)}
        case {"enum": [*choices]}:
            names = set(map(_type, choices))
        case _:
            return set()
    return names | {"integer"} if "number" in names else names


def _type(value: object) -> str:
    return "integer" if isinstance(value, float) and value.is_integer() else _TYPES[type(value)]


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
    properties = next((tool_properties(tool) for tool in tools if tool_name(tool) == name), {})
    types = _types(properties.get(key))
    if types == {"string"}:
        return text
    try:
        value = _PYTHON[text.strip()] if text.strip() in _PYTHON else read_whole(text)
    except ValueError:
        return text
    return text if "string" in types and _type(value) not in types else value


def _expect(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str]:
    match = pattern.match(text, at)
    if match is None:
        raise ValueError(f"at {at}")
    return match
