"""Whether a request can be met by a model. No torch: it is asked before the weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.errors import ContextOverflow, UsageError
from gptcli.settings import SamplingConfig


def check_request(prompt: Sequence[int], sampling: SamplingConfig, ctx_size: int, vocabulary: int) -> None:
    """Raises UsageError for an empty prompt, and for a token in it or a bias that is outside the vocabulary.

    Raises ContextOverflow where it leaves no room for a single token.
    """
    tokens = len(prompt)
    if not all(type(token) is int and 0 <= token < vocabulary for token in prompt):
        raise UsageError(f"a prompt consists of token ids from 0 to {vocabulary - 1}")
    for token, _ in sampling.logit_bias:
        if token >= vocabulary:
            raise UsageError(f"logit-bias id {token} is outside the vocabulary of {vocabulary}")
    if tokens == 0:
        raise UsageError("the prompt is empty", hint="this model has no token that begins a text by itself")
    if tokens >= ctx_size:
        raise ContextOverflow(
            f"the prompt does not fit: {tokens} tokens, and at least one to come, in a context of {ctx_size}",
            hint="shorten it; --ctx-size can be as large as the model's own context, and no larger",
        )


def check_scoring(stride: int | None, top: int, most: int | None = None) -> None:
    """Raises UsageError for a negative top and for a stride outside 1 to `most`, where that is known."""
    if stride is not None and (stride < 1 or (most is not None and stride > most)):
        raise UsageError(f"stride must be {'at least 1' if most is None else f'between 1 and {most}'}, not {stride}")
    if top < 0:
        raise UsageError(f"top must be at least 0, not {top}")


def check_choices(choices: Sequence[str]) -> None:
    """Raises UsageError unless there are two or more choices, all different and none empty."""
    if len(choices) < 2:
        raise UsageError("there must be at least two choices")
    if "" in choices:
        raise UsageError("a choice must not be empty")
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise UsageError(f"a choice is there twice: {twice}")
