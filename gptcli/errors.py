"""Every failure that a user can see: a class per kind, with an exit code and, if possible, a way out."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script reads from `$?`, and the classes that it is of. A death by signal is 128 + its number."""

    OK = 0
    BUG = 1  # any other exception
    USAGE = 2  # UsageError
    INVALID_MODEL = 3  # InvalidModel
    NO_INPUT = 4  # InputError
    NO_MEMORY_OR_DEVICE = 5  # OutOfMemory, NoSuchDevice
    CONTEXT_FULL = 6  # ContextOverflow
    NON_FINITE = 7  # NonFiniteLogits, Diverged
    NO_OUTPUT = 8  # OutputError
    REQUESTS_FAILED = 9  # RequestsFailed


class GptcliError(Exception):
    """A failure with one line for the user (`message`) and perhaps a way out (`hint`)."""

    exit_code = ExitCode.BUG

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GptcliError):
    """An option or argument is invalid, alone or together with another. setting: its name, if it is a setting's."""

    exit_code = ExitCode.USAGE

    def __init__(self, message: str, hint: str | None = None, *, setting: str | None = None) -> None:
        super().__init__(message, hint)
        self.setting = setting


class InvalidModel(GptcliError):
    """A model's files cannot be used as they are."""

    exit_code = ExitCode.INVALID_MODEL


class BrokenCheckpoint(InvalidModel):
    """The model's files contradict each other or their format."""


class UnsupportedArchitecture(InvalidModel):
    """The model needs mathematics that is not implemented."""


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
    """The model is not on this machine, or could not be fetched."""


class OutOfMemory(GptcliError):
    """The model or its cache is larger than the memory."""

    exit_code = ExitCode.NO_MEMORY_OR_DEVICE


class NoSuchDevice(GptcliError):
    """The device asked for is not in this machine."""

    exit_code = ExitCode.NO_MEMORY_OR_DEVICE


class ContextOverflow(GptcliError):
    """A text does not fit into the context, or the context is full and `--overflow error` was asked for."""

    exit_code = ExitCode.CONTEXT_FULL


class NonFiniteLogits(GptcliError):
    """The model computed NaN or infinity. tokens: how many it had read by then. dtype: what it computed in."""

    exit_code = ExitCode.NON_FINITE

    def __init__(self, tokens: int, dtype: str) -> None:
        # Nothing is more precise than fp32 but weights that were not rounded.
        more_precise = "--dtype fp32" if dtype != "fp32" else "--quantize none if --quantize was given"
        super().__init__(
            f"the model computed NaN or infinity at token {tokens} in {dtype}",
            hint=f"`gptcli models verify` finds damaged weights; or try {more_precise}",
        )


class Diverged(GptcliError):
    """Training computed NaN or infinity."""

    exit_code = ExitCode.NON_FINITE


class OutputError(GptcliError):
    """Output or state could not be written."""

    exit_code = ExitCode.NO_OUTPUT


class RequestsFailed(GptcliError):
    """Some of a batch's requests failed; the output says why."""

    exit_code = ExitCode.REQUESTS_FAILED
