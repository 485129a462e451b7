"""Draws tokens in torch, on whatever device the logits are, and records how each came to be drawn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gptcli.generation.events import Explanation, StepLogprobs, TokenLogprob
from gptcli.generation.sampling.filters import Sampler, explain
from gptcli.settings import SamplingConfig
from gptcli.text.tokenizer import Tokenizer


class TensorPicker:
    """Draws one text's tokens; see `generation.sample.Picker`.

    never: tokens that must not be drawn. logprobs: records each token's log-probability, and that of this many
    alternatives. explain: records what the filters did.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: SamplingConfig,
        never: frozenset[int],
        logprobs: int | None,
        explain: bool,
    ) -> None:
        self.records = explain or logprobs is not None
        self._tokenizer, self._sampler = tokenizer, Sampler(config)
        self._never = [token for token in never if token < tokenizer.size]
        self._alternatives, self._explain = logprobs or 0, explain

    @property
    def seed(self) -> int:
        """See `Picker.seed`."""
        return self._sampler.seed

    def pick(self, logits: Tensor, history: Sequence[int]) -> tuple[int, StepLogprobs | None]:
        """See `Picker.pick`."""
        logits = logits[: self._tokenizer.size]  # without the rows that pad the vocabulary
        if self._never:
            logits = logits.clone()
            logits[self._never] = float("-inf")
        stages = self._sampler.stages(logits, history, whole=self._explain)
        token = int(self._sampler.draw(stages[-1]))
        if not self.records:
            return token, None
        explanation = explain(logits, stages, token) if self._explain else None
        return token, _step_logprobs(logits, token, self._alternatives, self._tokenizer, explanation)


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
