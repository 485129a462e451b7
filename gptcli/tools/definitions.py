"""Tools that are offered to a model, and calls of them, in OpenAI's format. Nothing here runs a tool."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptcli.errors import UsageError
from gptcli.tools.json_reading import read_whole, whole

_NAME = re.compile(r"[\w./:-]{1,128}")
_MOST = 1024  # tools
AUTO, NONE, REQUIRED = "auto", "none", "required"
Definition = Mapping[str, Any]


@dataclass(frozen=True)
class ToolCall:
    """A call that a model wrote. arguments: the members of a JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """In OpenAI's format, with the arguments as a text."""
        return self._record(json.dumps(self.arguments, ensure_ascii=False))

    @property
    def variables(self) -> dict[str, Any]:
        """As chat templates take it, with the arguments as an object."""
        return self._record(self.arguments)

    def _record(self, arguments: object) -> dict[str, Any]:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


def call_id(*parts: object) -> str:
    """An id for a call, a hash of the parts: nine letters and digits, as Mistral's templates want it."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()[:9]


def parse_tools(text: str, where: str) -> tuple[Definition, ...]:
    """Tools from JSON text. Raises UsageError, which says where."""
    try:
        value = read_whole(text)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    return checked_tools(value["tools"] if isinstance(value, dict) and "tools" in value else value, where)


def checked_tools(value: object, where: str = "tools") -> tuple[Definition, ...]:
    """Tools as templates take them, of a list in OpenAI's format, or of bare functions. Raises UsageError."""
    if not isinstance(value, list | tuple) or not value or len(value) > _MOST:
        raise UsageError(f"{where}: a list of 1 to {_MOST} tools is wanted, not {_excerpt(value)}")
    try:
        tools = [_checked(whole(tool), f"{where}: #/{number}") for number, tool in enumerate(value)]
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    names = [tool_name(tool) for tool in tools]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(f"{where}: #/{number}: there are two tools {name}")
    return tuple(tools)


def _checked(tool: object, where: str) -> Definition:
    if not isinstance(tool, Mapping):
        raise UsageError(f"{where}: a tool is an object, not {_excerpt(tool)}")
    if "function" not in tool and "name" in tool:
        tool = {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    if tool.get("type", "function") != "function":
        raise UsageError(f"{where}/type: only functions can be called, not {_excerpt(tool['type'])}")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise UsageError(f"{where}/function: an object with a name is wanted, not {_excerpt(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{where}/function/name: letters, digits and any of _ . / : - are wanted, not {_excerpt(name)}"
        )
    if name in (AUTO, NONE, REQUIRED):
        raise UsageError(f"{where}/function/name: {name} is a word of tool-choice, and no name")
    if not isinstance(function.get("description", ""), str):
        raise UsageError(f"{where}/function/description: a text is wanted, not {_excerpt(function['description'])}")
    if not isinstance(function.get("strict"), bool | None):
        raise UsageError(f"{where}/function/strict: true or false is wanted, not {_excerpt(function['strict'])}")
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping | None):
        raise UsageError(f"{where}/function/parameters: a JSON schema is wanted, not {_excerpt(parameters)}")
    if parameters and parameters.get("type", "object") != "object":
        raise UsageError(f"{where}/function/parameters/type: object is wanted, not {_excerpt(parameters['type'])}")
    return tool


def tool_name(tool: Definition) -> str:
    """The name of a checked tool."""
    return str(tool["function"]["name"])


def is_strict(tool: Definition) -> bool:
    """Whether calls of a checked tool are held to its schema, even if the model need not call."""
    return tool["function"].get("strict") is True


def tool_parameters(tool: Definition) -> Mapping[str, Any]:
    """The JSON schema of a checked tool's arguments; without one, it takes none."""
    nothing = {"properties": {}, "additionalProperties": False}
    return {"type": "object", **(tool["function"].get("parameters") or nothing)}


def tool_properties(tool: Definition) -> Mapping[str, Any]:
    """The schemas of a checked tool's arguments by name, as far as its own is one."""
    properties = tool_parameters(tool).get("properties")
    return properties if isinstance(properties, Mapping) else {}


def checked_choice(choice: object, tools: Sequence[Definition]) -> str:
    """The choice among tools: auto, none, required, or the name of the required one. Raises UsageError.

    choice: one of these, or OpenAI's object with a name.
    """
    match choice:
        case {"type": "function", "function": {"name": str(name)}} | str(name):
            names = list(map(tool_name, tools))
            if name in (AUTO, NONE, REQUIRED, *names):
                return name
            raise UsageError(f"tool-choice must be {', '.join((AUTO, NONE, REQUIRED, *names))}, not {name}")
    raise UsageError(f"tool-choice must be a word or a function's name, not {_excerpt(choice)}")


def checked_call(value: object, where: str) -> ToolCall:
    """A call of a message in OpenAI's format; arguments may be a text or an object. Raises UsageError."""
    match value:
        case {"function": {"name": str(name), **function}, **rest}:
            pass
        case _:
            raise UsageError(f"{where}: a function with a name is wanted")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = read_whole(arguments)
        except ValueError:
            raise UsageError(f"{where}.function.arguments: not JSON") from None
    if not isinstance(arguments, dict):
        raise UsageError(f"{where}.function.arguments: an object is wanted")
    try:
        arguments = whole(arguments)
    except ValueError as error:
        raise UsageError(f"{where}.function.arguments: {error}") from None
    id = rest.get("id")
    if not isinstance(id, str | None):
        raise UsageError(f"{where}.id: a text is wanted")
    return ToolCall(whole(id or call_id(where, name)), whole(name), arguments)


def _excerpt(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)[:40]
