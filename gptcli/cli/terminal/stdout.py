"""The one writer of model text to stdout: exact bytes in a pipe, no control characters on a terminal."""

from __future__ import annotations

import io
import sys

from gptcli.errors import OutputError


def _visible_controls() -> dict[int, str]:
    """A replacement for each character that could drive a terminal or reorder its text."""
    table = {code: chr(0x2400 + code) for code in range(0x20)}  # Control Pictures
    del table[ord("\t")], table[ord("\n")]
    table[0x7F] = "\u2421"
    table |= {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
    reordering = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0x200E, 0x200F, 0x2028, 0x2029]
    table |= {code: f"<U+{code:04X}>" for code in reordering}
    return table | {code: "\ufffd" for code in range(0xD800, 0xE000)}


_VISIBLE = _visible_controls()


def clean(text: str) -> str:
    """A text that a terminal shows but does not obey; joined emoji and combining marks stay as they are.

    Replaces each character on its own, so an escape sequence split across calls is harmless too.
    """
    return text.translate(_VISIBLE)


class StdoutSink:
    """Writes to stdout, unbuffered.

    Raises OutputError if stdout is closed or full, BrokenPipeError if nobody reads it.
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise OutputError("cannot write: standard output is closed")
        self.is_terminal = sys.stdout.isatty()
        sys.stdout.flush()
        self._file = io.FileIO(sys.stdout.fileno(), "w", closefd=False)
        self._at_line_start = True

    def write(self, data: bytes) -> None:
        """Writes the next bytes of a text, which must be whole characters."""
        if not data:
            return
        if self.is_terminal:
            data = clean(data.decode("utf-8", "replace")).encode()
        self._write(data)

    def write_names(self, text: str) -> None:
        """Writes a text with names of files, whose bytes need not be UTF-8."""
        self.write(text.encode("utf-8", "surrogateescape"))

    def draw(self, text: str) -> None:
        """Writes a text that is clean already, with escape sequences of gptcli such as colours."""
        if text:
            self._write(text.encode("utf-8", "replace"))

    def _write(self, data: bytes) -> None:
        self._at_line_start = data.endswith(b"\n")
        view = memoryview(data)
        while view:
            try:
                view = view[self._file.write(view) or 0 :]
            except BrokenPipeError:
                raise
            except OSError as error:
                raise OutputError(f"cannot write: standard output: {error.strerror}") from None

    def end_line(self) -> None:
        """Ends the last line if it is open."""
        if not self._at_line_start:
            self.write(b"\n")
