"""The table of commands: a new one is a function and a row. How they are found and completed is `slash.py`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from prompt_toolkit.shortcuts import clear

from gptcli.cli.clipboard import copy
from gptcli.cli.render import is_dumb_terminal
from gptcli.cli.slash import Command, find, paths
from gptcli.cli.thinking import without_thoughts
from gptcli.cli.tokens_view import TokenFlow, grouped, terminal_columns, uses_colour
from gptcli.errors import InputError, OutputError, UsageError
from gptcli.session import Session
from gptcli.store.catalog import local_models
from gptcli.store.sessions import SessionFile, session_names, stored_sessions, unused_name
from gptcli.text.conversation import as_json, as_markdown

if TYPE_CHECKING:
    from gptcli.cli.repl import Repl

_EXCERPT = 60  # characters
_SHOW_THINKING = "show_thinking"  # a setting of the view, not of the model


class Leave(Exception):
    """The person has had enough."""


def _help(repl: Repl, name: str) -> None:
    if name:
        command = find(name.removeprefix("/"), COMMANDS)
        repl.say(f"{command.usage}\n  {command.help}\n  example: {command.example}")
        return
    width = max(len(command.usage) for command in COMMANDS)
    for command in COMMANDS:
        repl.say(f"{command.usage:{width}}  {command.help.split('.')[0]}")


def _exit(repl: Repl, _: str) -> NoReturn:
    raise Leave


def _new(repl: Repl, _: str) -> None:
    session = Session(repl.session.lm, repl.session.system, repl.session.settings, template=repl.template)
    file = repl.file and SessionFile()
    session.keep_in(file)
    repl.change_session(session, file)
    repl.say("a new conversation")


def _undo(repl: Repl, _: str) -> None:
    repl.say(f"taken back: {excerpt(repl.session.undo())}")


def _retry(repl: Repl, _: str) -> None:
    repl.answer(repl.session.retry)


def _edit(repl: Repl, text: str) -> None:
    if not text:
        with contextlib.suppress(EOFError):  # Ctrl-D leaves it as it was
            text = repl.input.read("edit> ", _last(repl, "user")).strip()
    if text:
        repl.answer(partial(repl.session.retry, text))


def _system(repl: Repl, text: str) -> None:
    if text:
        repl.session.system = None if text == "none" else text
    repl.say(f"system: {repl.session.system or '(none)'}")


def _set(repl: Repl, argument: str) -> None:
    name, _, text = argument.partition(" ")
    name = name.replace("-", "_")
    if name == _SHOW_THINKING:
        if text:
            repl.view.thoughts = text.strip() == "default" or _switched(text.strip())
    elif text:
        repl.session.settings = repl.session.settings.changed(name, text.strip())
    elif name:
        repl.session.settings.changed(name, "default")  # refuses what is no setting
    own = repl.session.settings.record | ({} if repl.view.thoughts else {_SHOW_THINKING: False})
    shown = _settings_in_use(repl)
    for key in [name] if name else shown:
        repl.say(f"{key} = {_spelled(shown[key])}{'' if key in own else '  (default)'}")


def _settings_in_use(repl: Repl) -> dict[str, object]:
    settings, lm = repl.session.settings, repl.session.lm
    in_use = vars(settings) | vars(settings.sampling(lm.sampling_defaults))
    return {name: in_use[name] for name in vars(settings)} | {_SHOW_THINKING: repl.view.thoughts}


def _spelled(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case None | ():
            return "none"
        case tuple():
            return " ".join(f"{part[0]}={part[1]}" if isinstance(part, tuple) else repr(part) for part in value)
    return str(value)


def _setting_values(repl: Repl, argument: str) -> Iterable[str]:
    name, blank, _ = argument.partition(" ")
    if not blank:
        return _settings_in_use(repl)
    switches = dict.fromkeys(("thinking", "ignore_eos", _SHOW_THINKING), ("on", "off"))
    choices = switches | {"overflow": ("error", "stop", "shift")}
    return [f"{name} {value}" for value in (*choices.get(name, ()), "default")]


def _seed(repl: Repl, text: str) -> None:
    if text:
        _set(repl, f"seed {'default' if text == 'random' else text}")
    elif repl.session.finished:
        repl.say(f"the last answer was drawn with seed {repl.session.finished[-1].seed}")
    else:
        _set(repl, "seed")


def _model(repl: Repl, name: str) -> None:
    if name:
        repl.switch_model(os.path.expanduser(name))
    for model in [] if name else local_models():
        repl.say(f"{'*' if model.name == repl.session.lm.name else ' '} {model.name}")
    lm = repl.session.lm
    repl.say(f"model: {lm.name}, context of {lm.ctx_size} tokens")


def _save(repl: Repl, name: str) -> None:
    if repl.file is None:
        raise OutputError("nothing can be saved: there is no place for sessions")
    if name:
        repl.file.rename(name)
    repl.file.sync()
    if repl.file.problem is not None:
        raise OutputError(f"cannot write: {repl.file.path}: {repl.file.problem.strerror}")
    repl.say(f"saved as {repl.file.name}; every turn is from now on")


def _load(repl: Repl, name: str) -> None:
    if not name:
        raise UsageError("which session?", hint="/sessions lists them")
    file = SessionFile.open(name)
    events = list(file.events)
    try:
        session = Session.restored(repl.session.lm, events, template=repl.template)
    except InputError:
        file.close()
        raise
    session.keep_in(file, kept=len(events))
    repl.change_session(session, file)
    repl.say(f"session {name}: {_turns(session)} turns so far")


def _sessions(repl: Repl, _: str) -> None:
    stored = stored_sessions()
    for session in stored:
        what = session.error or f"{session.turns:4} turns  {excerpt(session.question)}"
        repl.say(f"{session.modified:%Y-%m-%d %H:%M}  {session.name:20}  {what}")
    if not stored:
        repl.say("there are none yet")


def _fork(repl: Repl, name: str) -> None:
    file = repl.file and SessionFile(name or unused_name(repl.file.name))
    fork = repl.session.fork()
    fork.keep_in(file)
    repl.change_session(fork, file)
    repl.say(f"goes on as {file.name if file else 'another'}; the other stays as it is")


def _export(repl: Repl, argument: str) -> None:
    form, _, name = argument.partition(" ")
    forms = {"md": as_markdown, "json": as_json}
    if form not in forms:
        raise UsageError("export as what?", hint="/export md FILE or /export json FILE")
    text = forms[form](repl.session.messages)
    if not name:
        repl.say(text.rstrip("\n"))
        return
    file = Path(name.strip()).expanduser()
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"cannot write: {file}: {error.strerror}") from None
    repl.say(f"written to {file}")


def _copy(repl: Repl, _: str) -> None:
    answer = without_thoughts(_last(repl, "assistant"))
    repl.say(f"copied {len(answer)} characters {copy(answer)}")


def _tokens(repl: Repl, text: str) -> None:
    if not text and not repl.session.messages:
        raise UsageError("there is nothing yet", hint="/tokens TEXT shows those of a text")
    tokenizer = repl.session.lm.tokenizer
    ids = tokenizer.encode(text or repl.session.messages[-1].content)
    flow = TokenFlow(terminal_columns(), colour=uses_colour(True))
    groups = grouped((tokenizer.token_bytes(id), tokenizer.is_control(id)) for id in ids)
    repl.paint("".join(map(flow.add, groups)) + flow.end())
    repl.say(f"{len(ids)} tokens")


def _probs(repl: Repl, switch: str) -> None:
    repl.view.probabilities = _switched(switch) if switch else not repl.view.probabilities
    repl.say(f"unlikely tokens are {'named after each answer' if repl.view.probabilities else 'not named'}")


def _stats(repl: Repl, switch: str) -> None:
    if switch:
        repl.view.stats = _switched(switch)
    finished = repl.session.finished
    if not finished:
        repl.say("no answer yet")
        return
    last = finished[-1].usage
    prefilled = round(last.prefill_s * last.prefill_tokens_per_s)
    cached = last.prompt_tokens - prefilled
    repl.say(f"prompt   {last.prompt_tokens} tokens: {cached} still in the cache, {prefilled} run")
    repl.say(f"prefill  {last.prefill_tokens_per_s:.0f} tok/s, the first token after {last.ttft_s * 1000:.0f} ms")
    repl.say(f"answer   {last.completion_tokens} tokens at {last.decode_tokens_per_s:.1f} tok/s")
    drawn = sum(answer.usage.completion_tokens for answer in finished)
    seconds = sum(answer.usage.decode_s for answer in finished)
    repl.say(f"so far   {len(finished)} answers, {drawn} tokens in {seconds:.1f} s; loaded in {last.load_s:.1f} s")


def _context(repl: Repl, _: str) -> None:
    used, size = repl.session.used, repl.session.lm.ctx_size
    repl.say(f"{used} of {size} tokens of context in use, {size - used} free; {_turns(repl.session)} turns")


def _markdown(repl: Repl, switch: str) -> None:
    repl.view.markdown = _switched(switch) if switch else not repl.view.markdown
    repl.say(f"markdown {'on' if repl.view.markdown else 'off'}")


def _clear(repl: Repl, _: str) -> None:
    if not is_dumb_terminal():
        clear()


def _switched(text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"on or off, not {text}")
    return text == "on"


def _last(repl: Repl, role: str) -> str:
    for message in reversed(repl.session.messages):
        if message.role == role:
            return message.content
    raise UsageError("there is nothing yet")


def _turns(session: Session) -> int:
    return sum(message.role == "user" for message in session.messages)


def excerpt(text: str) -> str:
    """A text's beginning on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _EXCERPT else line[: _EXCERPT - 1] + "…"


