"""Turns token bytes into text as they arrive, and never shows half a character. Knows nothing of models."""

from __future__ import annotations

import codecs


class Detokenizer:
    """Releases bytes as soon as they are whole UTF-8 characters, or can no longer become one.

    The pieces it returns join to exactly the bytes put in, and each decodes by itself to what the whole would.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._buffer = b""

    def push(self, data: bytes) -> bytes:
        """Takes the next token's bytes; returns those that are ready to be shown."""
        self._buffer += data
        self._decoder.decode(data)
        ready = len(self._buffer) - len(self._decoder.getstate()[0])
        released, self._buffer = self._buffer[:ready], self._buffer[ready:]
        return released

    def flush(self) -> bytes:
        """Ends the text; returns what was held back, an incomplete character."""
        released, self._buffer = self._buffer, b""
        self._decoder.reset()
        return released
