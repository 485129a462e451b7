"""Explains a wrong command line in gptcli's own words; Typer's come from three libraries."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

import typer

_WANTED = {"int_parsing": "a whole number", "float_parsing": "a number", "bool_parsing": "true or false"}
# Commands of other programs that are not among `gptcli models`.
_ELSEWHERE = {"run": "chat -m", "ls": "models", "list": "models", "version": "--version"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def usage_error(error: typer.TyperException, arguments: Sequence[str]) -> tuple[str, str]:
    """The message and the hint for a command line that cannot be understood."""
    context: Any = getattr(error, "ctx", None)
    see_help = f"run `{context.command_path if context else 'gptcli'} --help`"
    if context is None and arguments and not arguments[0].startswith("-"):
        see_help = f"run `gptcli {arguments[0]} --help`"
    if isinstance(error, typer.BadParameter) and not error.message and (parameter := getattr(error, "param", None)):
        return f"{parameter.metavar or parameter.name.upper()} is missing", see_help
    if isinstance(error, typer.BadParameter):
        name = max(parameter.opts, key=len) if (parameter := getattr(error, "param", None)) else "a value"
        return f"{name} {bad_value(error)}", see_help
    if (option := getattr(error, "option_name", None)) and context:
        known = _options(context.command)
        near = [name for name in known if name.startswith(option)] or get_close_matches(option, known, 1, 0.7)
        if not near and (commands := getattr(context.command, "commands", {})):
            owner = next((name for name, command in commands.items() if option in _options(command)), None)
            see_help = f"options follow a command, as in `gptcli {owner} {option} ...`" if owner else see_help
        return f"there is no option {option}", f"did you mean {near[0]}? {see_help}" if near else see_help
    if option:
        return f"{option} {'needs a' if 'requires' in error.format_message() else 'takes no'} value", see_help
    message = error.format_message()
    if command := re.match(r"No such command (['\"])(.*?)\1\.", message):
        return _no_command(command[2], context, arguments, see_help)
    if extra := message.partition("unexpected extra argument(s) ")[2]:
        takes_text = any(parameter.metavar == "PROMPT" for parameter in context.command.params)
        quoting = "put a text with blanks in quotes; " if takes_text else ""
        return f"too many arguments: {extra[1:-1]}", f"{quoting}{see_help}"
    return message, see_help


def _options(command: Any) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


def bad_value(error: typer.BadParameter) -> str:
    """What a value must be, to follow the option's name in a sentence; from pydantic's error if there is one."""
    validation: Any = error.__cause__
    if not hasattr(validation, "errors"):
        return error.message
    first = validation.errors()[0]
    given, limits = first["input"], first.get("ctx", {})
    choices = getattr(getattr(error.param, "type_descriptor", None), "choices", None)
    if wanted := _WANTED.get(first["type"]):
        return f"must be {wanted}, not {given}"
    if bounds := [f"{words} {limits[bound]}" for bound, words in _BOUNDS.items() if bound in limits]:
        return f"must be {bounds[0]}, not {given}"
    if choices:
        return f"must be one of {', '.join(map(str, choices))}, not {given}"
    return error.message


def _no_command(name: str, context: Any, arguments: Sequence[str], see_help: str) -> tuple[str, str]:
    """An unknown command, which may be a text meant for a model."""
    within = context.command_path.split(" ")[1:]
    message = f"there is no command {' '.join([*within, name])}"
    near = get_close_matches(name, context.command.commands, 1)
    suggestion = f"did you mean {near[0]}? " if near else ""
    models = getattr(context.command.commands.get("models"), "commands", ())
    habit = f"models {name}" if name in models else _ELSEWHERE.get(name)
    rest = arguments[len(within) + 1 :]
    if habit and len(rest) <= 1:  # a longer line is rather a text
        return message, f"did you mean `gptcli {' '.join([habit, *map(shlex.quote, rest)])}`?"
    words = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    options = arguments[len(words) :]
    if name == arguments[0] and not (near and options):
        line = " ".join([shlex.quote(text := " ".join(words)), *map(shlex.quote, options)])
        ways = f"to ask it, run `gptcli chat {line}`; to have it continued, `gptcli generate {line}`"
        see_help = ways if " " in text else f"{see_help}; {ways}"
    return message, suggestion + see_help
