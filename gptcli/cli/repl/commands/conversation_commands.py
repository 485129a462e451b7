"""Slash commands on the conversation: its turns, settings, model and file. `command_table.py` lists them."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from functools import partial
from pathlib import Path
from typing import NoReturn

from gptcli.chat.storage import SessionFile, delete_session, last_model, session_names, stored_sessions, unused_name
from gptcli.chat.thinking import opens_thoughts, without_thoughts
from gptcli.cli.options import MAX_INPUT
from gptcli.cli.prompt_input import Decoding, read_text
from gptcli.cli.repl.answer_display import SHOW_THINKING
from gptcli.cli.repl.commands.slash_command import Leave, ReplControls, parse_switch
from gptcli.cli.repl.exports import FORMS
from gptcli.cli.repl.prompt.clipboard import copy
from gptcli.cli.run_options import note_unheld
from gptcli.cli.terminal.columns import excerpt, fitted, terminal_columns, width
from gptcli.cli.terminal.stderr import print_prompt_note
from gptcli.cli.terminal.stdout import clean
from gptcli.errors import InputError, ModelNotFound, OutputError, UsageError
from gptcli.language_model import ChatSession
from gptcli.models.catalog import SEE_MODELS, local_models
from gptcli.text.messages import code_blocks
from gptcli.tools.definitions import parse_tools, tool_name, tool_properties


def exit(repl: ReplControls, _: str) -> NoReturn:
    """Leaves."""
    raise Leave


def new(repl: ReplControls, _: str) -> None:
    """Begins another session."""
    session = repl.session.successor()
    file = repl.file and SessionFile()
    session.keep_in(file)
    repl.change_session(session, file)
    repl.say("a new conversation")


def undo(repl: ReplControls, _: str) -> None:
    """Takes the last turn back."""
    repl.say(f"taken back: {excerpt(repl.session.undo())}")


def retry(repl: ReplControls, _: str) -> None:
    """Asks the last question again."""
    repl.answer(repl.session.retry)


def edit(repl: ReplControls, text: str) -> None:
    """Asks another question instead of the last one."""
    if not text:
        with contextlib.suppress(EOFError):  # Ctrl-D gives up
            if (question := repl.session.question) is None:
                raise UsageError("there is nothing yet")
            text = repl.read("edit> ", question).strip()
        if text.startswith("/"):
            raise UsageError("a question was expected, not a command", hint="Ctrl-D gives up an edit")
    if text:
        repl.answer(partial(repl.session.retry, text))


def system(repl: ReplControls, text: str) -> None:
    """Shows or sets the system message."""
    if text:
        repl.session.system = None if text == "none" else text
    repl.say(f"system: {repl.session.system or '(none)'}")


def read_file(repl: ReplControls, argument: str) -> None:
    """Sends the text of a file, and a question after it. A path with blanks is in quotes."""
    words = shlex.shlex(typed := io.StringIO(argument), posix=True)
    words.whitespace_split, words.commenters = True, ""
    try:
        path = words.get_token()
    except ValueError:
        raise UsageError("a quote is not closed") from None
    if not path:
        raise UsageError("which file?", hint="/read FILE [QUESTION]")
    if not (text := _text_of(path)):
        raise InputError(f"there is nothing in it: {path}")
    question = typed.read().strip()
    message = text.rstrip("\n") + "\n\n" + question if question else text
    repl.answer(partial(repl.session.send, message))


def change_setting(repl: ReplControls, argument: str) -> None:
    """Shows or changes settings, /set show_thinking too."""
    name, _, text = argument.removeprefix("parameter ").partition(" ")  # `parameter`: Ollama's spelling
    name, text = name.replace("-", "_"), text.strip()
    if name == "system":  # Ollama's spelling
        system(repl, text)
        return
    if name == SHOW_THINKING:
        if text:
            repl.display.thoughts = text == "default" or parse_switch(text)
    elif name:
        if text:
            repl.session.change(name, text)
        else:
            repl.session.settings.changed(name, "default")  # refuses unknown names
    values = _settings_in_use(repl)
    for key in [name] if name else values:
        repl.say(f"{key} = {_spelled(key, values[key])}  ({_origin(repl, key)})")


def _origin(repl: ReplControls, name: str) -> str:
    """Where a setting comes from, which tells how long it stays."""
    if name == SHOW_THINKING:
        return "default" if repl.display.thoughts else "this call"
    return {"option": "this call", "file": "configuration file"}.get(origin := repl.session.origin(name), origin)


def _settings_in_use(repl: ReplControls) -> dict[str, object]:
    settings, lm = repl.session.settings, repl.session.lm
    in_use = settings.values | vars(settings.sampling(lm.sampling_defaults))
    return in_use | {SHOW_THINKING: repl.display.thoughts}


def _spelled(name: str, value: object) -> str:
    if isinstance(value, tuple) and value:
        if name == "tools":
            return " ".join(map(tool_name, value))
        if name == "logit_bias":
            return " ".join(f"{token}={bias}" for token, bias in value)
        if name == "bad_words_ids":
            return " ".join(",".join(map(str, word)) for word in value)
        return " ".join(map(repr, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in (None, ()) else str(value)


def tools(repl: ReplControls, argument: str) -> None:
    """Lists the tools that the model may call, or takes those of a file."""
    if argument == "none":
        repl.session.offer(())
    elif argument:
        repl.session.offer(parse_tools(_text_of(argument), argument))
    for tool in repl.session.settings.tools:
        about = excerpt(tool["function"].get("description", ""), 60)
        repl.say(f"{tool_name(tool)}({', '.join(tool_properties(tool))})  {about}".rstrip())
    if not repl.session.settings.tools:
        repl.say("no tools; /tools FILE takes those of a file")
    if argument not in ("", "none"):
        note_unheld(repl.session.tool_use, print_prompt_note)


def seed(repl: ReplControls, text: str) -> None:
    """Sets the seed, or shows the last answer's."""
    if text:
        change_setting(repl, f"seed {'default' if text == 'random' else text}")
    elif repl.session.finished:
        repl.say(f"the last answer was drawn with seed {repl.session.finished[-1].seed}")
    else:
        change_setting(repl, "seed")


