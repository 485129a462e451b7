"""How streams of events ended, for comparisons of texts that run together with what each is alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gptcli import Finished, TextDelta
from gptcli.errors import GptcliError

Outcome = tuple[bytes, Finished | GptcliError]


def completed(events: Iterable[TextDelta | Finished]) -> tuple[bytes, Finished]:
    """A stream's text, and how it ended."""
    *deltas, end = events
    assert isinstance(end, Finished)
    return b"".join(delta.data for delta in deltas if isinstance(delta, TextDelta)), end


def outcome(events: Iterable[TextDelta | Finished | GptcliError]) -> Outcome:
    """A stream's text, and its end or the error that it raises or has."""
    text = b""
    try:
        for event in events:
            if not isinstance(event, TextDelta):
                return text, event
            text += event.data
    except GptcliError as error:
        return text, error
    raise AssertionError("a stream has no end")


def facts(text: bytes, end: Finished | GptcliError) -> tuple[Any, ...]:
    """Everything in an outcome but times and probabilities."""
    if isinstance(end, GptcliError):
        return text, type(end), end.message
    usage = end.usage.prompt_tokens, end.usage.completion_tokens
    logprobs = end.logprobs and [(step.chosen.id, [top.id for top in step.top]) for step in end.logprobs]
    return text, end.ids, end.reason, end.stop, end.seed, usage, logprobs
