"""The generation loop: prefill, draw, decode, stop, for one text or several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptcli.errors import GptcliError
from gptcli.generation.completion import Completion, Timing
from gptcli.generation.events import Event
from gptcli.generation.speculation import Drafter
from gptcli.generation.steps import SharedSteps, SingleSteps, Steps
from gptcli.generation.together.continuous_batch import ContinuousBatch
from gptcli.generation.together.job import Job
from gptcli.runtime.engine import Cancelled, Engine, Logits, Progress, PromptCache, never_cancelled, no_progress


def generate(
    engine: Engine,
    completions: Sequence[Completion],
    *,
    cache: PromptCache | None = None,
    drafter: Drafter | None = None,
    most_drafted: int = 0,
    on_prefill: Progress = no_progress,
    cancelled: Cancelled = never_cancelled,
) -> Iterator[Iterator[Event]]:
    """Continues a prompt that `check_request` accepts, in one or more ways, and yields a stream for each.

    A stream is text as it comes, then one Finished. Streams are read in order; later ones are decoded along with the
    first, as many at once as gain by it and fit into the memory, and kept until they are read.

    cache: its common prefix with the prompt is not run again. It then holds a single text, or the prompt of `Rows`; a
    batch leaves it alone. drafter: drafts up to `most_drafted` tokens for a step of a single text, which stays the
    same. cancelled: asked before every step and chunk; once true, running texts finish with reason "interrupt", and no
    other begins.

    A stream raises ContextOverflow at the end of the context if `stop.overflow` is "error".
    """
    own_cache = (cache or PromptCache()).for_engine(engine)
    if len(completions) == 1:
        single = SingleSteps(engine, own_cache, drafter, most_drafted, completions[0].constraint)
        yield _Samples(engine, [*completions], single, on_prefill, cancelled).events(completions[0])
        return
    groups = -(-len(completions) // engine.most_rows(Job(engine, completions[0]).room))
    for group in range(groups):
        begin, end = (len(completions) * each // groups for each in (group, group + 1))
        rows = engine.new_rows()
        if rows is None:
            yield from _in_a_batch(engine, completions[begin:], on_prefill, cancelled)
            return
        if group and cancelled():
            return
        own = completions[begin:end]
        samples = _Samples(engine, [*own], SharedSteps(engine, own_cache, rows), on_prefill, cancelled)
        yield from map(samples.events, own)


def _in_a_batch(
    engine: Engine, completions: Sequence[Completion], on_prefill: Progress, cancelled: Cancelled
) -> Iterator[Iterator[Event]]:
    batch, jobs = ContinuousBatch(), [Job(engine, completion) for completion in completions]
    for job in jobs:
        batch.add(job)

    def events(job: Job) -> Iterator[Event]:
        while True:
            for event in job.events():
                if isinstance(event, GptcliError):
                    raise event
                yield event
            if job.ended:
                return
            if cancelled():
                batch.cancel()
            batch.step()
            if job is jobs[0] and job.cache is not None and not job.completion.ids:
                on_prefill(min(job.cache.length, job.completion.prompt_tokens), job.completion.prompt_tokens)

    full = batch.full
    for job in jobs:
        if full and not job.admitted and cancelled():
            return
        yield events(job)


@dataclass
class _Samples:
    """Samples of one prompt, which is prefilled once; they share each step until they end."""

    engine: Engine
    running: list[Completion]  # in the order of the steps' rows
    steps: Steps
    on_prefill: Progress
    cancelled: Cancelled
    timing: Timing | None = None

    def events(self, sample: Completion) -> Iterator[Event]:
        """A sample's text and its end. The other samples advance with it."""
        while sample.reason is None or sample.said:
            if sample.said:
                yield sample.said.popleft()
            else:
                self._advance()
        if sample.error is not None:
            raise sample.error
        assert self.timing is not None
        self.timing.drafted, self.timing.kept = self.steps.drafted, self.steps.kept
        yield sample.finished(self.engine.load_s, self.timing)

    def _advance(self) -> None:
        """Draws a token for each sample that has not ended."""
        if self.timing is None:
            logits = self._prefill()
        elif self.cancelled():
            logits = None
        elif len(self.running[0].history) < self.engine.ctx_size:
            logits = self.steps.after([sample.history for sample in self.running])
        elif self.running[0].stop.overflow == "shift":
            logits = self._shift()
        else:
            for sample in self.running:
                sample.end_at_full_context(self.engine.ctx_size)
            return
        if logits is None:
            for sample in self.running:
                sample.end("interrupt")
            return
        for sample, own in zip(self.running, logits, strict=True):
            sample.take(own)
        for row in reversed(range(len(self.running))):
            if self.running[row].reason is not None:
                self.running[row] = self.running[-1]
                self.running.pop()
                self.steps.leave(row)

    def _prefill(self) -> Sequence[Logits] | None:
        self.timing, prompt = Timing(), self.running[0].history
        prefilled, logits = self.steps.begin(prompt, len(self.running), self.on_prefill, self.cancelled)
        self.timing.prefilled, self.timing.prefill_s = prefilled, time.perf_counter() - self.timing.asked_at
        return logits

    def _shift(self) -> Sequence[Logits] | None:
        for sample in self.running:
            sample.forget_older_half()
        return self.steps.again([sample.history for sample in self.running], self.cancelled)
