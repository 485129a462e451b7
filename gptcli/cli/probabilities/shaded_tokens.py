"""Tokens with their probabilities, and the shade that shows each; terminal, page and picture draw from these.

The shades are five steps of viridis and an underline, which every kind of colour vision tells apart.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gptcli.cli.terminal.token_flow import Group, grouped
from gptcli.generation.events import TextDelta, TokenLogprob
from gptcli.generation.score_result import Score
from gptcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """The shade of probabilities from `least` up to the next step's.

    colour: its viridis colour. ink: text on it. code: both, in a terminal's 256 colours.
    """

    least: float
    label: str
    colour: str
    ink: str
    code: str

    @property
    def number(self) -> int:
        """The step's index in STEPS."""
        return STEPS.index(self)

    @property
    def underlined(self) -> bool:
        """Whether it is underlined, so that surprising tokens are seen without colour."""
        return self.least == 0


STEPS = (
    Step(0.0, "under 0.1", "#440154", "#ffffff", "38;5;231;48;5;53"),
    Step(0.1, "0.1 to 0.3", "#3b528b", "#ffffff", "38;5;231;48;5;61"),
    Step(0.3, "0.3 to 0.6", "#21918c", "#000000", "38;5;16;48;5;37"),
    Step(0.6, "0.6 to 0.9", "#5ec962", "#000000", "38;5;16;48;5;77"),
    Step(0.9, "0.9 and over", "#fde725", "#000000", "38;5;16;48;5;227"),
)


def step_of(probability: float) -> Step:
    """The step of a probability."""
    return STEPS[bisect_right(STEPS, probability, key=lambda step: step.least) - 1]


@dataclass(frozen=True)
class ShadedToken:
    """A token. logprob: in nats; None if nothing precedes it. top: the likeliest tokens at its position, best first."""

    id: int
    data: bytes
    control: bool
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ShadedGroup:
    """The fewest tokens that end where a character ends, nearly always one. look: their spelling."""

    tokens: tuple[ShadedToken, ...]
    look: Group

    @property
    def probability(self) -> float | None:
        """The probability of all its tokens in sequence; None if one has none."""
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        return math.exp(math.fsum(logprobs)) if len(logprobs) == len(self.tokens) else None

    @property
    def text(self) -> str:
        """Its characters, U+FFFD for invalid bytes."""
        return b"".join(token.data for token in self.tokens).decode("utf-8", "replace")


def shaded_groups(tokens: Iterable[ShadedToken]) -> Iterator[ShadedGroup]:
    """Groups of tokens that share a character."""
    pending = deque[ShadedToken]()

    def pieces() -> Iterator[tuple[bytes, bool]]:
        for token in tokens:
            pending.append(token)
            yield token.data, token.control

    for look in grouped(pieces()):
        yield ShadedGroup(tuple(pending.popleft() for _ in look.tokens), look)


def scored_tokens(score: Score, tokenizer: Tokenizer) -> list[ShadedToken]:
    """The tokens of a scored text."""
    return [
        ShadedToken(id, tokenizer.token_bytes(id), tokenizer.is_control(id), logprob, top)
        for id, logprob, top in zip(score.ids, score.logprobs, score.top, strict=True)
    ]


class EmittedTokens:
    """Follows a generation, and returns each token once its bytes are emitted: a stop text stays hidden.

    Tokens keep the spaces that tidying removes from the text. Without recorded steps there are no tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending = deque[ShadedToken]()
        self._emitted = b""  # bytes that no token has taken
        self._found = 0  # bytes that the first pending token has taken

    def take(self, delta: TextDelta) -> list[ShadedToken]:
        """The tokens that a piece of text completes."""
        for step in delta.steps:
            id, data = step.chosen.id, step.chosen.data
            self._pending.append(ShadedToken(id, data, self._tokenizer.is_control(id), step.chosen.logprob, step.top))
        self._emitted = self._emitted + delta.data if self._pending else b""
        tokens = []
        while self._pending and self._is_complete(self._pending[0]):
            tokens.append(self._pending.popleft())
            self._found = 0
        return tokens

    def end(self) -> list[ShadedToken]:
        """The beginning of the token that a stop text cuts in two, if there is one."""
        found, self._found = self._found, 0
        if not found:
            return []
        token = self._pending.popleft()
        return [replace(token, data=token.data[:found])]

    def _is_complete(self, token: ShadedToken) -> bool:
        """Whether all of a token is emitted; takes its bytes. A control token has none."""
        data, taken = b"" if token.control else token.data, 0
        while self._found < len(data) and taken < len(self._emitted):
            is_tidied_away = data[self._found] == ord(" ") != self._emitted[taken]
            taken += not is_tidied_away
            self._found += 1
        self._emitted = self._emitted[taken:]
        return self._found == len(data)
