"""What engines do alike: long texts run in chunks, several share a step, each has its own error. No torch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, compress
from typing import Generic, Protocol, Self, TypeVar

from gptcli.errors import NonFiniteLogits, OutOfMemory
from gptcli.runtime.engine import (
    Cache,
    Cancelled,
    Extended,
    Extension,
    Logits,
    Progress,
    StepCancelled,
    TokenScore,
    never_cancelled,
    no_progress,
)
from gptcli.runtime.program import CHUNK, MANY_LOGITS, chunks


class LogitRows(Protocol):
    """The logits of several tokens, in order: a tensor (n, vocab), or a list."""

    def __getitem__(self, rows: slice, /) -> Self:
        """Those of some of the tokens."""

    def __iter__(self) -> Iterator[Logits]:
        """Each one's."""


_Rows = TypeVar("_Rows", bound=LogitRows)


class ChunkedEngine(ABC, Generic[_Rows]):
    """The half of an `Engine` that needs no more than a step of several texts."""

    ctx_size: int
    device_name: str
    dtype_name: str
    _rope_borders: Collection[int] = ()
    """Lengths past which keys are rotated in another way."""
    _keeps_states: bool
    """Whether layers keep what cannot be cut back to fewer tokens."""
    _prompt_chunk: int | None = None
    """Prompt tokens in a step; None for CHUNK."""
    _sums_up: bool
    """Whether `_log_probabilities` needs no logits."""

    def __init__(self) -> None:
        self._step = threading.Lock()  # steps share buffers

    @property
    def _room(self) -> int:
        """The longest text in tokens."""
        return self.ctx_size

    @abstractmethod
    def _run_texts(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> _Rows:
        """Appends tokens to several texts; the logits that they want, one after another, finite or not.

        Raises OutOfMemory, and StepCancelled once cancelled.
        """

    @abstractmethod
    def _all_finite(self, logits: _Rows) -> bool: ...

    @abstractmethod
    def _scores(self, logits: _Rows, targets: Sequence[int], vocabulary: int, top: int) -> list[TokenScore]:
        """The score of a target for each row."""

    @abstractmethod
    def _log_probabilities(
        self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int
    ) -> list[float] | None:
        """Appends tokens to several texts; a target's log-probability for each wanted row; None if one is not finite.

        Raises OutOfMemory.
        """

    def _non_finite(self, length: int) -> NonFiniteLogits:
        """The error of a text of `length` tokens."""
        return NonFiniteLogits(length, self.dtype_name)

    def _run(self, text: Extension, cancelled: Cancelled = never_cancelled) -> _Rows:
        """`_run_texts` for one text. Raises NonFiniteLogits, too."""
        logits = self._run_texts([text], cancelled)
        if not self._all_finite(logits):
            raise self._non_finite(text.cache.length)
        return logits

    def prefill(
        self,
        tokens: Sequence[int],
        cache: Cache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> Logits | None:
        """See `Engine.prefill`."""
        tokens, logits, done = self._rotated_alike(tokens, cache), None, 0
        # The same prompt again needs what was before its last token.
        border = len(tokens) - 1 if self._keeps_states else 0
        for chunk in chunks(tokens, border, self._prompt_chunk):
            if cancelled():
                return None
            cache.mark()
            try:
                [logits] = self._run(Extension(cache, chunk), cancelled)
            except StepCancelled:
                return None
            done += len(chunk)
            on_progress(done, len(tokens))
        return logits

    def decode(self, token: int, cache: Cache) -> Logits:
        """See `Engine.decode`."""
        return self.step([token], cache)[0]

    def step(self, tokens: Sequence[int], cache: Cache) -> Sequence[Logits]:
        """See `Engine.step`."""
        return self._append(Extension(cache, self._rotated_alike(tokens, cache), len(tokens)))

    def _append(self, text: Extension) -> Sequence[Logits]:
        *earlier, last = chunks(text.tokens)
        for chunk in earlier:
            self._run(Extension(text.cache, chunk))
        return list(self._run(Extension(text.cache, last, text.wanted)))

    def most_ahead(self, cache: Cache) -> int:
        """See `Engine.most_ahead`: a text that crosses a RoPE border cannot go back, nor can a state."""
        if self._keeps_states:
            return 0
        borders = [border for border in self._rope_borders if border >= cache.length]
        return max(0, min(min([self._room, *borders]) - cache.length, CHUNK) - 1)

    def extend(self, texts: Sequence[Extension]) -> list[Extended]:
        """See `Engine.extend`. A text that crosses a RoPE border runs by itself."""
        whole = self._all_rotated_alike(texts)
        shares = [len(texts) > 1 and own is text for own, text in zip(whole, texts, strict=True)]
        shared = iter(self._run_shared(list(compress(whole, shares))))
        return [next(shared) if sharing else self._run_alone(own) for own, sharing in zip(whole, shares, strict=True)]

    def _run_shared(self, texts: Sequence[Extension]) -> list[Extended]:
        if not texts:
            return []
        try:
            logits = self._run_texts(texts)
        except OutOfMemory as error:
            return [error] * len(texts)
        finite = self._all_finite(logits)
        return [
            list(own) if finite or self._all_finite(own) else self._non_finite(text.cache.length)
            for own, text in zip(_split(logits, texts), texts, strict=True)
        ]

    def _run_alone(self, text: Extension) -> Extended:
        try:
            return self._append(text)
        except (NonFiniteLogits, OutOfMemory) as error:
            return error

    def score_tokens(
        self, tokens: Sequence[int], cache: Cache, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """See `Engine.score_tokens`. Holds no more than one chunk's logits."""
        tokens = self._rotated_alike(tokens, cache)
        before = len(tokens) - len(targets)  # tokens that nothing is scored after
        for chunk in chunks(tokens, max(0, before) if self._keeps_states else 0):
            cache.mark()
            asked = targets[max(0, -before) :][: max(0, len(chunk) - max(0, before))]
            before -= len(chunk)
            if self._keeps_no_logits(len(asked), top):
                yield self._summed([Extension(cache, chunk, len(asked))], asked, vocabulary)
                continue
            logits = self._run(Extension(cache, chunk, max(1, len(asked))))
            if asked:
                yield self._scores(logits, asked, vocabulary, top)

    def score_texts(
        self, texts: Sequence[Extension], targets: Sequence[Sequence[int]], vocabulary: int, top: int
    ) -> list[list[TokenScore]]:
        """See `Engine.score_texts`."""
        texts = self._all_rotated_alike(texts)
        if self._keeps_states:  # the same text with another end needs what is before that
            before, texts = zip(*(text.split() for text in texts), strict=True)
            if any(text.tokens for text in before):
                self._run_texts([text for text in before if text.tokens])
            for text in texts:
                text.cache.mark()
        if self._keeps_no_logits(sum(text.wanted for text in texts), top):
            rest = iter(self._summed(texts, [target for own in targets for target in own], vocabulary))
            return [[next(rest) for _ in own] for own in targets]
        logits = self._run_texts(texts)
        if not self._all_finite(logits):
            raise self._non_finite(max(text.cache.length for text in texts))
        each = zip(_split(logits, texts), targets, strict=True)
        return [self._scores(own, asked, vocabulary, top) for own, asked in each]

    def _keeps_no_logits(self, targets: int, top: int) -> bool:
        return self._sums_up and targets >= MANY_LOGITS and not top

    def _summed(self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int) -> list[TokenScore]:
        logprobs = self._log_probabilities(texts, targets, vocabulary)
        if logprobs is None:
            raise self._non_finite(max(text.cache.length for text in texts))
        return [TokenScore(logprob, ()) for logprob in logprobs]

    def _rotated_alike(self, tokens: Sequence[int], cache: Cache) -> Sequence[int]:
        """The tokens to run so that all keys are rotated alike: the whole text if these cross a RoPE border."""
        if not self._crosses_border(len(tokens), cache):
            return tokens
        tokens = [*cache.tokens, *tokens]
        cache.truncate(0)
        return tokens

    def _all_rotated_alike(self, texts: Sequence[Extension]) -> list[Extension]:
        runs = [self._rotated_alike(text.tokens, text.cache) for text in texts]
        pairs = zip(texts, runs, strict=True)
        return [text if text.tokens is own else text._replace(tokens=own) for text, own in pairs]

    def _crosses_border(self, tokens: int, cache: Cache) -> bool:
        """Whether this many more tokens cross a RoPE border, past which the cached keys are wrong."""
        before, length = cache.span, cache.length
        cache.span = after = length + tokens
        return length > 0 and any((before > border) != (after > border) for border in self._rope_borders)


def longest(texts: Sequence[Extension]) -> int:
    """The tokens of the longest text after a step."""
    return max(text.cache.length + len(text.tokens) for text in texts)


def _split(logits: _Rows, texts: Sequence[Extension]) -> list[_Rows]:
    """The logits that each text wants."""
    ends = accumulate(text.wanted for text in texts)
    return [logits[end - text.wanted : end] for end, text in zip(ends, texts, strict=True)]
