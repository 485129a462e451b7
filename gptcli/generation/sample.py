"""One text that is being generated: draws its tokens, makes text of them and finds its end. Knows nothing of models."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.errors import GptcliError
from gptcli.generation.events import Explanation, FinishReason, StepLogprobs, TextDelta, TokenLogprob
from gptcli.generation.sampling import Sampler, explain
from gptcli.generation.stopping import StopMatcher
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.text.detokenizer import Detokenizer
from gptcli.text.tokenizer import Tokenizer


class Sample:
    """A text from its prompt to its end.

    `history` is what the model is to see, `ids` what was drawn. What the text says is in `said` until somebody takes
    it. `reason` is None until it has ended; `error` is what is to be raised behind its text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        stop: StopConfig,
        stop_ids: frozenset[int],
        logprobs: int | None,
        explain: bool,
        device: torch.device,
    ) -> None:
        self.history = list(prompt)
        self.ids: list[int] = []
        self.said: deque[TextDelta] = deque()
        self.steps: list[StepLogprobs] | None = [] if explain or logprobs is not None else None
        self.reason: FinishReason | None = None
        self.stopped_by: str | None = None
        self.error: GptcliError | None = None
        self.first_token_at: float | None = None  # on time.perf_counter's clock
        self.ended_at = 0.0
        self._tokenizer, self._stop, self._stop_ids = tokenizer, stop, stop_ids
        self._alternatives, self._explain = logprobs or 0, explain
        self._told = 0  # of the steps, those that went out with the text
        self._sampler = Sampler(sampling, device)
        self._detokenizer, self._matcher = Detokenizer(), StopMatcher(stop.strings)

    @property
    def seed(self) -> int:
        """The seed it is drawn with."""
        return self._sampler.seed

    def take(self, logits: Tensor) -> None:
        """Draws the next token from the model's logits (vocab,), unless there are to be no more."""
        if len(self.ids) == self._stop.max_tokens:
            self.end("length")
            return
        logits = self._drawable(logits)
        stages = self._sampler.stages(logits, self.history, whole=self._explain)
        token = int(self._sampler.draw(stages[-1]))
        self.first_token_at = self.first_token_at or time.perf_counter()
        if token in self._stop_ids:
            self.end("stop", self._tokenizer.token_name(token))
            return
        self.ids.append(token)
        self.history.append(token)
        if self.steps is not None:
            explanation = explain(logits, stages, token) if self._explain else None
            self.steps.append(_step_logprobs(logits, token, self._alternatives, self._tokenizer, explanation))
        text = b"" if self._tokenizer.is_control(token) else self._tokenizer.token_bytes(token)
        self._say(self._matcher.push(self._detokenizer.push(text)))
        if self._matcher.matched is not None or len(self.ids) == self._stop.max_tokens:
            self.end("length")

    def end(self, reason: FinishReason, stopped_by: str | None = None) -> None:
        """Says what was held back. Where that completes a stop text, this is the reason."""
        if self._matcher.matched is None:
            self._say(self._matcher.push(self._detokenizer.flush()) + self._matcher.flush())
        if self._matcher.matched is not None:
            reason, stopped_by = "stop", self._matcher.matched
        self.reason, self.stopped_by, self.ended_at = reason, stopped_by, time.perf_counter()

    def forget_older_half(self) -> None:
        """Leaves the newer half of the history, behind the control token that began it, if one did."""
        head = self.history[:1] if self._tokenizer.is_control(self.history[0]) else []
        self.history = head + self.history[len(self.history) // 2 + len(head) :]

    def _say(self, data: bytes) -> None:
        if data:
            steps = self.steps or []
            self.said.append(TextDelta(data, tuple(steps[self._told :])))
            self._told = len(steps)

    def _drawable(self, logits: Tensor) -> Tensor:
        """Logits (vocab,) without the rows that pad the vocabulary, and with -inf for what must not be drawn."""
        logits = logits[: self._tokenizer.size]
        if self._stop.ignore_eos and self._stop_ids:
            logits = logits.clone()
            logits[[token for token in self._stop_ids if token < len(logits)]] = float("-inf")
        return logits


def _step_logprobs(
    logits: Tensor, token: int, alternatives: int, tokenizer: Tokenizer, explanation: Explanation | None
) -> StepLogprobs:
    logprobs = logits.log_softmax(0)

    def record(id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(id, tokenizer.token_bytes(id), logprob)

    top = logprobs.topk(min(alternatives, len(logprobs)))
    return StepLogprobs(
        chosen=record(token, float(logprobs[token])),
        top=tuple(map(record, top.indices.tolist(), top.values.tolist())),
        explanation=explanation,
    )
