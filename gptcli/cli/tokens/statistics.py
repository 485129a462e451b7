"""Figures about texts and their tokens."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from gptcli.text.tokenizer import Tokenizer


class Totals:
    """Figures that add up over blocks of text and ids."""

    def __init__(self, unknown_id: int | None) -> None:
        self.bytes = self.chars = self.lines = self.tokens = self.unknown = 0
        self._unknown_id = unknown_id
        self._ids: set[int] = set()
        self._open_line = False

    def add_text(self, text: str) -> None:
        """Counts the next block of the text."""
        if text:
            self.bytes += len(text) if text.isascii() else len(text.encode())
            self.chars += len(text)
            ended = text.endswith("\n")
            # The last line counts even without a newline.
            self.lines += text.count("\n") - self._open_line + (not ended)
            self._open_line = not ended

    def add_ids(self, ids: Sequence[int]) -> None:
        """Counts the next tokens."""
        self.tokens += len(ids)
        self._ids.update(ids)
        if self._unknown_id is not None:
            self.unknown += ids.count(self._unknown_id)

    def longest(self, tokenizer: Tokenizer) -> list[int]:
        """The ids of the longest different tokens, ten at most, without control tokens."""
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
            "unique": len(self._ids),
            "unknown": self.unknown,
        }
