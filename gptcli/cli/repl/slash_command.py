"""Commands at the prompt: what a row of their table is, how a line finds its row, and what completes it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from gptcli.errors import GptcliError, UsageError

if TYPE_CHECKING:
    from gptcli.cli.repl.repl import Repl

Values = Callable[["Repl", str], Iterable[str]]  # what may stand where, given the argument so far


@dataclass(frozen=True)
class Command:
    """One row: `/name arguments` does what `help` says, as in `example`; `values` completes its argument."""

    name: str
    arguments: str
    help: str
    example: str
    run: Callable[[Repl, str], None]
    values: Values = lambda repl, argument: ()

    @property
    def usage(self) -> str:
        """How it is spelled."""
        return f"/{self.name} {self.arguments}".rstrip()


def find(name: str, commands: Sequence[Command]) -> Command:
    """The command of this name. Raises UsageError, with the one that was perhaps meant."""
    for command in commands:
        if command.name == name:
            return command
    names = [command.name for command in commands]
    begun = [known for known in names if name and known.startswith(name)]
    near = begun[:1] or difflib.get_close_matches(name, names, 1, cutoff=0.5)
    way_out = f"did you mean /{near[0]}? " if near else ""
    raise UsageError(
        f"there is no command /{name[:40]}", hint=f"{way_out}/help lists all; // begins a message that begins with /"
    )


class CommandCompleter(Completer):
    """Completes a command's name, then its argument."""

    def __init__(self, repl: Repl, commands: Sequence[Command]) -> None:
        self._repl = repl
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """What can stand at the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if not blank:
            for command in self._commands:
                if command.name.startswith(name):
                    end = " " if command.arguments else ""
                    yield Completion(
                        command.name + end, -len(name), display=command.usage, display_meta=_first_line(command.help)
                    )
            return
        try:
            values = list(find(name, self._commands).values(self._repl, argument))
        except (GptcliError, OSError):  # a wrong name, or nothing that could be listed
            return
        for value in values:
            if value.startswith(argument):
                # Only the word that is being typed is replaced and shown.
                kept = argument.rfind(" ") + 1
                yield Completion(value[kept:], kept - len(argument))


def paths(begun: str) -> list[str]:
    """Files and directories whose names begin so."""
    directory, name = os.path.split(begun)
    found = []
    with os.scandir(os.path.expanduser(directory or ".")) as entries:
        for entry in entries:
            if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
                found.append(os.path.join(directory, entry.name) + ("/" if entry.is_dir() else ""))
    return sorted(found)


def _first_line(text: str) -> str:
    return text.split(".")[0]
