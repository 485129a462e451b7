"""Kills conversations with SIGKILL, over and over, and checks what is left of them.

`python -m tests.chat.kills 1000` has a scripted person talk to a scripted model. Each conversation runs in a new
process at a new terminal, and is killed at a random moment or during a random write. Afterwards the session must have
every turn that was complete at the last prompt, and may have the action that was under way. The next process continues
the same session. Exits with 1 at the first loss.
"""

from __future__ import annotations

import os
import pty
import random
import re
import secrets
import select
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptcli.cli.repl.repl  # noqa: F401
from gptcli.__main__ import main as chat
from gptcli.chat import state_files as state
from gptcli.chat.session import Session
from gptcli.chat.storage import read_session, session_names
from gptcli.cli.repl.prompt.prompt_history import PromptHistory
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig
from tests.cli.scripted import Script, follow
from tests.kills import Loss, die_in_write, is_torn, main
from tests.tiny import make_model

_KILLS_A_SESSION = 20
_LATEST_S = 0.6  # a process is killed within this time after its start
_LAST_WRITE = 16  # a process is killed at this write at the latest; a turn takes three or four
_PATIENCE_S = 30
_REPLY = r"reply-[0-9a-f]{12}"
_PROMPT = r"\x1b\[0;35;1m>"

Turns = tuple[tuple[str, str], ...]  # questions and answers


@dataclass(frozen=True)
class Talk:
    """What was said. lost: the turns that /retry and /edit would lead to, the last one without its reply."""

    turns: Turns = ()
    lost: Turns = ()


class _NeverTheSame(Script):
    """A model that says something else every time."""

    def stream(self, *given: Any, **named: Any) -> Iterator[Any]:
        pieces = (f"reply-{secrets.token_hex(6)}", " and", " more.")
        return Script(pieces=pieces, piece_s=0.002, reason="stop").stream(*given, **named)


@dataclass(frozen=True)
class Action:
    """What a person types, what the screen shows once it is done, and the turns then. A reply of "" stands for any."""

    keys: str
    shows: str
    turns: Turns

    @property
    def awaits_reply(self) -> bool:
        """Whether the action asks a question."""
        return bool(self.turns) and not self.turns[-1][1]

    def may_have_left(self, turns: Turns) -> bool:
        """Whether a session with these turns is one after this action."""
        return len(turns) == len(self.turns) and all(
            asked == question and (reply == said or not reply and re.match(_REPLY, said))
            for (question, reply), (asked, said) in zip(self.turns, turns, strict=True)
        )


@dataclass
class Report:
    """The results."""

    kills: int = 0
    completed: int = 0  # turns whose prompt came
    under_way: int = 0  # kills during an action
    torn: int = 0  # kills that left a session with an incomplete last line
    questions: list[str] = field(default_factory=list)  # of the completed turns

    @property
    def summary(self) -> str:
        """See `tests.kills.Report`."""
        return (
            f"{self.under_way} during an action, {self.torn} leaving a torn line: "
            f"0 of {self.completed} completed turns lost"
        )


def action(dice: random.Random, talk: Talk, number: int) -> Action:
    """The next thing that the person does."""
    question = f"question-{number}"
    done = rf"{_REPLY}.*?more\..*?{_PROMPT}"
    asked = talk.lost or talk.turns
    match dice.choice(("ask", "ask", "ask", "retry", "edit", "undo")) if talk.turns else "ask":
        case "retry":
            return Action("/retry\r", done, (*asked[:-1], (asked[-1][0], "")))
        case "edit":
            return Action(f"/edit {question}\r", done, (*asked[:-1], (question, "")))
        case "undo":
            return Action("/undo\r", rf"taken back: .*?{_PROMPT}", talk.turns[:-1])
    return Action(f"{question}\r", done, (*talk.turns, (question, "")))


def spawn(name: str, dies_in_write: int | None, dice: random.Random) -> tuple[int, int]:
    """Starts a chat at a terminal: (process, descriptor of the terminal)."""
    share = dice.random()
    process, terminal = pty.fork()
    if process:
        return process, terminal
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", closefd=False), open(2, "w", closefd=False)
    if dies_in_write is not None:
        die_in_write(state, dies_in_write, share)
    follow(_NeverTheSame(), setattr)
    sys.argv = ["gptcli", "chat", "--session", name]
    chat()


