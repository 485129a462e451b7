"""Keeps keys typed during an answer, unechoed, for the next prompt."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
from collections.abc import Iterator
from typing import Any

from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys

from gptcli.cli.terminal.signals import suspending

_ESCAPE_S = 0.3  # an escape character that nothing follows within this time is the Escape key
_BRACKETED_PASTE, _PLAIN_PASTE, _SHOW_CURSOR = "\x1b[?2004h", "\x1b[?2004l", "\x1b[?25h"


class CbreakTerminal:
    """The terminal without echo and line editing, while Ctrl-C and Ctrl-Z stay signals; restored on exit.

    The prompt takes it over and gives it back unchanged. A dumb terminal is left alone: the kernel echoes and edits
    lines there, so keys typed during an answer are seen in it.
    """

    def __init__(self, input: Input, *, dumb: bool) -> None:
        self._input = input
        self._dumb = dumb
        self._original: list[Any] | None = None

    def __enter__(self) -> CbreakTerminal:
        self._original = termios.tcgetattr(self._input.fileno())
        self._enter_cbreak()
        if not self._dumb and select.select([self._input.fileno()], [], [], 0)[0]:
            store_typeahead(self._input, _typed_before(self._input.read_keys()))
        return self

    def __exit__(self, *failure: object) -> None:
        self._restore()

    @contextlib.contextmanager
    def typing_ahead(self) -> Iterator[TypeAhead]:
        """Keeps what is typed within the block for the next prompt. Ctrl-Z gives the shell its terminal back."""
        typed = TypeAhead(self._input)
        if self._dumb:
            yield typed
            return
        with suspending(self._restore, self._resume):
            self._send(_BRACKETED_PASTE)
            typed.start()
            try:
                yield typed
            finally:
                typed.finish()
                self._send(_PLAIN_PASTE)

    def _resume(self) -> None:
        self._enter_cbreak()
        self._send(_BRACKETED_PASTE)

    def _enter_cbreak(self) -> None:
        if self._original is None or self._dumb:
            return
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = self._original
        iflag &= ~termios.ICRNL  # the prompt expects Enter as a carriage return
        # NOFLSH: Ctrl-C must not discard what was typed before it.
        lflag = lflag & ~(termios.ICANON | termios.ECHO) | termios.ISIG | termios.NOFLSH
        cc = [{termios.VMIN: 1, termios.VTIME: 0}.get(index, value) for index, value in enumerate(cc)]
        self._set_modes([iflag, oflag, cflag, lflag, ispeed, ospeed, cc])

    def _restore(self) -> None:
        if self._original is None:
            return
        self._set_modes(self._original)
        if not self._dumb:
            self._send(_PLAIN_PASTE + _SHOW_CURSOR)

    def _set_modes(self, modes: list[Any]) -> None:
        with contextlib.suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(self._input.fileno(), termios.TCSANOW, modes)

    def _send(self, sequence: str) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), sequence.encode())


def _typed_before(keys: list[KeyPress]) -> list[KeyPress]:
    """Keys typed before the terminal's modes were set, when the kernel made Enter a newline.

    Enter after a single line sends it; several lines may be a paste, which never sends.
    """
    newlines = [number for number, key in enumerate(keys) if key.key == Keys.ControlJ]
    return [*keys[:-1], KeyPress(Keys.ControlM)] if newlines == [len(keys) - 1] else keys


class TypeAhead:
    """Keys pressed during an answer. A thread reads them: the kernel buffers 4 KB, and a paste may be longer."""

    def __init__(self, input: Input) -> None:
        self._input = input
        self._keys: list[KeyPress] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._wake_read, self._wake = -1, -1
        self._interrupted = False

    def start(self) -> None:
        """Starts reading."""
        self._wake_read, self._wake = os.pipe()
        self._thread.start()

    def take_interrupt(self) -> bool:
        """Takes Ctrl-C out of the keys that the prompt has read ahead; returns whether it was among them."""
        keys = get_typeahead(self._input)
        store_typeahead(self._input, [key for key in keys if key.key != Keys.ControlC])
        return any(key.key == Keys.ControlC for key in keys)

    def keep_unsent(self) -> None:
        """Makes Enter among the keys a newline: after an interrupted answer nothing may be sent."""
        self._interrupted = True

    def finish(self) -> None:
        """Stops reading, and passes the keys to the next prompt."""
        os.write(self._wake, b"x")
        self._thread.join()
        os.close(self._wake)
        os.close(self._wake_read)
        keys = get_typeahead(self._input) + self._keys
        if self._interrupted:
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
