"""The generation loop: prefill, draw, decode, stop, for one text or several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from gptcli.errors import ContextOverflow
from gptcli.generation.completion import Logits, Picker, Sample
from gptcli.generation.events import Finished, TextDelta, Usage
from gptcli.generation.speculation import Drafter
from gptcli.generation.steps import SharedSteps, SingleSteps, Steps
from gptcli.runtime.engine import Cancelled, Engine, Progress, PromptCache, never_cancelled, no_progress
from gptcli.settings import StopConfig
from gptcli.text.tokenizer import Tokenizer

Event = TextDelta | Finished


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    pickers: Sequence[Picker],
    stop: StopConfig,
    stop_ids: frozenset[int],
    cache: PromptCache | None = None,
    drafter: Drafter | None = None,
    most_drafted: int = 0,
    on_prefill: Progress = no_progress,
    cancelled: Cancelled = never_cancelled,
) -> Iterator[Iterator[Event]]:
    """Continues a prompt that `check_request` accepts, once with each of `pickers`, and yields a stream for each.

    A stream is text as it comes, then one Finished. Streams are read in order; the later ones are decoded along with
    the first, as many at once as `Engine.most_rows` allows, and kept until they are read.

    cache: its common prefix with the prompt is not run again; afterwards it holds the prompt and, for a single text,
    what was generated. drafter: drafts up to `most_drafted` tokens a step of a single text; the text stays the same.
    cancelled: asked before every step and chunk; once true, running texts finish with reason "interrupt", and no other
    begins.

    A stream raises ContextOverflow at the end of the context if `stop.overflow` is "error".
    """
    own_cache = (cache or PromptCache()).for_engine(engine)
    room = engine.ctx_size if stop.max_tokens < 0 else len(prompt) + stop.max_tokens
    groups = -(-len(pickers) // engine.most_rows(room))
    for group in range(groups):
        if group and cancelled():
            return
        own = pickers[group * len(pickers) // groups : (group + 1) * len(pickers) // groups]
        samples = [Sample(tokenizer, prompt, picker, stop, stop_ids) for picker in own]
        steps: Steps
        if len(pickers) == 1:
            steps = SingleSteps(engine, own_cache, drafter, most_drafted)
        else:
            steps = SharedSteps(engine, own_cache)
        together = _Together(engine, prompt, samples, stop, steps, on_prefill, cancelled)
        yield from map(together.events, samples)


class _Together:
    """Samples of one prompt, which is prefilled once; then each step is one for all that have not ended."""

    def __init__(
        self,
        engine: Engine,
        prompt: Sequence[int],
        samples: Sequence[Sample],
        stop: StopConfig,
        steps: Steps,
        on_prefill: Progress,
        cancelled: Cancelled,
    ) -> None:
        self._engine, self._prompt, self._stop, self._steps = engine, prompt, stop, steps
        self._on_prefill, self._cancelled = on_prefill, cancelled
        self._running = list(samples)  # in the order of the rows of steps
        self._started_at: float | None = None
        self._prefilled, self._prefill_s = 0, 0.0

    def events(self, sample: Sample) -> Iterator[Event]:
        """What a sample says, and how it ended. The others go on as far as it does."""
        while sample.reason is None or sample.said:
            if sample.said:
                yield sample.said.popleft()
            else:
                self._advance()
        if sample.error is not None:
            raise sample.error
        yield self._finished(sample)

    def _advance(self) -> None:
        """Draws a token for each sample that has not ended."""
        if self._started_at is None:
            logits = self._prefill()
        elif self._cancelled():
            logits = None
        elif len(self._running[0].history) < self._engine.ctx_size:
            logits = self._steps.after([sample.history for sample in self._running])
        elif self._stop.overflow == "shift":
            logits = self._shift()
        else:
            self._end_at_the_contexts_end()
            return
        if logits is None:
            for sample in self._running:
                sample.end("interrupt")
            return
        for sample, own in zip(self._running, logits, strict=True):
            sample.take(own)
        for row in reversed(range(len(self._running))):
            if self._running[row].reason is not None:
                self._leave(row)

    def _leave(self, row: int) -> None:
        self._running[row] = self._running[-1]
        self._running.pop()
        self._steps.leave(row)

    def _prefill(self) -> Sequence[Logits] | None:
        self._started_at = time.perf_counter()
        self._prefilled, logits = self._steps.begin(self._prompt, len(self._running), self._on_prefill, self._cancelled)
        self._prefill_s = time.perf_counter() - self._started_at
        return logits

    def _shift(self) -> Sequence[Logits] | None:
        for sample in self._running:
            sample.forget_older_half()
        return self._steps.again([sample.history for sample in self._running], self._cancelled)

    def _end_at_the_contexts_end(self) -> None:
        for sample in self._running:
            sample.end("length")
            if self._stop.overflow == "error":
                sample.error = ContextOverflow(f"the context of {self._engine.ctx_size} tokens is full")

    def _finished(self, sample: Sample) -> Finished:
        assert sample.reason is not None and self._started_at is not None
        first_token_at = sample.first_token_at or sample.ended_at
        decode_s = sample.ended_at - first_token_at
        return Finished(
            reason=sample.reason,
            ids=tuple(sample.ids),
            stop=sample.stopped_by,
            seed=sample.seed,
            usage=Usage(
                prompt_tokens=len(self._prompt),
                completion_tokens=len(sample.ids),
                load_s=self._engine.load_s,
                prefill_s=self._prefill_s,
                ttft_s=first_token_at - self._started_at,
                decode_s=decode_s,
                prefill_tokens_per_s=self._prefilled / self._prefill_s,
                decode_tokens_per_s=max(0, len(sample.ids) - 1) / decode_s if decode_s else 0.0,
                drafted_tokens=self._steps.drafted,
                kept_tokens=self._steps.kept,
            ),
            logprobs=None if sample.steps is None else tuple(sample.steps),
        )
