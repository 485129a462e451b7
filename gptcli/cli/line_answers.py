"""`--lines`: each line of a file or of stdin is a prompt; each answer is a line of JSON."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.background_reader import BackgroundReader, wait_for
from gptcli.cli.json_records import json_line, sample_record
from gptcli.cli.prompt_input import LINE, argument_text, text_lines
from gptcli.cli.run_options import RunOptions
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import ContextOverflow, GptcliError, TemplateError, UsageError
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.settings import CONSTRAINT_FIELDS, ConstraintConfig, SamplingConfig, StopConfig

if TYPE_CHECKING:
    from gptcli.tools.formats import ToolUse


def line_prompts(run: RunOptions, prompt: str | None) -> Iterator[str | None]:
    """The prompts as lines come, stdin before the file; None while there is none yet.

    prompt: has `{}` where the line goes; None: the line is the prompt. Raises UsageError for a prompt without `{}`, and
    as `text_lines` does.
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
    prompts = (
        form.replace(LINE, line)
        for source in dict.fromkeys(sources)
        for line in text_lines(source, run.decoding, run.prompts.max_input)
    )
    return prompts if all(source.is_file() for source in sources) else BackgroundReader(prompts)


def write_answers(
    run: RunOptions,
    lm: LanguageModel,
    prompts: Iterator[str | None],
    ids_of: Callable[[str], Sequence[int]],
    samplings: Sequence[SamplingConfig],
    what: Mapping[str, Any],
) -> None:
    """Answers prompts together; writes a record for each answer, or a prompt's error, with the line's number from 1.

    samplings: one for each answer. what: the other fields of a `Request`. Raises the first prompt's error at the end,
    and KeyboardInterrupt after the records of answers that Ctrl-C ended.
    """
    sink, output = StdoutSink(), run.output
    also = {"logprobs": output.logprobs is not None, "explain": output.explain, "tools": bool(run.tools.offered)}
    asked = deque[tuple[int, Request | GptcliError]]()  # with the line's number

    def requests() -> Iterator[Request | GptcliError | None]:
        number = 0
        for prompt in prompts:
            if prompt is None:
                yield None
                continue
            number += 1
            for request in _requests(partial(ids_of, prompt), samplings, what):
                asked.append((number, request))
                yield request

    failed: GptcliError | None = None
    failed_line = 0
    with interruptible() as cancelled:
        for _, answer in lm.complete_many(requests(), ordered=True, cancelled=cancelled, wait=wait_for(prompts)):
            number, request = asked.popleft()
            if isinstance(answer, ContextOverflow | TemplateError | UsageError):
                if number != failed_line:
                    sink.write(json_line({"line": number, "error": answer.message}))
                failed_line = number
                failed = failed or type(answer)(f"line {number}: {answer.message}", answer.hint)
            elif isinstance(answer, GptcliError):
                raise answer
            elif answer.finished.ids or answer.finished.reason != "interrupt":
                assert isinstance(request, Request)
                sampling = SamplingConfig.resolve(request.given, {})
                record = sample_record(lm, answer.data, answer.finished, sampling, request.stopping, **also)
                sink.write(json_line({"line": number, **record}))
                run.print_figures(answer.finished, lm.ctx_size)
        if cancelled():
            raise KeyboardInterrupt
    if failed is not None:
        raise failed


def _requests(
    ids_of: Callable[[], Sequence[int]], samplings: Sequence[SamplingConfig], what: Mapping[str, Any]
) -> Sequence[Request | GptcliError]:
    try:
        ids = ids_of()
        return [Request(ids, **what, **sampling.given) for sampling in samplings]
    except GptcliError as error:
        return [error]


def request_fields(stop: StopConfig, constraint: ConstraintConfig | None, tools: ToolUse | None) -> dict[str, Any]:
    """The fields of a `Request` for stopping, tools and constraint."""
    forms = {} if constraint is None else {name: getattr(constraint, name) for name in CONSTRAINT_FIELDS}
    ends = {"max_tokens": stop.max_tokens, "stop": stop.strings, "ignore_eos": stop.ignore_eos}
    return {**ends, "overflow": stop.overflow, "tools": tools, **forms}
