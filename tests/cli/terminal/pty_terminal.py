"""A terminal for tests: a program on a pty, and the screen that its output draws."""

from __future__ import annotations

import os
import termios
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pyte

from tests.cli.conftest import GPTCLI, ROOT, SCRIPTED
from tests.cli.forked import gptcli_with
from tests.cli.scripted import Script

QUESTION = b"\x1b]11;?\x1b\\\x1b[c"  # what is the background, and which terminal is this?


class Terminal:
    """A program on a pty. screen: what a person sees. raw: all bytes of output. answer: the reply to QUESTION."""

    def __init__(
        self, *command: str, environment: dict[str, str], width: int = 80, height: int = 24, answer: str = ""
    ) -> None:
        self._answer = answer
        self.screen = pyte.HistoryScreen(width, height, history=1000)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        program, *arguments = command
        own = [*command[:3]] == SCRIPTED or [*command[:4]] == [*GPTCLI, "tokenize"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, of threads that a fork loses
            self.child = pexpect.spawn(
                program, arguments, env=environment, cwd=str(ROOT), dimensions=(height, width), timeout=10,
                preexec_fn=gptcli_with(command[3:], environment) if own else None,
            )  # fmt: skip

    @property
    def lines(self) -> list[str]:
        """All lines, those scrolled off the screen too, without trailing blanks."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip().split("\n")

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    def modes(self) -> list[Any]:
        """The kernel's modes of the terminal."""
        return termios.tcgetattr(self.child.child_fd)

    def expect(self, text: str, times: int = 1) -> None:
        """Waits until a text was shown at least this many times."""
        self.wait_for(lambda: self.text.count(text) >= times, f"{text!r} {times} times")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Waits until a condition is true."""
        ends = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < ends, f"no {what} in:\n{self.text}"
            self._read()

    def type(self, keys: str, shows: str = "", times: int = 1) -> None:
        """Types keys, of which `\\r` is Enter, and waits until a text was shown at least this many times."""
        self.child.send(keys)
        self.expect(shows, times)

    def paste(self, text: str, shows: str = "", times: int = 1) -> None:
        """Pastes, as a terminal with bracketed paste does."""
        self.type("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~", shows, times)

    def resize(self, width: int, height: int = 24) -> None:
        """Changes the window's size."""
        self.screen.resize(height, width)
        self.child.setwinsize(height, width)

    def finish(self) -> list[Any]:
        """Waits for the program's end; returns the terminal's modes then."""
        ends = time.monotonic() + 20
        while self._read():
            assert time.monotonic() < ends, f"no end of:\n{self.text}"
        modes = self.modes()
        self.child.wait()
        return modes

    def _read(self) -> bool:
        try:
            data = self.child.read_nonblocking(4096, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        if self._answer and QUESTION in self.raw:
            os.write(self.child.child_fd, self._answer.encode())  # at once: `send` waits
            self._answer = ""
        self._stream.feed(data)
        return True


def on_terminal(*arguments: str | Path, width: int = 80, height: int = 24, **environment: str) -> Terminal:
    """A finished run of gptcli on a terminal."""
    variables = os.environ | {"TERM": "xterm-256color"} | environment
    terminal = Terminal(*GPTCLI, *map(str, arguments), environment=variables, width=width, height=height)
    terminal.finish()
    return terminal


def show(
    script: Script, *options: str, prompt: str = "a", width: int = 80, answer: str = "", **environment: str
) -> Terminal:
    """A finished run of `gptcli generate` on a terminal, with a scripted model."""
    given = script.environment() | environment
    terminal = Terminal(*SCRIPTED, "generate", prompt, *options, environment=given, width=width, answer=answer)
    terminal.finish()
    return terminal