def converse(name: str, talk: Talk, dice: random.Random, report: Report) -> tuple[Talk, Action | None]:
    """Talks until the kill. Returns what was complete, and the action that was under way."""
    in_write = dice.random() < 0.5
    process, terminal = spawn(name, dice.randint(1, _LAST_WRITE) if in_write else None, dice)
    ends = time.monotonic() + (_PATIENCE_S if in_write else dice.uniform(0, _LATEST_S))
    under_way: Action | None = None
    seen, shows = "", _PROMPT
    while (left := ends - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        if not (data := _read(terminal)):
            break
        seen += data.decode("utf-8", "replace")
        if re.search(shows, seen, re.DOTALL):
            talk = _completed(talk, under_way, seen, report)
            under_way = action(dice, talk, report.completed + report.under_way)
            seen, shows = "", under_way.shows
            os.write(terminal, under_way.keys.encode())
    else:
        assert not in_write, f"no end of:\n{seen}"
    os.kill(process, signal.SIGKILL)
    while data := _read(terminal):
        seen += data.decode("utf-8", "replace")
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"it ended by itself:\n{seen}"
    if under_way is not None and re.search(shows, seen, re.DOTALL):
        return _completed(talk, under_way, seen, report), None
    return talk, under_way


def _completed(talk: Talk, done: Action | None, seen: str, report: Report) -> Talk:
    if done is None:
        return talk
    if not done.awaits_reply:
        return Talk(done.turns)
    report.completed += 1
    question = done.turns[-1][0]
    report.questions.append(question)
    return Talk((*done.turns[:-1], (question, re.findall(_REPLY, seen)[-1])))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # on Linux, the other end is closed
        return b""


def left_of(name: str, lm: LanguageModel, *lost: Turns) -> Talk:
    """What a session has on disk. Each of `lost` ends with a question that may have no reply."""
    if name not in session_names():
        return Talk()
    session = Session.restored(lm, read_session(name))
    said = [message.content for message in session.messages]
    replies = [match[0] if (match := re.match(_REPLY, reply)) else reply for reply in said[1::2]]
    asked = {turns[-1][0]: turns for turns in lost if turns}
    if session.unanswered is not None and session.unanswered not in asked:
        raise Loss(f"nobody asked {session.unanswered}")
    return Talk(tuple(zip(said[::2], replies, strict=True)), asked.get(session.unanswered or "", ()))


def kill(kills: int, dice: random.Random, directory: Path) -> Report:
    """Runs all kills in a new state directory. Raises Loss."""
    os.environ |= {
        "GPTCLI_MODEL": str(make_model(directory / "tiny")), "XDG_STATE_HOME": str(directory), "TERM": "xterm-256color"
    }  # fmt: skip
    lm = LanguageModel.open(os.environ["GPTCLI_MODEL"], RuntimeConfig())
    report = Report()
    talk = Talk()
    for report.kills in range(1, kills + 1):
        name = f"session-{report.kills // _KILLS_A_SESSION}"
        if report.kills % _KILLS_A_SESSION == 0:
            talk = Talk()
        talk, under_way = converse(name, talk, dice, report)
        report.under_way += under_way is not None
        report.torn += is_torn(directory / "gptcli" / "sessions" / f"{name}.jsonl")
        left = left_of(name, lm, talk.lost, under_way.turns if under_way and under_way.awaits_reply else ())
        if left.turns != talk.turns and not (under_way and under_way.may_have_left(left.turns)):
            raise Loss(f"kill {report.kills}: {name} has {left}, after {talk} and {under_way}")
        talk = left
    typed = {line.removeprefix("/edit ") for line in PromptHistory(print).load_history_strings()}
    if forgotten := set(report.questions) - typed:
        raise Loss(f"the history has lost {forgotten}")
    return report


if __name__ == "__main__":
    sys.exit(main(__doc__, 1000, kill))
