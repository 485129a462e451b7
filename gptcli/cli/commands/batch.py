"""`gptcli batch`: answers the requests of a file; a further run resumes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import options
from gptcli.cli.background_reader import wait_for
from gptcli.cli.batch.answer_records import Vectors
from gptcli.cli.batch.bodies import PlainSettings
from gptcli.cli.batch.input_lines import InputLine, InputLines, is_table
from gptcli.cli.batch.output_file import AnswersFile, StdoutAnswers
from gptcli.cli.batch.progress import BatchProgress
from gptcli.cli.batch.requests import Answered, BatchSettings, Requests
from gptcli.cli.parsing.config_file import configured
from gptcli.cli.parsing.option_groups import only, option_group, panel, with_option_groups, without
from gptcli.cli.prompt_input import argument_text
from gptcli.cli.run_options import RunOptions, load_model, template_of
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stderr import ProgressLine, print_line
from gptcli.errors import GptcliError, InputError, RequestsFailed, UsageError
from gptcli.generation.events import Completed
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import SamplingConfig

_batch_option = panel("Batch")

Input = Annotated[
    Path, typer.Argument(metavar="IN", help="JSON lines, or CSV by the file's ending, .csv or .tsv; `-` is stdin.")
]


@option_group
class BatchOptions:
    """Where answers go, in which order, and what each line's prompt is."""

    out: Annotated[
        Path,
        _batch_option(
            "Where the answers go: a file, which goes on where it ended, or `-`, stdout.",
            "-o",
            "--out",
            metavar="FILE",
            readable=False,
        ),
    ] = Path("-")
    prompt: Annotated[
        str | None, _batch_option("Each line's prompt; {name} is the line's field of that name.", metavar="TEMPLATE")
    ] = None
    parallel: Annotated[
        int | None,
        _batch_option(
            "Texts that run together at most. (default: as many as still get faster and fit into memory, 32 at most)",
            min=1,
            metavar="N",
        ),
    ] = None
    ray: Annotated[
        str | None,
        _batch_option(
            "Spread texts over a Ray cluster: its address, `auto` for this machine's, or `local` for a new one here.",
            metavar="ADDRESS",
        ),
    ] = None
    workers: Annotated[
        int | None,
        _batch_option("Workers of --ray, each with a model. (default: one a GPU or machine)", min=1, metavar="N"),
    ] = None
    unordered: Annotated[bool, _batch_option("Leave answers in the order in which they came.", "--unordered")] = False
    retry_failed: Annotated[bool, _batch_option("Answer again what failed before.", "--retry-failed")] = False


@with_option_groups
def batch(
    context: typer.Context,
    file: Input,
    *,
    what: BatchOptions,
    model: options.Model = DEFAULT_MODEL,
    runtime: Annotated[options.RuntimeOptions, without("speculate", "draft_model")],
    prompts: Annotated[options.PromptOptions, without("file", "lines", "errors")],
    sampling: options.SamplingOptions,
    samples: options.Samples = 1,
    constraints: options.ConstraintOptions,
    tools: options.ToolOptions,
    stopping: options.StopOptions,
    output: Annotated[options.OutputOptions, only("logprobs", "quiet")],
) -> None:
    """Answer the requests of a file: OpenAI's batch format, JSON lines or CSV; goes on where it ended."""
    given = sampling.given()
    SamplingConfig.resolve(given, {})  # a bad value fails before anything is read
    run = RunOptions(
        model=model, runtime=runtime, given=given, prompts=prompts, output=output, configured=configured(context)
    )
    if what.workers is not None and what.ray is None:
        raise UsageError("--workers is for --ray")
    if what.retry_failed and str(what.out) == "-":
        raise UsageError("--retry-failed needs a file with answers: -o FILE")
    if is_table(file) and what.prompt is None:
        raise UsageError("a CSV file needs --prompt, with {name} where a column's text goes")
    if str(file) != "-" and not os.path.exists(file):
        raise InputError(f"cannot open: {file}: No such file or directory")
    if os.path.exists(file) and os.path.exists(what.out) and file.samefile(what.out):
        raise UsageError(f"this would replace an input: {file}")
    stop = stopping.config()
    settings = BatchSettings(
        options=given
        | constraints.given(run.decoding)
        | {
            "max_tokens": stop.max_tokens,
            "stop": stop.strings,
            "ignore_eos": stop.ignore_eos,
            "overflow": stop.overflow,
        },
        template=None if what.prompt is None else argument_text(what.prompt),
        plain=PlainSettings(prompts.chat, samples, output.logprobs),
        system=run.system(),
        special=prompts.special,
        **tools.given(run.decoding),
    )
    _run(run, file, what, settings)


