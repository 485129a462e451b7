"""Draws what a token costs by context and by parameters, beside what reading its bytes from memory takes.

python benchmarks/costs.py [--figures docs/costs.json] [--picture docs/costs.svg] [--redraw]

Random weights in four shapes, in bf16 as stored, and packed on load to int8 and int4. A point is the median of 48
steps. Dotted lines are the bytes that a step reads (weights and cache) over the greatest bandwidth measured in between.
--redraw uses the figures in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from random_model import Shape, write_model

import gptcli
from gptcli.kernels.tensors import library
from gptcli.runtime.bench import Bandwidth
from gptcli.runtime.engine import FullEngine
from gptcli.settings import Quantize

SHAPES = (
    Shape(layers=8, hidden=384, mlp=1024, heads=6, kv_heads=2),
    Shape(layers=30, hidden=576, mlp=1536, heads=9, kv_heads=3),
    Shape(layers=32, hidden=960, mlp=2560, heads=15, kv_heads=5),
    Shape(),
)
LONG = SHAPES[1]  # drawn by context
WAYS: dict[str, Quantize] = {"bf16": "auto", "int8": "int8", "int4": "int4"}
CONTEXTS, SHORT, STEPS = (128, 512, 1024, 2048, 4096, 8128), 128, 48
COLORS = {"bf16": "#8250df", "int8": "#0969da", "int4": "#1a7f37"}


def measure() -> dict[str, Any]:
    """Measures the points of both halves of the picture."""
    points: list[dict[str, Any]] = []
    memory = Bandwidth("cpu", library())
    with tempfile.TemporaryDirectory() as directory:
        for number, shape in enumerate(SHAPES):
            path = Path(directory) / str(number)
            write_model(path, shape)
            for way, quantize in WAYS.items():
                engine = gptcli.load(path, device="cpu", quantize=quantize).full_engine()
                kernels, threads = engine.kernels, engine.threads
                for context in CONTEXTS if shape == LONG else (SHORT,):
                    points.append({"way": way, "parameters": shape.parameters} | point(engine, context))
                    memory.measure()
                    print(points[-1], flush=True)
                del engine
    return {"kernels": kernels, "threads": threads, "bandwidth": memory.best, "points": points}


def point(engine: FullEngine, context: int) -> dict[str, Any]:
    """Milliseconds of a step after `context` tokens, and the bytes it reads."""
    cache = engine.new_cache()
    engine.prefill([(7 * position + 3) % 1000 for position in range(context)], cache)
    seconds = []
    for step in range(STEPS):
        started = time.perf_counter()
        engine.decode(step, cache)
        seconds.append(time.perf_counter() - started)
    return {"context": context, "ms": statistics.median(seconds) * 1000, "bytes": engine.bytes_a_token(context)}


# ---- the picture ----

WIDTH, HEIGHT, LEFT, TOP, PLOT_WIDTH, PLOT_HEIGHT = 920, 430, 64, 74, 340, 280


class Axes:
    """Half of the picture: two logarithmic axes."""

    def __init__(self, x: int, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x, self.x_range, self.y_range = x, x_range, y_range
        self.parts: list[str] = []

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        return (
            self.x + PLOT_WIDTH * _share(x, self.x_range),
            TOP + PLOT_HEIGHT * (1 - _share(y, self.y_range)),
        )

    def ticks(self, xs: dict[float, str], ys: dict[float, str]) -> None:
        """Numbers along the axes, and grid lines."""
        for value, label in ys.items():
            _, y = self.pixel(self.x_range[0], value)
            self.parts.append(f'<path class="grid" d="M{self.x} {y:.1f}h{PLOT_WIDTH}"/>')
            self.parts.append(_text(self.x - 8, y + 4, label, "end"))
        for value, label in xs.items():
            x, _ = self.pixel(value, self.y_range[0])
            self.parts.append(f'<path class="tick" d="M{x:.1f} {TOP + PLOT_HEIGHT}v5"/>')
            self.parts.append(_text(x, TOP + PLOT_HEIGHT + 20, label, "middle"))
        self.parts.append(f'<path class="tick" d="M{self.x} {TOP + PLOT_HEIGHT}h{PLOT_WIDTH}"/>')

    def series(self, way: str, points: list[dict[str, Any]], key: str) -> None:
        """The measured points as a line with dots; what reading takes as a dotted line."""
        for name, style in (("read_ms", ' stroke-dasharray="2 4"'), ("ms", "")):
            pixels = [self.pixel(one[key], one[name]) for one in points]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
            self.parts.append(f'<path d="{path}" fill="none" stroke="{COLORS[way]}" stroke-width="2"{style}/>')
        self.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLORS[way]}"/>' for x, y in pixels]

    def key(self) -> None:
        """The legend, in the corner that growing lines leave empty."""
        for row, way in enumerate(WAYS):
            y = TOP + 18 + 18 * row
            self.parts.append(f'<path d="M{self.x + 14} {y - 4}h20" stroke="{COLORS[way]}" stroke-width="2"/>')
            self.parts.append(_text(self.x + 42, y, way, "start", COLORS[way]))

    def titles(self, title: str, x_title: str) -> None:
        """The titles above and below."""
        self.parts.append(f'<text x="{self.x}" y="{TOP - 26}" class="title">{title}</text>')
        self.parts.append(_text(self.x + PLOT_WIDTH / 2, TOP + PLOT_HEIGHT + 42, x_title, "middle"))


def _share(value: float, span: tuple[float, float]) -> float:
    return math.log(value / span[0]) / math.log(span[1] / span[0])


def _text(x: float, y: float, text: str, anchor: str, color: str = "#59636e") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def draw(figures: dict[str, Any]) -> str:
    """The picture as SVG."""
    points = [one | {"read_ms": one["bytes"] / figures["bandwidth"] * 1000} for one in figures["points"]]
    top = max(max(one["ms"], one["read_ms"]) for one in points)
    bottom = min(min(one["ms"], one["read_ms"]) for one in points)
    marks = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    lowest, highest = max(mark for mark in marks if mark <= bottom), min(mark for mark in marks if mark >= top)
    scale = [mark for mark in marks if lowest <= mark <= highest]
    spans = {"y_range": (lowest, highest)}
    by_context = Axes(LEFT, (CONTEXTS[0] * 0.9, CONTEXTS[-1]), **spans)
    by_size = Axes(LEFT + PLOT_WIDTH + 120, (SHAPES[0].parameters * 0.85, SHAPES[-1].parameters), **spans)
    numbers = {value: f"{value:g} ms" for value in scale}
    by_context.ticks({context: f"{context:,}" for context in CONTEXTS}, numbers)
    by_size.ticks({shape.parameters: _millions(shape.parameters) for shape in SHAPES}, numbers)
    for way in WAYS:
        own = [one for one in points if one["way"] == way]
        by_context.series(way, [one for one in own if one["parameters"] == LONG.parameters], "context")
        by_size.series(way, [one for one in own if one["context"] == SHORT], "parameters")
    for axes in (by_context, by_size):
        axes.key()
    by_context.titles(f"A token by context, {_millions(LONG.parameters)} parameters", "tokens before it")
    by_size.titles(f"A token by size, {SHORT} tokens before it", "parameters")
    caption = (
        f"Median of {STEPS} steps, {figures['threads']} threads, {figures['kernels']} kernels. "
        f"Dotted: the time it takes to read as many bytes from memory, at {figures['bandwidth'] / 1e9:.0f} GB/s."
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="12">',
            "<style>.grid{stroke:#d1d9e0;stroke-width:1}.tick{stroke:#59636e;stroke-width:1;fill:none}"
            ".title{font-size:15px;font-weight:600;fill:#1f2328}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *by_context.parts,
            *by_size.parts,
            _text(LEFT, HEIGHT - 12, caption, "start"),
            "</svg>\n",
        ]
    )


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def main() -> None:
    """Measures and draws."""
    docs = Path(__file__).parents[1] / "docs"
    parser = argparse.ArgumentParser()
    parser.add_argument("--figures", type=Path, default=docs / "costs.json")
    parser.add_argument("--picture", type=Path, default=docs / "costs.svg")
    parser.add_argument("--redraw", action="store_true")
    options = parser.parse_args()
    if not options.redraw:
        options.figures.write_text(json.dumps(measure(), indent=1) + "\n")
    options.picture.write_text(draw(json.loads(options.figures.read_text())))


if __name__ == "__main__":
    main()
