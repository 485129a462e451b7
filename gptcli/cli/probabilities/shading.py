"""How probable tokens are, as five steps of viridis and an underline: told apart by every kind of colour vision.

What is shaded is read from here by the terminal, the page and the picture alike. Knows no model.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptcli.cli.terminal.token_flow import Group, grouped
from gptcli.generation.events import StepLogprobs, TextDelta, TokenLogprob
from gptcli.generation.score_result import Score
from gptcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """Probabilities from `least` on, up to the next step's.

    colour: viridis at that place. ink: what is read on it. code: both, in a terminal's 256 colours.
    """

    least: float
    label: str
    colour: str
    ink: str
    code: str

    @property
    def underlined(self) -> bool:
        """Whether it is underlined, so that what surprised the model is seen without colour."""
        return self.least == 0


STEPS = (
    Step(0.0, "under 0.1", "#440154", "#ffffff", "38;5;231;48;5;53"),
    Step(0.1, "0.1 to 0.3", "#3b528b", "#ffffff", "38;5;231;48;5;61"),
    Step(0.3, "0.3 to 0.6", "#21918c", "#000000", "38;5;16;48;5;37"),
    Step(0.6, "0.6 to 0.9", "#5ec962", "#000000", "38;5;16;48;5;77"),
    Step(0.9, "0.9 and over", "#fde725", "#000000", "38;5;16;48;5;227"),
)


def step_of(probability: float) -> Step:
    """The step that a probability is on."""
    return STEPS[bisect_right(STEPS, probability, key=lambda step: step.least) - 1]


@dataclass(frozen=True)
class Shaded:
    """A token with its log-probability in nats, if it has one, and the likeliest at its place, best first."""

    id: int
    data: bytes
    control: bool
    logprob: float | None
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Cell:
    """Tokens that make whole characters together, nearly always one, and how that looks."""

    tokens: tuple[Shaded, ...]
    group: Group

    @property
    def probability(self) -> float | None:
        """Of all the tokens, each behind the ones before it; None where one has none."""
        logprobs = [token.logprob for token in self.tokens if token.logprob is not None]
        return math.exp(math.fsum(logprobs)) if len(logprobs) == len(self.tokens) else None

    @property
    def text(self) -> str:
        """The characters, U+FFFD for what is none."""
        return b"".join(token.data for token in self.tokens).decode("utf-8", "replace")


def cells(tokens: Iterable[Shaded]) -> Iterator[Cell]:
    """Tokens, those that share a character put together."""
    waiting = deque[Shaded]()

    def pieces() -> Iterator[tuple[bytes, bool]]:
        for token in tokens:
            waiting.append(token)
            yield token.data, token.control

    for group in grouped(pieces()):
        yield Cell(tuple(waiting.popleft() for _ in group.tokens), group)


def of_score(score: Score, tokenizer: Tokenizer) -> list[Shaded]:
    """A scored text's tokens."""
    return [
        Shaded(id, tokenizer.token_bytes(id), tokenizer.is_control(id), logprob, top)
        for id, logprob, top in zip(score.ids, score.logprobs, score.top, strict=True)
    ]


class ShownTokens:
    """Follows a generation, and gives its tokens out once their bytes are: what a stop text hides stays hidden.

    Of one that records no steps it gives out none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting = deque[StepLogprobs]()
        self._shown = 0  # bytes that are out, of the tokens that wait

    def take(self, delta: TextDelta) -> list[Shaded]:
        """The tokens that a piece of text completes."""
        self._waiting.extend(delta.steps)
        self._shown += len(delta.data)
        out = []
        while self._waiting and self._size(self._waiting[0]) <= self._shown:
            self._shown -= self._size(self._waiting[0])
            out.append(self._shaded(self._waiting.popleft()))
        return out

    def end(self) -> list[Shaded]:
        """The token of which a part is out, behind which a stop text begins; where there is one."""
        if not self._shown or not self._waiting:
            return []
        shown, self._shown = self._shown, 0
        return [self._shaded(self._waiting.popleft(), shown)]

    def _size(self, step: StepLogprobs) -> int:
        """Bytes of a token in the text: a control token has none there."""
        return 0 if self._tokenizer.is_control(step.chosen.id) else len(step.chosen.data)

    def _shaded(self, step: StepLogprobs, shown: int | None = None) -> Shaded:
        chosen = step.chosen
        control = self._tokenizer.is_control(chosen.id)
        return Shaded(chosen.id, chosen.data[:shown], control, chosen.logprob, step.top)


def figures(score: Score) -> Sequence[tuple[str, str]]:
    """What a score adds up to, for a person: name and value."""
    return (
        ("perplexity", f"{score.perplexity:.2f}"),
        ("bits a byte", f"{score.bits_per_byte:.3f}"),
        ("log-probability", f"{-score.nll:.2f}"),
        ("tokens", f"{len(score.ids):,}"),
    )
