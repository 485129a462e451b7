"""Computes how probable given tokens are, in bounded memory: texts in windows, logits in chunks. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gptcli.errors import ContextOverflow, GptcliError, UsageError
from gptcli.generation.events import TokenLogprob
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.generation.together.cache_pool import CachePool
from gptcli.model.cache.common_prefix import common_length
from gptcli.runtime.engine import Cache, Engine, Extension, Progress, PromptCache, TokenScore, keep_common, no_progress
from gptcli.text.tokenizer import Tokenizer

_STEP_TOKENS = 512  # of all texts in a step
_MOST_TEXTS = 64  # in a step, which keeps all their logits
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Window:
    """Scores tokens `first` to `end` - 1 given those from `begin` on."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Windows that score every token from `first` on once, in order.

    A window runs at most `context` tokens; its last token is scored, and need not be run. The first window scores all
    it can, each further one `stride` tokens, given as many as fit: context - stride + 1 at least.
    """
    end = min(tokens, context + 1)
    while first < end:
        yield Window(max(0, end - 1 - context), first, end)
        first, end = end, min(tokens, end + stride)


def score(
    engine: Engine,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    stride: int,
    size: int,
    head: Sequence[int] = (),
    top: int = 0,
    cache: PromptCache | None = None,
    on_progress: Progress = no_progress,
) -> Score:
    """Scores a text of at least a token, and `size` bytes.

    head: the tokens that the tokenizer puts before a text, such as BOS; every window begins with them. on_progress:
    tokens done, and in all.
    """
    unscored, found = max(1, len(head)), list[TokenScore]()
    own_cache = (cache or PromptCache()).for_engine(engine)
    for window in windows(len(ids), engine.ctx_size, stride, unscored):
        before = [*head, *ids[window.begin + len(head) : window.first]]
        for scores in _continued(engine, tokenizer, own_cache, before, ids[window.first : window.end], top):
            found += scores
            on_progress(unscored + len(found), len(ids))
    return _scored(tokenizer, size, ids, found)


@dataclass
class _Line:
    """A text that shares a step. scores: of the tokens after its head; before the step, those of an earlier text."""

    size: int
    ids: Sequence[int]
    cache: Cache
    scores: list[TokenScore]


def score_many(
    engine: Engine, tokenizer: Tokenizer, texts: Iterable[str], *, stride: int, special: bool, top: int
) -> Iterator[Score]:
    """Scores texts, as `score` does; short ones share steps. Scores before a text that fails are yielded.

    What a text begins with is not run again if a text of the step before began with it.
    """
    before, earlier = len(tokenizer.surroundings[0]), list[_Line]()
    unscored = max(1, before)

    def begun(text: str) -> _Line:
        size, ids = len(text.encode()), tokenizer.encode(text, special=special)
        if not earlier:
            return _Line(size, ids, engine.new_cache(), [])
        alike = [common_length(line.ids, ids) for line in earlier]
        common = max(alike)
        line = earlier.pop(alike.index(common))
        line.cache.truncate(max(0, common - 1))  # its last token's logits say how probable the next one is
        return _Line(size, ids, line.cache, line.scores[: max(0, common - unscored)])

    for group in _groups(map(begun, texts), lambda line: len(line.ids) - line.cache.length):
        if len(group) == 1:
            [line] = group
            yield score(engine, tokenizer, line.ids, stride=stride, size=line.size, head=line.ids[:before], top=top)
        else:
            asked = [line for line in group if len(line.ids) > unscored + len(line.scores)]
            targets = [line.ids[unscored + len(line.scores) :] for line in asked]
            parts = [
                Extension(line.cache, line.ids[line.cache.length : -1], len(own))
                for line, own in zip(asked, targets, strict=True)
            ]
            if asked:
                for line, found in zip(asked, engine.score_texts(parts, targets, tokenizer.size, top), strict=True):
                    line.scores += found
            yield from (_scored(tokenizer, line.size, line.ids, line.scores) for line in group)
        for line in group:
            line.ids = line.ids[: unscored + len(line.scores)]
        earlier += group


def _scored(tokenizer: Tokenizer, size: int, ids: Sequence[int], found: Sequence[TokenScore]) -> Score:
    before = len(ids) - len(found)
    likeliest = [tuple(TokenLogprob(id, tokenizer.token_bytes(id), p) for id, p in one.likeliest) for one in found]
    logprobs = (*[None] * before, *(token.logprob for token in found))
    return Score(tuple(ids), logprobs, size, (*[()] * before, *likeliest))


def _groups(items: Iterable[_Item], tokens_of: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Items that share a step. If the next item raises, what came before it is yielded first."""
    group, tokens = list[_Item](), 0
    try:
        for item in items:
            own = tokens_of(item)
            if group and (tokens + own > _STEP_TOKENS or len(group) == _MOST_TEXTS):
                yield group
                group, tokens = [], 0
            group.append(item)
            tokens += own
    except GptcliError:
        if group:
            yield group
        raise
    if group:
        yield group


