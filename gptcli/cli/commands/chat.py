"""`gptcli chat`: a conversation at a terminal, or one answer in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gptcli.chat.session import ReplyEvent, Session, TurnsDropped
from gptcli.chat.storage import SessionFile, delete_session, last_model, session_names
from gptcli.cli import options
from gptcli.cli.json_records import json_line, sample_record
from gptcli.cli.line_answers import line_prompts, request_fields, write_answers
from gptcli.cli.parsing.config_file import configured
from gptcli.cli.parsing.option_groups import only, option_group, panel, with_option_groups, without
from gptcli.cli.prompt_input import messages_of_script, read_text, unless_dash
from gptcli.cli.repl.answer_display import AnswerDisplay, DisplaySettings, dropped_note
from gptcli.cli.repl.stored_sessions import opened, print_sessions
from gptcli.cli.run_options import RunOptions, load_model, note_template_with_doubled_bos, note_unheld
from gptcli.cli.terminal.signals import interruptible
from gptcli.cli.terminal.stderr import ProgressLine, print_note
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tool_calls import write_calls
from gptcli.errors import TemplateError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import ChatSession
from gptcli.runtime.engine import Workload
from gptcli.settings import ChatSettings
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches

_session_option = panel("Session")

Question = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="Answer this and exit; `-` reads stdin. Piped stdin comes first."),
]


@option_group
class SessionOptions:
    """Which session goes on, and what is said in it."""

    session: Annotated[
        str | None,
        _session_option(
            "Begin a session of this name, or go on with it.", metavar="NAME", autocompletion=session_names
        ),
    ] = None
    continue_last: Annotated[bool, _session_option("Go on with the last session.", "--continue")] = False
    delete: Annotated[
        str | None,
        _session_option("Delete a session.", metavar="NAME", autocompletion=session_names),
    ] = None
    fork: Annotated[bool, _session_option("Go on with a copy of the session.", "--fork")] = False
    list_sessions: Annotated[bool, _session_option("List the sessions.", "--list")] = False
    script: Annotated[
        Path | None,
        _session_option(
            'Say what a file says, a message a line or between lines of """, and write the replies.',
            metavar="FILE",
            readable=False,
        ),
    ] = None


@with_option_groups
def chat(
    context: typer.Context,
    prompt: Question = None,
    *,
    model: options.ChatModel = None,
    runtime: options.RuntimeOptions,
    sessions: SessionOptions,
    prompts: Annotated[options.PromptOptions, without("chat", "special")],
    sampling: options.SamplingOptions,
    constraints: options.ConstraintOptions,
    tools: options.ToolOptions,
    stopping: options.ChatStopOptions,
    output: Annotated[
        options.OutputOptions, only("newline", "as_json", "prompt_report", "stats", "stats_json", "quiet")
    ],
) -> None:
    """Talk with a model: a conversation at a terminal; with a prompt or in a pipe, one answer."""
    if sessions.list_sessions or sessions.delete is not None:
        _check_alone(sessions, prompt)
        if sessions.delete is not None:
            delete_session(sessions.delete)
        else:
            print_sessions(output.as_json)
        return
    given = sampling.given() | stopping.given()
    given |= {name: value for name, value in prompts.switches.items() if value is not None}
    ChatSettings(**given)  # a bad value fails before anything is read
    run = RunOptions(
        model=model, runtime=runtime, given=given, prompts=prompts, output=output, configured=configured(context)
    )
    run = replace(run, given=given | constraints.given(run.decoding) | tools.given(run.decoding))
    at_prompt = _is_at_prompt(run, sessions, prompt)
    _check_together(run, sessions, prompt, at_prompt=at_prompt)
    lines = line_prompts(run, prompt) if prompts.lines else None
    questions = [] if at_prompt or lines else _questions(run, sessions, prompt)
    system = run.system()

    with (
        opened(sessions.session, sessions.continue_last, sessions.fork, at_prompt) as (file, events),
        ProgressLine(quiet=output.quiet) as activity,
    ):
        name, fingerprint = last_model(events)
        source = context.get_parameter_source("model")
        if name and not (model and source and source.name == "COMMANDLINE"):  # a session goes on with its own model
            run = replace(run, model=name)
        lm = run.open_model(activity, Workload())
        system = lm.store.system if system is None and not events else system
        if lm.reference == name and lm.fingerprint != fingerprint and not output.quiet:
            print_note(f"{name} is not what it was when it last spoke in this session")
        template = run.template(lm)
        conversation = Session.restored(lm, events, template=template)
        conversation.borrows_model = name not in ("", lm.reference)
        _override(conversation, run)
        with contextlib.suppress(UsageError, TemplateError):  # a question raises it; /tools or /model may come first
            note_unheld(conversation.tool_use, run.note)
        if file is not None:
            conversation.keep_in(file, kept=len(file.events))
        has_own = conversation.system is not None and run.configured & {"system", "system_file"}
        if system not in (None, conversation.system) and not has_own:
            conversation.system = system
        if at_prompt:
            activity.close()
            note_template_with_doubled_bos(conversation, run.note)
            _converse(conversation, file, template, DisplaySettings(stats=output.stats), run.runtime.offline)
        elif lines:
            _answer_lines(run, conversation, lines, activity)
        elif output.prompt_report:
            activity.close()
            _report(run, conversation, _next_said(conversation, list(questions)))
        else:
            _answer(run, conversation, questions, activity)
            lm.close()


