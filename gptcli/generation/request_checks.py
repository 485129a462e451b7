"""Checks requests before the weights of a model are loaded. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.errors import ContextOverflow, UsageError
from gptcli.settings import SamplingConfig


def check_request(prompt: Sequence[int], sampling: SamplingConfig, ctx_size: int, vocabulary: int) -> None:
    """Raises UsageError for an empty prompt, and for a prompt's token or a bias outside the vocabulary.

    Raises ContextOverflow if the prompt leaves no room for a single token.
    """
    tokens = len(prompt)
    if not all(type(token) is int and 0 <= token < vocabulary for token in prompt):
        raise UsageError(f"a prompt consists of token ids from 0 to {vocabulary - 1}", setting="prompt")
    for token, _ in sampling.logit_bias:
        if token >= vocabulary:
            raise UsageError(f"logit-bias id {token} is outside the vocabulary of {vocabulary}", setting="logit_bias")
    if tokens == 0:
        hint = "this model has no token that begins a text by itself"
        raise UsageError("the prompt is empty", hint, setting="prompt")
    if tokens >= ctx_size:
        raise ContextOverflow(
            f"the prompt does not fit: {tokens} tokens, and at least one to come, in a context of {ctx_size}",
            hint="shorten it; --ctx-size can be as large as the model's own context, and no larger",
        )


def check_scoring(stride: int | None, top: int, longest: int | None = None) -> None:
    """Raises UsageError for a negative top, and for a stride below 1 or above `longest`; None: not known yet."""
    if stride is not None and (stride < 1 or (longest is not None and stride > longest)):
        bounds = "at least 1" if longest is None else f"between 1 and {longest}"
        raise UsageError(f"stride must be {bounds}, not {stride}")
    if top < 0:
        raise UsageError(f"top must be at least 0, not {top}")


def check_choices(choices: Sequence[str]) -> None:
    """Raises UsageError unless there are two or more choices, all different, none empty."""
    if len(choices) < 2:
        raise UsageError("there must be at least two choices")
    if "" in choices:
        raise UsageError("a choice must not be empty")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise UsageError(f"a choice is there twice: {twice}")
