"""Holds the terminal for a conversation: what is typed during an answer is kept, unechoed, for the next prompt."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

from gptcli.cli.terminal.signals import handled

_ESCAPE_S = 0.3  # a lone escape character is the key once nothing has followed it for so long

_PASTES_MARKED, _PASTES_PLAIN, _CURSOR = "\x1b[?2004h", "\x1b[?2004l", "\x1b[?25h"


class HeldTerminal:
    """A terminal without echo and line editing, in which Ctrl-C and Ctrl-Z still are signals; restored at the end.

    The prompt takes it over and gives it back as it was. A dumb terminal is left alone: it echoes, the kernel edits
    lines, and what is typed during an answer is seen in it.
    """

    def __init__(self, input: Input, *, dumb: bool) -> None:
        self._input = input
        self._dumb = dumb
        self._before: list[Any] | None = None

    def __enter__(self) -> HeldTerminal:
        self._before = termios.tcgetattr(self._input.fileno())
        self._hold()
        return self

    def __exit__(self, *failure: object) -> None:
        self._release()

    def _hold(self) -> None:
        if self._before is None or self._dumb:
            return
        read, write, control, local, in_speed, out_speed, characters = self._before
        read &= ~termios.ICRNL  # Enter stays what it is to the prompt
        # Ctrl-C throws nothing away that was typed before it.
        local = local & ~(termios.ICANON | termios.ECHO) | termios.ISIG | termios.NOFLSH
        at_once = {termios.VMIN: 1, termios.VTIME: 0}
        characters = [at_once.get(index, character) for index, character in enumerate(characters)]
        self._set([read, write, control, local, in_speed, out_speed, characters])

    def _release(self) -> None:
        if self._before is None:
            return
        self._set(self._before)
        if not self._dumb:
            self._say(_PASTES_PLAIN + _CURSOR)

    def _set(self, modes: list[Any]) -> None:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(self._input.fileno(), termios.TCSANOW, modes)

    def _say(self, sequence: str) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), sequence.encode())

    @contextlib.contextmanager
    def typing_ahead(self) -> Iterator[TypedAhead]:
        """What is typed within the block comes at the next prompt. At Ctrl-Z the shell gets its terminal."""
        if self._dumb:
            yield TypedAhead(self._input)
            return
        typed = TypedAhead(self._input)
        with handled(self._stop, "SIGTSTP"):
            self._say(_PASTES_MARKED)
            typed.start()
            try:
                yield typed
            finally:
                typed.finish()
                self._say(_PASTES_PLAIN)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self._release()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # and here it goes on
        signal.signal(signal.SIGTSTP, self._stop)
        self._hold()
        self._say(_PASTES_MARKED)


class TypedAhead:
    """Keys pressed during an answer. A thread reads them, for the kernel holds 4 KB and a paste may be longer."""

    def __init__(self, input: Input) -> None:
        self._input = input
        self._keys: list[KeyPress] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._wake_read, self._wake = -1, -1
        self._unsent = False

    def start(self) -> None:
        """Begins to read."""
        self._wake_read, self._wake = os.pipe()
        self._thread.start()

    def take_interrupt(self) -> bool:
        """Whether Ctrl-C was pressed while the prompt still had the terminal, in which it is a key like any other."""
        keys = get_typeahead(self._input)
        store_typeahead(self._input, [key for key in keys if key.key != Keys.ControlC])
        return any(key.key == Keys.ControlC for key in keys)

    def keep_unsent(self) -> None:
        """Enter among the keys shall not send: the answer they were typed ahead of was interrupted."""
        self._unsent = True

    def finish(self) -> None:
        """Ends reading, and leaves the keys to the next prompt."""
        os.write(self._wake, b"x")
        self._thread.join()
        os.close(self._wake)
        os.close(self._wake_read)
        keys = get_typeahead(self._input) + self._keys
        if self._unsent:
            while keys and keys[-1].key == Keys.ControlM:
                keys.pop()
            keys = [KeyPress(Keys.ControlJ) if key.key == Keys.ControlM else key for key in keys]
        store_typeahead(self._input, keys)

    def _read(self) -> None:
        while not self._input.closed:
            try:
                ready = select.select([self._input.fileno(), self._wake_read], [], [], _ESCAPE_S)[0]
            except OSError:
                return
            if not ready:
                self._keys += self._input.flush_keys()
            if self._input.fileno() in ready:
                self._keys += self._input.read_keys()
            if self._wake_read in ready:
                return
