"""One of many texts that run together: from waiting to its end. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gptcli.errors import GptcliError
from gptcli.generation.completion import Completion, Timing
from gptcli.generation.events import Event
from gptcli.runtime.engine import Cache, Engine, Logits


@dataclass(eq=False)
class Job:
    """A text among others. cancelled: once true, it ends with reason "interrupt" at the next step.

    admitted: whether it has ever been among the running texts. cache: None until it begins.
    """

    engine: Engine
    completion: Completion
    cancelled: bool = False
    admitted: bool = False
    cache: Cache | None = None
    timing: Timing = field(default_factory=Timing)
    _begun_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether no more tokens are drawn."""
        return self.completion.reason is not None or self.completion.error is not None

    @property
    def room(self) -> int:
        """The most tokens that it can have, with the prompt's."""
        most, context = self.completion.stop.max_tokens, self.engine.ctx_size
        return context if most < 0 else min(context, self.completion.prompt_tokens + most)

    @property
    def uncached(self) -> int:
        """The number of tokens to run before the next draw."""
        return len(self.completion.history) - (self.cache.length if self.cache else 0)

    def begin(self, cache: Cache) -> None:
        """Begins after the tokens that a cache has of it."""
        self.cache = cache
        if self._begun_at is None:
            self._begun_at, self.timing.prefilled = time.perf_counter(), self.uncached

    def take(self, tokens: Sequence[int], logits: Sequence[Logits]) -> None:
        """Draws after each token that was run, as long as the drawn token is the next that was run ahead."""
        completion, cache = self.completion, self.cache
        assert cache is not None and self._begun_at is not None
        self.timing.prefill_s = self.timing.prefill_s or time.perf_counter() - self._begun_at
        try:
            for ahead, own in zip([*tokens[len(tokens) - len(logits) + 1 :], None], logits, strict=True):
                completion.take(own)
                if self.ended or self._is_full or completion.history[-1] != ahead:
                    break
        except GptcliError as error:  # for example of a constraint that cannot be met
            completion.error = error
        if not self.ended:
            if self.uncached < 1:
                cache.truncate(len(completion.history) - 1)
            if self._is_full:
                self._leave_the_context()

    @property
    def _is_full(self) -> bool:
        return len(self.completion.history) >= self.engine.ctx_size

    def _leave_the_context(self) -> None:
        completion = self.completion
        if completion.stop.overflow == "shift":
            completion.forget_older_half()
            assert self.cache is not None
            self.cache.truncate(0)
            return
        completion.end_at_full_context(self.engine.ctx_size)

    def events(self) -> Iterator[Event | GptcliError]:
        """Its events since the last call; once it has ended, its end."""
        while self.completion.said:
            yield self.completion.said.popleft()
        if self.ended:
            yield self.completion.error or self.completion.finished(self.engine.load_s, self.timing)
