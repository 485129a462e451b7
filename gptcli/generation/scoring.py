"""Computes how probable given tokens are. Memory stays bounded: texts go through in windows, logits in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from gptcli.errors import ContextOverflow, UsageError
from gptcli.generation.events import TokenLogprob
from gptcli.generation.score_result import ChoiceScore, Score
from gptcli.model.cache import KVCache
from gptcli.runtime.engine import Engine
from gptcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Window:
    """Tokens `first` to `end` - 1 are scored behind those from `begin` on."""

    begin: int
    first: int
    end: int


def windows(tokens: int, context: int, stride: int, first: int = 1) -> Iterator[Window]:
    """Windows that score every token from `first` on once, in order.

    A window runs at most `context` tokens, and the last token it scores need not be among them. The first window scores
    all it can, each further one `stride` tokens, behind as many as fit: context - stride + 1 at least.
    """
    end = min(tokens, context + 1)
    while first < end:
        yield Window(max(0, end - 1 - context), first, end)
        first, end = end, min(tokens, end + stride)


def score(
    engine: Engine,
    tokenizer: Tokenizer,
    text: str,
    *,
    stride: int,
    special: bool = False,
    top: int = 0,
    cache: KVCache | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Scores a text of at least a token.

    What the tokenizer puts before a text, such as BOS, begins every window, as the model expects of any text.
    cache: one to use again. on_progress: called with the tokens done and all of them.
    """
    ids = tokenizer.encode(text, special=special)
    head = ids[: len(tokenizer.surroundings[0])]
    unscored = max(1, len(head))
    logprobs: list[float | None] = [None] * unscored
    likeliest: list[tuple[TokenLogprob, ...]] = [()] * unscored
    cache = engine.new_cache() if cache is None else cache
    for window in windows(len(ids), engine.ctx_size, stride, unscored):
        before = [*head, *ids[window.begin + len(head) : window.first]]
        for step in _continued(engine, tokenizer, cache, before, ids[window.first : window.end], top):
            logprobs += step.logprobs
            likeliest += step.top
            on_progress(len(logprobs), len(ids))
    return Score(tuple(ids), tuple(logprobs), len(text.encode()), tuple(likeliest))


def choose(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    choices: Sequence[str],
    *,
    special: bool = False,
    cache: KVCache | None = None,
) -> tuple[ChoiceScore, ...]:
    """Scores each choice as what continues the prompt, the most probable first.

    The prompt is run once. cache: one to use again. Raises UsageError for a choice that adds nothing and for a prompt
    that leaves nothing to continue, and ContextOverflow.
    """
    shared, endings = _parted(tokenizer, prompt, choices, special)
    longest = len(shared) + max(map(len, endings)) - 1
    if longest > engine.ctx_size:
        raise ContextOverflow(
            f"the prompt and a choice do not fit: {longest} tokens in a context of {engine.ctx_size}",
            hint="shorten it; --ctx-size can be as large as the model's own context, and no larger",
        )
    cache = engine.new_cache() if cache is None else cache
    logprobs = [
        [logprob for step in _continued(engine, tokenizer, cache, shared, ending, 0) for logprob in step.logprobs]
        for ending in endings
    ]
    sums = torch.tensor([math.fsum(each) for each in logprobs], dtype=torch.float64)
    scores = [
        ChoiceScore(choice, tuple(ending), tuple(each), probability)
        for choice, ending, each, probability in zip(choices, endings, logprobs, sums.softmax(0).tolist(), strict=True)
    ]
    return tuple(sorted(scores, key=lambda score: -score.probability))


def _parted(
    tokenizer: Tokenizer, prompt: str | Sequence[int], choices: Sequence[str], special: bool
) -> tuple[list[int], list[list[int]]]:
    """The tokens that the prompt has in common with what it is with every choice behind it, and what follows in each.

    A choice may change how the prompt's end is cut into tokens: `Answer: ` and `yes` are `Answer`, `:` and ` yes`. What
    follows is compared from the same place on for all of them. A prompt of token ids is left as it is.
    """
    if not isinstance(prompt, str):
        shared = list(prompt)
        texts = [[*shared, *tokenizer.encode(choice, add_special=False)] for choice in choices]
    else:
        behind = len(tokenizer.surroundings[1])
        encoded = [tokenizer.encode(prompt + choice, special=special) for choice in ("", *choices)]
        shared, *texts = [ids[: len(ids) - behind] for ids in encoded]
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


@dataclass(frozen=True)
class _Steps:
    """Of some tokens in a row: their log-probabilities, and the likeliest at the place of each."""

    logprobs: list[float]
    top: list[tuple[TokenLogprob, ...]]


def _continued(
    engine: Engine, tokenizer: Tokenizer, cache: KVCache, before: Sequence[int], tokens: Sequence[int], top: int
) -> Iterator[_Steps]:
    """Scores tokens behind one or more others, a chunk at a time. What the cache holds of those is not run again."""
    cache.keep_common(before[:-1])  # the last one's logits are wanted
    inputs = [*before, *tokens[:-1]]
    done = 0
    for logits in engine.each_logits(inputs[cache.length :], cache, len(tokens)):
        logits = logits[:, : tokenizer.size]  # beyond are rows without a token, which is never drawn either
        targets = torch.tensor(tokens[done : done + len(logits)], device=logits.device)
        done += len(logits)
        # Only what is asked for becomes a log-probability: a second matrix as large as the logits would be waste.
        total = logits.logsumexp(-1, keepdim=True)  # (T, 1)
        chosen = logits.gather(1, targets[:, None]) - total
        best = logits.topk(min(top, tokenizer.size))
        rows = zip(best.indices.tolist(), (best.values - total).tolist(), strict=True)
        yield _Steps(
            chosen[:, 0].tolist(),
            [
                tuple(TokenLogprob(id, tokenizer.token_bytes(id), value) for id, value in zip(ids, values, strict=True))
                for ids, values in rows
            ],
        )
