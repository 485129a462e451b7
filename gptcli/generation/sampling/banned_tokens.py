"""The tokens that settings ban, as transformers' processors of the same names do. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from gptcli.settings import SamplingConfig


def always_banned(config: SamplingConfig) -> set[int]:
    """The tokens that a config bans everywhere."""
    return {*config.suppress_tokens, *(word[0] for word in config.bad_words_ids if len(word) == 1)}


def banned_next(config: SamplingConfig, history: Sequence[int], *, begins: bool) -> Iterator[int]:
    """The tokens that a config bans after a history, beside those of `always_banned`.

    history: with the prompt's ids. begins: whether the text's first token is drawn.
    """
    if begins:
        yield from config.begin_suppress_tokens
    for word in config.bad_words_ids:
        # Single tokens are always banned. As in transformers, a word must fit into the history and a token.
        if 1 < len(word) <= len(history) + 1 and tuple(history[1 - len(word) :]) == word[:-1]:
            yield word[-1]
    if 0 < config.no_repeat_ngram_size <= len(history):
        yield from _repeating(history, config.no_repeat_ngram_size)


def within(vocabulary: int, tokens: Iterable[int]) -> list[int]:
    """The tokens within a vocabulary: others are never drawn."""
    return [token for token in tokens if token < vocabulary]


def _repeating(history: Sequence[int], size: int) -> Iterator[int]:
    """The tokens that would make the last `size` tokens a repetition."""
    if size == 1:
        yield from set(history)
        return
    prefix = history[len(history) - size + 1 :]
    last, end = prefix[-1], size - 2  # where the first window's prefix ends
    while True:
        try:
            end = history.index(last, end, len(history) - 1)
        except ValueError:
            return
        end += 1
        if history[end - size + 1 : end] == prefix:
            yield history[end]
