"""What the HTML page and the SVG picture of probabilities share: their texts, words and palette."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gptcli.cli.probabilities.shaded_tokens import ShadedGroup, ShadedToken
from gptcli.cli.terminal.stdout import clean
from gptcli.cli.terminal.token_flow import spell

LIGHT = "--page: #ffffff; --ink: #1b1f24; --faint: #66707c; --edge: #d5dbe1; --bar: #e8ecf0;"
DARK = "--page: #14171b; --ink: #e8eaed; --faint: #98a2ad; --edge: #3a424b; --bar: #39424c;"
_NOT_XML = re.compile("[\ufffe\uffff]")  # with controls and surrogates, all that XML cannot spell


@dataclass(frozen=True)
class Passage:
    """A text with its probabilities. figures: names and values. lead: unshaded text before it."""

    title: str
    groups: Sequence[ShadedGroup]
    figures: Sequence[tuple[str, str]] = ()
    lead: str = ""


@dataclass(frozen=True)
class Bar:
    """A likely token at a position. drawn: whether it is the one in the text."""

    name: str
    probability: float
    drawn: bool

    @property
    def label(self) -> str:
        """The probability in few characters."""
        return f"{self.probability:.3f}" if self.probability >= 0.0005 else f"{self.probability:.0e}"


def bars(token: ShadedToken) -> list[Bar]:
    """The likeliest tokens at a token's position, and the token itself last if it is not among them."""
    bars = [Bar(name_of(other.data), math.exp(other.logprob), other.id == token.id) for other in token.top]
    if token.logprob is not None and not any(bar.drawn for bar in bars):
        bars.append(Bar(name_of(token.data), math.exp(token.logprob), True))
    return bars


def name_of(data: bytes) -> str:
    """A token's bytes for a person, in characters that common fonts have."""
    return spell(data).replace("␠", "␣")


def facts_of(token: ShadedToken) -> str:
    """A token's id and log-probability."""
    return f"id {token.id} · {'nothing before it' if token.logprob is None else f'logprob {token.logprob:.3f}'}"


def legible(text: str) -> str:
    """A text without characters that a page or picture cannot contain."""
    return _NOT_XML.sub("\ufffd", clean(text))


def markup(text: str) -> str:
    """A text as HTML or XML spells it."""
    return escape(legible(text))
