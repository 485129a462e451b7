"""A request for a text, with settings of its own. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from gptcli.runtime.engine import RunKeywords
from gptcli.settings import (
    CONSTRAINT_FIELDS,
    ConstraintConfig,
    GenerateKeywords,
    Overflow,
    SamplingConfig,
    StopConfig,
)

if TYPE_CHECKING:
    from gptcli.tools.formats import ToolUse


class StreamKeywords(RunKeywords, total=False):
    """Keywords of a text beside its settings. See `LanguageModel.generate`."""

    constraint: ConstraintConfig | None
    logprobs: int | None
    explain: bool
    tools: ToolUse | None


@dataclass(frozen=True, init=False)
class Request:
    """A prompt, as text or token ids, and how it is completed.

    given: the sampling settings that were given; others are the model's defaults, else SamplingConfig's. tools: finds
    calls in the text, and may require one.
    """

    prompt: str | Sequence[int]
    given: Mapping[str, Any]
    stopping: StopConfig
    constraint: ConstraintConfig | None
    logprobs: int | None
    explain: bool
    tools: ToolUse | None

    def __init__(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        overflow: Overflow = "stop",
        logprobs: int | None = None,
        explain: bool = False,
        tools: ToolUse | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> None:
        """See `LanguageModel.generate`. Raises UsageError for values out of range."""
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        vars(self).update(
            prompt=prompt,
            given={name: value for name, value in options.items() if name not in CONSTRAINT_FIELDS},
            stopping=StopConfig(max_tokens=max_tokens, strings=strings, ignore_eos=ignore_eos, overflow=overflow),
            constraint=ConstraintConfig.resolve(options),
            logprobs=logprobs,
            explain=explain,
            tools=tools,
        )
        SamplingConfig.resolve(self.given, {})  # checks the ranges
