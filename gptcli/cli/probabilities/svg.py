"""Draws probabilities as an SVG of its own, for slides: every token in its place, alternatives on hover or tap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from gptcli.cli.probabilities.passage import Passage, bars, legible, named, shown
from gptcli.cli.probabilities.shading import STEPS, Cell, Shaded, step_of
from gptcli.cli.terminal.token_flow import fitted, width

# In the picture's own units, which are pixels at its natural size.
_COLUMNS = 72  # of a line of text
_ADVANCE = 11.0  # from one column to the next
_LINE = 38.0
_MARGIN = 40.0
_WIDTH = 2 * _MARGIN + _COLUMNS * _ADVANCE
_CARD, _ROW = 330.0, 22.0  # what is shown on hover: its width, and the height of a line in it
_LEAST_HEIGHT = 360.0  # so that there is room for a card above or below any line

_STYLE = f"""
svg {{ color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --faint: #66707c; --edge: #d5dbe1; --bar: #e8ecf0; }}
@media (prefers-color-scheme: dark) {{
  svg {{ --page: #14171b; --ink: #e8eaed; --faint: #98a2ad; --edge: #3a424b; --bar: #39424c; }}
}}
text {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 17px; }}
.small, .card text {{ font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 13px; }}
.title {{ font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 16px; font-weight: 600; }}
.big {{ font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 22px; font-weight: 600; }}
.page {{ fill: var(--page, #ffffff); }}
.ink {{ fill: var(--ink, #1b1f24); }}
.faint {{ fill: var(--faint, #66707c); }}
.bar {{ fill: var(--bar, #e8ecf0); }}
.back {{ fill: var(--page, #ffffff); stroke: var(--edge, #d5dbe1); filter: drop-shadow(0 4px 10px #0004); }}
.drawn {{ font-weight: 700; }}
.end {{ text-anchor: end; }}
.token {{ outline: none; }}
.token:hover > .hit, .token:focus > .hit {{ stroke: var(--ink, #1b1f24); stroke-width: 2; }}
.token:hover > .card, .token:focus > .card {{ display: inline; pointer-events: none; }}
{"".join(f".s{number} {{ fill: {s.colour}; }} .i{number} {{ fill: {s.ink}; }}" for number, s in enumerate(STEPS))}
"""


@dataclass(frozen=True)
class _Piece:
    """A bit of text, and the cell it is, unless it is of the lead."""

    text: str
    cell: Cell | None


@dataclass(frozen=True)
class _Placed:
    """What is seen of a piece, and where: columns and lines count from 0."""

    piece: _Piece
    text: str
    line: int
    column: int
    columns: int


def picture(title: str, passages: Sequence[Passage]) -> str:
    """The whole picture as SVG."""
    parts, cards = [_title(title), _legend()], list[str]()
    y = 110.0
    for passage in passages:
        y = _draw(passage, y, parts, cards)
    height = max(y + _MARGIN, _LEAST_HEIGHT)
    # What is hovered over comes last, for it lies above what was drawn before.
    box = f'width="{_WIDTH:g}" height="{height:g}" viewBox="0 0 {_WIDTH:g} {height:g}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {box}>
<title>{_text(title)}</title>
<style>{_STYLE}</style>
<rect class="page" width="100%" height="100%"/>
{"".join(parts)}{"".join(cards)}</svg>
"""


def _title(title: str) -> str:
    return f'<text class="title ink" x="{_MARGIN:g}" y="52">{_text(title)}</text>\n'


def _legend() -> str:
    out, x = f'<text class="small ink" x="{_MARGIN:g}" y="86">probability</text>', _MARGIN + 84
    for number, step in enumerate(STEPS):
        wide = 8.0 * len(step.label) + 14
        out += f'<rect class="s{number}" x="{x:g}" y="70" width="{wide:g}" height="23" rx="5"/>'
        out += f'<text class="small i{number}" x="{x + wide / 2:g}" y="86" text-anchor="middle">{step.label}</text>'
        if step.underlined:
            out += f'<rect class="i{number}" x="{x + 8:g}" y="89" width="{wide - 16:g}" height="1.5"/>'
        x += wide + 8
    return out + "\n"


def _draw(passage: Passage, y: float, parts: list[str], cards: list[str]) -> float:
    """Draws a passage from y on; returns where the next one begins."""
    if passage.title:
        y += 24
        parts.append(f'<text class="title ink" x="{_MARGIN:g}" y="{y:g}">{_text(passage.title)}</text>\n')
        y += 12
    lines = 0
    pieces = [_Piece(text, None) for text in re.findall(r"\n|\s?\S+|\s", passage.lead)]
    pieces += [_Piece(cell.text, cell) for cell in passage.cells]
    for placed in _placed(pieces):
        lines = placed.line + 1
        parts.append(_drawn(placed, y))
        if placed.piece.cell:
            cards.append(_card(placed, placed.piece.cell, y))
    y += lines * _LINE
    if passage.figures:
        y += 50
        for place, (name, value) in enumerate(passage.figures):
            x = _MARGIN + 170 * place
            parts.append(f'<text class="big ink" x="{x:g}" y="{y:g}">{_text(value)}</text>')
            parts.append(f'<text class="small faint" x="{x:g}" y="{y + 20:g}">{_text(name)}</text>\n')
        y += 44
    return y


def _placed(pieces: Sequence[_Piece]) -> Iterator[_Placed]:
    """Sets pieces into lines, which break before a word that does not fit, and behind a newline."""
    line = column = 0
    for word in _words(pieces):
        if column and column + sum(_columns(piece.text) for piece in word) > _COLUMNS + word[0].text.startswith(" "):
            line, column, fresh = line + 1, 0, True
        else:
            fresh = False
        for piece in word:
            body, newline, behind = piece.text.rpartition("\n")
            text = (body + newline).replace("\n", "⏎") if newline else behind
            text = legible(text.replace("\t", "⇥"))
            if text.startswith(" ") and text.strip():  # the space before a word is not shaded
                text, column = text[1:], column + (not fresh)
            if column and column + _columns(text) > _COLUMNS:  # a word longer than a line
                line, column = line + 1, 0
            text = _cut(text)
            fresh = False
            yield _Placed(piece, text, line, column, _columns(text))
            column += _columns(text)
            if newline:
                line, column = line + piece.text.count("\n"), width(behind)


def _words(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that no line is to break between."""
    word: list[_Piece] = []
    for piece in pieces:
        if word and (piece.text[:1].isspace() or word[-1].text[-1:].isspace()):
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def _columns(text: str) -> int:
    return max(1, width(legible(text.replace("\n", "⏎").replace("\t", "⇥"))))


def _cut(text: str) -> str:
    return fitted(text, _COLUMNS) if width(text) > _COLUMNS else text


def _drawn(placed: _Placed, top: float) -> str:
    """A piece's shade, underline and text."""
    x, y = _MARGIN + placed.column * _ADVANCE, top + placed.line * _LINE
    wide = placed.columns * _ADVANCE
    probability = placed.piece.cell.probability if placed.piece.cell else None
    out, ink = "", "ink"
    if probability is not None:
        step = step_of(probability)
        number = STEPS.index(step)
        ink = f"i{number}"
        out += f'<rect class="s{number}" x="{x:g}" y="{y + 4:g}" width="{wide - 1.5:g}" height="30" rx="4"/>'
        if step.underlined:
            out += f'<rect class="{ink}" x="{x + 2:g}" y="{y + 28.5:g}" width="{wide - 5.5:g}" height="1.6"/>'
    if placed.text.strip():
        # As wide as its columns, whatever font there is, and in the middle of the shade.
        fit = f'textLength="{wide - 1.2:g}" lengthAdjust="spacingAndGlyphs"'
        out += f'<text class="{ink}" x="{x - 0.15:g}" y="{y + 24:g}" {fit}>{_text(placed.text)}</text>'
    return out + "\n"


def _card(placed: _Placed, cell: Cell, top: float) -> str:
    """What is seen when a cell is hovered over: its tokens, and what else the model thought of."""
    x, y = _MARGIN + placed.column * _ADVANCE, top + placed.line * _LINE
    hit = f'x="{x:g}" y="{y + 4:g}" width="{placed.columns * _ADVANCE - 1.5:g}" height="30" rx="4"'
    lines = list(_lines(cell.tokens))
    height = _ROW * len(lines) + 20
    left = min(x, _WIDTH - _MARGIN - _CARD)
    above = y - height > top
    card_top = y - height - 2 if above else y + _LINE
    # Hidden by an attribute, not by the style: programs that know no styles hide it too.
    return (
        f'<g class="token" tabindex="0"><rect class="hit" {hit} fill="none" pointer-events="all"/>'
        f'<g class="card ink" display="none" transform="translate({left:g} {card_top:g})">'
        f'<rect class="back" width="{_CARD:g}" height="{height:g}" rx="8"/>{"".join(lines)}</g></g>\n'
    )


def _lines(tokens: Sequence[Shaded]) -> Iterator[str]:
    """The lines of a card, one below the other."""
    y = 0.0
    for token in tokens:
        y += _ROW
        chance = "nothing before it" if token.logprob is None else f"logprob {token.logprob:.3f}"
        yield f'<text class="faint" x="14" y="{y:g}">{_text(named(token.data))} · id {token.id} · {chance}</text>'
        for bar in bars(token):
            y += _ROW
            filled = max(2.0, 120 * bar.probability)
            name, end = (' class="drawn"', "end drawn") if bar.drawn else ("", "end")
            yield (
                f'<text{name} x="14" y="{y:g}">{_text(_shortened(bar.name))}</text>'
                f'<rect class="bar" x="140" y="{y - 9:g}" width="120" height="9" rx="4"/>'
                f'<rect class="s2" x="140" y="{y - 9:g}" width="{filled:.1f}" height="9" rx="4"/>'
                f'<text class="{end}" x="{_CARD - 14:g}" y="{y:g}">{shown(bar.probability)}</text>'
            )


def _shortened(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _text(text: str) -> str:
    return escape(legible(text))
