"""After any actions in any order, a session's state is the sum of its events, and its cache fits its prompt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gptcli import ChatSettings, LanguageModel, Session
from gptcli.chat.storage import SessionFile, read_session, stored_sessions
from gptcli.runtime.engine import keep_common
from tests.cli.scripted import Script

_TEXTS = st.text(max_size=12)
_SETTINGS = st.builds(
    ChatSettings,
    temperature=st.none() | st.floats(0, 10),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    logit_bias=st.none() | st.lists(st.tuples(st.integers(0, 300), st.floats(-9, 9)), max_size=2).map(tuple),
)
_Step = Callable[[Session], object]
_STEPS: st.SearchStrategy[list[_Step]] = st.lists(
    st.one_of(
        _TEXTS.map(lambda text: lambda session: list(session.send(text))),
        _TEXTS.map(lambda text: lambda session: list(session.send(text, cancelled=lambda: True))),
        _TEXTS.map(lambda text: lambda session: next(session.send(text))),  # given up midway
        (st.none() | _TEXTS).map(lambda text: lambda session: has_turns(session) and list(session.retry(text))),
        st.just(lambda session: has_turns(session) and list(session.retry(cancelled=lambda: True))),
        st.just(lambda session: has_turns(session) and session.undo()),
        (st.none() | _TEXTS).map(lambda text: lambda session: setattr(session, "system", text)),
        _SETTINGS.map(lambda chosen: lambda session: setattr(session, "settings", chosen)),
    ),
    max_size=12,
)


def has_turns(session: Session) -> bool:
    """Whether a turn can be taken back."""
    return any(message.role == "user" for message in session.messages)


def state(session: Session) -> object:
    """A session's whole state."""
    return session.messages, session.unanswered, session.system, session.settings, session.prompt()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, cut=st.floats(0, 1))
def test_any_session_is_stored_and_restored_whole(
    steps: list[_Step], cut: float, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(pieces=["yes ", "and no"])
    session = tiny.session()
    with tempfile.TemporaryDirectory() as directory, monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", directory)
        patch.setattr(LanguageModel, "stream", lambda lm, *given, **named: script.stream(lm, *given, **named))
        file = SessionFile("mine")
        session.keep_in(file)
        for step in [lambda session: list(session.send("first")), *steps]:
            step(session)
        assert state(Session.restored(tiny, read_session("mine"))) == state(session)
        [stored] = stored_sessions()
        assert stored.turns == len(session.messages[session.system is not None :]) // 2

        file.close()
        os.truncate(file.path, round(cut * file.path.stat().st_size))
        again = SessionFile.open("mine")
        restored = Session.restored(tiny, again.events)
        restored.keep_in(again, kept=len(again.events))
        list(restored.send("on it goes"))
        assert state(Session.restored(tiny, read_session("mine"))) == state(restored)
        again.close()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "retry", "edit", "undo", "fork", "interrupt", "system"]),
            st.sampled_from(["In a small town", "there lived", "a clockmaker with 3 clocks", "é 😀"]),
        ),
        min_size=1,
        max_size=8,
    )
)
@example(steps=[("send", "In a small town")] * 8)  # more than the context holds
def test_the_cache_is_that_of_a_fresh_run_after_any_actions(steps: list[tuple[str, str]], tiny: LanguageModel) -> None:
    sessions = [tiny.session(settings=ChatSettings(temperature=0.0, max_tokens=6))]
    for kind, text in steps:
        session = sessions[-1]
        if kind == "fork":
            sessions.append(session.fork())
        elif kind == "system":
            session.system = text
        elif kind == "interrupt":
            said: list[object] = []
            said.extend(event for event in session.send(text, cancelled=lambda said=said: bool(said)))
        elif kind == "send" or not has_turns(session):
            list(session.send(text))
        elif kind == "undo":
            session.undo()
        else:
            list(session.retry(text if kind == "edit" else None))
        assert_as_fresh(session, tiny)
    for session in sessions:
        list(session.send("at last"))
        assert_as_fresh(session, tiny)


def assert_as_fresh(session: Session, lm: LanguageModel) -> None:
    """The logits after the prompt are the same with the session's cache and without."""
    cache = session._cache.for_engine(lm.engine)
    prompt = session._fitting()[1]  # without the turns that no longer fit
    keep_common(cache, prompt[:-1])
    cached = lm.engine.prefill(prompt[cache.length :], cache)
    torch.testing.assert_close(cached, lm.logits(prompt)[-1], rtol=1e-4, atol=1e-4)
