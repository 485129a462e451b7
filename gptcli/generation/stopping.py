"""Finds stop texts in a stream of bytes, across the borders of its pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Holds back what may be the beginning of a stop text until it is one, or is not."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._stops = [(stop.encode(), stop) for stop in strings]
        self._held = b""
        self.matched: str | None = None

    def push(self, data: bytes) -> bytes:
        """Takes the next bytes; returns those that belong to no stop text. Sets `matched` where one is complete.

        The stop text that begins first wins; of several that begin together, the longest that is complete.
        """
        self._held += data
        # What may still become an earlier stop text is waited for.
        return self._released(len(self._held) - self._possible_start())

    def flush(self) -> bytes:
        """Ends the text; returns what was held back, up to a stop text. Sets `matched` as `push` does."""
        return self._released(len(self._held))

    def _released(self, border: int) -> bytes:
        """Gives up what is before the border, or before a complete stop text that begins there at the latest."""
        found = [(position, -len(stop), text) for stop, text in self._stops if (position := self._held.find(stop)) >= 0]
        if found and min(found)[0] <= border:
            border, _, self.matched = min(found)
            ready, self._held = self._held[:border], b""
            return ready
        ready, self._held = self._held[:border], self._held[border:]
        return ready

    def _possible_start(self) -> int:
        """Length of the longest end of the held bytes that begins a stop text."""
        longest = max((len(stop) for stop, _ in self._stops), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop, _ in self._stops):
                return length
        return 0
