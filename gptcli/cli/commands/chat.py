"""`gptcli chat`: a conversation at a terminal, or one answer in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.chat.session import Event, Session, TurnsDropped
from gptcli.chat.storage import (
    SessionFile,
    last_model,
    session_names,
)
from gptcli.chat.thinking import opens_thoughts
from gptcli.cli import options
from gptcli.cli.json_records import json_line, sample_record, stats_record
from gptcli.cli.prompt_input import argument_text, messages_of_script, read_prompt, read_text
from gptcli.cli.prompt_report import print_prompt_report, rendered_prompt
from gptcli.cli.prompt_report import prompt_report as report_of
from gptcli.cli.repl.answer_display import AnswerDisplay, DisplaySettings, dropped_note
from gptcli.cli.repl.stored_sessions import opened, print_sessions
from gptcli.cli.terminal.signals import deadly, interruptible
from gptcli.cli.terminal.stderr import ProgressLine, note_failures, print_line, print_note, stats_line
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.settings import ChatSettings, RuntimeConfig, parse_logit_bias
from gptcli.text.chat_template import ChatTemplate

_SESSION = "Session"

Question = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="Answer this and exit; `-` reads stdin. Piped stdin comes first."),
]
SessionName = Annotated[
    str | None,
    typer.Option(
        "--session", metavar="NAME", autocompletion=session_names, rich_help_panel=_SESSION,
        help="Begin a session of this name, or go on with it.",
    ),
]  # fmt: skip
Continue = Annotated[bool, typer.Option("--continue", rich_help_panel=_SESSION, help="Go on with the last session.")]
Fork = Annotated[bool, typer.Option("--fork", rich_help_panel=_SESSION, help="Go on with a copy of the session.")]
Script = Annotated[
    Path | None,
    typer.Option(
        "--script", metavar="FILE", readable=False, rich_help_panel=_SESSION,
        help='Say what a file says, a message a line or between lines of """, and write the replies.',
    ),
]  # fmt: skip
List = Annotated[bool, typer.Option("--list", rich_help_panel=_SESSION, help="List the sessions.")]


