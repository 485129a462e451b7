"""How tokens look on a terminal: every byte and border visible, no control characters. Knows no tokenizer."""

from __future__ import annotations

import codecs
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from gptcli.cli.terminal.columns import width
from gptcli.cli.terminal.stdout import clean

BOUNDARY = "·"
# Light blue and peach: they differ in lightness for every kind of colour vision, and suit dark and light terminals.
_BACKGROUNDS = ("\x1b[38;5;16;48;5;153m", "\x1b[38;5;16;48;5;223m")
_CONTROL = "\x1b[1;38;5;231;48;5;60m"
_FAINT = "\x1b[2m"
PLAIN = "\x1b[0m"
_WHITESPACE = str.maketrans({" ": "␠", "\n": "⏎", "\t": "⇥"})
_STRAY = re.compile("([\udc80-\udcff]+)")


@dataclass(frozen=True)
class Group:
    """The fewest tokens that end where a character ends; nearly always one.

    tokens: the spelling of each. whole: the characters that are split between tokens, if any. control: whether this is
    a control token. ends_line: whether it contains a newline.
    """

    tokens: tuple[str, ...]
    whole: str = ""
    control: bool = False
    ends_line: bool = False


@lru_cache(maxsize=1 << 16)
def spell(data: bytes) -> str:
    """A token's bytes for a person: `␠ ⏎ ⇥` for whitespace, `⟨e2 80⟩` for bytes of a split character."""
    pieces = _STRAY.split(data.decode("utf-8", "surrogateescape"))
    return "".join(_stray_bytes(piece) if index % 2 else visible(piece) for index, piece in enumerate(pieces)) or "⟨⟩"


def _stray_bytes(escaped: str) -> str:
    return f"⟨{' '.join(f'{ord(char) - 0xDC00:02x}' for char in escaped)}⟩"


def visible(text: str) -> str:
    """A text with every character visible; a combining mark at its start gets its own base."""
    text = clean(text.translate(_WHITESPACE))
    if not text or text.isascii():
        return text
    text = "".join(f"<U+{ord(char):04X}>" if unicodedata.category(char) == "Cf" else char for char in text)
    return text if width(text[0]) else "◌" + text


def grouped(tokens: Iterable[tuple[bytes, bool]]) -> Iterator[Group]:
    """Groups as their tokens come. tokens: the bytes of each, and whether it is a control token."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending: list[bytes] = []
    for data, control in tokens:
        if control:
            if pending:
                yield _group(pending)
                pending = []
            decoder.reset()
            yield Group((spell(data),), control=True)
            continue
        pending.append(data)
        decoder.decode(data)
        if not decoder.getstate()[0]:
            yield _group(pending)
            pending = []
    if pending:
        yield _group(pending)


def _group(tokens: Sequence[bytes]) -> Group:
    data = b"".join(tokens)
    return Group(tuple(map(spell, tokens)), _split_text(data, tokens), ends_line=b"\n" in data)


def _split_text(data: bytes, tokens: Sequence[bytes]) -> str:
    """The characters split between tokens, without whole ones at the start of the first and the end of the last."""
    if len(tokens) == 1:
        return ""
    prefix = len(tokens[0].decode("utf-8", "ignore").encode())
    suffix = len(tokens[-1].decode("utf-8", "ignore").encode())
    split = data[prefix : len(data) - suffix]
    return spell(split) if split.decode("utf-8", "ignore").encode() == split else ""  # "": the character is incomplete


def painted(tokens: Iterable[bytes], *, colour: bool) -> str:
    """Tokens on one line, as `TokenFlow` shows them."""
    flow = TokenFlow(sys.maxsize, colour=colour)
    return "".join(flow.add(replace(group, ends_line=False)) for group in grouped((data, False) for data in tokens))


def paint(style: str, text: str) -> str:
    """A text in a style, which is an escape sequence or empty."""
    return f"{style}{text}{PLAIN}" if style and text else text


class TokenFlow:
    """Lays groups of tokens out in terminal lines, with `·` between tokens and alternating backgrounds.

    A line ends after a token with a newline, or after a `·`. A margin may precede every line.
    """

    def __init__(self, columns: int, *, colour: bool) -> None:
        self._columns = columns
        self._colour = colour
        self._count = 0
        self._column = 0
        self._room = columns
        self._margin = ("", "")
        self._border_due = False  # whether a `·` comes before the next token

    def set_margin(self, first: str, rest: str) -> str:
        """Puts `first` before the next line, `rest` before further ones; returns the end of the last line."""
        ended = self.end()
        self._margin = (first, rest)
        return ended

    def add(self, group: Group, style: str | None = None) -> str:
        """The characters to write for the next group. style: an escape sequence or empty; None alternates."""
        out = self._border()
        if style is None:
            own = _CONTROL if group.control else _BACKGROUNDS[self._count % 2]
            style = own if self._colour else ""
        self._count += 1
        text = BOUNDARY.join(group.tokens) + (f"={group.whole}" if group.whole else "")
        columns = width(text)
        if self._column and columns + 1 > self._room - self._column:
            out += self._break()
        if not self._column:
            out += self._start()
        out += self._styled(style, text, columns)
        self._border_due = not group.ends_line
        if group.ends_line:
            out += self._break()
        return out

    def end(self) -> str:
        """What ends the last line, if it is open."""
        self._border_due = False
        return self._break() if self._column else ""

    def _start(self) -> str:
        margin, self._margin = self._margin[0], (self._margin[1], self._margin[1])
        self._room = max(2, self._columns - width(margin))
        return self._faint(margin)

    def _border(self) -> str:
        if not self._border_due:
            return ""
        self._border_due = False
        self._column += 1
        return self._faint(BOUNDARY)

    def _styled(self, style: str, text: str, columns: int) -> str:
        """A text with its background; one wider than a line continues on the next."""
        if columns + 1 <= self._room - self._column:
            self._column += columns
            return paint(style, text)
        out, line = "", ""
        for char in text:
            columns = width(char)
            if self._column + columns > self._room - 1 and self._column:
                out += paint(style, line) + self._break() + self._start()
                line = ""
            line += char
            self._column += columns
        return out + paint(style, line)

    def _faint(self, text: str) -> str:
        return paint(_FAINT, text) if self._colour else text

    def _break(self) -> str:
        self._column = 0
        return "\n"
