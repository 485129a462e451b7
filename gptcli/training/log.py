"""The log of a run, a line of JSON per event, and its curve as an SVG picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from gptcli.files import written_whole
from gptcli.training.checkpoints import output_errors
from gptcli.training.events import TrainingEvent, event_record

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720.0, 400.0, 56.0, 40.0, 24.0, 44.0
_STYLE = """svg { color-scheme: light dark; font: 13px system-ui, sans-serif; }
.page { fill: #fff; } text { fill: #444; } .grid { stroke: #e5e5e5; } path { fill: none; stroke-width: 1.5; }
.loss { stroke: #9bb8e0; } .held { stroke: #c2410c; stroke-width: 2.5; }
@media (prefers-color-scheme: dark) { .page { fill: #14171a; } text { fill: #bbb; } .grid { stroke: #2c3136; } }"""


class Log:
    """log.jsonl. A resumed run drops what was logged after its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            kept = [record for record in read_log(path) if record["step"] <= step] if step else []
            with written_whole(path) as draft:
                draft.write_text("".join(map(_line, kept)), encoding="utf-8")
        with output_errors(path):
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()

    def add(self, event: TrainingEvent) -> None:
        """Adds a line. Raises OutputError."""
        with output_errors(self.path):
            self._file.write(_line(event_record(event)))
            self._file.flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The log's lines without an incomplete last one."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def write_curve(log: Path, target: Path, title: str) -> None:
    """Draws the loss of every step, and the held-out loss. Raises OutputError."""
    losses, held_out = list[tuple[float, float]](), list[tuple[float, float]]()
    for record in read_log(log):
        if record["event"] == "step":
            losses.append((record["step"], record["loss"]))
        elif record["event"] == "held-out":
            held_out.append((record["step"], record["held_out_loss"]))
    with written_whole(target) as draft:
        draft.write_text(_curve(losses, held_out, title), encoding="utf-8")


def _curve(losses: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float]], title: str) -> str:
    points = [*losses, *held_out]
    last = max((step for step, _ in points), default=1) or 1
    low = min((loss for _, loss in points), default=0.0)
    high = max((loss for _, loss in points), default=1.0)
    span = (high - low) or 1.0

    def point(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - loss) / span

    def path(kind: str, values: Sequence[tuple[float, float]]) -> str:
        line = " L".join(f"{x:.1f} {y:.1f}" for x, y in (point(*value) for value in values))
        return f'<path class="{kind}" d="M{line}"/>' if values else ""

    grid, ticks = "", 4
    for tick in range(ticks + 1):
        loss = low + span * tick / ticks
        _, y = point(0, loss)
        grid += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        grid += f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
        x, _ = point(last * tick / ticks, low)
        grid += f'<text x="{x:.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{round(last * tick / ticks)}</text>'
    safe = "".join(each if each.isprintable() else "?" for each in title).replace("&", "&amp;").replace("<", "&lt;")
    legend = f'<text x="{_LEFT}" y="24">{safe}: loss a step, and held-out loss (bold), in nats a token</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH:g}" height="{_HEIGHT:g}" '
        f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}">\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="100%" height="100%"/>\n{legend}{grid}\n'
        f"{path('loss', losses)}\n{path('held', held_out)}\n"
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">steps</text>\n</svg>\n'
    )
