"""Computes the logits for the next token: in the steps of one text, or in steps that several texts share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from gptcli.generation.sampling.constraint import Constraint
from gptcli.generation.speculation import Drafter, Pace
from gptcli.runtime.engine import Cache, Cancelled, Engine, Logits, Progress, Rows, keep_common, no_progress


class Steps(Protocol):
    """Steps of one or more texts that begin with one prompt. Logits are one for each text, in order."""

    drafted: int
    """Tokens that were run ahead."""
    kept: int
    """Drafted tokens that were then drawn."""

    def begin(
        self, prompt: Sequence[int], texts: int, on_progress: Progress, cancelled: Cancelled
    ) -> tuple[int, Sequence[Logits] | None]:
        """Runs the prompt; returns the number of its tokens that were not cached, and logits, None once cancelled."""

    def after(self, texts: Sequence[Sequence[int]]) -> Sequence[Logits]:
        """Logits after texts whose tokens but the last were run."""

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """Logits after other texts than before; None once cancelled."""

    def leave(self, row: int) -> None:
        """A text has ended; the last one takes its index."""


def _prefill(
    engine: Engine, cache: Cache, prompt: Sequence[int], on_progress: Progress, cancelled: Cancelled
) -> tuple[int, Logits | None]:
    # The last token is run even where it is cached: the first draw needs its logits.
    keep_common(cache, prompt[:-1])
    prefilled = len(prompt) - cache.length
    return prefilled, engine.prefill(prompt[cache.length :], cache, on_progress, cancelled)


class SingleSteps:
    """The steps of one text. With a drafter, a step runs up to `most_drafted` tokens ahead.

    constraint: its forced tokens are run in one step, and it cuts drafts; it has taken the last token.
    """

    def __init__(
        self,
        engine: Engine,
        cache: Cache,
        drafter: Drafter | None = None,
        most_drafted: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self._engine, self._cache, self._constraint = engine, cache, constraint
        self._drafter, self._pace = drafter, Pace(most_drafted)
        self._ahead: deque[tuple[int, Logits]] = deque()  # tokens that were run, with the logits after each
        self._last: tuple[int, float] | None = None  # drafted tokens and seconds of the last step; None if forced
        self.drafted = self.kept = 0

    def begin(
        self, prompt: Sequence[int], texts: int, on_progress: Progress, cancelled: Cancelled
    ) -> tuple[int, Sequence[Logits] | None]:
        """See `Steps.begin`."""
        assert texts == 1
        prefilled, logits = _prefill(self._engine, self._cache, prompt, on_progress, cancelled)
        return prefilled, None if logits is None else [logits]

    def after(self, texts: Sequence[Sequence[int]]) -> Sequence[Logits]:
        """See `Steps.after`."""
        [text] = texts
        token = text[-1]
        if self._ahead and self._ahead[0][0] == token:
            self.kept += self._last is not None
            return [self._ahead.popleft()[1]]
        self._settle(len(text) - 1)
        started = time.perf_counter()
        forced = self._forced()
        ahead = forced or self._draft(text)
        logits = self._engine.step([token, *ahead], self._cache)
        self._last = None if forced else (len(ahead), time.perf_counter() - started)
        self._ahead.extend(zip(ahead, logits[1:], strict=True))
        self.drafted += 0 if forced else len(ahead)
        return [logits[0]]

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """See `Steps.again`."""
        [text] = texts
        self._cache.truncate(0)
        self._ahead.clear()
        self._last = None
        if self._drafter:
            self._drafter.forget()
        logits = self._engine.prefill(text, self._cache, no_progress, cancelled)
        return None if logits is None else [logits]

    def leave(self, row: int) -> None:
        """Does nothing: the only text has ended."""

    def _draft(self, text: Sequence[int]) -> list[int]:
        most = min(self._pace.wanted(), self._engine.most_ahead(self._cache)) if self._drafter else 0
        draft = self._drafter.draft(text, most) if self._drafter and most else []
        return draft if self._constraint is None else draft[: self._constraint.fitting(draft)]

    def _forced(self) -> list[int]:
        """The tokens that the constraint forces."""
        if self._constraint is None:
            return []
        return list(self._constraint.forced()[: self._engine.most_ahead(self._cache)])

    def _settle(self, length: int) -> None:
        """Learns from the last step, and forgets its rejected drafts."""
        if self._drafter and self._last is not None:
            drafted, seconds = self._last
            self._pace.learn(drafted, drafted - len(self._ahead), seconds)
        if self._ahead:
            self._cache.truncate(length)
            self._ahead.clear()


class SharedSteps:
    """Steps of several texts, as rows that take each step together.

    Nothing is drafted: shared steps would gain less, and each text would run ahead by another number of tokens.
    """

    drafted = kept = 0

    def __init__(self, engine: Engine, cache: Cache, rows: Rows) -> None:
        self._engine, self._cache, self._rows = engine, cache, rows

    def begin(
        self, prompt: Sequence[int], texts: int, on_progress: Progress, cancelled: Cancelled
    ) -> tuple[int, Sequence[Logits] | None]:
        """See `Steps.begin`: the prompt is run once and its cache copied."""
        prefilled, logits = _prefill(self._engine, self._cache, prompt, on_progress, cancelled)
        if logits is None:
            return prefilled, None
        self._rows.begin(self._cache, texts)
        return prefilled, [logits] * texts

    def after(self, texts: Sequence[Sequence[int]]) -> Sequence[Logits]:
        """See `Steps.after`."""
        return self._rows.step([text[-1] for text in texts])

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """See `Steps.again`."""
        return self._rows.replace(texts, cancelled)

    def leave(self, row: int) -> None:
        """See `Steps.leave`."""
        self._rows.drop(row)
