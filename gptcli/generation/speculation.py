"""Speculative decoding: several tokens in one step, of which those are kept that would have been drawn anyway.

Drafts are looked up in the text so far (prompt lookup; Saxena, 2023), as texts that are rewritten or quoted repeat
themselves. Every token is still drawn from the model's own distribution, so a wrong draft costs time and nothing else
(Leviathan et al., 2023, with a draft that is certain).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from torch import Tensor

from gptcli.model.cache import KVCache
from gptcli.runtime.engine import Engine

_NGRAMS = (3, 2)  # tokens that must repeat for what followed them to be a draft; longer ones are asked first
_FIRST_DRAFT = 2
_MOST_PAUSES = 64  # tokens


class PromptLookup:
    """Drafts from the text itself; shorter ones, and then none for a while, where they do not come true."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(_FIRST_DRAFT, most)
        self._pause = 0  # tokens still to go without a draft
        self._next_pause = 1
        self._seen = 0  # tokens of the text that are in the index
        self._ends: dict[tuple[int, ...], int] = {}  # an n-gram -> the position behind its latest occurrence

    def draft(self, text: Sequence[int]) -> list[int]:
        """What may follow a text that the last one asked about begins."""
        for end in range(max(self._seen, 1), len(text)):  # what is at the very end has nothing behind it yet
            for size in _NGRAMS:
                if end >= size:
                    self._ends[tuple(text[end - size : end])] = end
        self._seen = len(text)
        if self._pause:
            self._pause -= 1
            return []
        for size in _NGRAMS:
            behind = self._ends.get(tuple(text[-size:])) if len(text) > size else None
            if behind is not None:
                return list(text[behind : behind + self._length])
        return []

    def learn(self, drafted: int, kept: int) -> None:
        """Adapts to how many of the last draft's tokens came true."""
        if kept == drafted:
            self._length = min(2 * self._length, self._most)
            self._next_pause = 1
        elif kept == 0:
            self._length = max(1, self._length // 2)
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _MOST_PAUSES)


class Steps:
    """Logits for one token after the other. With a drafter, a step runs several ahead."""

    def __init__(self, engine: Engine, cache: KVCache, drafter: PromptLookup | None) -> None:
        self._engine, self._cache, self._drafter = engine, cache, drafter
        self._ahead: deque[tuple[int, Tensor]] = deque()  # drafted tokens that have run, and the logits behind each
        self._drafted = 0  # tokens of the last draft
        self.drafted = self.kept = 0  # tokens in all

    def forget(self) -> None:
        """Drops what was run ahead: the cache is another one's now."""
        self._ahead.clear()

    def after(self, text: Sequence[int]) -> Tensor:
        """Logits (vocab,) behind a text of which the cache holds all but the last token."""
        token = text[-1]
        if self._ahead and self._ahead[0][0] == token:
            self.kept += 1
            return self._ahead.popleft()[1]
        self._settle(len(text) - 1)
        draft = self._drafter.draft(text) if self._drafter else []
        draft = draft[: self._engine.most_ahead(self._cache)]
        logits = self._engine.step([token, *draft], self._cache)
        self._ahead.extend(zip(draft, logits[1:], strict=True))
        self._drafted = len(draft)
        self.drafted += len(draft)
        return logits[0]

    def _settle(self, length: int) -> None:
        """Learns from the last draft, and forgets what of it did not come true."""
        if self._drafter and self._drafted:
            self._drafter.learn(self._drafted, self._drafted - len(self._ahead))
        if self._ahead:
            self._cache.truncate(length)
            self._ahead.clear()
        self._drafted = 0
