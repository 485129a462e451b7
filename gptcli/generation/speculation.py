"""Speculative decoding: several tokens in one step, of which those are kept that would have been drawn anyway.

Drafts are looked up in the text so far (prompt lookup; Saxena, 2023), as texts that are rewritten or quoted repeat
themselves, or a smaller model makes them. Every token is still drawn from the model's own distribution, so a wrong
draft costs time and nothing else (Leviathan et al., 2023, with a draft that is certain).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gptcli.model.cache import KVCache
    from gptcli.runtime.engine import Engine

_NGRAMS = (3, 2)  # tokens that must repeat for what followed them to be a draft; longer ones are asked first
_FIRST_DRAFT = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 128  # steps
_DRAFTS_IN_A_ROW = 32  # until an ordinary step is timed again
_NEWEST = 0.25  # weight of the newest step among those before it


class Drafter(Protocol):
    """Guesses what follows in one text."""

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """Up to so many tokens that may follow a text, which begins with the last one asked about."""

    def forget(self) -> None:
        """The next text is another one."""


class PromptLookup:
    """Drafts from the text itself."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """The next text is another one."""
        self._seen = 0  # tokens of the text that are in the index
        self._ends: dict[tuple[int, ...], int] = {}  # an n-gram -> the position behind its latest occurrence

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """What followed when the text's last tokens were there before; see `Drafter.draft`."""
        for end in range(max(self._seen, 1), len(text)):  # what is at the very end has nothing behind it yet
            for size in _NGRAMS:
                if end >= size:
                    self._ends[tuple(text[end - size : end])] = end
        self._seen = len(text)
        for size in _NGRAMS:
            behind = self._ends.get(tuple(text[-size:])) if len(text) > size else None
            if behind is not None:
                return list(text[behind : behind + count])
        return []


class DraftModel:
    """Drafts what a smaller model with the same tokens thinks likeliest.

    cache: the smaller model's; what it shares with the text is not run again. vocabulary: tokens that there are.
    """

    def __init__(
        self, engine: Engine, cache: KVCache, vocabulary: int, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._engine, self._cache, self._vocabulary, self._cancelled = engine, cache, vocabulary, cancelled
        self.forget()

    def forget(self) -> None:
        """The next text is another one."""
        self._seen = 0  # tokens at the beginning of the text that the cache is known to hold

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """Greedy tokens; see `Drafter.draft`. None past the smaller model's context, or once cancelled."""
        count = min(count, self._engine.ctx_size - len(text))
        if count < 1:
            return []
        self._keep_common(text)
        logits = self._engine.prefill(text[self._cache.length :], self._cache, cancelled=self._cancelled)
        drafted: list[int] = []
        while logits is not None:
            drafted.append(int(logits[: self._vocabulary].argmax()))
            if len(drafted) == count:
                break
            logits = self._engine.decode(drafted[-1], self._cache)
        return drafted

    def _keep_common(self, text: Sequence[int]) -> None:
        """Forgets drafts that did not come true, and leaves the last token to be run."""
        if not self._seen:
            self._cache.keep_common(text[:-1])
        else:
            end, held = self._seen, self._cache.tokens
            while end < min(len(held), len(text) - 1) and held[end] == text[end]:
                end += 1
            self._cache.truncate(end)
        self._seen = len(text) - 1


class Pace:
    """How many tokens to draft: more while they come true, none for a while where that took longer than it saved."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(_FIRST_DRAFT, most)
        self._pause = 0  # steps still to go without a draft
        self._next_pause = _FIRST_PAUSE
        self._in_a_row = 0  # drafts since the last ordinary step
        self._step_s: float | None = None  # what an ordinary step takes

    def wanted(self) -> int:
        """How many to draft for the next step."""
        if self._pause:
            self._pause -= 1
            return 0
        return 0 if self._step_s is None or self._in_a_row == _DRAFTS_IN_A_ROW else self._length

    def learn(self, drafted: int, kept: int, seconds: float) -> None:
        """Adapts to a step, of whose drafted tokens some came true, and to how long it took with its draft."""
        if not drafted:
            newest = 1.0 if self._step_s is None else _NEWEST
            self._step_s = newest * seconds + (1 - newest) * (self._step_s or 0.0)
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if kept == drafted:
            self._length = min(2 * self._length, self._most)
        elif kept == 0:
            self._length = max(1, self._length // 2)
        if self._step_s is None or seconds < (1 + kept) * self._step_s:
            self._next_pause = _FIRST_PAUSE
        else:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, _LONGEST_PAUSE)
