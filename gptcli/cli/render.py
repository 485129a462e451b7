"""What goes to stderr: errors, notes, the figures of a run, and the line that shows what is going on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gptcli.cli.sink import clean

if TYPE_CHECKING:
    from rich.progress import Progress

    from gptcli.generation.events import Finished

_DELAY_S = 0.15  # what ends sooner shows no progress


def print_error(message: str, hint: str | None) -> None:
    """`gptcli: error: ...` and, where there is a way out, `hint: ...`."""
    _print_labelled("gptcli: error:", "bold red", message)
    if hint:
        _print_labelled("hint:", "bold cyan", hint)


def print_note(message: str) -> None:
    """`gptcli: note: ...`."""
    _print_labelled("gptcli: note:", "bold yellow", message)


def print_line(line: str) -> None:
    """A line of figures, as it is."""
    if sys.stderr is not None:
        print(clean(line), file=sys.stderr, flush=True)


def _print_labelled(label: str, style: str, message: str) -> None:
    if sys.stderr is None:
        return
    line = clean(message.replace("\n", " "))
    if not sys.stderr.isatty():
        print(f"{label} {line}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((label, style), " ", line), soft_wrap=True)


def stats_line(finished: Finished, ctx_size: int) -> str:
    """One sample's figures for a person."""
    usage = finished.usage
    why = finished.reason if finished.stop is None else f"stop={finished.stop}"
    figures = [
        f"{usage.completion_tokens} tok",
        f"TTFT {usage.ttft_s * 1000:.0f} ms",
        f"{usage.decode_tokens_per_s:.1f} tok/s",
        f"{usage.prompt_tokens + usage.completion_tokens}/{ctx_size} ctx",
        why,
        f"seed={finished.seed}",
    ]
    return " · ".join(figures)


class Activity:
    """A line on stderr that shows what is being done and how far; only on a terminal, and only if it takes a while."""

    def __init__(self, *, quiet: bool) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._progress: Progress | None = None
        shown = sys.stderr is not None and sys.stderr.isatty() and not quiet
        if shown:
            self._progress = _progress_line()

    def __enter__(self) -> Self:
        if self._progress:
            self._task = self._progress.add_task("starting", total=None, amount="")
            self._timer = threading.Timer(_DELAY_S, self._start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        with self._lock:
            if self._progress:
                self._progress.start()

    def close(self) -> None:
        """Erases the line, for good."""
        if self._timer:
            self._timer.cancel()
        with self._lock:
            if self._progress:
                self._progress.stop()
                self._progress = None

    def bytes(self, what: str, done: int, total: int) -> None:
        """Shows progress in bytes; a total of 0 is unknown."""
        self._update(what, done, total, megabytes)

    def tokens(self, what: str, done: int, total: int) -> None:
        """Shows progress in tokens."""
        self._update(what, done, total, str)

    def _update(self, what: str, done: int, total: int, spell: Callable[[int], str]) -> None:
        if self._progress:
            amount = f"{spell(done)}/{spell(total)}" if total else ""
            self._progress.update(
                self._task, description=clean(what), completed=done, total=total or None, amount=amount
            )


def megabytes(count: int) -> str:
    """A size for a person to read."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def _progress_line() -> Progress | None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        return None
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[amount]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
