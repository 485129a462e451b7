"""Every failure a user can meet: one class a kind, with a way out and an exit code. Nothing else raises to them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script reads from `$?`. Deaths by a signal are 128 + its number and not listed here."""

    OK = 0
    BUG = 1
    USAGE = 2
    INVALID_MODEL = 3
    NO_INPUT = 4
    NO_MEMORY_OR_DEVICE = 5
    CONTEXT_FULL = 6
    NON_FINITE = 7
    NO_OUTPUT = 8


class GptcliError(Exception):
    """A failure with one line for the user (`message`) and, where there is one, a way out (`hint`)."""

    exit_code = ExitCode.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GptcliError):
    """An option or argument has no meaning, or none together with another."""

    exit_code = ExitCode.USAGE


class InvalidModel(GptcliError):
    """What a model consists of cannot be used as it is."""

    exit_code = ExitCode.INVALID_MODEL


class BrokenCheckpoint(InvalidModel):
    """Files contradict each other or their format."""


class UnsupportedArchitecture(InvalidModel):
    """The model asks for mathematics that are not implemented."""


class BrokenTokenizer(InvalidModel):
    """The tokenizer cannot be read or does not fit the model."""


class TemplateError(InvalidModel):
    """The chat template fails."""


class NoTemplate(TemplateError):
    """The model has no chat template."""


class InputError(GptcliError):
    """An input is missing, unreadable or not text."""

    exit_code = ExitCode.NO_INPUT


class ModelNotFound(InputError):
    """There is no such model here, or it could not be fetched."""


class OutOfMemory(GptcliError):
    """The model or its cache is larger than the memory."""

    exit_code = ExitCode.NO_MEMORY_OR_DEVICE


class NoSuchDevice(GptcliError):
    """The device asked for is not in this machine."""

    exit_code = ExitCode.NO_MEMORY_OR_DEVICE


class ContextOverflow(GptcliError):
    """More tokens than the context holds."""

    exit_code = ExitCode.CONTEXT_FULL


class NonFiniteLogits(GptcliError):
    """The model computed NaN or infinity, behind so many tokens and in this dtype."""

    exit_code = ExitCode.NON_FINITE

    def __init__(self, tokens: int, dtype: str) -> None:
        super().__init__(
            f"the model computed NaN or infinity at token {tokens} in {dtype}",
            hint="try --dtype fp32; `gptcli models verify` finds damaged weights",
        )


class OutputError(GptcliError):
    """Output or state could not be written."""

    exit_code = ExitCode.NO_OUTPUT