def chat(
    prompt: Question = None,
    model: options.ChatModel = None,
    device: options.Device = "auto",
    dtype: options.DtypeOption = "auto",
    quantize: options.QuantizeOption = "auto",
    ctx_size: options.CtxSize = None,
    threads: options.Threads = None,
    speculate: options.Speculate = 0,
    draft_model: options.DraftModel = None,
    offline: options.Offline = False,
    session: SessionName = None,
    continue_last: Continue = False,
    fork: Fork = False,
    list_sessions: List = False,
    file_prompt: options.File = None,
    script: Script = None,
    system: options.System = None,
    system_file: options.SystemFile = None,
    chat_template: options.ChatTemplateFile = None,
    thinking: options.Thinking = None,
    errors: options.Errors = "strict",
    max_input: options.MaxInput = options.MAX_INPUT,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    repeat_last_n: options.RepeatLastN = None,
    presence_penalty: options.PresencePenalty = None,
    frequency_penalty: options.FrequencyPenalty = None,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    max_tokens: options.ChatMaxTokens = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    overflow: options.ChatOverflow = None,
    newline: options.Newline = False,
    as_json: options.Json = False,
    prompt_report: options.PromptReport = False,
    stats: options.Stats = False,
    stats_json: options.StatsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Talk with a model: a conversation at a terminal; with a prompt or in a pipe, one answer."""
    if list_sessions:
        print_sessions(as_json)
        return
    given: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "repeat_last_n": repeat_last_n,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": parse_logit_bias(logit_bias or ()) or None,
        "seed": seed,
        "max_tokens": max_tokens,
        "stop": tuple(map(argument_text, stop or ())) or None,
        "ignore_eos": ignore_eos or None,
        "overflow": overflow,
        "thinking": thinking,
    }
    given = {name: value for name, value in given.items() if value is not None}
    ChatSettings(**given)  # a bad value fails before anything is read
    runtime = RuntimeConfig(
        device=device, dtype=dtype, quantize=quantize, ctx_size=ctx_size, threads=threads, speculate=speculate
    )
    if system is not None and system_file is not None:
        raise UsageError("--system and --system-file exclude each other")
    if session is not None and continue_last:
        raise UsageError("--session and --continue exclude each other")
    if fork and session is None and not continue_last:
        raise UsageError("--fork needs --session or --continue")
    if script is not None and (prompt is not None or file_prompt is not None):
        raise UsageError("--script and a prompt exclude each other")
    at_prompt = (
        prompt is None
        and file_prompt is None
        and script is None
        and not prompt_report
        and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    )
    if at_prompt and as_json:
        raise UsageError("--json needs a prompt")
    questions = list[str]()
    if script is not None:
        questions = messages_of_script(read_prompt(None, script, errors, max_input), str(script))
    elif not at_prompt:
        questions = [read_prompt(prompt, file_prompt, errors, max_input)]
    system_text = None if system is None else argument_text(system)
    if system_file is not None:
        system_text = read_text(system_file, errors, max_input)

    with opened(session, continue_last, fork, at_prompt) as (file, events), ProgressLine(quiet=quiet) as activity:
        name, fingerprint = last_model(events)
        lm = LanguageModel.open(
            model or name or DEFAULT_MODEL,
            runtime,
            offline=offline,
            on_fetch=activity.fetch,
            one_text=-1 if draft_model is None and not prompt_report else None,
        )
        if lm.reference == name and lm.fingerprint != fingerprint and not quiet:
            print_note(f"{name} is not what it was when it last spoke in this session")
        if draft_model is not None:
            lm.draft_with(
                LanguageModel.open(draft_model, runtime.for_draft_model(), offline=offline, on_fetch=activity.fetch)
            )
        template = None
        if chat_template is not None:
            template = ChatTemplate(read_text(chat_template, "strict", max_input), str(chat_template))
        conversation = Session.restored(lm, events, template=template)
        if file is not None:
            conversation.keep_in(file, kept=len(file.events))
        if system_text not in (None, conversation.system):
            conversation.system = system_text
        if given:
            conversation.settings = replace(conversation.settings, **given)
        if at_prompt:
            activity.close()
            _converse(conversation, file, template, DisplaySettings(stats=stats), offline)
            return
        messages = conversation.preview(questions[0])
        if prompt_report:
            activity.close()
            settings = conversation.settings
            shown = rendered_prompt(lm, messages, conversation.template, thinking=settings.thinking)
            sampling = settings.sampling(lm.sampling_defaults)
            report = report_of(lm, shown, settings.record, sampling, settings.stopping)
            print_prompt_report(lm, shown, report, as_json=as_json, quiet=quiet)
            return
        loading = partial(activity.bytes, f"loading {lm.folder.path.name}")
        loading(0, 0)  # torch comes first, where it has to, and takes a second
        with deadly(activity.erase):
            lm.load_for_one(-1, loading)
        sink = StdoutSink()
        with interruptible() as cancelled:
            for number, question in enumerate(questions, 1):
                reply = conversation.send(question, on_prefill=partial(activity.tokens, "prefill"), cancelled=cancelled)
                finished = _written(reply, conversation, sink, activity, as_json=as_json, quiet=quiet)
                if not as_json and (newline or number < len(questions)):
                    sink.end_line()
                if stats_json and not quiet:
                    print_line(json_line(stats_record(finished)).decode().rstrip())
                elif stats and not quiet:
                    print_line(stats_line(finished, lm.ctx_size))
                if cancelled():
                    raise KeyboardInterrupt
        note_failures(() if quiet else lm.running.failures)
        lm.keep_copy()


def _written(
    reply: Iterator[Event],
    conversation: Session,
    sink: StdoutSink,
    activity: ProgressLine,
    *,
    as_json: bool,
    quiet: bool,
) -> Finished:
    """Writes a reply as it comes, or as a record, and returns how it ended."""
    parts = list[bytes]()
    with _shown(conversation, sink, activity, parts, as_json=as_json) as show:
        for event in reply:
            match event:
                case TextDelta():
                    show(event)
                case TurnsDropped() if not quiet:
                    activity.close()
                    print_note(dropped_note(event))
                case Finished():
                    finished = event
    activity.close()
    if as_json:
        lm, settings = conversation.lm, conversation.settings
        sampling = settings.sampling(lm.sampling_defaults)
        record = sample_record(
            lm, b"".join(parts), finished, sampling, settings.stopping, logprobs=False, explain=False
        )
        sink.write(json_line(record))
    return finished


@contextlib.contextmanager
def _shown(
    conversation: Session, sink: StdoutSink, activity: ProgressLine, parts: list[bytes], *, as_json: bool
) -> Iterator[Callable[[TextDelta], object]]:
    """Yields what shows the text: on a terminal as at the prompt, in a pipe as it is; as JSON it becomes `parts`."""
    if as_json:
        yield lambda delta: parts.append(delta.data)
    elif not sink.is_terminal:

        def write(delta: TextDelta) -> None:
            activity.close()
            sink.write(delta.data)

        yield write
    else:
        thinking = opens_thoughts(conversation)
        with contextlib.closing(
            AnswerDisplay(DisplaySettings(), sink, activity, lm=conversation.lm, thinking=thinking)
        ) as answer:
            yield answer.take


def _converse(
    session: Session, file: SessionFile | None, template: ChatTemplate | None, display: DisplaySettings, offline: bool
) -> None:
    """Talks with a person at a terminal."""
    # These imports take a tenth of a second, which an answer in a pipe need not wait for.
    from gptcli.cli.repl.command_table import COMMANDS
    from gptcli.cli.repl.repl import Repl

    _ = session.template  # a model without one fails here
    repl = Repl(session, file, template, display, COMMANDS, offline=offline)
    repl.run()
    repl.session.lm.keep_copy()
