"""`gptcli chat` on a terminal, with a scripted model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.cli.conftest import SCRIPTED
from tests.cli.scripted import Script
from tests.cli.terminal.pty_terminal import Terminal

HELLO = Script(pieces=["Hello."], reason="stop")


class Chat(Terminal):
    """A conversation at a prompt."""

    def __init__(
        self, script: Script, *arguments: str, width: int = 80, height: int = 24, answer: str = "", **environment: str
    ) -> None:
        given = script.environment() | environment
        super().__init__(*SCRIPTED, "chat", *arguments, environment=given, width=width, height=height, answer=answer)
        self.before = self.modes()

    def ready(self, times: int = 1) -> Chat:
        """Waits until this many prompts were shown and the cursor is in one."""
        self.wait_for(
            lambda: self.prompts >= times and self.screen.display[self.screen.cursor.y].startswith(">"), "prompt"
        )
        return self

    @property
    def prompts(self) -> int:
        """The number of prompts shown so far."""
        return sum(line.startswith(">") for line in self.lines)

    def ask(self, text: str) -> None:
        """Types a line and waits for the next prompt."""
        prompts = self.prompts
        self.type(f"{text}\r")
        self.ready(prompts + 1)

    def leave(self) -> int | None:
        """Ctrl-D; the exit code."""
        self.type("\x04")
        return self.end()

    def end(self) -> int | None:
        """Waits for the end and checks that the terminal is restored; the exit code."""
        assert self.finish() == self.before
        assert not self.screen.cursor.hidden
        assert self.raw.rfind(b"\x1b[?2004l") >= self.raw.rfind(b"\x1b[?2004h")
        return self.child.exitstatus


def sessions() -> list[list[dict[str, Any]]]:
    """The events of every session on disk."""
    return [
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in sorted(state().glob("sessions/*.jsonl"), key=lambda file: file.stem)
    ]


def said() -> list[str]:
    """All stored messages, in the order of sessions and events."""
    return [event["content"] for events in sessions() for event in events if event["type"] == "message"]


def state() -> Path:
    """The directory of history and sessions."""
    return Path(os.environ["XDG_STATE_HOME"]) / "gptcli"