def choose(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    choices: Sequence[str],
    *,
    special: bool = False,
    cache: PromptCache | None = None,
) -> tuple[ChoiceScore, ...]:
    """Scores each choice as a continuation of the prompt, which is run once; the most probable comes first.

    Raises UsageError for a choice that adds nothing and for a prompt without tokens, and ContextOverflow.
    """
    shared, endings = _common_prefix(engine, tokenizer, prompt, choices, special)
    own_cache = (cache or PromptCache()).for_engine(engine)
    logprobs = [
        [token.logprob for scores in _continued(engine, tokenizer, own_cache, shared, ending, 0) for token in scores]
        for ending in endings
    ]
    return _chosen(choices, endings, logprobs)


def choose_many(
    engine: Engine, tokenizer: Tokenizer, prompts: Iterable[str], choices: Sequence[str], *, special: bool
) -> Iterator[tuple[ChoiceScore, ...]]:
    """As `choose`, for each prompt: they share steps, and what they begin with in common is run once."""
    pool = CachePool(engine)
    asked = (_common_prefix(engine, tokenizer, prompt, choices, special) for prompt in prompts)
    for group in _groups(asked, lambda each: len(each[0]) - pool.most_common(each[0]) + max(map(len, each[1]))):
        caches = [pool.take(shared[:-1]) for shared, _ in group]
        for (shared, _), own in zip(group, caches, strict=True):
            if len(shared) - own.length > _STEP_TOKENS:
                engine.prefill(shared[own.length : -1], own)
        rounds = []
        for choice in range(len(choices)):
            parts = [
                Extension(own, [*shared, *endings[choice][:-1]][own.length :], len(endings[choice]))
                for (shared, endings), own in zip(group, caches, strict=True)
            ]
            targets = [endings[choice] for _, endings in group]
            rounds.append(engine.score_texts(parts, targets, tokenizer.size, 0))
            for (shared, _), own in zip(group, caches, strict=True):
                own.truncate(len(shared) - 1)
        for own in caches:
            pool.give_back(own)
        for (_, endings), scores in zip(group, zip(*rounds, strict=True), strict=True):
            yield _chosen(choices, endings, [[token.logprob for token in own] for own in scores])


def _chosen(
    choices: Sequence[str], endings: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]
) -> tuple[ChoiceScore, ...]:
    """The choices with their log-probabilities, the most probable first."""
    sums = [math.fsum(each) for each in logprobs]
    weights = [math.exp(own - max(sums)) for own in sums]
    scores = [
        ChoiceScore(choice, tuple(ending), tuple(each), weight / math.fsum(weights))
        for choice, ending, each, weight in zip(choices, endings, logprobs, weights, strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: -score.probability))


def _common_prefix(
    engine: Engine, tokenizer: Tokenizer, prompt: str | Sequence[int], choices: Sequence[str], special: bool
) -> tuple[list[int], list[list[int]]]:
    """The prompt's tokens that stay the same whichever choice follows, and the tokens after them for each choice.

    A choice may change how the end of the prompt is tokenized: `Answer: ` and `yes` are `Answer`, `:` and ` yes`. All
    choices are then compared from the same token on. A prompt of token ids is left as it is. Raises as `choose` does.
    """
    if not isinstance(prompt, str):
        shared = list(prompt)
        texts = [[*shared, *tokenizer.encode(choice, add_special=False)] for choice in choices]
    else:
        suffix = len(tokenizer.surroundings[1])
        encoded = [tokenizer.encode(prompt + choice, special=special) for choice in ("", *choices)]
        shared, *texts = [ids[: len(ids) - suffix] for ids in encoded]
        for ids in texts:
            shared = shared[: common_length(shared, ids)]
    if not shared:
        raise UsageError(
            "there is no prompt for the choices to continue",
            hint="this model has no token that begins a text by itself",
        )
    for choice, ids in zip(choices, texts, strict=True):
        if len(ids) == len(shared):
            raise UsageError(f"a choice must add something to the prompt, unlike {choice!r}")
    longest = max(map(len, texts)) - 1
    if longest > engine.ctx_size:
        raise ContextOverflow(
            f"the prompt and a choice do not fit: {longest} tokens in a context of {engine.ctx_size}",
            hint="shorten it; --ctx-size can be as large as the model's own context, and no larger",
        )
    return shared, [ids[len(shared) :] for ids in texts]


def _continued(
    engine: Engine, tokenizer: Tokenizer, cache: Cache, before: Sequence[int], tokens: Sequence[int], top: int
) -> Iterator[list[TokenScore]]:
    """Scores tokens that follow one or more others, a chunk at a time. Cached tokens are not run again."""
    keep_common(cache, before[:-1])  # the last one's logits are wanted
    inputs = [*before, *tokens[:-1]]
    yield from engine.score_tokens(inputs[cache.length :], cache, tokens, tokenizer.size, top)
