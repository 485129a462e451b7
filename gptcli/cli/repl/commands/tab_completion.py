"""Completes slash commands and their arguments at the prompt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from gptcli.chat.storage import session_names
from gptcli.cli.repl.answer_display import SHOW_THINKING
from gptcli.cli.repl.commands.slash_command import Command, find
from gptcli.cli.repl.exports import FORMS
from gptcli.errors import GptcliError
from gptcli.models.catalog import local_models
from gptcli.settings import ChatSettings, Overflow, ReasoningEffort
from gptcli.tools.definitions import AUTO, NONE, REQUIRED

_SETTING_VALUES = {
    **dict.fromkeys(("thinking", "ignore_eos", SHOW_THINKING), ("on", "off")),
    "overflow": get_args(Overflow),
    "reasoning_effort": get_args(ReasoningEffort),
    "tool_choice": (AUTO, NONE, REQUIRED),
}


class CommandCompleter(Completer):
    """Completes a command's name, then its argument."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Completions at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if not blank:
            for command in self._commands:
                if command.name.startswith(name):
                    end = " " if command.arguments else ""
                    yield Completion(
                        command.name + end, -len(name), display=command.usage, display_meta=command.summary
                    )
            return
        try:
            values = list(find(name, self._commands).values(argument))
        except (GptcliError, OSError):  # an unknown name, or a directory that cannot be listed
            return
        for value in values:
            if value.startswith(argument):
                # Only the last word is replaced and shown.
                start = argument.rfind(" ") + 1
                yield Completion(value[start:], start - len(argument))


def on_off(argument: str) -> Iterable[str]:
    """Values of a switch."""
    return ("on", "off")


def settings(argument: str) -> Iterable[str]:
    """Names of settings, then their values."""
    name, blank, _ = argument.partition(" ")
    if not blank:
        return [*(field.name for field in fields(ChatSettings)), SHOW_THINKING]
    return [f"{name} {value}" for value in (*_SETTING_VALUES.get(name, ()), "default")]


def models(argument: str) -> Iterable[str]:
    """Models on this machine, and paths."""
    return [*(model.name for model in local_models()), *(paths(argument) if argument else ())]


def sessions(argument: str) -> Iterable[str]:
    """Names of stored sessions."""
    return session_names()


def exports(argument: str) -> Iterable[str]:
    """Export formats and paths."""
    form, blank, start = argument.partition(" ")
    return [f"{form} {path}" for path in paths(start)] if blank else (*FORMS, *paths(argument))


def paths(argument: str) -> list[str]:
    """Files and directories whose paths begin with the argument; directories end with a slash."""
    directory, name = os.path.split(argument)
    found = []
    with os.scandir(os.path.expanduser(directory or ".")) as entries:
        for entry in entries:
            if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
                found.append(os.path.join(directory, entry.name) + ("/" if entry.is_dir() else ""))
    return sorted(found)
