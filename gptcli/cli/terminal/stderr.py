"""Everything that goes to stderr: errors, notes, a run's figures, and the progress line.

If stderr is closed or full, nothing is shown and nothing fails.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from gptcli.cli.terminal.capabilities import is_dumb_terminal
from gptcli.cli.terminal.columns import wrapped
from gptcli.cli.terminal.stdout import clean
from gptcli.model_notes import Note, one_line

if TYPE_CHECKING:
    from gptcli.generation.events import Finished

STOP_HINT = "Ctrl-C stops"  # shown while an answer comes
_DELAY_S = 0.15  # work that ends sooner shows no progress
_FRAME_S = 0.1
_BAR = 20  # characters


def print_error(message: str, hint: str | None, *, at_prompt: bool = False) -> None:
    """`gptcli: error: ...`, and `hint: ...` if there is one; `error: ...` at a chat's prompt."""
    _print_labelled("error:" if at_prompt else "gptcli: error:", "bold red", message)
    if hint:
        _print_labelled("hint:", "bold", hint)


def print_note(message: str) -> None:
    """`gptcli: note: ...`."""
    _print_labelled("gptcli: note:", "bold magenta", message)


def print_prompt_note(message: str) -> None:
    """`note: ...`, at a chat's prompt, where no other program writes."""
    _print_labelled("note:", "bold magenta", message)


def print_line(line: str) -> None:
    """One line, even if the text contains newlines; on a narrow terminal, several."""
    if sys.stderr is not None:
        line = _one_line(line)
        with contextlib.suppress(OSError):
            print(wrapped(line, _stderr_width()) if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _print_labelled(label: str, style: str, message: str) -> None:
    message = message.replace("\n", " ")
    if sys.stderr is None or not sys.stderr.isatty() or is_dumb_terminal():
        print_line(f"{label} {message}")
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(wrapped(f"{label} {clean(message)}", _stderr_width()))
    text.stylize(style, 0, len(label))
    with contextlib.suppress(OSError):
        Console(stderr=True).print(text, soft_wrap=True)


def _one_line(text: str) -> str:
    return clean(text.replace("\n", "\u240a"))


def stats_line(finished: Finished, ctx_size: int) -> str:
    """One sample's figures, for a person."""
    usage = finished.usage
    why = finished.reason if finished.stop is None else f"stop={finished.stop}"
    figures = [
        f"{usage.completion_tokens} tok",
        f"TTFT {usage.ttft_s * 1000:.0f} ms",
        f"{usage.decode_tokens_per_s:.1f} tok/s",
        f"{min(usage.prompt_tokens + usage.completion_tokens, ctx_size)}/{ctx_size} ctx",
        *([f"{usage.kept_tokens}/{usage.drafted_tokens} drafts kept"] if usage.drafted_tokens else []),
        why,
        f"seed={finished.seed}",
    ]
    return " · ".join(figures)


class ProgressLine:
    """A line that shows a task and its progress; only on a terminal, and only if the task takes a while.

    The cursor stays visible, so that even a killed process leaves the terminal as it was. at_prompt: names Ctrl-C,
    which ends only the answer there.
    """

    def __init__(self, *, quiet: bool, at_prompt: bool = False) -> None:
        shown = sys.stderr is not None and sys.stderr.isatty() and not is_dumb_terminal() and not quiet
        self._thread = threading.Thread(target=self._draw, daemon=True) if shown else None
        self._closed = threading.Event()
        self._quiet = quiet
        self._announced = shown or quiet
        self._line = "starting"
        self._print_note = print_prompt_note if at_prompt else print_note
        self._hint = f" · {STOP_HINT}" if at_prompt else ""

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Erases the line for good."""
        self._closed.set()
        if self._thread:
            self._thread.join()

    def erase(self) -> None:
        """Erases the line without waiting for a thread, for a signal handler that ends the process."""
        self._closed.set()
        if self._thread:
            _write_stderr("\r\x1b[K")

    def note_leftovers(self, notes: Sequence[Note]) -> None:
        """Notes in one line what has no effect in a model's files; `models verify` lists all of it."""
        if notes:
            self.note(one_line(notes))

    def note(self, message: str) -> None:
        """Prints a note above the line; nothing with --quiet."""
        if not self._quiet:
            if self._thread:
                _write_stderr("\r\x1b[K")
            self._print_note(message)

    def result(self, message: str) -> None:
        """Prints a line that stays above the progress line; nothing with --quiet."""
        if not self._quiet:
            if self._thread:
                _write_stderr("\r\x1b[K")
            print_line(message)

    def fetch(self, what: str, done: int, total: int) -> None:
        """Shows a fetch in bytes; where no line can be shown, a note announces it once."""
        if not self._announced:
            self._announced = True
            self._print_note(f"{what}, {size(total)}" if total else what)
        self.bytes(what, done, total)

    def bytes(self, what: str, done: int, total: int) -> None:
        """Shows progress in bytes. total: 0 if unknown."""
        self._update(what, done, total, size)

    def tokens(self, what: str, done: int, total: int) -> None:
        """Shows progress in tokens."""
        self._update(what, done, total, str)

    def _update(self, what: str, done: int, total: int, spell: Callable[[int], str]) -> None:
        self._line = _one_line(what)
        if total:
            filled = min(_BAR, _BAR * done // total)
            self._line += f" {'━' * filled}{'─' * (_BAR - filled)} {spell(done)}/{spell(total)}"

    def _draw(self) -> None:
        if self._closed.wait(_DELAY_S):
            return
        from rich.cells import set_cell_size

        for frame in itertools.cycle("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"):
            # A line as wide as the terminal would wrap, and its rest could not be erased.
            line = set_cell_size(f"{frame} {self._line}{self._hint}", _stderr_width() - 1).rstrip()
            _write_stderr(f"\r{line}\x1b[K")
            if self._closed.wait(_FRAME_S):
                break
        _write_stderr("\r\x1b[K")


def tokens(count: int) -> str:
    """As many tokens, in words."""
    return "1 token" if count == 1 else f"{count} tokens"


def size(count: int) -> str:
    """A number of bytes, for a person."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.{1 if unit == 'GB' else 0}f} {unit}"
    return f"{count} B"


def _stderr_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except OSError:
        return 80


def _write_stderr(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
