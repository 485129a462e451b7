"""The generation loop: prefill, draw, decode, stop, for one text or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gptcli.errors import ContextOverflow
from gptcli.generation.completion import Completion
from gptcli.generation.events import Finished, TextDelta, Usage
from gptcli.generation.sampling.constraint import Constraint
from gptcli.generation.sampling.sampler import Sampler
from gptcli.generation.speculation import Drafter
from gptcli.generation.steps import SharedSteps, SingleSteps, Steps
from gptcli.runtime.engine import Cancelled, Engine, Logits, Progress, PromptCache, never_cancelled, no_progress
from gptcli.settings import StopConfig
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.splitter import Splitter

Event = TextDelta | Finished


def generate(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    samplers: Sequence[Sampler],
    stop: StopConfig,
    stop_ids: frozenset[int],
    cache: PromptCache | None = None,
    drafter: Drafter | None = None,
    most_drafted: int = 0,
    constrain: Callable[[], Constraint | None] = lambda: None,
    split_calls: Callable[[], Splitter | None] = lambda: None,
    on_prefill: Progress = no_progress,
    cancelled: Cancelled = never_cancelled,
) -> Iterator[Iterator[Event]]:
    """Continues a prompt that `check_request` accepts, once with each of `samplers`, and yields a stream for each.

    A stream is text as it comes, then one Finished. Streams are read in order; the later ones are decoded along with
    the first, as many at once as `Engine.most_rows` allows, and kept until they are read.

    cache: its common prefix with the prompt is not run again; afterwards it holds the prompt and, for a single text,
    what was generated. drafter: drafts up to `most_drafted` tokens a step of a single text; the text stays the same.
    constrain: makes what limits a text, for each of them. split_calls: likewise what keeps its calls of tools.
    cancelled: asked before every step and chunk; once true, running texts finish with reason "interrupt", and no other
    begins.

    A stream raises ContextOverflow at the end of the context if `stop.overflow` is "error".
    """
    own_cache = (cache or PromptCache()).for_engine(engine)
    room = engine.ctx_size if stop.max_tokens < 0 else len(prompt) + stop.max_tokens
    groups = -(-len(samplers) // engine.most_rows(room))
    for group in range(groups):
        if group and cancelled():
            return
        own = samplers[group * len(samplers) // groups : (group + 1) * len(samplers) // groups]
        constraints = [constrain() for _ in own]
        samples = [
            Completion(tokenizer, prompt, sampler, stop, stop_ids, constraint, split_calls())
            for sampler, constraint in zip(own, constraints, strict=True)
        ]
        steps: Steps
        if len(samplers) == 1:
            steps = SingleSteps(engine, own_cache, drafter, most_drafted, constraints[0])
        else:
            steps = SharedSteps(engine, own_cache)
        together = _Together(engine, prompt, list(samples), stop, steps, on_prefill, cancelled)
        yield from map(together.events, samples)


@dataclass
class _Together:
    """Samples of one prompt, which is prefilled once; then each step is one for all that have not ended."""

    engine: Engine
    prompt: Sequence[int]
    running: list[Completion]  # in the order of the rows of steps
    stop: StopConfig
    steps: Steps
    on_prefill: Progress
    cancelled: Cancelled
    started_at: float | None = None
    prefilled: int = 0
    prefill_s: float = 0.0

    def events(self, sample: Completion) -> Iterator[Event]:
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
        if self.started_at is None:
            logits = self._prefill()
        elif self.cancelled():
            logits = None
        elif len(self.running[0].history) < self.engine.ctx_size:
            logits = self.steps.after([sample.history for sample in self.running])
        elif self.stop.overflow == "shift":
            logits = self._shift()
        else:
            self._end_at_the_contexts_end()
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
        self.started_at = time.perf_counter()
        self.prefilled, logits = self.steps.begin(self.prompt, len(self.running), self.on_prefill, self.cancelled)
        self.prefill_s = time.perf_counter() - self.started_at
        return logits

    def _shift(self) -> Sequence[Logits] | None:
        for sample in self.running:
            sample.forget_older_half()
        return self.steps.again([sample.history for sample in self.running], self.cancelled)

    def _end_at_the_contexts_end(self) -> None:
        for sample in self.running:
            sample.end("length")
            if self.stop.overflow == "error":
                sample.error = ContextOverflow(f"the context of {self.engine.ctx_size} tokens is full")

    def _finished(self, sample: Completion) -> Finished:
        assert sample.reason is not None and self.started_at is not None
        first_token_at = sample.first_token_at or sample.ended_at
        decode_s = sample.ended_at - first_token_at
        return Finished(
            reason=sample.reason,
            ids=tuple(sample.ids),
            stop=sample.stopped_by,
            seed=sample.seed,
            usage=Usage(
                prompt_tokens=len(self.prompt),
                completion_tokens=len(sample.ids),
                load_s=self.engine.load_s,
                prefill_s=self.prefill_s,
                ttft_s=first_token_at - self.started_at,
                decode_s=decode_s,
                prefill_tokens_per_s=self.prefilled / self.prefill_s,
                decode_tokens_per_s=max(0, len(sample.ids) - 1) / decode_s if decode_s else 0.0,
                drafted_tokens=self.steps.drafted,
                kept_tokens=self.steps.kept,
                forced_tokens=sample.forced,
            ),
            logprobs=None if sample.steps is None else tuple(sample.steps),
            tool_calls=sample.tool_calls,
            cut_call=sample.cut_call,
        )
