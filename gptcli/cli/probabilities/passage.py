"""What a picture of probabilities is of, and the words in it. `picture_html` and `picture_svg` draw it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.cli.probabilities.shading import Cell, Shaded
from gptcli.cli.terminal.stdout import clean
from gptcli.cli.terminal.token_flow import spell

_UNSPELLABLE = re.compile("[\ufffe\uffff]")  # in XML, once controls and surrogates are gone


@dataclass(frozen=True)
class Passage:
    """A text with its probabilities. lead: what came before it, unshaded. figures: names and values."""

    title: str
    cells: Sequence[Cell]
    figures: Sequence[tuple[str, str]] = ()
    lead: str = ""


@dataclass(frozen=True)
class Bar:
    """One of the likeliest tokens at a place. drawn: whether it is the one that is there."""

    name: str
    probability: float
    drawn: bool


def bars(token: Shaded) -> list[Bar]:
    """The likeliest tokens at a token's place, and itself behind them where it is none of those."""
    out = [Bar(named(other.data), math.exp(other.logprob), other.id == token.id) for other in token.top]
    if token.logprob is not None and not any(bar.drawn for bar in out):
        out.append(Bar(named(token.data), math.exp(token.logprob), True))
    return out


def named(data: bytes) -> str:
    """A token's bytes for a person, in characters that fonts have."""
    return spell(data).replace("␠", "␣")


def shown(probability: float) -> str:
    """A probability in as few characters as tell it."""
    return f"{probability:.3f}" if probability >= 0.0005 else f"{probability:.0e}"


def legible(text: str) -> str:
    """A text without anything that a page or picture cannot hold."""
    return _UNSPELLABLE.sub("\ufffd", clean(text))
