"""Runs many texts in shared steps; texts join and leave at any step. No torch.

As in vLLM's scheduler, a step has a budget of tokens: first one for each text that draws, then pieces of new prompts.
"""

from __future__ import annotations

from collections import deque

from gptcli.errors import GptcliError, NonFiniteLogits, OutOfMemory
from gptcli.generation.together.cache_pool import CachePool
from gptcli.generation.together.job import Job
from gptcli.model.cache.common_prefix import common_length
from gptcli.runtime.engine import MOST_ROWS, Cache, Engine, Extension

STEP_TOKENS = 512  # of a step at most, so that no text waits long for the prompts of others


class ContinuousBatch:
    """Texts that share steps. parallel: how many at most; None: as many as still get faster and fit into the memory."""

    def __init__(self, parallel: int | None = None) -> None:
        self._parallel = parallel
        self._most = MOST_ROWS  # fewer once memory ran out
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._pools: dict[Engine, CachePool] = {}

    @property
    def idle(self) -> bool:
        """Whether it has no texts."""
        return not self._running and not self._waiting

    @property
    def full(self) -> bool:
        """Whether one more text would have to wait."""
        self._admit()
        return bool(self._waiting)

    def add(self, job: Job) -> None:
        """Runs a text once there is room for it, after those added before."""
        self._waiting.append(job)

    def cancel(self) -> None:
        """Ends all texts with reason "interrupt" at the next step."""
        for job in (*self._running, *self._waiting):
            job.cancelled = True

    def step(self) -> list[Job]:
        """Runs a step of all texts that have room; returns those with new text or an end.

        A text that fails ends alone, with its error.
        """
        cancelled = [job for job in (*self._running, *self._waiting) if job.cancelled]
        for job in cancelled:
            job.completion.end("interrupt")
            self._leave(job)
        self._admit()
        parts = self._planned()
        for engine in dict.fromkeys(job.engine for job in parts):
            own = [job for job in parts if job.engine is engine]
            for job, outcome in zip(own, engine.extend([parts[job] for job in own]), strict=True):
                if isinstance(outcome, GptcliError):
                    job.completion.error = outcome
                elif job.uncached <= 0:
                    job.take(parts[job].tokens, outcome)
        self._retry_without_memory()
        heard = [job for job in parts if job.completion.said or job.ended]
        for job in heard:
            if job.ended:
                self._leave(job)
        return cancelled + heard

    def _admit(self) -> None:
        while self._waiting and self._has_room(self._waiting[0]):
            self._running.append(self._waiting.popleft())
            self._running[-1].admitted = True

    def _has_room(self, job: Job) -> bool:
        count = len(self._running)
        if count >= min(self._parallel or MOST_ROWS, self._most):
            return count == 0
        longest = max(each.room for each in (*self._running, job))
        fits = count < job.engine.most_rows(longest)
        return count == 0 or fits or (self._drop_kept() and count < job.engine.most_rows(longest))

    def _drop_kept(self) -> bool:
        return any([pool.drop_kept() for pool in self._pools.values()])

    def _planned(self) -> dict[Job, Extension]:
        """The tokens of each text that the next step runs."""
        parts = dict[Job, Extension]()
        drawing = [(job, job.cache) for job in self._running if job.cache is not None and job.uncached == 1]
        left = STEP_TOKENS - len(drawing)
        for job, cache in drawing:
            most = min(left, job.engine.most_ahead(cache)) if job.completion.constraint is not None else 0
            ahead = job.completion.forced_next(most)
            left -= len(ahead)
            parts[job] = Extension(cache, [job.completion.history[-1], *ahead], 1 + len(ahead))
        for job in self._running:
            if job not in parts and left > 0 and (own := job.cache or self._begin(job)) is not None:
                tokens = job.completion.history[own.length : own.length + left]
                if 1 < len(tokens) == job.uncached and not job.engine.most_ahead(own):
                    tokens = tokens[:-1]  # a state can be copied only at the end of a step
                left -= len(tokens)
                parts[job] = Extension(own, tokens)
        return parts

    def _begin(self, job: Job) -> Cache | None:
        """Gives a text its cache; None while a text before it is still running their common prefix."""
        prompt = job.completion.history[:-1]
        pool = self._pools.setdefault(job.engine, CachePool(job.engine))
        enough = pool.most_common(prompt) + pool.worth_copying(prompt)
        for other in self._running[: self._running.index(job)]:
            if other.engine is job.engine and other.uncached > 1:
                if common_length(other.completion.history, prompt) >= enough:
                    return None
        job.begin(pool.take(prompt))
        return job.cache

    def _retry_without_memory(self) -> None:
        """Retries texts that ran out of memory: after kept caches are freed, or once the newest text waits."""
        short = [job for job in self._running if isinstance(job.completion.error, OutOfMemory)]
        if not short:
            return
        freed = self._drop_kept() or any(job.ended for job in self._running if job not in short)
        if not freed and len(self._running) == 1:
            return
        for job in short:
            job.completion.error = None
        if not freed:
            newest = self._running.pop()
            self._most = len(self._running)
            self._free(newest)
            self._waiting.appendleft(newest)

    def _leave(self, job: Job) -> None:
        (self._running if job in self._running else self._waiting).remove(job)
        self._free(job, keep=not isinstance(job.completion.error, NonFiniteLogits))

    def _free(self, job: Job, *, keep: bool = False) -> None:
        if job.cache is not None:
            pool = self._pools[job.engine]
            (pool.give_back if keep else pool.forget)(job.cache)
            job.cache = None
