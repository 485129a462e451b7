"""What commands do to a conversation: its turns, settings, model and file. Which there are is in `commands.py`."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.chat.session import Session
from gptcli.chat.storage import SessionFile, session_names, stored_sessions, unused_name
from gptcli.cli.repl.slash_command import paths
from gptcli.errors import InputError, OutputError, UsageError
from gptcli.language_model import ChatSession
from gptcli.models.catalog import local_models
from gptcli.text.messages import as_json, as_markdown

if TYPE_CHECKING:
    from gptcli.cli.repl.repl import Repl

_EXCERPT = 60  # characters
_SHOW_THINKING = "show_thinking"  # a setting of the view, not of the model


def new(repl: Repl, _: str) -> None:
    """Begins another session."""
    session = Session(repl.session.lm, repl.session.system, repl.session.settings, template=repl.template)
    file = repl.file and SessionFile()
    session.keep_in(file)
    repl.change_session(session, file)
    repl.say("a new conversation")


def undo(repl: Repl, _: str) -> None:
    """Takes the last turn back."""
    repl.say(f"taken back: {excerpt(repl.session.undo())}")


def retry(repl: Repl, _: str) -> None:
    """Asks the last question again."""
    repl.answer(repl.session.retry)


def edit(repl: Repl, text: str) -> None:
    """Asks another question in the last one's place."""
    if not text:
        with contextlib.suppress(EOFError):  # Ctrl-D leaves it as it was
            text = repl.input.read("edit> ", repl.session.unanswered or last(repl, "user")).strip()
    if text:
        repl.answer(partial(repl.session.retry, text))


def system(repl: Repl, text: str) -> None:
    """Shows or sets the system message."""
    if text:
        repl.session.system = None if text == "none" else text
    repl.say(f"system: {repl.session.system or '(none)'}")


def change_setting(repl: Repl, argument: str) -> None:
    """Shows or changes settings, those of the view among them."""
    name, _, text = argument.partition(" ")
    name = name.replace("-", "_")
    if name == _SHOW_THINKING:
        if text:
            repl.view.thoughts = text.strip() == "default" or switched(text.strip())
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


def setting_values(repl: Repl, argument: str) -> Iterable[str]:
    """Names of settings, then what they may be."""
    name, blank, _ = argument.partition(" ")
    if not blank:
        return _settings_in_use(repl)
    switches = dict.fromkeys(("thinking", "ignore_eos", _SHOW_THINKING), ("on", "off"))
    choices = switches | {"overflow": ("error", "stop", "shift")}
    return [f"{name} {value}" for value in (*choices.get(name, ()), "default")]


def seed(repl: Repl, text: str) -> None:
    """Sets the seed, or shows the last one."""
    if text:
        change_setting(repl, f"seed {'default' if text == 'random' else text}")
    elif repl.session.finished:
        repl.say(f"the last answer was drawn with seed {repl.session.finished[-1].seed}")
    else:
        change_setting(repl, "seed")


def model(repl: Repl, name: str) -> None:
    """Goes on with another model, or lists them."""
    if name:
        repl.switch_model(os.path.expanduser(name))
    for model in [] if name else local_models():
        repl.say(f"{'*' if model.name == repl.session.lm.name else ' '} {model.name}")
    lm = repl.session.lm
    repl.say(f"model: {lm.name}, context of {lm.ctx_size} tokens")


def save(repl: Repl, name: str) -> None:
    """Gives the session a name, and writes it if that failed."""
    if repl.file is None:
        raise OutputError("nothing can be saved: there is no place for sessions")
    if name and name != repl.file.name:
        repl.file.rename(name)
    repl.file.sync()
    if repl.file.problem is not None:
        raise OutputError(f"cannot write: {repl.file.path}: {repl.file.problem.strerror}")
    repl.say(f"saved as {repl.file.name}; every turn is from now on")


def load(repl: Repl, name: str) -> None:
    """Goes on with a session on disk."""
    if not name:
        raise UsageError("which session?", hint="/sessions lists them")
    if repl.file is not None and name == repl.file.name:
        raise UsageError(f"session {name} is the one that goes on here")
    file = SessionFile.open(name)
    events = list(file.events)
    try:
        session = Session.restored(repl.session.lm, events, template=repl.template)
    except InputError:
        file.close()
        raise
    session.keep_in(file, kept=len(events))
    repl.change_session(session, file)
    repl.say(f"session {name}: {turns(session)} so far")


def list_sessions(repl: Repl, _: str) -> None:
    """Lists the sessions on disk."""
    stored = stored_sessions()
    width = max((len(session.name) for session in stored), default=0)
    for session in stored:
        mark = "*" if repl.file and session.name == repl.file.name else " "
        count = f"{session.turns:3} {'turn ' if session.turns == 1 else 'turns'}"
        what = session.error or f"{count}  {excerpt(session.question, _EXCERPT - width)}"
        repl.say(f"{mark} {session.name:{width}}  {what}")
    if not stored:
        repl.say("there are none yet")


def fork(repl: Repl, name: str) -> None:
    """Goes on in a copy."""
    file = repl.file and SessionFile(name or unused_name(repl.file.name))
    fork = repl.session.fork()
    fork.keep_in(file)
    repl.change_session(fork, file)
    repl.say(f"goes on as {file.name if file else 'another'}; the other stays as it is")


def export(repl: Repl, argument: str) -> None:
    """Writes the conversation as Markdown or JSON."""
    form, _, name = argument.partition(" ")
    forms = {"md": as_markdown, "json": as_json}
    if form not in forms:
        raise UsageError("export as what?", hint="/export md FILE or /export json FILE")
    text = forms[form](repl.session.messages)
    if not name:
        repl.say(text.rstrip("\n"))
        return
    file = Path(os.path.expanduser(name.strip()))
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"cannot write: {file}: {error.strerror}") from None
    repl.say(f"written to {file}")


def switched(text: str) -> bool:
    """`on` or `off` as a truth value. Raises UsageError for anything else."""
    if text not in ("on", "off"):
        raise UsageError(f"on or off, not {text}")
    return text == "on"


def last(repl: Repl, role: str) -> str:
    """What was last said by one side. Raises UsageError where there is nothing yet."""
    for message in reversed(repl.session.messages):
        if message.role == role:
            return message.content
    raise UsageError("there is nothing yet")


def turns(session: ChatSession) -> str:
    """How many questions there are, in words."""
    count = sum(message.role == "user" for message in session.messages)
    return "1 turn" if count == 1 else f"{count} turns"


def excerpt(text: str, width: int = _EXCERPT) -> str:
    """A text's beginning on one line of so many characters."""
    return textwrap.shorten(text, max(8, width), placeholder=" …")


def model_values(repl: Repl, argument: str) -> Iterable[str]:
    """Models on this machine, and paths."""
    return [*(model.name for model in local_models()), *(paths(argument) if argument else ())]


def session_values(repl: Repl, argument: str) -> Iterable[str]:
    """Names of sessions."""
    return session_names()


def export_values(repl: Repl, argument: str) -> Iterable[str]:
    """Forms, then paths."""
    form, blank, begun = argument.partition(" ")
    return [f"{form} {path}" for path in paths(begun)] if blank else ("md", "json")
