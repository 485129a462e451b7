"""A terminal for tests: a program on a pty, and the screen that its output draws."""

from __future__ import annotations

import json
import os
import sys
import termios
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import pexpect
import pyte

from gptcli.__main__ import main
from tests.cli.conftest import GPTCLI, ROOT, SCRIPTED
from tests.cli.scripted import Script, follow


class Terminal:
    """A program on a pty. screen: what a person sees. raw: all bytes of output.

    forked: gptcli runs in a fork of this process, which has imported everything, so that it starts at once. Not for
    what runs in torch, whose threads a fork does not have.
    """

    def __init__(
        self, *command: str, environment: dict[str, str], width: int = 80, height: int = 24, forked: bool = False
    ) -> None:
        self.screen = pyte.HistoryScreen(width, height, history=1000)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        forked = forked or list(command[: len(SCRIPTED)]) == SCRIPTED
        self.child = pexpect.spawn(
            command[0],
            list(command[1:]),
            env=environment,
            cwd=str(ROOT),
            dimensions=(height, width),
            timeout=10,
            preexec_fn=partial(_be_gptcli, command[len(GPTCLI) :], environment) if forked else None,
        )

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

    def type(self, keys: str) -> None:
        """Types keys: `\\r` is Enter."""
        self.child.send(keys)

    def paste(self, text: str) -> None:
        """Pastes, as a terminal with bracketed paste does."""
        self.child.send("\x1b[200~" + text.replace("\n", "\r") + "\x1b[201~")

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
        self._stream.feed(data)
        return True


def _be_gptcli(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Makes this process, a fork on a pty, `gptcli`; never returns."""
    try:
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ |= environment | {"TOKENIZERS_PARALLELISM": "false"}  # else it warns of the fork
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        sys.__stdout__ = sys.stdout  # whose width is the terminal's
        if script := environment.get("GPTCLI_TEST_SCRIPT"):
            follow(Script(**json.loads(script)), setattr)
        sys.argv = ["gptcli", *arguments]
        main()
    except BaseException:
        traceback.print_exc()
    os._exit(1)
