"""One text while it is generated: draws its tokens, decodes them and finds its end. Knows nothing of models."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from gptcli.errors import GptcliError
from gptcli.generation.events import FinishReason, StepLogprobs, TextDelta
from gptcli.generation.sampling.constraint import Constraint
from gptcli.generation.sampling.sampler import Sampler
from gptcli.generation.stopping import StopMatcher
from gptcli.runtime.engine import Logits
from gptcli.settings import StopConfig
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import ToolCall
from gptcli.tools.splitter import Splitter


class Completion:
    """A text from its prompt to its end.

    history: the ids that the model sees. ids: those that were drawn. said: text that nobody has taken yet. reason:
    None until the text has ended. error: what to raise once its text has been read.

    constraint: limits what is drawn, if there is one, and is told each token. splitter: keeps the calls of tools, which
    are not said.
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
        self.history = list(prompt)
        self.ids: list[int] = []
        self.forced = 0  # tokens that the constraint left no choice in
        self.said: deque[TextDelta] = deque()
        self.steps: list[StepLogprobs] | None = [] if sampler.records else None
        self.reason: FinishReason | None = None
        self.stopped_by: str | None = None
        self.error: GptcliError | None = None
        self.first_token_at: float | None = None  # on time.perf_counter's clock
        self.ended_at = 0.0
        self._tokenizer, self._stop, self._stop_ids = tokenizer, stop, stop_ids
        self._steps_said = 0
        self._sampler, self._constraint, self._splitter = sampler, constraint, splitter
        self._detokenizer, self._matcher = tokenizer.detokenizer(prompt), StopMatcher(stop.strings)

    @property
    def seed(self) -> int:
        """The seed that it is drawn with."""
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
        """Draws the next token from the model's logits (vocab,), unless the text is as long as it may be.

        Raises UsageError if constraint and settings leave no token.
        """
        if len(self.ids) == self._stop.max_tokens or self._finished:
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
        if self._matcher.matched is not None or len(self.ids) == self._stop.max_tokens or self._finished:
            self.end("stop" if self._finished else "length")

    def _hides(self, token: int) -> bool:
        return self._tokenizer.is_control(token) and (self._splitter is None or token not in self._splitter.marks)

    @property
    def _finished(self) -> bool:
        return self._constraint is not None and self._constraint.finished

    def _next(self, logits: Logits) -> tuple[int, StepLogprobs | None]:
        if self._constraint is None:
            return self._sampler.sample(logits, self.history)
        forced = self._constraint.forced()
        if forced:
            self.forced += 1
            token, step = forced[0], self._sampler.take(logits, forced[0])
        else:
            token, step = self._sampler.sample(logits, self.history, self._constraint.allowed())
        self._constraint.accept(token)
        return token, step

    def end(self, reason: FinishReason, stopped_by: str | None = None) -> None:
        """Says the text that is still pending. If that completes a stop text, the reason is "stop"."""
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

    def forget_older_half(self) -> None:
        """Keeps the newer half of the history, and the control token that began it, if one did."""
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
