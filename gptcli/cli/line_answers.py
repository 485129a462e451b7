"""`--lines`: each line of a file or of stdin is a prompt of its own; what comes of it is a JSON object a line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gptcli.chat.session import TurnsDropped
from gptcli.cli.json_records import json_line, sample_record
from gptcli.cli.prompt_input import LINE, argument_text, text_lines
from gptcli.cli.run_options import RunOptions
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import ContextOverflow, GptcliError, TemplateError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.runtime.engine import Cancelled
from gptcli.settings import SamplingConfig, StopConfig

Events = Iterator[TextDelta | TurnsDropped | Finished]


def line_prompts(run: RunOptions, prompt: str | None) -> Iterator[str]:
    """The prompts, as the lines come, those of stdin before those of the file.

    prompt: has `{}` where the line goes; without one the line is the prompt.

    Raises UsageError where the prompt has no place for the line, and as `text_lines` does.
    """
    output = run.output
    shown = (output.echo, output.newline, output.markdown, output.html, output.svg, output.prompt_report)
    if any(shown):
        raise UsageError("--lines writes JSON alone: no --echo, --newline, --markdown, --html, --svg, --prompt-report")
    form = LINE if prompt is None else argument_text(prompt)
    if LINE not in form:
        raise UsageError(f"with --lines, the prompt must have {LINE} where the line goes")
    piped = sys.stdin is not None and not sys.stdin.isatty()
    file = run.prompts.file
    sources = [*([Path("-")] if piped or file is None else []), *([] if file is None else [file])]
    return (
        form.replace(LINE, line)
        for source in dict.fromkeys(sources)
        for line in text_lines(source, run.decoding, run.prompts.max_input)
    )


def write_answers(
    run: RunOptions,
    lm: LanguageModel,
    prompts: Iterable[str],
    answers: Callable[[str, Cancelled], Iterable[Events]],
    sampling: SamplingConfig,
    stopping: StopConfig,
) -> None:
    """Writes a record for each of a prompt's answers, with the line's number from 1.

    A prompt that cannot be answered has its error in the record. Raises the first of these errors at the end, and
    KeyboardInterrupt after the record of an answer that Ctrl-C ended.
    """
    sink, output = StdoutSink(), run.output
    also = {"logprobs": output.logprobs is not None, "explain": output.explain, "tools": bool(run.tools.offered)}
    failed: GptcliError | None = None
    for number, prompt in enumerate(prompts, 1):
        try:
            with interruptible() as cancelled:
                for events in answers(prompt, cancelled):
                    text = b""
                    for event in events:
                        if isinstance(event, TextDelta):
                            text += event.data
                        elif isinstance(event, Finished):
                            record = sample_record(lm, text, event, sampling, stopping, **also)
                            sink.write(json_line({"line": number, **record}))
                            run.print_figures(event, lm.ctx_size)
                    if cancelled():
                        raise KeyboardInterrupt
        except (ContextOverflow, TemplateError, UsageError) as error:
            sink.write(json_line({"line": number, "error": error.message}))
            failed = failed or type(error)(f"line {number}: {error.message}", error.hint)
    if failed is not None:
        raise failed
