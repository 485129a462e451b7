"""Follows a text through a grammar: which tokens may come next, and which must. No torch."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError, UsageError
from gptcli.generation.constraints.grammar import CallGrammar, checked_grammar, compiled, reason_of
from gptcli.generation.sampling.constraint import Constraint, TokenMask, mask_words
from gptcli.settings import ConstraintConfig
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MOST_COMPILED = 16  # constraints
# What tokens often are: where all of a kind may come next, llguidance need not look at each. Its own, and lower case.
_SLICES = [
    r"[a-z]{1,16}",
    r" [a-z]{1,16}",
    r'[^"\\\x00-\x1F\x7F]{1,10}',
    r'[^"\\\x00-\x1F\x7F]{1,30}',
    r'[^"\\\x00-\x1F\x7F]+',
]


class _Tokens:
    """A model's tokens as llguidance asks for them. Control tokens are no text: a grammar makes those that it names."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        size = tokenizer.size
        # The last token is none of the model's: llguidance needs one that ends a text.
        self.eos_ids = sorted(id for id in stop_ids if id < size) or [size]
        self.eos_token_id = self.eos_ids[0]
        hidden = {*tokenizer.control_tokens.ids.values(), *self.eos_ids}
        self.special_token_ids = sorted(id for id in hidden if id <= size)
        # llguidance takes those with the same name for each other.
        self.tokens = [b"<|%d|>" % id if id in hidden else tokenizer.token_bytes(id) for id in range(size + 1)]
        self._tokenizer = tokenizer
        self.greedy: Callable[[str], list[int]]  # llguidance's, which needs these tokens first

    def __call__(self, text: str) -> list[int]:
        """The tokens of forced text, which is amid another: without the space that some tokenizers put first."""
        wanted = text.encode()
        for before in ("", "\n"):
            try:
                ids = self._tokenizer.encode(before + text, add_special=False)
            except GptcliError:  # a tokenizer that cannot spell a piece
                continue
            rest = sum(len(self.tokens[id]) for id in ids) - len(wanted)
            start = 0
            while start < len(ids) and rest > 0:
                rest -= len(self.tokens[ids[start]])
                start += 1
            if b"".join(self.tokens[id] for id in ids[start:]) == wanted:
                return ids[start:]
        return self.greedy(text)


class Compiler:
    """Compiles constraints for a model's tokens in the background, and keeps the last ones."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._compiled: dict[ConstraintConfig | CallGrammar, Future[LLMatcher]] = {}
        self._thread, self._lock = ThreadPoolExecutor(1), threading.Lock()

    def start(self, config: ConstraintConfig | CallGrammar) -> Future[LLMatcher]:
        """Checks a constraint, and begins to compile it. Raises UsageError as `checked_grammar` does.

        Raises it, too, for a tokenizer of which single tokens have no bytes of their own.
        """
        with self._lock:
            if config not in self._compiled:
                self._begin(config)
            return self._compiled[config]

    def _begin(self, config: ConstraintConfig | CallGrammar) -> None:
        if not self._tokenizer.spelling.exact:
            raise UsageError("cannot constrain this model's text: its tokens have no bytes of their own")
        grammar = checked_grammar(config)
        if len(self._compiled) == _MOST_COMPILED:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[config] = self._thread.submit(self._matcher, grammar)

    def constraint(self, config: ConstraintConfig | CallGrammar, *, forces: bool = True) -> Grammar:
        """What limits one text; forces: whether it may take tokens without a draw. Raises as `start` does."""
        return Grammar(self.start(config).result().deep_copy(), self._tokenizer.size, forces=forces)

    def _matcher(self, grammar: str) -> LLMatcher:
        matcher = compiled(self._tokens, grammar)
        _check(matcher)
        return matcher

    @cached_property
    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        tokens = _Tokens(self._tokenizer, self._stop_ids)
        made = LLTokenizer(tokens, eos_token=tokens.eos_ids, slices=_SLICES)  # type: ignore[arg-type]  # as there
        tokens.greedy = made.greedy_tokenize
        return made


class Grammar:
    """A `Constraint` that is a grammar. Raises UsageError once the text makes it too complex to follow."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, *, forces: bool) -> None:
        self._matcher, self._forces = matcher, forces
        self._mask = (ctypes.c_uint32 * mask_words(vocabulary + 1))()
        self._forced: list[int] | None = None  # None until it is known

    @property
    def finished(self) -> bool:
        """See `Constraint.finished`."""
        return self._matcher.is_stopped()

    def allowed(self) -> TokenMask:
        """See `Constraint.allowed`."""
        self._matcher.unsafe_compute_mask_ptr(ctypes.addressof(self._mask), ctypes.sizeof(self._mask))
        _check(self._matcher)
        return self._mask

    def forced(self) -> Sequence[int]:
        """See `Constraint.forced`: as the tokenizer spells the text that the grammar leaves no choice in."""
        if self._forced is None:
            self._forced = [] if self.finished or not self._forces else self._matcher.compute_ff_tokens()
            _check(self._matcher)
        return self._forced

    def fitting(self, tokens: Sequence[int]) -> int:
        """See `Constraint.fitting`."""
        return self._matcher.validate_tokens(list(tokens))

    def accept(self, token: int) -> None:
        """See `Constraint.accept`."""
        self._matcher.consume_token(token)
        _check(self._matcher)
        # The rest of what is forced stays so; after a token that was drawn, it is not known.
        self._forced = self._forced[1:] or None if self._forced and self._forced[0] == token else None


class AfterThoughts:
    """A `Constraint` that begins after a text, such as `</think>`; until then all but the end is allowed."""

    def __init__(self, inner: Constraint, tokenizer: Tokenizer, closing: bytes, stop_ids: frozenset[int]) -> None:
        self._inner, self._tokenizer, self._closing = inner, tokenizer, closing
        self._tail: bytes | None = b""  # of the thoughts; None once they are closed
        self._stop_ids = stop_ids
        self._mask = (ctypes.c_uint32 * mask_words(tokenizer.size))(*[2**32 - 1] * mask_words(tokenizer.size))
        for id in stop_ids:
            if id < tokenizer.size:
                self._mask[id // 32] &= ~(1 << id % 32)

    @property
    def finished(self) -> bool:
        """See `Constraint.finished`."""
        return self._tail is None and self._inner.finished

    def allowed(self) -> TokenMask | None:
        """See `Constraint.allowed`."""
        return self._inner.allowed() if self._tail is None else self._mask

    def forced(self) -> Sequence[int]:
        """See `Constraint.forced`."""
        return self._inner.forced() if self._tail is None else ()

    def fitting(self, tokens: Sequence[int]) -> int:
        """See `Constraint.fitting`: among thoughts, tokens may not go beyond their end."""
        if self._tail is None:
            return self._inner.fitting(tokens)
        tail = self._tail
        for count, token in enumerate(tokens, 1):
            if token in self._stop_ids:
                return count - 1
            tail += self._tokenizer.token_bytes(token)
            if self._closing in tail:
                return count
        return len(tokens)

    def accept(self, token: int) -> None:
        """See `Constraint.accept`."""
        if self._tail is None:
            self._inner.accept(token)
            return
        tail = self._tail + self._tokenizer.token_bytes(token)
        self._tail = None if self._closing in tail else tail[-len(self._closing) :]


def _check(matcher: LLMatcher) -> None:
    """Raises UsageError if a matcher has failed."""
    if matcher.is_error():
        raise UsageError(f"the constraint cannot be followed: {reason_of(matcher.get_error())}")
