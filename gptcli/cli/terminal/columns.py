"""Text in terminal columns: measured, cut, padded, packed into lines."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

_WORD = re.compile(r"(?:`[^`]*`|\S)+")


def terminal_columns() -> int:
    """The width of the terminal."""
    return max(1, shutil.get_terminal_size().columns)


def width(text: str) -> int:
    """Columns that a text takes."""
    if text.isascii():
        return len(text)
    import wcwidth

    columns = wcwidth.wcswidth(text)
    return columns if columns >= 0 else len(text)


def fitted(text: str, columns: int) -> str:
    """A text cut or padded to a number of columns."""
    text = text[: 8 * columns]  # measuring a very long text again and again would be slow
    while width(text) > columns:
        text = text[:-2] + "…"
    return text + " " * (columns - width(text))


def packed(words: Iterable[str], gap: str, columns: int) -> Iterator[list[str]]:
    """Words in lines that fit when joined with the gap; a word that is too wide gets its own line."""
    line: list[str] = []
    for word in words:
        if line and width(gap.join([*line, word])) > columns:
            yield line
            line = []
        line.append(word)
    if line:
        yield line


def wrapped(text: str, columns: int) -> str:
    """A text with line breaks between words, none within `a command`. All lines are indented as the first."""
    if width(text) <= columns:
        return text
    indent = text[: len(text) - len(text.lstrip())]
    lines = packed(_WORD.findall(text), " ", columns - len(indent))
    return "\n".join(indent + " ".join(line) for line in lines)


def hanging(head: str, text: str, columns: int) -> str:
    """A text after a head; its lines are aligned."""
    start = width(head)
    return head + wrapped(text, columns - start).replace("\n", "\n" + " " * start)


def excerpt(text: str, characters: int = 60) -> str:
    """The beginning of a text, on one line."""
    return textwrap.shorten(text, max(8, characters), placeholder=" …")