def model(repl: ReplControls, name: str) -> None:
    """Goes on with another model, or lists them."""
    try:
        if name:
            repl.switch_model(os.path.expanduser(name))
    except ModelNotFound as error:
        raise ModelNotFound(error.message, error.hint and error.hint.replace(SEE_MODELS, "/model lists them")) from None
    for model in [] if name else local_models():
        repl.say(f"{'*' if model.name == repl.session.lm.name else ' '} {model.name}")
    lm = repl.session.lm
    lent = " (this call)" if repl.session.borrows_model else ""
    repl.say(f"model: {lm.name}{lent}, context of {lm.ctx_size} tokens")


def save(repl: ReplControls, name: str) -> None:
    """Gives the session a name, and writes it again if that failed before."""
    if repl.file is None:
        raise OutputError("nothing can be saved: there is no place for sessions")
    if name and name != repl.file.name:
        repl.file.rename(name)
    repl.file.sync()
    repl.file.check_written()
    repl.say(f"saved as {repl.file.name}")


def load(repl: ReplControls, name: str) -> None:
    """Goes on with a stored session."""
    if not name:
        raise UsageError("which session?", hint="/sessions lists them")
    if repl.file is not None and name == repl.file.name:
        raise UsageError(f"session {name} is the one that goes on here")
    try:
        file = SessionFile.open(name)
    except InputError as error:
        raise InputError(error.message, hint="/sessions lists them" if error.hint else None) from None
    try:
        session = repl.session.successor(file.events)
        session.borrows_model = last_model(file.events)[0] not in ("", session.lm.reference)
    except InputError:
        file.close()
        raise
    session.keep_in(file, kept=len(file.events))
    repl.change_session(session, file)
    repl.say(f"session {name}: {_turn_count(session)} so far")
    repl.show_last_turn()


def rename(repl: ReplControls, name: str) -> None:
    """Gives the session another name."""
    if not name:
        raise UsageError("which name?", hint="/rename NAME")
    save(repl, name)


