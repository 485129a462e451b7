"""The events of a generation: text as it comes, then one `Finished`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from gptcli.tools.definitions import ToolCall

FinishReason = Literal["stop", "length", "interrupt", "tool_calls"]


@dataclass(frozen=True)
class TextDelta:
    """The next bytes of the text: whole characters, or bytes that cannot become one.

    steps: the tokens drawn since the last delta, if logprobs or explanations were asked for. Some of their bytes may
    still be pending.
    """

    data: bytes
    steps: tuple[StepLogprobs, ...] = ()

    @property
    def text(self) -> str:
        """The bytes as text, with U+FFFD for those that are not UTF-8."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability in the model's own distribution, before any sampling filter."""

    id: int
    data: bytes
    logprob: float


@dataclass(frozen=True)
class FilterEffect:
    """The effect of a sampling filter on one draw.

    kept, removed: numbers of the tokens that reached it. removed_probability: the sum over removed tokens, in the
    model's own distribution. probability: the drawn token's, among those kept.
    """

    name: str
    kept: int
    removed: int
    removed_probability: float
    probability: float


@dataclass(frozen=True)
class Explanation:
    """Why a token was drawn.

    entropy: of the model's distribution, in nats. rank: the token's, 1 for the likeliest. filters: the active ones in
    order; the `probability` of the last is the one that the token was drawn with.
    """

    entropy: float
    rank: int
    filters: tuple[FilterEffect, ...]


@dataclass(frozen=True)
class StepLogprobs:
    """A generated token. top: the likeliest at its position, best first. explanation: None unless asked for."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    explanation: Explanation | None = None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Counts of tokens, and times in seconds.

    ttft_s: from the request to the first token. kept_tokens: drafted tokens that were then drawn. forced_tokens: tokens
    of the completion that a constraint forced.
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
    forced_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event.

    ids: without the stop token. stop: the text or token that ended it, if one did. logprobs: one entry per id; None if
    neither logprobs nor explanations were asked for. tool_calls: not part of the text. cut_call: whether the text ended
    amid a call, which is not part of it either.
    """

    reason: FinishReason
    ids: tuple[int, ...]
    stop: str | None
    seed: int
    usage: Usage
    logprobs: tuple[StepLogprobs, ...] | None
    tool_calls: tuple[ToolCall, ...] = ()
    cut_call: bool = False


Event = TextDelta | Finished


@dataclass(frozen=True)
class Completed:
    """A whole text and how it ended."""

    data: bytes
    finished: Finished

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """The text of a generation's events. Raises what reading them does."""
        *deltas, finished = events
        assert isinstance(finished, Finished)
        return cls(b"".join(delta.data for delta in deltas if isinstance(delta, TextDelta)), finished)

    @property
    def text(self) -> str:
        """The bytes as text, with U+FFFD for those that are not UTF-8."""
        return self.data.decode("utf-8", "replace")
