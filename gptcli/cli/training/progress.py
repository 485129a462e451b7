"""The progress of `gptcli train`: a bar on a terminal, a line for each held-out loss, or JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gptcli.cli.batch.progress import duration
from gptcli.cli.json_records import json_line
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.training.events import Evaluated, Sampled, Step, TrainingEvent, event_record

if TYPE_CHECKING:
    from gptcli.training.loop import Training


class TrainingProgress:
    """Shows events. as_json: writes them on stdout as well, an object a line."""

    def __init__(self, training: Training, activity: ProgressLine, *, as_json: bool) -> None:
        self._training, self._activity = training, activity
        self._sink = StdoutSink() if as_json else None
        self._began, self._first = time.monotonic(), training.step
        self._losses, self._tokens, self._seconds = list[float](), 0, 0.0
        self._held_out: float | None = None

    def took(self, event: TrainingEvent) -> None:
        """Shows one event."""
        if self._sink is not None:
            self._sink.write(json_line(event_record(event)))
        match event:
            case Step():
                self._losses.append(event.loss)
                self._tokens, self._seconds = self._tokens + event.tokens, self._seconds + event.seconds
                self._activity.tokens(self._figures(), event.step, self._training.steps)
            case Evaluated():
                self._held_out = event.held_out_loss
                self._activity.result(f"step {event.step}/{self._training.steps} · {self._figures()}")
                self._losses.clear()
            case Sampled():
                self._activity.result(f"  {event.prompt}|{event.text}")

    def _figures(self) -> str:
        figures = [f"loss {sum(self._losses) / len(self._losses):.3f}"] if self._losses else []
        if self._held_out is not None:
            figures.append(f"held-out {self._held_out:.3f}")
        done = self._training.step - self._first
        if done:
            left = (time.monotonic() - self._began) / done * (self._training.steps - self._training.step)
            figures.append(f"{self._tokens / max(1e-9, self._seconds):.0f} tok/s")
            figures.append(f"{duration(left)} left")
        return " · ".join(figures)
