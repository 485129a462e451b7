"""Finds stop texts in a stream of bytes, even if they are split between its chunks."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds bytes back that may begin a stop text, until it is clear whether they do."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._stops = [(stop.encode(), stop) for stop in strings]
        self._pending = b""
        self.matched: str | None = None

    def push(self, data: bytes) -> bytes:
        """Takes the next bytes; returns those before any stop text. Sets `matched` once one is complete.

        The stop text that begins first wins; of several that begin together, the longest complete one.
        """
        self._pending += data
        # A stop text that began earlier may still become complete.
        return self._release(len(self._pending) - self._possible_start())

    def flush(self) -> bytes:
        """Ends the text; returns the pending bytes, up to a stop text. Sets `matched` as `push` does."""
        return self._release(len(self._pending))

    def _release(self, border: int) -> bytes:
        """Releases the bytes before the border, or before a complete stop text that begins no later."""
        pending = self._pending
        found = [(position, -len(stop), text) for stop, text in self._stops if (position := pending.find(stop)) >= 0]
        if found and min(found)[0] <= border:
            border, _, self.matched = min(found)
            self._pending = b""
        else:
            self._pending = pending[border:]
        return pending[:border]

    def _possible_start(self) -> int:
        """Length of the longest suffix of the pending bytes that begins a stop text."""
        longest = max((len(stop) for stop, _ in self._stops), default=0) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop, _ in self._stops):
                return length
        return 0
