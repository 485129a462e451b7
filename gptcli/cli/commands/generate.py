"""`gptcli generate`: continues a prompt and streams the text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gptcli.cli import options
from gptcli.cli.json_records import json_line, sample_record
from gptcli.cli.line_answers import line_prompts, request_fields, write_answers
from gptcli.cli.parsing.config_file import configured
from gptcli.cli.parsing.option_groups import panel, with_option_groups
from gptcli.cli.probabilities.picture_files import PictureFiles
from gptcli.cli.probabilities.sample_display import SampleDisplay
from gptcli.cli.run_options import RunOptions, load_model, note_doubled_bos
from gptcli.cli.terminal.capabilities import is_dumb_terminal
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tool_calls import read_messages, write_calls
from gptcli.errors import UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import Workload
from gptcli.settings import ChatSettings, ConstraintConfig, SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.messages import Message

MessagesFile = Annotated[
    Path | None,
    panel("Prompt")(
        "The conversation so far, JSON as in OpenAI's API, with calls and their answers; PROMPT follows.",
        metavar="FILE",
        readable=False,
    ),
]


@with_option_groups
def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    *,
    model: options.Model = DEFAULT_MODEL,
    runtime: options.RuntimeOptions,
    prompts: options.PromptOptions,
    sampling: options.SamplingOptions,
    samples: options.Samples = 1,
    constraints: options.ConstraintOptions,
    tools: options.ToolOptions,
    messages: MessagesFile = None,
    stopping: options.StopOptions,
    output: options.OutputOptions,
) -> None:
    """Continue a prompt: one-shot text, streamed as it is decoded."""
    given = sampling.given()
    SamplingConfig.resolve(given, {})  # a bad value fails before anything is read
    stop = stopping.config()
    run = RunOptions(
        model=model, runtime=runtime, given=given, prompts=prompts, output=output, configured=configured(context)
    )
    _check_together(run, samples, tools, messages)
    run = replace(
        run,
        constraint=ConstraintConfig.resolve(constraints.given(run.decoding)),
        tools=ChatSettings(**(tools.given(run.decoding) if prompts.chat else {})),
    )
    said = [] if messages is None else read_messages(messages, run.decoding)
    inputs = [file for file in (prompts.file, messages) if file is not None]
    pictures = PictureFiles(output.html, output.svg, inputs)
    system = run.system()
    if prompts.lines:
        _answer_lines(run, line_prompts(run, prompt), system, samples, stop)
        return
    text = "" if said and prompt is None and prompts.file is None else run.question(prompt, asks=prompts.chat)
    sink = StdoutSink()
    workload = Workload(output.explain, None if stop.max_tokens < 0 else stop.max_tokens)
    with ProgressLine(quiet=output.quiet) as activity, run.open_model(activity, workload) as lm:
        template = _template(run, lm)
        asked = _messages(lm, system, text, said)
        ids = _ids(run, lm, template, asked)
        use = run.tool_use(template, lm)
        drawing, stop = SamplingConfig.resolve(given, lm.sampling_defaults), lm.stopping(stop)
        if output.prompt_report:
            activity.close()
            _report(run, lm, template, asked, drawing, stop)
            return
        lm.check_request(ids, drawing, run.constraint, use)
        note_doubled_bos(lm, ids, activity.note)
        with_prompt = None if workload.tokens is None else len(ids) + workload.tokens
        load_model(lm, activity, replace(workload, tokens=with_prompt))
        writer = _Writer(run, lm, sink, activity, pictures, samples, text)
        with interruptible() as cancelled:
            streams = lm.streams(
                ids,
                drawing.for_samples(samples),
                stop,
                constraint=run.constraint,
                logprobs=pictures.alternatives if output.logprobs is None and pictures.wanted else output.logprobs,
                explain=output.explain,
                tools=use,
                on_prefill=partial(activity.tokens, "prefill"),
                cancelled=cancelled,
            )
            for number, events in enumerate(streams, 1):
                writer.write(number, events, drawing, stop)
        run.print_failures(lm)
        pictures.write(f"{lm.name} · how probable each token is")
        if cancelled():
            raise KeyboardInterrupt


def _messages(lm: LanguageModel, system: str | None, text: str, said: Sequence[Message] = ()) -> list[Message]:
    """The conversation: a system message unless `said` begins with one, `said`, and the text if there is one."""
    system = lm.store.system if system is None else system
    head = [] if system is None or (said and said[0].role == "system") else [Message("system", system)]
    return [*head, *said, *([Message("user", text)] if text else [])]


def _answer_lines(
    run: RunOptions, texts: Iterator[str | None], system: str | None, samples: int, stopping: StopConfig
) -> None:
    """Completes each prompt; raises as `write_answers` does."""
    output = run.output
    with ProgressLine(quiet=output.quiet) as activity, run.open_model(activity) as lm:
        template = _template(run, lm)
        sampling, stopping = SamplingConfig.resolve(run.given, lm.sampling_defaults), lm.stopping(stopping)
        use = run.tool_use(template, lm)
        lm.check_request([0], sampling, run.constraint, use)
        load_model(lm, activity)
        activity.close()

        def ids_of(text: str) -> Sequence[int]:
            return _ids(run, lm, template, _messages(lm, system, text))

        what = request_fields(stopping, run.constraint, use) | {"logprobs": output.logprobs, "explain": output.explain}
        write_answers(run, lm, texts, ids_of, sampling.for_samples(samples), what)
        run.print_failures(lm)


def _template(run: RunOptions, lm: LanguageModel) -> ChatTemplate | None:
    """The template of --chat, None without it. Raises as `RunOptions.template`, and TemplateError if there is none."""
    return (run.template(lm) or lm.template) if run.prompts.chat else None


def _check_together(run: RunOptions, samples: int, tools: options.ToolOptions, messages: Path | None) -> None:
    """Raises UsageError for options that mean nothing together."""
    prompts, output = run.prompts, run.output
    if run.runtime.draft_model is not None and samples > 1:
        raise UsageError("--draft-model is for one sample: several share every step already, and draft nothing")
    of_chats = ("system", "system_file", "chat_template", "thinking", "reasoning_effort")
    if not prompts.chat and any(getattr(prompts, name) is not None for name in of_chats if name not in run.configured):
        raise UsageError("--system, --system-file, --chat-template, --think and --reasoning-effort need --chat")
    of_tools = {"tools": tools.tools, "tool_choice": tools.tool_choice, "messages": messages}
    if not prompts.chat and any(value for name, value in of_tools.items() if name not in run.configured):
        raise UsageError("--tools, --tool-choice and --messages need --chat")
    if run.runtime.draft_model is not None and prompts.lines:
        raise UsageError("--draft-model is for one text: lines share every step already, and draft nothing")
    if messages is not None and prompts.lines:
        raise UsageError("--messages and --lines exclude each other")
    if output.markdown and (output.as_json or output.logprobs is not None):
        raise UsageError(f"--markdown and {'--json' if output.as_json else '--logprobs'} exclude each other")


def _ids(
    run: RunOptions, lm: LanguageModel, template: ChatTemplate | None, messages: Sequence[Message]
) -> Sequence[int]:
    """The prompt's ids: of the rendered messages, or without a template of the user's text."""
    if template is not None:
        return template.render(messages, lm.tokenizer, **run.switches(template))
    return lm.tokenizer.encode(messages[-1].content, special=run.prompts.special)


def _report(
    run: RunOptions,
    lm: LanguageModel,
    template: ChatTemplate | None,
    messages: Sequence[Message],
    sampling: SamplingConfig,
    stopping: StopConfig,
) -> None:
    from gptcli.cli.prompt_report import print_prompt_report, raw_prompt, rendered_prompt

    if template is None:
        prompt = raw_prompt(lm, messages[-1].content, special=run.prompts.special)
    else:
        prompt = rendered_prompt(lm, messages, template, **run.switches(template))
    print_prompt_report(lm, prompt, run.given, sampling, stopping, run.output)


@dataclass(frozen=True)
class _Writer:
    """Writes samples: streamed text or a JSON object, then figures. Keeps their tokens for pictures."""

    run: RunOptions
    lm: LanguageModel
    sink: StdoutSink
    activity: ProgressLine
    pictures: PictureFiles
    samples: int
    text: str  # the prompt's

    def write(
        self, number: int, events: Iterator[TextDelta | Finished], sampling: SamplingConfig, stopping: StopConfig
    ) -> None:
        """Writes a sample, the first of which has number 1."""
        output = self.run.output
        views = SampleDisplay(
            self.lm.tokenizer,
            self.sink,
            alternatives=None if output.as_json else output.logprobs,
            explain=output.explain and not output.as_json and not output.quiet,
        )
        if output.as_json:
            pieces = list[bytes]()
            finished = self._drain(events, pieces.append, views)
            record = sample_record(
                self.lm,
                b"".join(pieces),
                finished,
                sampling,
                stopping,
                logprobs=output.logprobs is not None,
                explain=output.explain,
                tools=bool(self.run.tools.offered),
            )
            self.sink.write(json_line(record))
        else:
            with _shown(self.sink, output.markdown, views) as write:
                finished = self._drain(events, write, views)
            write_calls(self.sink, finished)
            if output.newline or number < self.samples:
                self.sink.end_line()
            views.close(finished)
        title = "" if self.samples == 1 else f"sample {number}, seed {finished.seed}"
        self.pictures.add(title, views.tokens, lead=f"{self.text}\n\n" if self.run.prompts.chat else self.text)
        self.run.print_figures(finished, self.lm.ctx_size)
        question = None if self.run.prompts.chat else self.text
        constrained = self.run.constraint is not None
        self.run.note_ending(finished, stopping.max_tokens, self.lm, question, constrained=constrained)

    def _drain(
        self, events: Iterator[TextDelta | Finished], write: Callable[[bytes], object], views: SampleDisplay
    ) -> Finished:
        """Writes the text, after the prompt with --echo, and returns how it ended."""
        echo = self.text.encode() if self.run.output.echo else b""
        for event in events:
            self.activity.close()
            if echo:
                write(echo)
                echo = b""
            if isinstance(event, Finished):
                return event
            if not views.shaded:
                write(event.data)
            views.take(event)
        raise AssertionError("a generation ended without Finished")


@contextlib.contextmanager
def _shown(sink: StdoutSink, markdown: bool, views: SampleDisplay) -> Iterator[Callable[[bytes], object]]:
    """Yields a function that writes text. On a terminal the last line is ended, even after an error."""
    if markdown and sink.is_terminal and not is_dumb_terminal():
        from gptcli.cli.terminal.background_colour import terminal_background
        from gptcli.cli.terminal.markdown_stream import MarkdownStream

        with MarkdownStream(background=terminal_background()) as stream:
            yield lambda data: stream.write(data.decode("utf-8", "replace"))
        return
    try:
        yield sink.write
    finally:
        views.end_text()
        if sink.is_terminal:
            sink.end_line()