def _run(run: RunOptions, file: Path, what: BatchOptions, settings: BatchSettings) -> None:
    """Answers the lines without an answer. Raises RequestsFailed at the end if any line failed."""
    to_stdout = str(what.out) == "-"
    answers = StdoutAnswers() if to_stdout else AnswersFile.open(what.out, retry_failed=what.retry_failed)
    with ProgressLine(quiet=run.output.quiet) as activity, run.open_model(activity) as lm:
        lines = InputLines(file, run.prompts.max_input, activity.note)
        if answers.torn:
            activity.note(f"an incomplete last line was cut off: {what.out}")
        runtime, asked = run.runtime.config(), run.prompts
        how = runtime.dtype, runtime.quantize, runtime.kv, runtime.ctx_size, runtime.adapter
        settings = settings.with_model(str(lm.folder.path.resolve()), *how, asked.chat_template, asked.switches)
        if answers.made_with - {settings.made_with.encode()}:
            activity.note(f"another model, or other options, gave answers that {what.out} has: they stay")
        if what.ray is None:
            load_model(lm, activity)
        progress = BatchProgress(lines, activity)
        if answers.is_terminal:
            activity.close()
        source, ordered = lines.without_waiting(), to_stdout and not what.unordered
        left = _unanswered(source, answers, progress)
        with interruptible() as cancelled:
            if what.ray is None:
                requests = Requests(lm, settings, template_of(run, lm), activity.note)
                texts: Iterator[tuple[int, Completed | Vectors | GptcliError]] = lm.complete_many(
                    requests.of(left),
                    parallel=what.parallel,
                    ordered=ordered,
                    cancelled=cancelled,
                    wait=wait_for(source),
                )
                answered = _answered_here(lm, requests, texts, settings.made_with)
            else:
                from gptcli.cli.batch.ray_workers import answered_by_workers

                make = run, settings, what.parallel
                answered = answered_by_workers(what.ray, what.workers, make, left, ordered=ordered, cancelled=cancelled)
            for answer in answered:
                answers.write(answer.number, answer.record)
                progress.took(answer)
            interrupted = cancelled()
        activity.close()
        if not interrupted:
            answers.close(lines.last, sort=not what.unordered)
        run.print_failures(lm)
    if not run.output.quiet:
        print_line(progress.summary)
    if interrupted:
        raise KeyboardInterrupt
    if failed := progress.failed + answers.failed:
        retry = "--retry-failed tries them again" if not to_stdout else None
        raise RequestsFailed(f"{failed} of the requests failed; their lines say why", retry)


def _unanswered(
    lines: Iterator[InputLine | None], answers: AnswersFile | StdoutAnswers, progress: BatchProgress
) -> Iterator[InputLine | None]:
    for line in lines:
        if line is not None and answers.has(line):
            progress.kept += 1
        else:
            yield line


def _answered_here(
    lm: LanguageModel,
    requests: Requests,
    texts: Iterator[tuple[int, Completed | Vectors | GptcliError]],
    made_with: str,
) -> Iterator[Answered]:
    """Answers lines with texts of this process. A line that Ctrl-C cuts off stays unanswered."""
    for index, answer in texts:
        work = requests.finished(index, answer)
        if work is not None and not work.interrupted:
            yield work.answered(lm.name, made_with)
