from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli import ChatSettings, Finished, LanguageModel, Session, TextDelta
from gptcli.chat.session import ReplyEvent, TurnsDropped
from gptcli.chat.storage import last_model
from gptcli.errors import ContextOverflow, InputError, NonFiniteLogits, UsageError
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.messages import Message
from tests.tiny import TEMPLATE, make_model

GREEDY = ChatSettings(temperature=0.0, max_tokens=8)


@pytest.fixture
def prefilled(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill of the tiny model runs."""
    return counted_prefills(tiny, monkeypatch)


@pytest.fixture
def session(tiny: LanguageModel) -> Session:
    """A conversation with the tiny model, greedy and brief."""
    return tiny.session(settings=GREEDY)


def counted_prefills(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill of a model runs from now on."""
    counts: list[int] = []
    prefill = lm.engine.prefill

    def counting(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(tokens))
        return prefill(tokens, *args, **kwargs)

    monkeypatch.setattr(lm.engine, "prefill", counting)
    return counts


def finish(events: Iterable[ReplyEvent]) -> Finished:
    """The end of a reply."""
    *_, finished = events
    assert isinstance(finished, Finished)
    return finished


def texts(session: Session) -> list[str]:
    """The contents of the messages."""
    return [message.content for message in session.messages]


def test_only_what_is_new_is_run_and_the_answer_is_the_same(tiny: LanguageModel, prefilled: list[int]) -> None:
    session = tiny.session("Be brief.", GREEDY)
    for text in ("In a town", "and then"):
        finished = finish(session.send(text))
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]

    whole = tiny.template.render(session.messages[:-1], tiny.tokenizer)
    *_, fresh = tiny.generate(whole, temperature=0.0, max_tokens=8)
    assert fresh.ids == finished.ids
    assert prefilled[1] < prefilled[2] == len(whole)


def test_closing_a_reply_midway_takes_the_question_back(tiny: LanguageModel, session: Session) -> None:
    reply = session.send("In a small town")
    next(reply)
    reply.close()
    assert session.messages == []
    fresh = tiny.session(settings=GREEDY)
    assert finish(session.send("In a small town")).ids == finish(fresh.send("In a small town")).ids


def test_an_interrupted_reply_is_kept_and_marked(session: Session) -> None:
    said: list[ReplyEvent] = []
    for event in session.send("In a small town", cancelled=lambda: bool(said)):
        said.append(event)
    assert isinstance(said[0], TextDelta)
    assert session.messages[-1] == Message("assistant", said[0].text, interrupted=True)
    assert finish(session.send("Go on")).reason == "length"


def test_an_error_takes_the_question_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(session.send("first"))
    with monkeypatch.context() as patch:

        def broken(*args: object, **kwargs: object) -> None:
            raise NonFiniteLogits(3, "fp32")

        patch.setattr(session.lm.engine, "prefill", broken)
        with pytest.raises(NonFiniteLogits):
            list(session.send("second"))
    assert texts(session)[0] == "first" and len(session.messages) == 2
    finish(session.send("third"))
    assert len(session.messages) == 4


def test_undo_returns_the_question_and_runs_little_again(session: Session, prefilled: list[int]) -> None:
    first = finish(session.send("In a small town there lived a clockmaker"))
    finish(session.send("second"))
    assert session.undo() == "second"
    assert len(session.messages) == 2
    prefilled.clear()
    finish(session.send("another"))
    assert sum(prefilled) < first.usage.prompt_tokens
    session.undo()
    session.undo()
    with pytest.raises(UsageError, match="no turn"):
        session.undo()


def test_retry_draws_with_the_next_seed(tiny: LanguageModel) -> None:
    session = tiny.session(settings=ChatSettings(temperature=2.0, max_tokens=8, seed=5))
    first, again = finish(session.send("In a town")), finish(session.retry())
    assert (first.seed, again.seed) == (5, 6)
    assert first.ids != again.ids
    assert texts(session)[0] == "In a town" and len(session.messages) == 2


def test_a_seed_set_midway_is_that_of_the_next_reply(tiny: LanguageModel) -> None:
    session = tiny.session(settings=ChatSettings(max_tokens=2, seed=5))
    finish(session.send("In a town"))
    for _ in range(2):
        session.change("seed", "5")
        assert finish(session.send("and then")).seed == 5
    session.change("temperature", "0.5")
    again = Session.restored(tiny, session.events)
    assert [finish(each.retry()).seed for each in (session, again)] == [6, 6]


def test_a_retry_without_text_keeps_the_old_reply(session: Session) -> None:
    finish(session.send("In a town"))
    before = session.messages
    finish(session.retry("Or in a village", cancelled=lambda: True))
    assert session.messages == before


