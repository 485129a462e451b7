"""One text while it is generated: draws its tokens, decodes them and finds its end. Knows nothing of models."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gptcli.errors import ContextOverflow, GptcliError
from gptcli.generation.events import Finished, FinishReason, StepLogprobs, TextDelta, Usage
from gptcli.generation.sampling.constraint import Constraint
from gptcli.generation.sampling.sampler import Sampler
from gptcli.generation.stopping import StopMatcher
from gptcli.runtime.engine import Logits
from gptcli.settings import StopConfig
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import ToolCall

if TYPE_CHECKING:
    from gptcli.tools.splitter import Splitter


@dataclass
class Timing:
    """Times and counts of a text's prompt and drafts. asked_at: by time.perf_counter.

    prefilled: tokens of the prompt that were not cached. prefill_s: the seconds that these took. drafted, kept: see
    `Usage`.
    """

    asked_at: float = field(default_factory=time.perf_counter)
    prefilled: int = 0
    prefill_s: float = 0.0
    drafted: int = 0
    kept: int = 0


class Completion:
    """A text from its prompt to its end.

    history: the ids that the model sees. ids: the drawn ids. said: text that nobody has taken yet. reason: None until
    the text has ended. error: to raise once the text has been read.

    constraint: limits the drawn tokens, if there is one. splitter: keeps calls of tools out of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        stop: StopConfig,
        stop_ids: frozenset[int],
        constraint: Constraint | None = None,
        splitter: Splitter | None = None,
    ) -> None:
        self.history, self.prompt_tokens = list(prompt), len(prompt)
        self.ids: list[int] = []
        self.forced = 0  # tokens that the constraint forced
        self.said: deque[TextDelta] = deque()
        self.steps: list[StepLogprobs] | None = [] if sampler.records else None
        self.reason: FinishReason | None = None
        self.stopped_by: str | None = None
        self.error: GptcliError | None = None
        self.first_token_at: float | None = None  # by time.perf_counter
        self.ended_at = 0.0
        self.stop, self.constraint = stop, constraint
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._steps_said = 0
        self._sampler, self._splitter = sampler, splitter
        self._detokenizer, self._matcher = tokenizer.detokenizer(prompt), StopMatcher(stop.strings)

    @property
    def seed(self) -> int:
        """The sampler's seed."""
        return self._sampler.seed

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far."""
        return () if self._splitter is None else tuple(self._splitter.calls)

    @property
    def cut_call(self) -> bool:
        """Whether the text ended amid a call."""
        return self._splitter is not None and self._splitter.cut

    def take(self, logits: Logits) -> None:
        """Draws the next token from the model's logits (vocab,); ends a text that may have no more.

        Raises UsageError if constraint and settings leave no token.
        """
        if len(self.ids) == self.stop.max_tokens or self._finished:
            self.end("stop" if self._finished else "length")
            return
        token, step = self._next(logits)
        self.first_token_at = self.first_token_at or time.perf_counter()
        if token in self._stop_ids:
            self.end("stop", self._tokenizer.token_name(token))
            return
        self.ids.append(token)
        self.history.append(token)
        if self.steps is not None and step is not None:
            self.steps.append(step)
        text = b"" if self._hides(token) else self._detokenizer.push(token)
        self._say(self._matcher.push(text))
        if self._matcher.matched is not None or len(self.ids) == self.stop.max_tokens or self._finished:
            self.end("stop" if self._finished else "length")
        elif self._splitter is not None and self._splitter.done:
            self.end("stop")

    def _hides(self, token: int) -> bool:
        return self._tokenizer.is_control(token) and (self._splitter is None or token not in self._splitter.marks)

    @property
    def _finished(self) -> bool:
        return self.constraint is not None and self.constraint.finished

    def _next(self, logits: Logits) -> tuple[int, StepLogprobs | None]:
        if self.constraint is None:
            return self._sampler.sample(logits, self.history)
        forced = self.constraint.forced()
        if forced:
            self.forced += 1
            token, step = forced[0], self._sampler.take(logits, forced[0])
        else:
            token, step = self._drawn(logits, self.constraint)
        self.constraint.accept(token)
        return token, step

    def _drawn(self, logits: Logits, constraint: Constraint) -> tuple[int, StepLogprobs | None]:
        if self._sampler.repeats:  # the likeliest is mostly allowed, and checking it costs less than a mask
            token, step = self._sampler.sample(logits, self.history)
            if constraint.fitting([token]):
                return token, step
        return self._sampler.sample(logits, self.history, constraint.allowed())

    def end(self, reason: FinishReason, stopped_by: str | None = None) -> None:
        """Ends the text after what is pending. The reason becomes "stop" if that completes a stop text.

        It becomes "tool_calls" if a text that stops has calls.
        """
        if self._matcher.matched is None:
            self._say(self._matcher.push(self._detokenizer.flush()) + self._matcher.flush())
        if self._splitter is not None:
            ended = reason == "stop" and self._matcher.matched is None
            self._show(self._splitter.flush(ended=ended).encode("utf-8", "surrogateescape"))
        if self._matcher.matched is not None:
            reason, stopped_by = "stop", self._matcher.matched
        if reason == "stop" and self.tool_calls:
            reason = "tool_calls"
        self.reason, self.stopped_by, self.ended_at = reason, stopped_by, time.perf_counter()

    def forced_next(self, most: int) -> Sequence[int]:
        """At most `most` of the tokens that the constraint forces next."""
        return () if self.constraint is None or most < 1 else self.constraint.forced()[:most]

    def finished(self, load_s: float, timing: Timing) -> Finished:
        """The last event. load_s: seconds that loading the model took."""
        assert self.reason is not None
        first_token_at = self.first_token_at or self.ended_at
        decode_s = self.ended_at - first_token_at
        return Finished(
            reason=self.reason,
            ids=tuple(self.ids),
            stop=self.stopped_by,
            seed=self.seed,
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                completion_tokens=len(self.ids),
                load_s=load_s,
                prefill_s=timing.prefill_s,
                ttft_s=first_token_at - timing.asked_at,
                decode_s=decode_s,
                prefill_tokens_per_s=timing.prefilled / timing.prefill_s if timing.prefill_s else 0.0,
                decode_tokens_per_s=max(0, len(self.ids) - 1) / decode_s if decode_s else 0.0,
                drafted_tokens=timing.drafted,
                kept_tokens=timing.kept,
                forced_tokens=self.forced,
            ),
            logprobs=None if self.steps is None else tuple(self.steps),
            tool_calls=self.tool_calls,
            cut_call=self.cut_call,
        )

    def end_at_full_context(self, ctx_size: int) -> None:
        """Ends the text at a full context of `ctx_size` tokens, with an error if `stop.overflow` is "error"."""
        self.end("length")
        if self.stop.overflow == "error":
            self.error = ContextOverflow(f"the context of {ctx_size} tokens is full")

    def forget_older_half(self) -> None:
        """Keeps the newer half of the history, after the control token that began it, if one did."""
        head = self.history[:1] if self._tokenizer.is_control(self.history[0]) else []
        self.history = head + self.history[len(self.history) // 2 + len(head) :]

    def _say(self, data: bytes) -> None:
        if self._splitter is not None:
            text = self._splitter.push(data.decode("utf-8", "surrogateescape"))
            data = text.encode("utf-8", "surrogateescape")
        self._show(data)

    def _show(self, data: bytes) -> None:
        if data:
            steps = self.steps or []
            self.said.append(TextDelta(data, tuple(steps[self._steps_said :])))
            self._steps_said = len(steps)
