from __future__ import annotations

from typing import Any

import pytest

from gptcli import Finished, LanguageModel
from gptcli.settings import SamplingConfig, StopConfig

GREEDY = SamplingConfig(temperature=0.0)


def test_only_what_is_new_is_run_and_the_answer_is_the_same(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefilled: list[int] = []
    prefill = tiny.engine.prefill

    def counting(tokens: Any, *args: Any, **kwargs: Any) -> Any:
        prefilled.append(len(tokens))
        return prefill(tokens, *args, **kwargs)

    monkeypatch.setattr(tiny.engine, "prefill", counting)
    session = tiny.session(system="Be brief.")
    short = StopConfig(max_tokens=8)
    for text in ("In a town", "and then"):
        *_, finished = session.send(text, GREEDY, short)
    assert isinstance(finished, Finished)
    assert [message.role for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]

    whole = tiny.template.render(session.messages[:-1], tiny.tokenizer)
    *_, fresh = tiny.stream(whole, GREEDY, short)
    assert isinstance(fresh, Finished)
    assert fresh.ids == finished.ids
    assert prefilled[1] < prefilled[2] == len(whole)


def test_a_session_given_up_in_mid_answer_goes_on(tiny: LanguageModel) -> None:
    session = tiny.session()
    next(session.send("In a small town", GREEDY))
    assert session.messages == []
    *_, finished = session.send("In a small town", GREEDY, StopConfig(max_tokens=4))
    *_, fresh = tiny.session().send("In a small town", GREEDY, StopConfig(max_tokens=4))
    assert isinstance(finished, Finished) and isinstance(fresh, Finished)
    assert finished.ids == fresh.ids
