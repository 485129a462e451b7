"""Caches of texts that run together; a common prefix of two texts is copied, not run again. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gptcli.errors import OutOfMemory
from gptcli.model.cache.common_prefix import common_length
from gptcli.runtime.engine import Cache, Engine

_WORTH_COPYING, _WHOLE = 16, 4  # tokens: of a prefix, and of a whole prompt, which many samples may share
_MOST_KEPT = 32  # caches of texts that have ended; all of them have no more tokens than a context holds


class CachePool:
    """The caches of one engine: those in use, and those of texts that ended lately."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._in_use: list[Cache] = []
        self._kept: deque[Cache] = deque()

    def worth_copying(self, text: Sequence[int]) -> int:
        """The least first tokens of a text for which copying is faster than running them."""
        return len(text) if _WHOLE <= len(text) < _WORTH_COPYING else _WORTH_COPYING

    def most_common(self, text: Sequence[int]) -> int:
        """The most of a text's first tokens that a cache holds."""
        return max((self._common(cache, text) for cache in (*self._kept, *self._in_use)), default=0)

    def take(self, text: Sequence[int]) -> Cache:
        """A cache for a text, with as many of its first tokens as another cache has, if copying is worth it."""
        cache = self._with_common(text) or self._engine.new_cache()
        self._in_use.append(cache)
        return cache

    def give_back(self, cache: Cache) -> None:
        """Keeps the cache of a text that has ended for a while."""
        self.forget(cache)
        self._kept.append(cache)
        while len(self._kept) > _MOST_KEPT or sum(each.length for each in self._kept) > self._engine.ctx_size:
            self._kept.popleft()

    def forget(self, cache: Cache) -> None:
        """Frees a cache."""
        self._in_use = [each for each in self._in_use if each is not cache]

    def drop_kept(self) -> bool:
        """Frees the caches of texts that have ended; returns whether there were any."""
        dropped = bool(self._kept)
        self._kept.clear()
        return dropped

    def _common(self, cache: Cache, text: Sequence[int]) -> int:
        tokens, least = cache.tokens, self.worth_copying(text)
        # Most texts differ at once, and are not compared token by token.
        return common_length(tokens, text) if tokens[:least] == text[:least] else 0

    def _with_common(self, text: Sequence[int]) -> Cache | None:
        longest, best = self.worth_copying(text) - 1, None
        for cache in (*self._kept, *self._in_use):
            if (common := self._common(cache, text)) > longest:
                longest, best = common, cache
        if best is None:
            return None
        if any(best is cache for cache in self._kept) and 2 * longest >= best.length:
            self._kept = deque(cache for cache in self._kept if cache is not best)
            best.truncate(longest)
            return best
        try:
            return self._engine.copy_of(best, longest)
        except OutOfMemory:
            return None