def _on_off(repl: Repl, argument: str) -> Iterable[str]:
    return ("on", "off")


def _names(repl: Repl, argument: str) -> Iterable[str]:
    return (command.name for command in COMMANDS)


def _models(repl: Repl, argument: str) -> Iterable[str]:
    return [*(model.name for model in local_models()), *(paths(argument) if argument else ())]


def _stored(repl: Repl, argument: str) -> Iterable[str]:
    return session_names()


def _export_values(repl: Repl, argument: str) -> Iterable[str]:
    form, blank, begun = argument.partition(" ")
    return [f"{form} {path}" for path in paths(begun)] if blank else ("md", "json")


COMMANDS = (
    Command("help", "[NAME]", "Lists the commands, or explains one.", "/help set", _help, _names),
    Command("exit", "", "Leaves, as Ctrl-D does. Every turn is saved already.", "/exit", _exit),
    Command("new", "", "Begins another conversation. Model, system message and settings stay.", "/new", _new),
    Command("undo", "", "Takes the last question and its answer back.", "/undo", _undo),
    Command("retry", "", "Asks the last question again. The answer takes the old one's place.", "/retry", _retry),
    Command("edit", "[TEXT]", "Changes the last question and asks it again.", "/edit What is a monad?", _edit),
    Command(
        "system", "[TEXT]", "Shows or sets the system message. `none` removes it.", "/system You are brief.", _system
    ),
    Command(
        "set", "[K [V]]", "Shows or changes settings. The value `default` resets one.", "/set temperature 0.2",
        _set, _setting_values,
    ),
    Command("seed", "[N]", "Sets the seed, or shows the last answer's. `random` unsets it.", "/seed 42", _seed),
    Command(
        "model", "[NAME]", "Goes on with another model, or lists them.", "/model smollm2-135m-instruct", _model, _models
    ),
    Command("save", "[NAME]", "Saves the conversation under a name.", "/save rome", _save),
    Command("load", "NAME", "Goes on with a saved conversation.", "/load rome", _load, _stored),
    Command("sessions", "", "Lists saved conversations.", "/sessions", _sessions),
    Command("fork", "[NAME]", "Goes on in a copy. The conversation so far stays as it is.", "/fork plan-b", _fork),
    Command(
        "export", "md|json [F]", "Writes the conversation to a file or the screen.", "/export md chat.md",
        _export, _export_values,
    ),
    Command("copy", "", "Copies the last answer to the clipboard.", "/copy", _copy),
    Command("tokens", "[TEXT]", "Shows a text's tokens, or the last message's.", "/tokens Hello there", _tokens),
    Command("probs", "[on|off]", "Names the unlikely tokens of the answers to come.", "/probs on", _probs, _on_off),
    Command("stats", "[on|off]", "Shows the figures of the last answer. `on`: after each.", "/stats", _stats, _on_off),
    Command("context", "", "Shows how full the context is.", "/context", _context),
    Command("markdown", "[on|off]", "Draws answers as Markdown, or as they are.", "/markdown off", _markdown, _on_off),
    Command("clear", "", "Clears the screen. The conversation stays; /new begins another.", "/clear", _clear),
)  # fmt: skip
