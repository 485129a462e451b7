"""Opens damaged sessions: `python -m tests.chat.session_mutants --seed S --count N`.

A session of every kind of event has fields, events or bytes changed. It must be listed, and be opened or refused; a
session that is opened must be shown, exported, forked, continued and opened again. Whatever does not work must be
refused with a `GptcliError`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli import ChatSettings, LanguageModel, Session
from gptcli.chat.storage import SessionFile, last_model, stored_sessions
from gptcli.cli.repl.exports import FORMS
from gptcli.errors import GptcliError, InputError
from tests.tiny import make_model
from tests.tools.templates import HERMES, trust_templates
from tests.trials import Outcome, main, tried

Event = dict[str, Any]

_SETTINGS = {"temperature": 0.5, "stop": ["z"], "logit_bias": [[5, 1.0]], "max_tokens": 4}
_TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": '{"a": "x"}'}}
_VALUES: list[Any] = [
    *[None, True, False, 0, -1, 1, 2, 0.0, 2.0, 1e308, -0.0, 10**30, 2**63, -(2**70), 10**4000, math.nan, math.inf],
    *["", "x", "0", "\0", "\x1b[31m", "\ud800", "\u202e", "é" * 1000, "../x", "[", "[1]", '{"a": [', "assistant"],
    *["user", "tool", "system", "session", "message", "truncate", "settings", [], {}, [None], [[]], ["x"], [1, 2]],
    *[[[5, math.nan]], [["a", "b"]], {"a": 1}, {"type": "x"}, *(json.loads("[" * n + "]" * n) for n in (60, 150, 400))],
]
_FIELDS = "instead tool_calls interrupted hidden seeds type role content messages thinking tools".split()


def events(lm: LanguageModel) -> list[Event]:
    """A session with each kind of event: settings, a call of two tools, answers, a system message, a turn replaced."""
    session = lm.session(settings=ChatSettings(max_tokens=3))
    for question in ("hi", "results", "more"):
        list(session.send(question))
    asked, called, _, told, *more = [event for event in session.events if event["type"] == "message"]
    return [
        session.events[0],
        {"type": "settings", "settings": {**_SETTINGS, "tools": _TOOLS}},
        asked,
        called | {"tool_calls": [_CALL, _CALL | {"id": "abcdefgh2"}]},
        {"type": "message", "role": "tool", "content": ["one", "two"]},
        told,
        {"type": "system", "content": "be nice"},
        *more,
        {"type": "truncate", "messages": 4},
        {"type": "message", "role": "user", "content": "again", "instead": True},
        told | {"content": "ok"},
        {"type": "message", "role": "user", "content": "no reply"},
    ]


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to each value within a value."""
    if place:
        yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*place, key))


def _change_field(event: Event, dice: random.Random) -> None:
    *parents, last = dice.choice(list(_places(event)) or [("type",)])
    within, value = event, copy.deepcopy(dice.choice(_VALUES))
    for key in parents:
        within = within[key]
    match dice.choice(("value", "value", "value", "another", "missing")):
        case "missing" if parents or last in event:
            del within[last]
        case "another":
            event[dice.choice(_FIELDS)] = value
        case _:
            within[last] = value


def _mutant(base: list[Event], dice: random.Random) -> bytes:
    """A session file, changed in one to three ways."""
    changed = copy.deepcopy(base[: dice.randrange(1, len(base)) if dice.random() < 0.3 else None])
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        one, other = (dice.randrange(len(changed)) for _ in range(2))
        match dice.choice([*["field"] * 6, "repeated", "left out", "swapped"]):
            case "repeated":
                changed.insert(one, copy.deepcopy(changed[other]))
            case "left out" if len(changed) > 1:
                del changed[one]
            case "swapped":
                changed[one], changed[other] = changed[other], changed[one]
            case _:
                _change_field(changed[one], dice)
    data = bytearray(b"".join(json.dumps(event).encode() + b"\n" for event in changed))
    for _ in range(dice.choice([1, 2, 5]) if dice.random() < 0.1 else 0):
        data[dice.randrange(len(data))] = dice.choice(b'\0\xff\n{}[]",:09a\\ ')
    return bytes(data[: dice.randrange(len(data)) if dice.random() < 0.1 else None])


def _use(session: Session[LanguageModel]) -> None:
    """Does whatever can be done with a session; all may be refused, and leaves what can be shown."""
    fork = session.fork()
    answers = ["a"] * len(session.open_calls)
    actions: list[Callable[[], object]] = [
        lambda: list(session.answer(answers) if answers else session.send("hi")),
        *(lambda: list(fork.retry()), lambda: list(fork.retry("x")), fork.undo, fork.undo, fork.prompt),
        *(session.successor, lambda: session.successor(session.events), lambda: session.preview("x")),
        *(lambda: session.change("temperature", "0.3"), lambda: list(session.send("last")), session.prompt),
    ]
    for action in actions:
        with contextlib.suppress(GptcliError):  # which says why not
            action()
    for each in (session, fork):
        for form in FORMS.values():
            form(each.messages, {"model": "tiny", **each.settings.record}).encode()


def _trial(path: Path, data: bytes, lm: LanguageModel) -> str:
    path.write_bytes(data)
    for row in stored_sessions():
        f"{row.name} {row.model} {row.question} {row.error}".encode()
    try:
        file = SessionFile.open(path.stem, create=True)
    except InputError:
        return "refused as files"
    with contextlib.closing(file):
        last_model(file.events)
        try:
            session = Session.restored(lm, file.events)
        except InputError:
            return "refused as sessions"
        session.keep_in(file, kept=len(file.events))
        _use(session)
    with contextlib.closing(SessionFile.open(path.stem, create=True)) as again:
        assert Session.restored(lm, again.events).messages == session.messages, "it is another once it is continued"
    return "opened"


def outcomes(seeds: Iterable[int], directory: Path) -> Iterator[Outcome]:
    """What became of each session. directory: for a model; the sessions are where the environment has them."""
    lm = gptcli.load(make_model(directory / "tiny", template=HERMES), device="cpu", dtype="fp32")
    with pytest.MonkeyPatch.context() as patch:
        trust_templates(patch)
        base, path = events(lm), SessionFile("mutant").path
        Session.restored(lm, base)
        yield from tried(seeds, lambda dice: _trial(path, _mutant(base, dice), lm))


if __name__ == "__main__":
    sys.exit(main(__doc__, outcomes))
