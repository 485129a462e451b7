from __future__ import annotations

from gptcli import Finished, LanguageModel, TextDelta


def test_a_generation_is_text_and_then_how_it_ended(tiny: LanguageModel) -> None:
    *deltas, finished = tiny.generate("In a small", max_tokens=8, temperature=0.0, ignore_eos=True)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert isinstance(finished, Finished)
    assert len(finished.ids) == 8
    assert finished.reason == "length"
    assert b"".join(delta.data for delta in deltas) == tiny.tokenizer.decode(finished.ids)
