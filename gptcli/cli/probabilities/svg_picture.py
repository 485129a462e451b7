"""Draws probabilities as an SVG picture, for slides: lines of fixed width, alternatives on hover or tap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gptcli.cli.probabilities.picture_content import DARK, LIGHT, Passage, bars, facts_of, legible, markup, name_of
from gptcli.cli.probabilities.shaded_tokens import STEPS, ShadedGroup, ShadedToken, step_of
from gptcli.cli.terminal.columns import fitted, width

# In pixels, at the picture's natural size.
_COLUMNS = 72  # of a line of text
_ADVANCE = 11.0  # from one column to the next
_LINE = 38.0
_MARGIN = 40.0
_WIDTH = 2 * _MARGIN + _COLUMNS * _ADVANCE
_CARD, _ROW = 330.0, 22.0  # width of the card shown on hover, height of a row in it
_MIN_HEIGHT = 360.0  # room for a card above or below any line

_STYLE = f"""
svg {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ svg {{ {DARK} }} }}
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
{"".join(f".s{s.number} {{ fill: {s.colour}; }} .i{s.number} {{ fill: {s.ink}; }}" for s in STEPS)}
"""


class _Piece(NamedTuple):
    """A token's text, or a word of the lead, which has no group."""

    text: str
    group: ShadedGroup | None


class _Placed(NamedTuple):
    """A piece's visible text and its line and column, from 0. columns: its width."""

    piece: _Piece
    text: str
    line: int
    column: int
    columns: int


def picture(title: str, passages: Sequence[Passage]) -> str:
    """The whole picture as SVG."""
    elements, cards = [_title(title, 52), _legend()], list[str]()
    y = 110.0
    for passage in passages:
        y = _draw(passage, y, elements, cards)
    height = max(y + _MARGIN, _MIN_HEIGHT)
    # Cards come last, to lie above everything else.
    box = f'width="{_WIDTH:g}" height="{height:g}" viewBox="0 0 {_WIDTH:g} {height:g}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {box}>
<title>{markup(title)}</title>
<style>{_STYLE}</style>
<rect class="page" width="100%" height="100%"/>
{"".join(elements)}{"".join(cards)}</svg>
"""


def _title(title: str, y: float) -> str:
    return f'<text class="title ink" x="{_MARGIN:g}" y="{y:g}">{markup(title)}</text>\n'


def _legend() -> str:
    out, x = f'<text class="small ink" x="{_MARGIN:g}" y="86">probability</text>', _MARGIN + 84
    for step in STEPS:
        wide, ink = 8.0 * len(step.label) + 14, f"i{step.number}"
        out += f'<rect class="s{step.number}" x="{x:g}" y="70" width="{wide:g}" height="23" rx="5"/>'
        out += f'<text class="small {ink}" x="{x + wide / 2:g}" y="86" text-anchor="middle">{step.label}</text>'
        if step.underlined:
            out += f'<rect class="{ink}" x="{x + 8:g}" y="89" width="{wide - 16:g}" height="1.5"/>'
        x += wide + 8
    return out + "\n"


def _draw(passage: Passage, y: float, elements: list[str], cards: list[str]) -> float:
    """Draws a passage from y on; returns the y of the next one."""
    if passage.title:
        y += 24
        elements.append(_title(passage.title, y))
        y += 12
    lines = 0
    pieces = [_Piece(text, None) for text in re.findall(r"\n|\s?\S+|\s", passage.lead)]
    pieces += [_Piece(group.text, group) for group in passage.groups]
    for placed in _placed(pieces):
        lines = placed.line + 1
        elements.append(_drawn(placed, y))
        if placed.piece.group:
            cards.append(_card(placed, placed.piece.group, y))
    y += lines * _LINE
    if passage.figures:
        y += 50
        for index, (name, value) in enumerate(passage.figures):
            x = _MARGIN + 170 * index
            elements.append(f'<text class="big ink" x="{x:g}" y="{y:g}">{markup(value)}</text>')
            elements.append(f'<text class="small faint" x="{x:g}" y="{y + 20:g}">{markup(name)}</text>\n')
        y += 44
    return y


def _placed(pieces: Sequence[_Piece]) -> Iterator[_Placed]:
    """Sets pieces into lines, which break after a newline and before a word that does not fit."""
    line = column = 0
    for word in _words(pieces):
        columns = sum(_columns(piece.text) for piece in word) - word[0].text.startswith(" ")
        new_line = bool(column) and column + columns > _COLUMNS
        if new_line:
            line, column = line + 1, 0
        for piece in word:
            body, newline, suffix = piece.text.rpartition("\n")
            text = (body + newline).replace("\n", "⏎") if newline else suffix
            text = legible(text.replace("\t", "⇥"))
            if text.startswith(" ") and text.strip():  # the space before a word is not shaded
                text, column = text[1:], column + (not new_line)
            if column and column + _columns(text) > _COLUMNS:  # a word longer than a line
                line, column = line + 1, 0
            text = fitted(text, _COLUMNS) if width(text) > _COLUMNS else text
            new_line = False
            yield _Placed(piece, text, line, column, _columns(text))
            column += _columns(text)
            if newline:
                line, column = line + piece.text.count("\n"), width(suffix)


def _words(pieces: Sequence[_Piece]) -> Iterator[list[_Piece]]:
    """Runs of pieces that no line may break between."""
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


def _drawn(placed: _Placed, top: float) -> str:
    """A piece's shade, underline and text."""
    x, y = _MARGIN + placed.column * _ADVANCE, top + placed.line * _LINE
    wide = placed.columns * _ADVANCE
    probability = placed.piece.group.probability if placed.piece.group else None
    out, ink = "", "ink"
    if probability is not None:
        step = step_of(probability)
        ink = f"i{step.number}"
        out += f'<rect class="s{step.number}" x="{x:g}" y="{y + 4:g}" width="{wide - 1.5:g}" height="30" rx="4"/>'
        if step.underlined:
            out += f'<rect class="{ink}" x="{x + 2:g}" y="{y + 28.5:g}" width="{wide - 5.5:g}" height="1.6"/>'
    if placed.text.strip():
        # Stretched to its columns in any font, and centred in the shade.
        fit = f'textLength="{wide - 1.2:g}" lengthAdjust="spacingAndGlyphs"'
        out += f'<text class="{ink}" x="{x - 0.15:g}" y="{y + 24:g}" {fit}>{markup(placed.text)}</text>'
    return out + "\n"


