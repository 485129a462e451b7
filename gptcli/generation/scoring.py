"""Computes how probable given tokens are, in bounded memory: texts in windows, logits in chunks. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from gptcli.errors import ContextOverflow, UsageError
from gptcli.generation.events import TokenLogprob
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.runtime.engine import Cache, Engine, Progress, PromptCache, TokenScore, no_progress
from gptcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Window:
    """Scores tokens `first` to `end` - 1 given those from `begin` on."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Windows that score every token from `first` on once, in order.

    A window runs at most `context` tokens; the last one it scores need not be among them. The first window scores all
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

    head: what of it the tokenizer puts before a text, such as BOS, which begins every window. on_progress: tokens done
    and in all.
    """
    unscored = max(1, len(head))
    logprobs: list[float | None] = [None] * unscored
    likeliest: list[tuple[TokenLogprob, ...]] = [()] * unscored
    own_cache = (cache or PromptCache()).for_engine(engine)
    for window in windows(len(ids), engine.ctx_size, stride, unscored):
        before = [*head, *ids[window.begin + len(head) : window.first]]
        for scores in _continued(engine, tokenizer, own_cache, before, ids[window.first : window.end], top):
            logprobs += [token.logprob for token in scores]
            likeliest += [
                tuple(TokenLogprob(id, tokenizer.token_bytes(id), value) for id, value in token.likeliest)
                for token in scores
            ]
            on_progress(len(logprobs), len(ids))
    return Score(tuple(ids), tuple(logprobs), size, tuple(likeliest))


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
    shared, endings = _common_prefix(tokenizer, prompt, choices, special)
    longest = len(shared) + max(map(len, endings)) - 1
    if longest > engine.ctx_size:
        raise ContextOverflow(
            f"the prompt and a choice do not fit: {longest} tokens in a context of {engine.ctx_size}",
            hint="shorten it; --ctx-size can be as large as the model's own context, and no larger",
        )
    own_cache = (cache or PromptCache()).for_engine(engine)
    logprobs = [
        [token.logprob for scores in _continued(engine, tokenizer, own_cache, shared, ending, 0) for token in scores]
        for ending in endings
    ]
    sums = [math.fsum(each) for each in logprobs]
    weights = [math.exp(own - max(sums)) for own in sums]
    scores = [
        ChoiceScore(choice, tuple(ending), tuple(each), weight / math.fsum(weights))
        for choice, ending, each, weight in zip(choices, endings, logprobs, weights, strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: -score.probability))


def _common_prefix(
    tokenizer: Tokenizer, prompt: str | Sequence[int], choices: Sequence[str], special: bool
) -> tuple[list[int], list[list[int]]]:
    """The prompt's tokens that stay the same whichever choice follows, and the tokens after them for each choice.

    A choice may change how the end of the prompt is tokenized: `Answer: ` and `yes` are `Answer`, `:` and ` yes`. All
    choices are then compared from the same token on. A prompt of token ids is left as it is.
    """
    if not isinstance(prompt, str):
        shared = list(prompt)
        texts = [[*shared, *tokenizer.encode(choice, add_special=False)] for choice in choices]
    else:
        suffix = len(tokenizer.surroundings[1])
        encoded = [tokenizer.encode(prompt + choice, special=special) for choice in ("", *choices)]
        shared, *texts = [ids[: len(ids) - suffix] for ids in encoded]
        for ids in texts:
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(shared, ids, strict=False))
            shared = shared[: sum(1 for _ in pairs)]
    if not shared:
        raise UsageError(
            "there is no prompt for the choices to continue",
            hint="this model has no token that begins a text by itself",
        )
    for choice, ids in zip(choices, texts, strict=True):
        if len(ids) == len(shared):
            raise UsageError(f"a choice must add something to the prompt, unlike {choice!r}")
    return shared, [ids[len(shared) :] for ids in texts]


def _continued(
    engine: Engine, tokenizer: Tokenizer, cache: Cache, before: Sequence[int], tokens: Sequence[int], top: int
) -> Iterator[list[TokenScore]]:
    """Scores tokens that follow one or more others, a chunk at a time. Cached tokens are not run again."""
    cache.keep_common(before[:-1])  # the last one's logits are wanted
    inputs = [*before, *tokens[:-1]]
    yield from engine.score_tokens(inputs[cache.length :], cache, tokens, tokenizer.size, top)