def delete(repl: ReplControls, name: str) -> None:
    """Deletes a stored session, or this one, after a question."""
    own = name in ("", repl.file.name if repl.file else "")
    if own and repl.file is None:
        raise UsageError("nothing of this conversation is stored")
    if not own and name not in session_names():
        raise InputError(f"no such session: {name}", hint="/sessions lists them")
    answer = ""
    with contextlib.suppress(EOFError):
        answer = repl.read(f"delete {'this conversation' if own else name} for good? [y/N] ", "")
    if answer.strip().lower() not in ("y", "yes"):
        repl.say("nothing deleted")
        return
    if own and repl.file is not None:
        name = repl.file.name
        repl.file.delete()
        new(repl, "")
    else:
        delete_session(name)
    repl.say(f"deleted: {name}")


def list_sessions(repl: ReplControls, _: str) -> None:
    """Lists the stored sessions: name, last use, turns, and the first question as far as it fits."""
    stored = stored_sessions()
    columns = terminal_columns()
    names = max((width(session.name) for session in stored), default=0)
    for session in stored:
        mark = "*" if repl.file and session.name == repl.file.name else " "
        count = f"{session.turns:3} {'turn ' if session.turns == 1 else 'turns'}"
        head = f"{mark} {fitted(session.name, min(names, max(20, columns // 3)))}  {session.modified:%Y-%m-%d %H:%M}"
        head += f"  {count}" if width(head) + width(count) + 2 <= columns else ""
        room = columns - width(head) - 2
        title = excerpt(session.error or session.question, room)
        repl.say(f"{head}  {title}" if width(title) <= room else head)
    if not stored:
        repl.say("there are none yet")


def fork(repl: ReplControls, name: str) -> None:
    """Goes on in a copy."""
    file = repl.file and SessionFile(name or unused_name(repl.file.name))
    fork = repl.session.fork()
    fork.keep_in(file)
    repl.change_session(fork, file)
    repl.say(f"goes on as {file.name if file else 'another'}; the other stays as it is")


def export(repl: ReplControls, argument: str) -> None:
    """Writes the conversation, with the model and the settings in effect, in a form of `exports.FORMS`."""
    form, _, name = argument.partition(" ")
    if form not in FORMS:
        form, name = Path(argument).suffix[1:].lower(), argument
    if form not in FORMS:
        forms = ", ".join(f".{each}" for each in FORMS)
        raise UsageError("export as what?", hint=f"/export FILE, which ends in one of {forms}; /export md shows it")
    values = {key: value for key, value in _settings_in_use(repl).items() if key != SHOW_THINKING}
    if form not in ("json", "jsonl"):
        values = {key: _spelled(key, value) for key, value in values.items() if value not in (None, ())}
    text = FORMS[form](repl.session.messages, {"model": repl.session.lm.reference, **values})
    if not name:
        repl.draw(clean(text))  # as it is, to be copied
        return
    file = Path(os.path.expanduser(name.strip()))
    try:
        with file.open("xb") as stream:
            try:
                stream.write(text.encode("utf-8", "replace"))
                stream.flush()
            except OSError:
                file.unlink()  # half of it is of no use, and would be in the way
                raise
    except OSError as error:
        raise OutputError(f"cannot write: {file}: {error.strerror}") from None
    repl.say(f"written to {file}")


def copy_answer(repl: ReplControls, what: str) -> None:
    """Copies the last answer without its thoughts, or the code in it, to the clipboard."""
    answers = [message.content for message in repl.session.messages if message.role == "assistant"]
    if not answers:
        raise UsageError("there is nothing yet")
    answer = without_thoughts(answers[-1], inside=opens_thoughts(repl.session))
    if what not in ("", "code"):
        raise UsageError(f"copy what? nothing or code, not {what}")
    if what:
        answer = code_blocks(answer)
        if not answer:
            raise UsageError("there is no code in the last answer")
    repl.say(f"copied {len(answer)} characters {copy(answer)}")


def context(repl: ReplControls, _: str) -> None:
    """Shows how full the context is."""
    used, size = repl.session.used, repl.session.lm.ctx_size
    repl.say(f"{used} of {size} tokens of context in use, {size - used} free; {_turn_count(repl.session)}")


def _turn_count(session: ChatSession) -> str:
    count = sum(message.role == "user" for message in session.messages)
    return "1 turn" if count == 1 else f"{count} turns"


def _text_of(path: str) -> str:
    return read_text(Path(os.path.expanduser(path)), Decoding("strict", MAX_INPUT, print_prompt_note, has_option=False))
