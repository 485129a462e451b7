"""The tokens of a text, one after the other, with where each is in it; and figures about them all."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from gptcli.text.long_text.chunks import encode_parts
from gptcli.text.long_text.offsets import Offsets
from gptcli.text.tokenizer import Tokenizer


class Token(NamedTuple):
    """A token in its text.

    number: counts from 0. data: the bytes it stands for, as the model spells them. start, end: the bytes of the text
    that became it, and first_char, end_char the characters that those are in. special: whether it is a control token.
    in_chat: whether this is a token of a conversation; message, role: the index and role of the message that it belongs
    to, if to any.
    """

    number: int
    id: int
    data: bytes
    start: int
    end: int
    first_char: int
    end_char: int
    special: bool
    in_chat: bool = False
    message: int | None = None
    role: str | None = None


def tokens_of(
    tokenizer: Tokenizer, blocks: Iterable[str], *, special: bool, add_special: bool, largest: int, where: str
) -> Iterator[Token]:
    """The tokens of a text of any length. add_special: whether what the model expects around a text is added.

    special, largest, where, and what is raised: as `encode_parts`.
    """
    before, behind = tokenizer.surroundings if add_special else ((), ())
    offsets = Offsets(tokenizer)
    index, at, char = 0, 0, 0
    for id in before:
        yield Token(index, id, tokenizer.surface(id), 0, 0, 0, 0, tokenizer.is_control(id))
        index += 1
    for part in encode_parts(tokenizer, blocks, special=special, largest=largest, where=where, offsets=True):
        lead = len(part.text[: part.lead].encode())
        ranges = offsets.of(part.text, part.encoding)[part.skip :]
        chars = _chars(part.text)
        for id, (start, end) in zip(part.ids, ranges, strict=True):
            # What a token in the lead was given may end within this part's first bytes.
            start, end = max(start, lead), max(end, lead)
            first = chars[start]
            last = chars[end - 1] + 1 if end > start else first
            place = (at + start - lead, at + end - lead, char + first - part.lead, char + last - part.lead)
            yield Token(index, id, tokenizer.surface(id), *place, tokenizer.is_control(id))
            index += 1
        at += len(part.text.encode()) - lead
        char += len(part.text) - part.lead
    for id in behind:
        yield Token(index, id, tokenizer.surface(id), at, at, char, char, tokenizer.is_control(id))
        index += 1


def _chars(text: str) -> Sequence[int]:
    """For each byte of a text, and for its end, the index of the character that it is in."""
    if text.isascii():
        return range(len(text) + 1)
    return [index for index, char in enumerate(text) for _ in char.encode()] + [len(text)]


def tokens_of_chat(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[Token]:
    """Tokens of a rendered conversation: the text that they are in is what they spell."""
    data = list(map(tokenizer.surface, ids := list(ids)))
    chars = _Characters()
    ends = accumulate(map(len, data))
    for index, (id, piece, end) in enumerate(zip(ids, data, ends, strict=True)):
        first, last = chars.add(piece)
        yield Token(index, id, piece, end - len(piece), end, first, last, tokenizer.is_control(id), True)


class _Characters:
    """Counts characters in bytes that come in pieces; a byte that goes on with a character counts as that one."""

    def __init__(self) -> None:
        self._done = 0  # characters that have begun

    def add(self, data: bytes) -> tuple[int, int]:
        """The range of characters that the next bytes are in."""
        if not data:
            return self._done, self._done
        begun = sum(byte & 0xC0 != 0x80 for byte in data)
        first = self._done - (data[0] & 0xC0 == 0x80 and self._done > 0)
        self._done += begun
        return first, self._done


class Totals:
    """Figures about texts and their tokens; `longest` are the longest different tokens, at most ten."""

    def __init__(self, unknown_id: int | None) -> None:
        self.bytes = self.chars = self.lines = self.tokens = self.unknown = 0
        self._unknown_id = unknown_id
        self._ids: set[int] = set()
        self._open_line = False

    def add_text(self, text: str) -> None:
        """Counts the next part of the text."""
        if text:
            self.bytes += len(text) if text.isascii() else len(text.encode())
            self.chars += len(text)
            ended = text.endswith("\n")
            # The last line counts although no newline ends it.
            self.lines += text.count("\n") - self._open_line + (not ended)
            self._open_line = not ended

    def add_ids(self, ids: Sequence[int]) -> None:
        """Counts the next tokens."""
        self.tokens += len(ids)
        self._ids.update(ids)
        if self._unknown_id is not None:
            self.unknown += ids.count(self._unknown_id)

    @property
    def unique(self) -> int:
        """How many different tokens there are."""
        return len(self._ids)

    def longest(self, tokenizer: Tokenizer) -> list[int]:
        """The ids of the longest tokens of those that occur, ten at most."""
        plain = (id for id in self._ids if not tokenizer.is_control(id))
        return heapq.nsmallest(10, plain, key=lambda id: (-len(tokenizer.surface(id)), id))

    def record(self) -> dict[str, int | float | None]:
        """The figures by name; a mean over no tokens is None."""
        return {
            "bytes": self.bytes,
            "chars": self.chars,
            "lines": self.lines,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / self.tokens, 4) if self.tokens else None,
            "chars_per_token": round(self.chars / self.tokens, 4) if self.tokens else None,
            "unique": self.unique,
            "unknown": self.unknown,
        }
