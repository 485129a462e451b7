"""Releases token bytes as they arrive, but never half a character. Knows nothing of models."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Protocol


class Detokenizer:
    """Releases bytes as soon as they are whole UTF-8 characters, or can no longer become one.

    The returned pieces join to the bytes that were put in, and decode one by one to the whole text.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._buffer = b""

    def push(self, data: bytes) -> bytes:
        """Takes the next token's bytes. Returns the bytes that can be shown."""
        self._buffer += data
        self._decoder.decode(data)
        ready = len(self._buffer) - len(self._decoder.getstate()[0])
        released, self._buffer = self._buffer[:ready], self._buffer[ready:]
        return released

    def flush(self) -> bytes:
        """Ends the text. Returns the bytes of an incomplete character, if any."""
        released, self._buffer = self._buffer, b""
        self._decoder.reset()
        return released


class TokenDetokenizer(Protocol):
    """Makes text of tokens as they arrive, but never half a character."""

    def push(self, id: int) -> bytes:
        """Takes the next token. Returns the bytes that can be shown."""
        ...

    def flush(self) -> bytes:
        """Ends the text. Returns what is left of it."""
        ...


class ExactDetokenizer:
    """A `TokenDetokenizer` for tokens whose bytes do not depend on their neighbours."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._detokenizer = Detokenizer()

    def push(self, id: int) -> bytes:
        """Takes the next token. Returns the bytes that can be shown."""
        return self._detokenizer.push(self._token_bytes(id))

    def flush(self) -> bytes:
        """Ends the text. Returns the bytes of an incomplete character, if any."""
        return self._detokenizer.flush()
