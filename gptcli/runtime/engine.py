"""The protocol of whatever runs a decoder, for everything above this folder. No torch.

Two classes implement it: `TorchEngine`, in torch, compiled programs and CUDA graphs, and `SnapshotEngine`, for a fast
start. `loader` chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar
from weakref import ref

from gptcli.errors import NonFiniteLogits, OutOfMemory
from gptcli.kernels.bindings import Functions
from gptcli.model.cache.common_prefix import common_length

if TYPE_CHECKING:
    from torch import Tensor

    from gptcli.kernels.tensors import Library

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
    """Callbacks of a generation. on_prefill: on_progress of `Engine.prefill`. cancelled: once true, the text ends."""

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
    """Keys and values of one text's tokens, in a format of its engine's own."""

    span: int
    """How many tokens the whole text has; some ways to rotate keys depend on it. Its engine sets it."""

    @property
    def length(self) -> int:
        """How many tokens are cached."""

    @property
    def tokens(self) -> list[int]:
        """Their ids."""

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` tokens, or all of them."""

    def mark(self) -> None:
        """Lets `truncate` come back to here without running tokens again, if layers keep states."""


_OwnCache = TypeVar("_OwnCache")


def keep_common(cache: Cache, prompt: Sequence[int]) -> None:
    """Forgets all but the longest prefix that a cached text shares with a prompt."""
    cache.truncate(common_length(cache.tokens, prompt))


class Extension(NamedTuple):
    """Tokens that a step appends to a cached text. wanted: how many of the last ones need logits."""

    cache: Cache
    tokens: Sequence[int]
    wanted: int = 1

    def split(self) -> tuple[Extension, Extension]:
        """The tokens without wanted logits, and those with."""
        before, after = self.tokens[: -self.wanted], self.tokens[-self.wanted :]
        return self._replace(tokens=before, wanted=1), self._replace(tokens=after)


def caches_of(texts: Sequence[Extension], kind: type[_OwnCache]) -> list[_OwnCache]:
    """The caches of several texts. An engine can only run its own kind."""
    caches: list[_OwnCache] = [text.cache for text in texts if isinstance(text.cache, kind)]
    assert len(caches) == len(texts), f"not a {kind.__name__}"
    return caches


Extended: TypeAlias = Sequence[Logits] | NonFiniteLogits | OutOfMemory
"""The logits that an `Extension` wants, or why there are none."""


class Rows(Protocol):
    """Samples of one prompt, which take each step together: rows of one cache, equally long."""

    def begin(self, cache: Cache, count: int) -> None:
        """Makes `count` copies of a cached text the rows. Raises OutOfMemory."""

    def step(self, tokens: Sequence[int]) -> Sequence[Logits]:
        """Appends one token to each row; the logits after each. Raises as `Engine.prefill` does."""

    def replace(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Logits] | None:
        """Makes other texts the rows; the logits after each, or None once cancelled. Raises as `step` does."""

    def drop(self, row: int) -> None:
        """Forgets a row; the last one takes its index."""


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
        cache: Cache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> Logits | None:
        """Appends one or more tokens to the cached ones; the last one's logits, or None once cancelled.

        on_progress: called with the tokens done and all of them after every chunk. cancelled: asked before each, and
        in a program about every tenth of a second. Raises NonFiniteLogits and OutOfMemory.
        """

    def decode(self, token: int, cache: Cache) -> Logits:
        """Appends one token; the logits after it. Raises as `prefill` does."""

    def step(self, tokens: Sequence[int], cache: Cache) -> Sequence[Logits]:
        """Appends one token, and at most `most_ahead` more; the logits after each. Raises as `prefill` does."""

    def new_rows(self) -> Rows | None:
        """Rows for samples of one prompt; None where they run as fast by `extend`, as texts of any length."""

    def extend(self, texts: Sequence[Extension]) -> list[Extended]:
        """Appends tokens to several texts, each with its own cache, in one step; returns the result of each.

        A text that ran out of memory may be cached in part, a non-finite one must be dropped; the others go on.
        """

    def copy_of(self, cache: Cache, length: int) -> Cache:
        """Another cache with the first `length` tokens or fewer. Raises OutOfMemory."""

    def score_tokens(
        self, tokens: Sequence[int], cache: Cache, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """Appends tokens; scores `targets`, each of which follows one of the last tokens, chunk by chunk.

        vocabulary: how many ids count; later logits are padding. top: how many of the likeliest ids are scored, too.
        Raises as `prefill` does.
        """

    def score_texts(
        self, texts: Sequence[Extension], targets: Sequence[Sequence[int]], vocabulary: int, top: int
    ) -> list[list[TokenScore]]:
        """The same for several texts in one step: a target for each of the last tokens that a text wants."""

    def most_ahead(self, cache: Cache) -> int:
        """How many tokens after the next one a step may append so that they can still be taken back."""

    def most_rows(self, tokens: int) -> int:
        """How many texts of `tokens` each may share steps."""


class FullEngine(Engine, Protocol):
    """An engine that serves every workload: its logits are tensors, and it tells what it computes with."""

    @property
    def library(self) -> Library | None:
        """See `Engine.library`."""

    @property
    def kernels(self) -> str:
        """What multiplies: the kernels' instruction set, torch, or both; on CUDA also the checked fast paths."""

    @property
    def arithmetic(self) -> str:
        """The arithmetic for more than a few tokens, in the layer that rounds most."""

    @property
    def threads(self) -> int:
        """CPU threads that share the work."""

    def bytes_a_token(self, context: int) -> int:
        """Bytes of weights, keys and values that are read to decode a token after `context` others."""

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises as `prefill` does."""

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """The mean of a text's hidden states after the final norm, (hidden,) in fp32. Raises as `prefill` does."""


class PromptCache:
    """Keeps an engine's cache from one generation to the next; starts again when the engine changes."""

    def __init__(self) -> None:
        self._engine: ref[Engine] | None = None
        self._cache: Cache | None = None

    def for_engine(self, engine: Engine) -> Cache:
        """The cache of an engine; a new one if the engine changed."""
        if self._cache is None or self._engine is None or self._engine() is not engine:
            self._engine, self._cache = ref(engine), engine.new_cache()
        return self._cache

    @cached_property
    def drafts(self) -> PromptCache:
        """The same for the engine of a draft model."""
        return PromptCache()