def _check_alone(sessions: SessionOptions, prompt: str | None) -> None:
    """Raises UsageError for anything beside --list or --delete."""
    others = (sessions.session, sessions.script, sessions.continue_last or None, sessions.fork or None, prompt)
    if any(other is not None for other in others) or (sessions.list_sessions and sessions.delete is not None):
        raise UsageError("--list and --delete do nothing else: no prompt, and no other option of sessions")


def _override(conversation: ChatSession, run: RunOptions) -> None:
    """Applies options for this call; those of the configuration file yield to the session's settings."""
    given = {name: value for name, value in run.given.items() if name not in run.configured}
    defaults = {name: value for name, value in run.given.items() if name in run.configured}
    if defaults.keys() & Switches.__annotations__.keys():
        defaults = run.without_missing_switches(defaults, conversation.template)
    if "tools" in given:  # kept with the conversation, like its system message
        conversation.offer(given.pop("tools"))
    conversation.override(given, defaults)


def _is_at_prompt(run: RunOptions, sessions: SessionOptions, prompt: str | None) -> bool:
    """Whether a person at a terminal starts a conversation."""
    nothing_asked = prompt is None and run.prompts.file is None and sessions.script is None and not run.prompts.lines
    return (
        nothing_asked
        and not run.output.prompt_report
        and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    )


def _check_together(run: RunOptions, sessions: SessionOptions, prompt: str | None, *, at_prompt: bool) -> None:
    """Raises UsageError for options that mean nothing together."""
    if sessions.session is not None and sessions.continue_last:
        raise UsageError("--session and --continue exclude each other")
    if sessions.fork and sessions.session is None and not sessions.continue_last:
        raise UsageError("--fork needs --session or --continue")
    if sessions.script is not None and (prompt is not None or run.prompts.file is not None):
        raise UsageError("--script and a prompt exclude each other")
    if run.prompts.lines and (sessions.script is not None or sessions.session is not None or sessions.continue_last):
        raise UsageError("--lines asks each line in a conversation of its own: no --session, --continue or --script")
    if run.prompts.lines and run.runtime.draft_model is not None:
        raise UsageError("--draft-model is for one text: lines share every step already, and draft nothing")
    if at_prompt and run.output.as_json:
        raise UsageError("--json needs a prompt")


def _questions(run: RunOptions, sessions: SessionOptions, prompt: str | None) -> list[str]:
    """What to say, message by message. Raises UsageError or InputError."""
    if sessions.script is None:
        return [run.question(prompt, asks=True)]
    return messages_of_script(read_text(unless_dash(sessions.script), run.decoding), str(sessions.script))


def _next_said(conversation: ChatSession, left: list[str]) -> str | list[str]:
    """Takes the next question, or an answer for each tool that the last reply called. Raises UsageError."""
    calls = conversation.open_calls
    if not calls:
        return left.pop(0)
    if len(left) < len(calls):
        names = ", ".join(call.name for call in calls)
        raise UsageError(
            f"the last reply called {len(calls)} tools: {names}; there are {len(left)} answers",
            hint="--script gives one a line",
        )
    answers, left[:] = left[: len(calls)], left[len(calls) :]
    return answers


def _report(run: RunOptions, conversation: ChatSession, question: str | list[str]) -> None:
    from gptcli.cli.prompt_report import print_prompt_report, rendered_prompt

    lm, settings = conversation.lm, conversation.settings
    messages = conversation.preview(question)
    prompt = rendered_prompt(lm, messages, conversation.template, **conversation.switches)
    sampling = settings.sampling(lm.sampling_defaults)
    print_prompt_report(lm, prompt, settings.record, sampling, settings.stopping, run.output)