def _card(placed: _Placed, group: ShadedGroup, top: float) -> str:
    """What hovering shows of a group: its tokens, and the alternatives of each."""
    x, y = _MARGIN + placed.column * _ADVANCE, top + placed.line * _LINE
    hit = f'x="{x:g}" y="{y + 4:g}" width="{placed.columns * _ADVANCE - 1.5:g}" height="30" rx="4"'
    rows = list(_rows(group.tokens))
    height = _ROW * len(rows) + 20
    left = min(x, _WIDTH - _MARGIN - _CARD)
    above = y - height > top
    card_top = y - height - 2 if above else y + _LINE
    # Hidden by an attribute, so that programs without style sheets hide it too.
    return (
        f'<g class="token" tabindex="0"><rect class="hit" {hit} fill="none" pointer-events="all"/>'
        f'<g class="card ink" display="none" transform="translate({left:g} {card_top:g})">'
        f'<rect class="back" width="{_CARD:g}" height="{height:g}" rx="8"/>{"".join(rows)}</g></g>\n'
    )


def _rows(tokens: Sequence[ShadedToken]) -> Iterator[str]:
    """The rows of a card."""
    y = 0.0
    for token in tokens:
        y += _ROW
        yield f'<text class="faint" x="14" y="{y:g}">{markup(name_of(token.data))} · {facts_of(token)}</text>'
        for bar in bars(token):
            y += _ROW
            filled = max(2.0, 120 * bar.probability)
            shown = bar.name if len(bar.name) <= 16 else bar.name[:15] + "…"
            name, end = (' class="drawn"', "end drawn") if bar.drawn else ("", "end")
            yield (
                f'<text{name} x="14" y="{y:g}">{markup(shown)}</text>'
                f'<rect class="bar" x="140" y="{y - 9:g}" width="120" height="9" rx="4"/>'
                f'<rect class="s2" x="140" y="{y - 9:g}" width="{filled:.1f}" height="9" rx="4"/>'
                f'<text class="{end}" x="{_CARD - 14:g}" y="{y:g}">{bar.label}</text>'
            )
