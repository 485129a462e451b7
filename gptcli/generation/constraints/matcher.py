"""Follows a text through a grammar: the tokens that may come next, and those that must. No torch."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING

from gptcli.errors import GptcliError, UsageError
from gptcli.generation.constraints.grammar import CallGrammar, checked_grammar, compiled, reason_of
from gptcli.generation.sampling.constraint import Constraint, TokenMask, mask_words
from gptcli.settings import ConstraintConfig
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools import thought_tags

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

OPENING, CLOSING = thought_tags.OPENING.encode(), thought_tags.CLOSING.encode()
_MOST_COMPILED = 16  # constraints
# Kinds of tokens: where all of a kind may come next, llguidance skips them. Its own kinds, and lower case.
_SLICES = [
    r"[a-z]{1,16}",
    r" [a-z]{1,16}",
    r'[^"\\\x00-\x1F\x7F]{1,10}',
    r'[^"\\\x00-\x1F\x7F]{1,30}',
    r'[^"\\\x00-\x1F\x7F]+',
]


class _Tokens:
    """A model's tokens, with llguidance's interface. Control tokens have no text; a grammar can name them."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        size = tokenizer.size
        # The token after the model's last: llguidance needs one that ends a text.
        self.eos_ids = sorted(id for id in stop_ids if id < size) or [size]
        self.eos_token_id = self.eos_ids[0]
        hidden = {*tokenizer.control_tokens.ids.values(), *self.eos_ids}
        self.special_token_ids = sorted(id for id in hidden if id <= size)
        # Names are unique: llguidance confuses tokens with the same bytes.
        self.tokens = [b"<|%d|>" % id if id in hidden else tokenizer.token_bytes(id) for id in range(size + 1)]
        self._tokenizer = tokenizer
        self.greedy: Callable[[str], list[int]]  # llguidance's, set once it has these tokens

    def __call__(self, text: str) -> list[int]:
        """The tokens of forced text amid another text: without the space that some tokenizers put first."""
        wanted = text.encode()
        for before in ("", "\n"):
            try:
                ids = self._tokenizer.encode(before + text, add_special=False)
            except GptcliError:  # the tokenizer cannot spell it
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
    """Compiles constraints for a model's tokens in the background, and keeps the latest."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._compiled: dict[ConstraintConfig | CallGrammar, Future[LLMatcher]] = {}
        self._beyond: dict[bytes, list[list[int]]] = {}  # by mark, see `tokens_beyond`
        self._thread, self._lock = ThreadPoolExecutor(1), threading.Lock()

    def start(self, config: ConstraintConfig | CallGrammar) -> Future[LLMatcher]:
        """Checks a constraint, and begins to compile it. Raises UsageError as `checked_grammar` does.

        Raises UsageError, too, for a tokenizer whose tokens have no bytes of their own.
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
        after = config.after if isinstance(config, CallGrammar) else ()
        self._compiled[config] = self._thread.submit(self._matcher, grammar, after)

    def constraint(
        self, config: ConstraintConfig | CallGrammar, *, forces: bool = True, in_thoughts: bool = False
    ) -> Constraint:
        """The constraint of one text. Raises as `start` does.

        forces: whether it may force tokens. in_thoughts: whether the prompt has opened thoughts, which are free.
        """
        matcher = self.start(config).result()

        def begin() -> Grammar:
            return Grammar(matcher.deep_copy(), self._tokenizer.size, forces=forces)

        if isinstance(config, CallGrammar) and config.after:
            beyond = {mark: self._beyond[mark] for mark in map(str.encode, config.after)}
            return AfterMarks(begin, self._tokenizer, beyond, self._library.greedy_tokenize, in_thoughts=in_thoughts)
        return AfterThoughts(begin(), self._tokenizer, self._stop_ids) if in_thoughts else begin()

    def _matcher(self, grammar: str, after: Sequence[str]) -> LLMatcher:
        matcher = compiled(self._library, grammar)
        _check(matcher)
        for mark in map(str.encode, after):
            self._beyond[mark] = self._beyond.get(mark) or tokens_beyond(mark, self._tokens.tokens)
        return matcher

    @cached_property
    def _tokens(self) -> _Tokens:
        return _Tokens(self._tokenizer, self._stop_ids)

    @cached_property
    def _library(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        made = LLTokenizer(self._tokens, eos_token=self._tokens.eos_ids, slices=_SLICES)  # type: ignore[arg-type]  # as grammar.py
        self._tokens.greedy = made.greedy_tokenize
        return made


def tokens_beyond(mark: bytes, tokens: Sequence[bytes]) -> list[list[int]]:
    """The tokens that complete a mark and go on, by how many of its bytes come before them."""
    beyond = [list[int]() for _ in mark]
    for token, data in enumerate(tokens):
        text = data[:-1]
        if mark[-1] in text:  # few are
            for before, ids in enumerate(beyond):
                if text.startswith(mark[before:]) or (before == 0 and mark in text):
                    ids.append(token)
    return beyond


class Grammar:
    """A `Constraint` of a grammar. Raises UsageError once the text makes it too complex to follow."""

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
        """See `Constraint.forced`: the tokenizer's spelling of the forced text."""
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
        # The rest of the forced tokens stays forced; after another token it is unknown.
        self._forced = self._forced[1:] or None if self._forced and self._forced[0] == token else None


class AfterThoughts:
    """A `Constraint` that begins after `</think>`; before that, all but the stop tokens are allowed."""

    def __init__(self, inner: Constraint, tokenizer: Tokenizer, stop_ids: frozenset[int]) -> None:
        self._inner, self._tokenizer = inner, tokenizer
        self._tail: bytes | None = b""  # end of the thoughts; None once they are closed
        self._stop_ids = stop_ids
        self._mask = _all_but(stop_ids, tokenizer.size)

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
        """See `Constraint.fitting`: in thoughts, tokens up to their end."""
        if self._tail is None:
            return self._inner.fitting(tokens)
        tail = self._tail
        for count, token in enumerate(tokens, 1):
            if token in self._stop_ids:
                return count - 1
            tail += self._tokenizer.token_bytes(token)
            if CLOSING in tail:
                return count
        return len(tokens)

    def accept(self, token: int) -> None:
        """See `Constraint.accept`."""
        if self._tail is None:
            self._inner.accept(token)
            return
        tail = self._tail + self._tokenizer.token_bytes(token)
        self._tail = None if CLOSING in tail else tail[-len(CLOSING) :]


class AfterMarks:
    """A `Constraint` that begins again after each of these marks; before, and once it is met, all is allowed.

    Thoughts at the text's beginning are free, marks or not. marks: each with its `tokens_beyond`. spell: gives tokens
    of a text. in_thoughts: whether the prompt has opened thoughts.
    """

    def __init__(
        self,
        begin: Callable[[], Grammar],
        tokenizer: Tokenizer,
        marks: Mapping[bytes, Sequence[Sequence[int]]],
        spell: Callable[[str], list[int]],
        *,
        in_thoughts: bool,
    ) -> None:
        self._begin, self._tokenizer, self._spell = begin, tokenizer, spell
        self._marks = marks
        controls = {id: name.encode() for name, id in tokenizer.control_tokens.ids.items()}
        self._shown = {id: name for id, name in controls.items() if any(name in mark for mark in marks)}
        self._inner: Grammar | None = None
        self._tail = b""  # end of the free text, in which a mark may begin
        self._may_open_thoughts = not in_thoughts  # only blanks so far, or the beginning of the tag
        self._in_thoughts = in_thoughts
        self._fit: dict[bytes, bool] = {}

    @property
    def finished(self) -> bool:
        """See `Constraint.finished`: the model ends the text."""
        return False

    def allowed(self) -> TokenMask | None:
        """See `Constraint.allowed`: a token that goes beyond a mark must fit the constraint after it."""
        if self._inner is not None:
            return self._inner.allowed()
        unfit = [] if self._in_thoughts else [token for token in self._beyond() if not self._fits(token)]
        return _all_but(unfit, self._tokenizer.size) if unfit else None

    def forced(self) -> Sequence[int]:
        """See `Constraint.forced`."""
        return () if self._inner is None else self._inner.forced()

    def fitting(self, tokens: Sequence[int]) -> int:
        """See `Constraint.fitting`: up to the next mark, or within the constraint after one."""
        if self._inner is not None:
            return self._inner.fitting(tokens)
        ahead = copy(self)
        for count, token in enumerate(tokens):
            if not ahead._fits(token):
                return count
            ahead.accept(token)
            if ahead._inner is not None:
                return count + 1
        return len(tokens)

    def accept(self, token: int) -> None:
        """See `Constraint.accept`."""
        if self._inner is not None:
            self._inner.accept(token)
            if self._inner.finished:
                self._inner = None
            return
        self._tail += self._bytes(token)
        self._look_for_thoughts()
        if not self._in_thoughts and (rest := self._rest(self._tail)) is not None:
            self._inner, self._tail = self._begin(), b""
            for spelled in self._spell(rest.decode()):
                self._inner.accept(spelled)
        elif not self._may_open_thoughts:
            self._tail = self._tail[-max(map(len, (CLOSING, *self._marks))) :]

    def _look_for_thoughts(self) -> None:
        """As the splitter does: where thoughts end, others may begin."""
        if self._in_thoughts and CLOSING in self._tail:
            self._tail = self._tail.partition(CLOSING)[2]
            self._may_open_thoughts, self._in_thoughts = True, False
        start = self._tail.lstrip()
        if self._may_open_thoughts and start.startswith(OPENING):
            self._tail, self._may_open_thoughts, self._in_thoughts = start.removeprefix(OPENING), False, True
            self._look_for_thoughts()
        elif self._may_open_thoughts:
            self._may_open_thoughts = OPENING.startswith(start)

    def _bytes(self, token: int) -> bytes:
        if self._tokenizer.is_control(token):
            return self._shown.get(token, b"")
        return self._tokenizer.token_bytes(token)

    def _rest(self, text: bytes) -> bytes | None:
        """The text after the first mark; None without a mark."""
        found = [(at, -len(mark)) for mark in self._marks if (at := text.find(mark)) >= 0]
        return text[min(found)[0] - min(found)[1] :] if found else None

    def _fits(self, token: int) -> bool:
        """Whether the text that a token has beyond a mark, if any, may follow the mark."""
        rest = None if self._in_thoughts else self._rest(self._tail + self._bytes(token))
        if not rest:
            return True
        if rest not in self._fit:
            try:
                spelled = self._spell(rest.decode())
            except UnicodeDecodeError:  # half a character
                return False
            self._fit[rest] = self._begin().fitting(spelled) == len(spelled)
        return self._fit[rest]

    def _beyond(self) -> Iterator[int]:
        """The tokens that complete a mark and go on."""
        for mark, beyond in self._marks.items():
            for before, tokens in enumerate(beyond):
                if tokens and self._tail.endswith(mark[:before]):
                    yield from tokens


def _all_but(tokens: Iterable[int], vocabulary: int) -> TokenMask:
    """The mask of a vocabulary without these tokens; ids outside it are ignored."""
    mask = (ctypes.c_uint32 * mask_words(vocabulary))(*[2**32 - 1] * mask_words(vocabulary))
    for token in tokens:
        if token < vocabulary:
            mask[token // 32] &= ~(1 << token % 32)
    return mask


def _check(matcher: LLMatcher) -> None:
    """Raises UsageError if a matcher has failed."""
    if matcher.is_error():
        raise UsageError(f"the constraint cannot be followed: {reason_of(matcher.get_error())}")
