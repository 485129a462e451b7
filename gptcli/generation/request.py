"""Whether a request can be met by a model. No torch: it is asked before the weights are loaded."""

from __future__ import annotations

from gptcli.errors import ContextOverflow, UsageError
from gptcli.settings import SamplingConfig


def check_request(tokens: int, sampling: SamplingConfig, ctx_size: int, vocabulary: int) -> None:
    """For a prompt of so many tokens: raises UsageError where it is empty or a biased token does not exist.

    Raises ContextOverflow where it leaves no room for a single token.
    """
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
