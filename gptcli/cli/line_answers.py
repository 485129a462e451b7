"""`--lines`: each line of a file or of stdin is a prompt of its own; what comes of it is a JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gptcli.chat.session import TurnsDropped
from gptcli.cli.json_records import json_line, sample_record
from gptcli.cli.prompt_input import argument_text, text_lines
from gptcli.cli.run_options import RunOptions
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import ContextOverflow, GptcliError, TemplateError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.settings import SamplingConfig, StopConfig

LINE = "{}"  # stands for the line in a prompt

Events = Iterator[TextDelta | TurnsDropped | Finished]


def line_prompts(run: RunOptions, prompt: str | None) -> Iterator[str]:
    """The prompts, as the lines come. prompt: has `{}` where the line goes; without one the line is the prompt.

    Raises UsageError where the prompt has no place for the line, and as `text_lines` does.
    """
    form = LINE if prompt is None else argument_text(prompt)
    if LINE not in form:
        raise UsageError(f"with --lines, the prompt must have {LINE} where the line goes")
    source = run.prompts.file or Path("-")
    return (form.replace(LINE, line) for line in text_lines(source, run.decoding, run.prompts.max_input))


def write_answers(
    run: RunOptions,
    lm: LanguageModel,
    prompts: Iterable[str],
    answers: Callable[[str], Iterable[Events]],
    sampling: SamplingConfig,
    stopping: StopConfig,
) -> None:
    """Writes a record for each of a prompt's answers, with the line's number from 1.

    A prompt that cannot be answered has its error in the record. Raises the first of these errors at the end.
    """
    sink, output = StdoutSink(), run.output
    logprobs, explain = output.logprobs is not None, output.explain
    failed: GptcliError | None = None
    for number, prompt in enumerate(prompts, 1):
        try:
            for events in answers(prompt):
                text = b""
                for event in events:
                    if isinstance(event, TextDelta):
                        text += event.data
                    elif isinstance(event, Finished):
                        record = sample_record(lm, text, event, sampling, stopping, logprobs=logprobs, explain=explain)
                        sink.write(json_line({"line": number, **record}))
        except (ContextOverflow, TemplateError, UsageError) as error:
            sink.write(json_line({"line": number, "error": error.message}))
            failed = failed or error
    if failed is not None:
        raise failed
