"""How tokens look on a terminal: every byte visible, every border too, nothing that drives it. Knows no tokenizer."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from gptcli.cli.terminal.stderr import is_dumb_terminal
from gptcli.cli.terminal.stdout import clean

BOUNDARY = "·"
# Light blue and peach: apart in lightness for every kind of colour vision, and readable on dark and light terminals.
_BACKGROUNDS = ("\x1b[38;5;16;48;5;153m", "\x1b[38;5;16;48;5;223m")
_CONTROL = "\x1b[1;38;5;231;48;5;60m"
_FAINT = "\x1b[2m"
PLAIN = "\x1b[0m"
_WHITESPACE = str.maketrans({" ": "␠", "\n": "⏎", "\t": "⇥"})
_STRAY = re.compile("([\udc80-\udcff]+)")


@dataclass(frozen=True)
class Group:
    """Tokens that make whole characters together, nearly always one.

    tokens: what each spells. whole: the characters that are split between them, if any.
    control: whether this is a control token. ends_line: whether a newline is in it.
    """

    tokens: tuple[str, ...]
    whole: str = ""
    control: bool = False
    ends_line: bool = False


@lru_cache(maxsize=1 << 16)
def spell(data: bytes) -> str:
    """A token's bytes for a person: `␠ ⏎ ⇥` for whitespace, `⟨e2 80⟩` for bytes of half a character."""
    parts = _STRAY.split(data.decode("utf-8", "surrogateescape"))
    return "".join(_stray_bytes(part) if index % 2 else visible(part) for index, part in enumerate(parts)) or "⟨⟩"


def visible(text: str) -> str:
    """A text in which nothing is invisible, or runs into what stands before it."""
    text = clean(text.translate(_WHITESPACE))
    if not text or text.isascii():
        return text
    text = "".join(f"<U+{ord(char):04X}>" if unicodedata.category(char) == "Cf" else char for char in text)
    return text if width(text[0]) else "◌" + text  # a combining mark


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    import wcwidth

    columns = wcwidth.wcswidth(text)
    return columns if columns >= 0 else len(text)


def fitted(text: str, columns: int) -> str:
    """A text cut or padded to so many columns."""
    text = text[: 8 * columns]  # of a text far too long, measuring the rest again and again would take ages
    while width(text) > columns:
        text = text[:-2] + "…"
    return text + " " * (columns - width(text))


def packed(words: Iterable[str], gap: str, columns: int) -> Iterator[list[str]]:
    """Words in lines of at most so many columns, counted with a gap between them; one that is wider has its own."""
    line: list[str] = []
    for word in words:
        if line and width(gap.join([*line, word])) > columns:
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def grouped(pieces: Iterable[tuple[bytes, bool]]) -> Iterator[Group]:
    """Groups of tokens, given as their bytes and whether each is a control token, as they come."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting: list[bytes] = []
    for data, control in pieces:
        if control:
            if waiting:
                yield _group(waiting)
                waiting = []
            decoder.reset()
            yield Group((spell(data),), control=True)
            continue
        waiting.append(data)
        decoder.decode(data)
        if not decoder.getstate()[0]:
            yield _group(waiting)
            waiting = []
    if waiting:
        yield _group(waiting)


def uses_colour(is_terminal: bool) -> bool:
    """Whether what goes to stdout may be coloured."""
    return is_terminal and not os.environ.get("NO_COLOR") and not is_dumb_terminal()


def terminal_columns() -> int:
    """The width of the terminal."""
    return max(1, shutil.get_terminal_size().columns)


def painted(tokens: Iterable[bytes], *, colour: bool) -> str:
    """Tokens on one line, as `TokenFlow` shows them."""
    flow = TokenFlow(sys.maxsize, colour=colour)
    return "".join(flow.add(replace(group, ends_line=False)) for group in grouped((data, False) for data in tokens))


def paint(style: str, text: str) -> str:
    """A text in a style, an escape sequence or nothing."""
    return f"{style}{text}{PLAIN}" if style and text else text


class TokenFlow:
    """Lays groups of tokens out in lines of a terminal, with `·` between tokens and a background of its own for each.

    A line ends behind a token with a newline in it, or behind a `·`. margin: what stands before every line.
    """

    def __init__(self, columns: int, *, colour: bool) -> None:
        self._columns = columns
        self._colour = colour
        self._count = 0
        self._column = 0
        self._room = columns
        self._margin = ("", "")
        self._open = False  # whether a border is due before the next token

    def set_margin(self, first: str, rest: str) -> str:
        """Starts a line with `first` before it and `rest` before those that follow; returns what ends the last one."""
        ended = self.end()
        self._margin = (first, rest)
        return ended

    def add(self, group: Group, style: str | None = None) -> str:
        """The characters to write for the next group, in a style of its own or the one given, an escape sequence."""
        out = self._border()
        if style is None:
            own = _CONTROL if group.control else _BACKGROUNDS[self._count % 2]
            style = own if self._colour else ""
        self._count += 1
        text = BOUNDARY.join(group.tokens) + (f"={group.whole}" if group.whole else "")
        taken = width(text)
        if self._column and taken + 1 > self._room - self._column:
            out += self._break()
        if not self._column:
            out += self._start()
        out += self._styled(style, text, taken)
        self._open = not group.ends_line
        if group.ends_line:
            out += self._break()
        return out

    def end(self) -> str:
        """What ends the last line, where it is open."""
        self._open = False
        return self._break() if self._column else ""

    def _start(self) -> str:
        margin, self._margin = self._margin[0], (self._margin[1], self._margin[1])
        self._room = max(2, self._columns - width(margin))
        return self._faint(margin)

    def _border(self) -> str:
        if not self._open:
            return ""
        self._open = False
        self._column += 1
        return self._faint(BOUNDARY)

    def _styled(self, style: str, text: str, taken: int) -> str:
        """A token in its background; one wider than a line goes on in the next."""
        if taken + 1 <= self._room - self._column:
            self._column += taken
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


def _group(parts: Sequence[bytes]) -> Group:
    whole = b"".join(parts)
    return Group(tuple(map(spell, parts)), _split_text(whole, parts), ends_line=b"\n" in whole)


def _split_text(whole: bytes, parts: Sequence[bytes]) -> str:
    """What tokens make together, without the whole characters that the first begins and the last ends with."""
    if len(parts) == 1:
        return ""
    before = len(parts[0].decode("utf-8", "ignore").encode())
    behind = len(parts[-1].decode("utf-8", "ignore").encode())
    split = whole[before : len(whole) - behind]
    return spell(split) if split.decode("utf-8", "ignore").encode() == split else ""  # else no character yet


def _stray_bytes(escaped: str) -> str:
    return f"⟨{' '.join(f'{ord(char) - 0xDC00:02x}' for char in escaped)}⟩"