def test_retry_asks_a_question_that_was_taken_back(session: Session) -> None:
    finish(session.send("In a town"))
    assert finish(session.send("and then", cancelled=lambda: True)).reason == "interrupt"
    assert texts(session)[::2] == ["In a town"] and session.unanswered == "and then"
    finish(session.retry())
    assert session.unanswered is None
    assert texts(session)[::2] == ["In a town", "and then"]
    finish(session.send("at last", cancelled=lambda: True))
    session.undo()
    assert session.unanswered is None and len(session.messages) == 2


@pytest.mark.parametrize("text", [None, "Or in a village"])
def test_a_process_that_dies_during_a_retry_keeps_the_old_turn(text: str | None, session: Session) -> None:
    finish(session.send("In a town"))
    before, events = session.messages, len(session.events)
    finish(session.retry(text))
    for kept in (events, events + 1):
        again = Session.restored(session.lm, session.events[:kept])
        assert again.messages == before
    assert again.unanswered == again.fork().unanswered == (text or "In a town")
    assert Session.restored(session.lm, again.events).unanswered == again.unanswered
    finish(again.retry())
    assert again.messages == session.messages


def test_nothing_begins_before_a_reply_has_ended(session: Session) -> None:
    reply = session.send("In a town")
    next(reply)
    for change in (lambda: next(session.send("and then")), session.retry, session.undo):
        with pytest.raises(UsageError, match="has not ended"):
            change()
    finish(reply)
    assert texts(session)[0] == "In a town" and len(session.messages) == 2


def test_lone_surrogates_are_refused(session: Session) -> None:
    with pytest.raises(UsageError, match="lone surrogates"):
        next(session.send("a\ud800"))
    assert session.messages == []


def test_a_fork_is_independent_and_shares_the_cache(tiny: LanguageModel, prefilled: list[int]) -> None:
    session = tiny.session("Be brief.", GREEDY)
    finish(session.send("In a small town there lived a clockmaker"))
    fork = session.fork()
    prefilled.clear()
    used = finish(fork.send("and then")).usage.prompt_tokens
    assert sum(prefilled) < used / 2
    assert len(session.messages) == 3 and len(fork.messages) == 5
    assert fork.settings == GREEDY


def test_the_oldest_turns_are_dropped_with_notice(tiny: LanguageModel) -> None:
    session = tiny.session("Be very brief.", GREEDY)
    dropped = 0
    for turn in range(12):
        events = list(session.send(f"In a small town there lived a clockmaker number {turn}"))
        dropped += sum(event.turns for event in events if isinstance(event, TurnsDropped))
        assert len(session.prompt()) <= tiny.ctx_size
        prompt = tiny.tokenizer.decode(session.prompt())
        assert b"Be very brief." in prompt
        assert f"number {turn}".encode() in prompt
        assert prompt.count(b"number") == turn + 1 - dropped
    assert dropped > 1
    assert len(session.messages) == 25  # only the model forgets


def test_undo_restores_the_turns_dropped_for_a_question(session: Session) -> None:
    finish(session.send("one"))
    finish(session.send("two"))
    before = session.prompt()
    said = list(session.send("long " * 45))
    assert any(isinstance(event, TurnsDropped) for event in said)
    assert session.prompt()[: len(before)] != before
    session.undo()
    assert session.prompt() == before


def test_a_question_that_never_fits_is_an_error_and_the_session_goes_on(session: Session) -> None:
    finish(session.send("short"))
    with pytest.raises(ContextOverflow, match="does not fit"):
        list(session.send("long " * 300))
    assert len(session.messages) == 2
    finish(session.send("short again"))


def test_a_full_context_can_be_an_error_or_the_end_of_a_reply(tiny: LanguageModel) -> None:
    session = tiny.session(settings=ChatSettings(temperature=0.0, overflow="error", ignore_eos=True))
    with pytest.raises(ContextOverflow, match="full"):
        list(session.send("In a small town"))
    session = tiny.session(settings=ChatSettings(temperature=0.0, overflow="stop", ignore_eos=True))
    assert finish(session.send("In a small town")).reason == "length"
    with pytest.raises(ContextOverflow, match="does not fit"):
        list(session.send("and then"))


def test_a_session_can_be_replayed_from_its_record(tiny: LanguageModel) -> None:
    session = tiny.session("Be brief.", ChatSettings(temperature=1.5, max_tokens=12))
    for text in ("In a town", "and then"):
        finish(session.send(text))
    replay = tiny.session("Be brief.")
    for event in session.events:
        if event["type"] == "message" and event["role"] == "user":
            question = event["content"]
        elif event["type"] == "message":
            seed = (event["seed"] - len(replay.finished)) % 2**64
            replay.settings = ChatSettings(**event["sampling"] | {"seed": seed}, max_tokens=12)
            assert finish(replay.send(question)).ids == tuple(event["ids"])
            assert event["fingerprint"] == tiny.fingerprint
    assert replay.messages == session.messages


