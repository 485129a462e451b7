"""Slash commands: a row of the table, what a command can do, how a typed name is found."""

# `Repl` has the docstrings of `ReplControls`.
# ruff: noqa: D102

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptcli.chat.session import ReplyEvent
from gptcli.chat.storage import SessionFile
from gptcli.cli.repl.answer_display import DisplaySettings
from gptcli.errors import UsageError
from gptcli.language_model import ChatSession
from gptcli.text.chat_templates.chat_template import ChatTemplate


class Leave(Exception):
    """The user wants to leave the conversation."""


class ReplControls(Protocol):
    """The conversation at the prompt, as commands see and change it."""

    session: ChatSession
    file: SessionFile | None
    template: ChatTemplate | None
    display: DisplaySettings
    commands: Sequence[Command]

    def say(self, text: str) -> None: ...
    def draw(self, text: str) -> None: ...
    def read(self, prompt: str, default: str) -> str: ...
    def answer(self, ask: Callable[..., Iterator[ReplyEvent]]) -> None: ...
    def switch_model(self, name: str) -> None: ...
    def change_session(self, session: ChatSession, file: SessionFile | None) -> None: ...
    def show_last_turn(self) -> None: ...


@dataclass(frozen=True)
class Command:
    """A row of the command table. arguments, help, example: for /help.

    run: takes the typed argument, "" if there is none. values: completions of the argument typed so far. aliases: names
    in other programs.
    """

    name: str
    arguments: str
    help: str
    example: str
    run: Callable[[ReplControls, str], None]
    values: Callable[[str], Iterable[str]] = lambda argument: ()
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The command with its arguments."""
        return f"/{self.name} {self.arguments}".rstrip()

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return self.help.split(".")[0]


def find(name: str, commands: Sequence[Command]) -> Command:
    """The command of this name. Raises UsageError, which suggests the nearest name."""
    for command in commands:
        if name in (command.name, *command.aliases):
            return command
    names = [command.name for command in commands]
    starting = [known for known in names if name and known.startswith(name)]
    nearest = starting[:1] or difflib.get_close_matches(name, names, 1)
    suggestion = f"did you mean /{nearest[0]}? " if nearest else ""
    raise UsageError(
        f"there is no command /{name[:40]}", hint=f"{suggestion}/help lists all; // begins a message that begins with /"
    )


def parse_switch(text: str) -> bool:
    """Whether a switch is `on`. Raises UsageError for anything but `on` and `off`."""
    if text not in ("on", "off"):
        raise UsageError(f"on or off, not {text}")
    return text == "on"
