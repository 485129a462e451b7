"""What a generation yields: pieces of text, then one record of how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "interrupt"]


@dataclass(frozen=True)
class TextDelta:
    """The next bytes of the text: whole characters, or bytes that cannot become one."""

    data: bytes

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
class StepLogprobs:
    """One generated token and the most probable ones at its place, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


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

    `logprobs` has one entry an id, and is None where they were not asked for.
    """

    reason: FinishReason
    ids: tuple[int, ...]
    stop: str | None
    seed: int
    usage: Usage
    logprobs: tuple[StepLogprobs, ...] | None
