"""Speculative decoding: runs drafted tokens in one step and keeps those that would have been drawn anyway.

Drafts come from the text itself (prompt lookup; Saxena, 2023) or from a smaller model. Every token is still drawn from
the model's own distribution, so a wrong draft costs only time (Leviathan et al., 2023, with certain drafts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gptcli.generation.sampling.sampler import Sampler
from gptcli.runtime.engine import Cache, Cancelled, Engine, keep_common, never_cancelled

_NGRAMS = (3, 2)  # lengths of repeated tokens that are looked up, the preferred first
_FIRST_DRAFT = 2
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 128  # steps
_DRAFTS_IN_A_ROW = 32  # before an ordinary step is timed again
_NEWEST = 0.25  # weight of the newest step in the running mean


class Drafter(Protocol):
    """Guesses the next tokens of one text."""

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that may follow a text, which extends the text of the last call."""

    def forget(self) -> None:
        """Prepares for another text."""


class PromptLookup:
    """Drafts from the text itself."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Prepares for another text."""
        self._seen = 0  # tokens of the text that are indexed
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> position after its latest occurrence

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """The tokens after an earlier occurrence of the last tokens; see `Drafter.draft`."""
        for end in range(max(self._seen, 1), len(text)):  # nothing follows the very end yet
            for size in _NGRAMS:
                if end >= size:
                    self._ends[tuple(text[end - size : end])] = end
        self._seen = len(text)
        for size in _NGRAMS:
            end = self._ends.get(tuple(text[-size:]), 0) if len(text) > size else 0
            if end:
                return list(text[end : end + count])
        return []


class DraftModel:
    """Drafts greedily with a smaller model that has the same tokens.

    cache: the smaller model's, whose common prefix with the text is not run again. sampler: a greedy one.
    """

    def __init__(self, engine: Engine, cache: Cache, sampler: Sampler, cancelled: Cancelled = never_cancelled) -> None:
        self._engine, self._cache, self._sampler, self._cancelled = engine, cache, sampler, cancelled
        self.forget()

    def forget(self) -> None:
        """Prepares for another text."""
        self._seen = 0  # leading tokens of the text that are known to be cached

    def draft(self, text: Sequence[int], count: int) -> list[int]:
        """See `Drafter.draft`; empty past the smaller model's context, and once cancelled."""
        count = min(count, self._engine.ctx_size - len(text))
        if count < 1:
            return []
        self._keep_common(text)
        logits = self._engine.prefill(text[self._cache.length :], self._cache, cancelled=self._cancelled)
        drafted: list[int] = []
        while logits is not None:
            drafted.append(self._sampler.sample(logits, ())[0])
            if len(drafted) == count:
                break
            logits = self._engine.decode(drafted[-1], self._cache)
        return drafted

    def _keep_common(self, text: Sequence[int]) -> None:
        """Forgets rejected drafts, and the last token, which is run next."""
        if not self._seen:
            keep_common(self._cache, text[:-1])
        else:
            end, cached = self._seen, self._cache.tokens
            while end < min(len(cached), len(text) - 1) and cached[end] == text[end]:
                end += 1
            self._cache.truncate(end)
        self._seen = len(text) - 1


class Pace:
    """The number of tokens to draft: more while drafts are kept, none for a while once drafting costs time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._length = min(_FIRST_DRAFT, most)
        self._pause = 0  # steps left without a draft
        self._next_pause = _FIRST_PAUSE
        self._in_a_row = 0  # drafts since the last ordinary step
        self._step_s: float | None = None  # seconds of an ordinary step

    def wanted(self) -> int:
        """Tokens to draft for the next step."""
        if self._pause:
            self._pause -= 1
            return 0
        return 0 if self._step_s is None or self._in_a_row == _DRAFTS_IN_A_ROW else self._length

    def learn(self, drafted: int, kept: int, seconds: float) -> None:
        """Adapts to a step. kept: of its drafted tokens. seconds: with drafting."""
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
