"""What a generation yields: pieces of text, then one record of how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "interrupt"]


@dataclass(frozen=True)
class TextDelta:
    """The next bytes of the text: whole characters, or bytes that cannot become one.

    steps: the tokens drawn since the last one, where they are to be recorded; not all of their bytes need be out.
    """

    data: bytes
    steps: tuple[StepLogprobs, ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text, U+FFFD for what is none."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of the model's probability for it, before any sampling filter."""

    id: int
    data: bytes
    logprob: float


@dataclass(frozen=True)
class FilterEffect:
    """What one sampling filter did at a token's place.

    kept and removed: how many tokens, of those that came to it. removed_probability: theirs together, in the model's
    own distribution. probability: of the token that was drawn, among those kept.
    """

    name: str
    kept: int
    removed: int
    removed_probability: float
    probability: float


@dataclass(frozen=True)
class Explanation:
    """How a token came to be drawn.

    entropy: of the model's distribution, in nats. rank: of the token in it, 1 for the likeliest. filters: those that
    were on, in their order; the last one's `probability` is what the token was drawn with.
    """

    entropy: float
    rank: int
    filters: tuple[FilterEffect, ...]


@dataclass(frozen=True)
class StepLogprobs:
    """One generated token, the most probable ones at its place, best first, and why it was drawn, if that was asked."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    explanation: Explanation | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counts of tokens, and times in seconds. `ttft_s` is the time from the request to the first token.

    Of the tokens that were drafted ahead, `kept_tokens` came true.
    """

    prompt_tokens: int
    completion_tokens: int
    load_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    drafted_tokens: int = 0
    kept_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event. `ids` leaves out the stop token; `stop` is the text or token that ended it, if one did.

    `logprobs` has one entry an id, and is None where neither they nor explanations were asked for.
    """

    reason: FinishReason
    ids: tuple[int, ...]
    stop: str | None
    seed: int
    usage: Usage
    logprobs: tuple[StepLogprobs, ...] | None
