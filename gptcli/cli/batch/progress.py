"""The progress line of a batch, and the line at its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gptcli.cli.batch.input_lines import InputLines
from gptcli.cli.batch.requests import Answered
from gptcli.cli.terminal.stderr import ProgressLine


@dataclass
class BatchProgress:
    """Counts of this run's requests and generated tokens. kept: requests that the output had answers of."""

    lines: InputLines
    activity: ProgressLine
    done: int = 0
    failed: int = 0
    kept: int = 0
    tokens: int = 0
    begun: float = field(default_factory=time.monotonic)
    first_byte: int | None = None  # where the first line to answer begins, nearly

    def took(self, answered: Answered) -> None:
        """Counts an answer and updates the progress line. The time left follows from the bytes left of the file."""
        self.done += not answered.failed
        self.failed += answered.failed
        self.tokens += answered.tokens
        size, read = self.lines.size, self.lines.read
        self.first_byte = read if self.first_byte is None else self.first_byte
        figures = f"{self.done} done, {self.failed} failed, {self._rate():.0f} tok/s"
        if size and read > self.first_byte:
            left = self._seconds() * max(0, size - read) / (read - self.first_byte)
            figures += f", {duration(left)} left"
        self.activity.bytes(figures, read if size else 0, size)

    @property
    def summary(self) -> str:
        """One line for the end."""
        kept = f", {self.kept} there already" if self.kept else ""
        return (
            f"{self.done} done, {self.failed} failed{kept} · {self.tokens} tok in {duration(self._seconds())} · "
            f"{self._rate():.1f} tok/s"
        )

    def _seconds(self) -> float:
        return max(1e-9, time.monotonic() - self.begun)

    def _rate(self) -> float:
        return self.tokens / self._seconds()


def duration(seconds: float) -> str:
    """A time for a person."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