@pytest.mark.parametrize(
    ("event", "complaint"),
    [
        ({"type": "session", "version": 99}, "version 99"),
        ({"type": "nonsense"}, "nonsense"),
        ({}, "type"),
        ({"type": "message", "role": "assistant", "content": "x"}, "expected"),
        ({"type": "message", "role": "user", "content": 1}, "text"),
        ({"type": "settings", "settings": {"temperature": -1}}, "temperature"),
        ({"type": "settings", "settings": {"heat": 1}}, "heat"),
        ({"type": "settings", "settings": {"logit_bias": 7}}, "int"),
        ({"type": "system", "content": []}, "text"),
        ({"type": "message", "role": "user", "content": "x", "instead": True}, "nothing"),
        ({"type": "truncate", "messages": "x"}, "no x messages"),
        ({"type": "truncate", "messages": -1}, "no -1 messages"),
        ({"type": "truncate", "messages": 1}, "no 1 messages"),
        ({"type": "message", "role": "user", "content": "\ud800"}, "lone surrogates"),
    ],
)
def test_malformed_events_are_refused(event: dict[str, Any], complaint: str, tiny: LanguageModel) -> None:
    with pytest.raises(InputError, match=f"event 1.*{complaint}"):
        Session.restored(tiny, [event])


def test_thinking_is_a_setting_where_the_template_knows_it(tiny: LanguageModel) -> None:
    with pytest.raises(UsageError, match="no switch for thinking"):
        tiny.session(settings=ChatSettings(thinking=False))
    source = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}NO{% endif %}"
    session = Session(tiny, settings=ChatSettings(thinking=False), template=ChatTemplate(source, "test"))
    finish(session.send("Hi"))
    assert tiny.tokenizer.decode(session.prompt()).endswith(b"NO")
    session.settings = ChatSettings(thinking=True)
    assert not tiny.tokenizer.decode(session.prompt()).endswith(b"NO")
    with pytest.raises(UsageError, match="no switch for the reasoning effort"):
        tiny.session(settings=ChatSettings(reasoning_effort="low"))


def test_a_shared_cache_saves_what_is_common(tiny: LanguageModel, prefilled: list[int], tmp_path: Path) -> None:
    session = tiny.session("You are a clockmaker who lives in a small town.", GREEDY)
    finish(session.send("first"))
    other = Session.restored(tiny, session.events)
    finish(session.send("second"))
    other.share_cache(session)
    prefilled.clear()
    used = finish(other.send("third")).usage.prompt_tokens
    assert sum(prefilled) < used / 2
    fresh = Session.restored(tiny, other.events[:-2])
    assert finish(fresh.send("third")).ids == tuple(other.events[-1]["ids"])

    another = gptcli.load(make_model(tmp_path / "another", seed=1), device="cpu", dtype="fp32").session(settings=GREEDY)
    before = finish(another.send("first")).ids
    another.share_cache(session)
    assert finish(another.retry()).ids == before


def test_an_override_is_not_stored_and_ends_when_its_setting_changes(tiny: LanguageModel) -> None:
    session = tiny.session(settings=ChatSettings(temperature=0.2))
    session.override({"temperature": 0.5}, {"temperature": 0.9, "top_k": 7})
    assert (session.settings.temperature, session.settings.top_k) == (0.5, 7)
    assert Session.restored(tiny, session.events).settings.record == {"temperature": 0.2}
    session.change("temperature", "0.5")  # the same as the override, and kept all the same
    session.change("top-k", "3")
    assert Session.restored(tiny, session.events).settings.record == {"temperature": 0.5, "top_k": 3}
    other = session.successor()
    assert (other.settings.temperature, other.settings.top_k) == (0.5, 3)


def test_the_next_conversation_does_not_keep_a_borrowed_model(tiny: LanguageModel) -> None:
    session = tiny.session(settings=ChatSettings(max_tokens=1))
    session.borrows_model = True
    list(session.send("hello"))
    assert last_model(session.events) == ("", "")
    other = session.successor()
    list(other.send("hello"))
    assert last_model(other.events)[0] == tiny.reference


@pytest.mark.real
def test_the_tenth_turn_runs_no_more_than_the_second(real_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = gptcli.load(real_weights / DEFAULT_MODEL)
    run = counted_prefills(lm, monkeypatch)
    session = lm.session("You are a helpful assistant.", ChatSettings(temperature=0.0, max_tokens=40))
    for topic in ("Rome", "bread", "the moon", "trees", "trains", "tea", "the sea", "chess", "bees", "rain"):
        finish(session.send(f"Tell me something about {topic}, please."))
    assert len(session.prompt()) > 500
    assert len(run) == 10 and max(run[1:]) < 30
