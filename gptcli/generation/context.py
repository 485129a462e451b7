"""Whether a prompt fits the context. No torch: it is asked before a model is loaded."""

from __future__ import annotations

from gptcli.errors import ContextOverflow, UsageError


def check_prompt(tokens: int, ctx_size: int) -> None:
    """Raises UsageError for an empty prompt, ContextOverflow where it leaves no room for a single token."""
    if tokens == 0:
        raise UsageError("the prompt is empty", hint="this model has no token that begins a text by itself")
    if tokens >= ctx_size:
        raise ContextOverflow(
            f"the prompt does not fit: {tokens} tokens, and at least one to come, in a context of {ctx_size}",
            hint="shorten it, or raise --ctx-size as far as the model's own context allows",
        )
