"""The protocol of whatever runs a decoder, for everything above this folder. No torch.

Torch, the compiled program, a CUDA graph and a fast start are its implementations; `loader` chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict
from weakref import ref

from gptcli.errors import NonFiniteLogits, OutOfMemory
from gptcli.kernels.bindings import Functions

Logits: TypeAlias = Any
"""(vocab,) in fp32: a tensor, or numbers in main memory at the address `data_ptr()`."""

MOST_ROWS = 32  # texts in one step: 64 gain little, and the first one takes twice as long

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


def no_progress(done: int, total: int) -> None:
    """Reports nothing."""


def never_cancelled() -> bool:
    """Goes on to the end."""
    return False


class StepCancelled(Exception):
    """A step was given up in the middle; its tokens are not cached."""


class ReplyKeywords(TypedDict, total=False):
    """Callbacks of a generation. on_prefill: the progress of `Engine.prefill`. cancelled: once true, the text ends."""

    on_prefill: Progress
    cancelled: Cancelled


class RunKeywords(ReplyKeywords, total=False):
    """The same, and the cache of earlier runs: its common prefix with the prompt is not run again."""

    cache: PromptCache | None


@dataclass(frozen=True)
class Workload:
    """What will be asked of an engine. A smaller workload may start sooner.

    probabilities: whether logits are needed as tensors, to explain tokens. tokens: length of the longest text with what
    is generated; None: the whole context.
    """

    probabilities: bool = False
    tokens: int | None = None


class TokenScore(NamedTuple):
    """A token's log-probability, and the likeliest ids at its position, each with its own, in descending order."""

    logprob: float
    likeliest: Sequence[tuple[int, float]]


class Cache(Protocol):
    """Keys and values of one text's tokens."""

    @property
    def length(self) -> int:
        """How many tokens are cached."""

    @property
    def tokens(self) -> list[int]:
        """Their ids."""

    def keep_common(self, prompt: Sequence[int]) -> None:
        """Forgets all but the longest prefix shared with the prompt."""

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, or all of them."""


class Extension(NamedTuple):
    """Tokens that a step appends to a cached text. wanted: how many of the last ones need logits."""

    cache: Any
    tokens: Sequence[int]
    wanted: int = 1

    def split(self) -> tuple[Extension, Extension]:
        """The tokens without wanted logits, and those with."""
        before, after = self.tokens[: -self.wanted], self.tokens[-self.wanted :]
        return self._replace(tokens=before, wanted=1), self._replace(tokens=after)


Extended: TypeAlias = Sequence[Logits] | NonFiniteLogits | OutOfMemory
"""The logits that an `Extension` wants, or why there are none."""


class Engine(Protocol):
    """A loaded decoder with a context of `ctx_size` tokens. load_s: seconds that loading took.

    Threads may share it, each with caches of its own: they take turns step by step.
    """

    ctx_size: int
    load_s: float

    @property
    def library(self) -> Functions | None:
        """The compiled kernels that can read its logits, if there are any."""

    @property
    def device_name(self) -> str:
        """The device as on the command line."""

    @property
    def dtype_name(self) -> str:
        """The dtype as on the command line."""

    @property
    def failures(self) -> Sequence[str]:
        """Notes on why it is slower here than it could be, or rounds more than was asked for."""

    def serves(self, workload: Workload) -> bool:
        """Whether it can do all that a workload asks."""

    def new_cache(self) -> Cache:
        """An empty cache, of the engine's own kind."""

    def prefill(
        self,
        tokens: Sequence[int],
        cache: Any,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> Logits | None:
        """Appends one or more tokens to the cached ones; the last one's logits, or None once cancelled.

        on_progress: called with the tokens done and all of them after every chunk. cancelled: asked before each, and
        in a program about every tenth of a second. Raises NonFiniteLogits and OutOfMemory.
        """

    def step(self, tokens: Sequence[int], cache: Any) -> Sequence[Logits]:
        """Appends one token, and at most `most_ahead` more; the logits after each. Raises as `prefill` does."""

    @property
    def records_rows(self) -> bool:
        """Whether samples of one prompt run fastest as rows of one cache, because their step is recorded."""

    def extend(self, texts: Sequence[Extension]) -> list[Extended]:
        """Appends tokens to several texts, each with its own cache, in one step; returns the result of each.

        A text that ran out of memory may be cached in part, a non-finite one must be dropped; the others go on.
        """

    def copy_of(self, cache: Any, length: int) -> Any:
        """Another cache with the first `length` tokens or fewer. Raises OutOfMemory."""

    def score_tokens(
        self, tokens: Sequence[int], cache: Any, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """Appends tokens; scores `targets`, each of which follows one of the last tokens, chunk by chunk.

        vocabulary: how many ids count; later logits are padding. top: how many of the likeliest ids are scored, too.
        Raises as `prefill` does.
        """

    def score_texts(
        self, texts: Sequence[Extension], targets: Sequence[Sequence[int]], vocabulary: int, top: int
    ) -> list[list[TokenScore]]:
        """The same for several texts in one step: a target for each of the last tokens that a text wants."""

    def most_ahead(self, cache: Any) -> int:
        """How many tokens after the next one a step may append so that they can still be taken back."""

    def most_rows(self, tokens: int) -> int:
        """How many texts of `tokens` each may share steps."""


class PromptCache:
    """Keeps an engine's cache from one generation to the next; starts again when the engine changes."""

    def __init__(self) -> None:
        self._engine: ref[Engine] | None = None
        self._cache: Cache | None = None

    def for_engine(self, engine: Engine) -> Any:
        """The cache of an engine; a new one if the engine changed."""
        if self._cache is None or self._engine is None or self._engine() is not engine:
            self._engine, self._cache = ref(engine), engine.new_cache()
        return self._cache

    @cached_property
    def drafts(self) -> PromptCache:
        """The same for the engine of a draft model."""
        return PromptCache()