def _answer_lines(
    run: RunOptions, conversation: ChatSession, lines: Iterator[str | None], activity: ProgressLine
) -> None:
    """Asks each line in a conversation of its own; raises as `write_answers` does."""
    lm, settings = conversation.lm, conversation.settings
    sampling = settings.sampling(lm.sampling_defaults)
    lm.check_request([0], sampling, settings.constraint)
    run = replace(run, tools=settings)
    note_template_with_doubled_bos(conversation, activity.note)
    load_model(lm, activity)
    activity.close()

    def ids_of(text: str) -> Sequence[int]:
        messages = conversation.successor().preview(text)
        return conversation.template.render(messages, lm.tokenizer, **conversation.switches)

    use, stopping = conversation.tool_use, settings.stopping
    if stopping.overflow == "shift":  # drops whole turns, and there is only one
        stopping = replace(stopping, overflow="stop")
    write_answers(run, lm, lines, ids_of, [sampling], request_fields(stopping, settings.constraint, use))
    run.print_failures(lm)
    lm.close()


def _answer(run: RunOptions, conversation: ChatSession, questions: Sequence[str], activity: ProgressLine) -> None:
    """Asks the questions in turn and writes the replies. Raises KeyboardInterrupt after a reply that Ctrl-C ended."""
    lm, output, left = conversation.lm, run.output, list(questions)
    conversation.preview(_next_said(conversation, list(left)))  # what does not fit is refused before weights are read
    note_template_with_doubled_bos(conversation, activity.note)
    load_model(lm, activity)
    sink = StdoutSink()
    with interruptible() as cancelled:
        while left:
            said = _next_said(conversation, left)
            ask = partial(conversation.send, said) if isinstance(said, str) else partial(conversation.answer, said)
            reply = ask(on_prefill=partial(activity.tokens, "prefill"), cancelled=cancelled)
            finished = _written(run, reply, conversation, sink, activity)
            if not output.as_json and (output.newline or left):
                sink.end_line()
            run.print_figures(finished, lm.ctx_size)
            settings = conversation.settings
            run.note_ending(finished, settings.max_tokens, lm, constrained=settings.constraint is not None)
            if cancelled():
                raise KeyboardInterrupt
    run.print_failures(lm)


def _written(
    run: RunOptions, reply: Iterator[ReplyEvent], conversation: ChatSession, sink: StdoutSink, activity: ProgressLine
) -> Finished:
    """Writes a reply as it comes, or as a JSON object, and returns how it ended."""
    pieces = list[bytes]()
    with _shown(run, conversation, sink, activity, pieces) as show:
        for event in reply:
            match event:
                case TextDelta():
                    show(event)
                case TurnsDropped() if not run.output.quiet:
                    activity.close()
                    print_note(dropped_note(event))
                case Finished():
                    finished = event
    activity.close()
    if run.output.as_json:
        lm, settings = conversation.lm, conversation.settings
        sampling = settings.sampling(lm.sampling_defaults)
        tools = bool(settings.offered)
        sink.write(json_line(sample_record(lm, b"".join(pieces), finished, sampling, settings.stopping, tools=tools)))
    else:
        write_calls(sink, finished)
    return finished


@contextlib.contextmanager
def _shown(
    run: RunOptions, conversation: ChatSession, sink: StdoutSink, activity: ProgressLine, pieces: list[bytes]
) -> Iterator[Callable[[TextDelta], object]]:
    """Yields a function that shows text: as at the prompt on a terminal, raw in a pipe, into `pieces` for JSON."""
    if run.output.as_json:
        yield lambda delta: pieces.append(delta.data)
    elif not sink.is_terminal:

        def write(delta: TextDelta) -> None:
            activity.close()
            sink.write(delta.data)

        yield write
    else:
        with contextlib.closing(AnswerDisplay(DisplaySettings(), sink, activity, conversation)) as answer:
            yield answer.take


def _converse(
    session: ChatSession, file: SessionFile | None, template: ChatTemplate | None, view: DisplaySettings, offline: bool
) -> None:
    """Talks with a person at a terminal."""
    from gptcli.cli.repl.commands.command_table import COMMANDS
    from gptcli.cli.repl.repl import Repl  # imports that take a tenth of a second, needless in a pipe

    _ = session.template  # a model without one fails here
    repl = Repl(session, file, template, view, COMMANDS, offline=offline)
    repl.run()
    repl.session.lm.close()
