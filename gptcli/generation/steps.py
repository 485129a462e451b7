"""Where the logits for the next token come from: the steps of one text, or those that several texts share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from gptcli.generation.sampling.sampler import Logits
from gptcli.generation.speculation import Drafter, Pace

if TYPE_CHECKING:
    from gptcli.model.cache import KVCache
    from gptcli.runtime.engine import Engine

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


class TextCache(Protocol):
    """What an engine keeps of one text; see `model.cache.KVCache`."""

    @property
    def length(self) -> int:
        """How many tokens it holds."""

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest beginning that is also the prompt's."""

    def truncate(self, length: int) -> None:
        """Forgets all but the first so many tokens."""


class TextEngine(Protocol):
    """What runs one text, over a cache of its own kind; see `runtime.engine.Engine`."""

    ctx_size: int
    load_s: float

    def new_cache(self) -> Any:
        """An empty cache."""

    def most_rows(self, tokens: int) -> int:
        """How many texts of so many tokens may share a step."""

    def prefill(self, tokens: Sequence[int], cache: Any, on_progress: Progress, cancelled: Cancelled) -> Logits | None:
        """Runs tokens behind those in the cache; the last one's logits, or None once cancelled."""

    def step(self, tokens: Sequence[int], cache: Any) -> Any:
        """Runs a token or a few behind those in the cache; the logits behind each."""

    def most_ahead(self, cache: Any) -> int:
        """How many tokens may be run ahead of the next one, so that they can be taken back."""


class Steps(Protocol):
    """Steps of texts that are equally long. Logits are (vocab,) in fp32, one a text, in the texts' order."""

    drafted: int
    """Tokens that were run ahead."""
    kept: int
    """Those of them that came true."""

    def begin(
        self, prompt: Sequence[int], texts: int, on_progress: Progress, cancelled: Cancelled
    ) -> tuple[int, Sequence[Logits] | None]:
        """Runs the prompt that texts begin with: how many tokens of it, and the logits; None once cancelled."""

    def after(self, texts: Sequence[Sequence[int]]) -> Sequence[Logits]:
        """Logits behind texts of which all but the last token were run, each a token longer than the last time."""

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """Logits behind other texts than before; None once cancelled."""

    def leave(self, place: int) -> None:
        """A text has ended; the last one takes its place."""


def _prefill(
    engine: TextEngine, cache: TextCache, prompt: Sequence[int], on_progress: Progress, cancelled: Cancelled
) -> tuple[int, Logits | None]:
    # The last token is run even where the cache holds it: its logits are what the first draw needs.
    cache.keep_common(prompt[:-1])
    prefilled = len(prompt) - cache.length
    return prefilled, engine.prefill(prompt[cache.length :], cache, on_progress, cancelled)


class SingleSteps:
    """One text's. With a drafter, a step runs up to `most_drafted` tokens ahead."""

    def __init__(self, engine: TextEngine, cache: TextCache, drafter: Drafter | None, most_drafted: int) -> None:
        self._engine, self._cache = engine, cache
        self._drafter, self._pace = drafter, Pace(most_drafted)
        self._ahead: deque[tuple[int, Logits]] = deque()  # drafted tokens that have run, and the logits behind each
        self._last: tuple[int, float] | None = None  # how many tokens the last step had drafted, and its seconds
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
            self.kept += 1
            return [self._ahead.popleft()[1]]
        self._settle(len(text) - 1)
        started = time.perf_counter()
        draft = self._draft(text)
        logits = self._engine.step([token, *draft], self._cache)
        self._last = len(draft), time.perf_counter() - started
        self._ahead.extend(zip(draft, logits[1:], strict=True))
        self.drafted += len(draft)
        return [logits[0]]

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """See `Steps.again`."""
        [text] = texts
        self._cache.truncate(0)
        self._ahead.clear()
        self._last = None
        if self._drafter:
            self._drafter.forget()
        logits = self._engine.prefill(text, self._cache, lambda done, total: None, cancelled)
        return None if logits is None else [logits]

    def leave(self, place: int) -> None:
        """Nothing: it was the only one."""

    def _draft(self, text: Sequence[int]) -> list[int]:
        most = min(self._pace.wanted(), self._engine.most_ahead(self._cache)) if self._drafter else 0
        return self._drafter.draft(text, most) if self._drafter and most else []

    def _settle(self, length: int) -> None:
        """Learns from the last step, and forgets what was drafted for it and did not come true."""
        if self._drafter and self._last is not None:
            drafted, seconds = self._last
            self._pace.learn(drafted, drafted - len(self._ahead), seconds)
        if self._ahead:
            self._cache.truncate(length)
            self._ahead.clear()


class SharedSteps:
    """Several texts', which read the weights once a step for all. They begin with a copy of one cache each."""

    drafted = kept = 0  # a step is shared already: running ahead would gain less, and each text would go its own way

    def __init__(self, engine: Engine, cache: KVCache) -> None:
        self._engine, self._prompt_cache = engine, cache
        self._cache: KVCache = engine.new_cache()

    def begin(
        self, prompt: Sequence[int], texts: int, on_progress: Progress, cancelled: Cancelled
    ) -> tuple[int, Sequence[Logits] | None]:
        """See `Steps.begin`."""
        prefilled, logits = _prefill(self._engine, self._prompt_cache, prompt, on_progress, cancelled)
        if logits is None:
            return prefilled, None
        self._engine.fill(self._cache, [self._prompt_cache] * texts)
        return prefilled, [logits] * texts

    def after(self, texts: Sequence[Sequence[int]]) -> Sequence[Logits]:
        """See `Steps.after`."""
        return self._engine.decode_rows([text[-1] for text in texts], self._cache).unbind()

    def again(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """See `Steps.again`."""
        logits = self._engine.prefill_rows(texts, self._cache, cancelled)
        return None if logits is None else logits.unbind()

    def leave(self, place: int) -> None:
        """See `Steps.leave`."""
        self._cache.drop(place)
