"""Layers with a state: after a text is truncated, in any way, its logits are those of a fresh run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import gptcli
import gptcli.model.recurrence.delta_net
import gptcli.model.recurrence.mamba2
from gptcli import Finished
from gptcli.errors import OutOfMemory
from gptcli.generation.speculation import PromptLookup
from gptcli.generation.steps import SingleSteps
from gptcli.kernels.tensors import Library
from gptcli.model.decoder import Decoder
from gptcli.runtime.engine import Extension, keep_common, never_cancelled, no_progress
from gptcli.runtime.program_cache import ProgramCache
from gptcli.runtime.torch_engine import TensorRows, TextCache, TorchEngine
from gptcli.settings import SamplingConfig, StopConfig
from tests.parity.test_families import IDS, ROW, engine_of, needed_library, relative_error

KINDS = ("lfm2", "mamba2", "falcon_h1", "qwen3_next")


@pytest.fixture(scope="module", params=["torch", "kernels"])
def library(request: pytest.FixtureRequest) -> Library | None:
    return needed_library() if request.param == "kernels" else None


@pytest.fixture(scope="module", params=KINDS)
def engine(
    request: pytest.FixtureRequest, library: Library | None, tmp_path_factory: pytest.TempPathFactory
) -> TorchEngine:
    return engine_of(ROW[request.param].write(tmp_path_factory.mktemp("model")).path, library=library)


def afresh(engine: TorchEngine, text: list[int]) -> Tensor:
    return engine.logits(text)[-1]


def cached(engine: TorchEngine, text: list[int]) -> TextCache:
    cache = engine.new_cache()
    engine.prefill(text, cache)
    return cache


def goes_on(engine: TorchEngine, cache: TextCache, text: list[int]) -> bool:
    """Whether the logits of a text after its cached beginning are those of a fresh run."""
    assert cache.tokens == text[: cache.length]
    logits = engine.prefill(text[cache.length :], cache)
    assert logits is not None
    return relative_error(logits, afresh(engine, text)) < 1e-5


def test_a_prompt_that_is_run_again_runs_its_last_token_only(engine: TorchEngine) -> None:
    cache = cached(engine, IDS[:20])
    for token in IDS[20:30]:
        engine.decode(token, cache)
    keep_common(cache, IDS[:19])
    assert cache.length == 19
    assert goes_on(engine, cache, IDS[:20])


def test_a_text_that_leaves_a_prompt_before_its_end_runs_again_from_an_earlier_mark(engine: TorchEngine) -> None:
    cache = cached(engine, IDS[:20])
    engine.prefill(IDS[20:40], cache)
    keep_common(cache, [*IDS[:25], 5, 6])
    assert cache.length == 20
    assert goes_on(engine, cache, [*IDS[:25], 5, 6])
    keep_common(cache, [*IDS[:9], 7])
    assert cache.length == 0
    assert goes_on(engine, cache, [*IDS[:9], 7])


def test_a_scan_in_short_chunks_is_the_scan_in_one(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = engine.logits(IDS)
    for module in (gptcli.model.recurrence.mamba2, gptcli.model.recurrence.delta_net):
        monkeypatch.setattr(module, "CHUNK", 5)
    assert relative_error(engine.logits(IDS), whole) < 1e-5


def test_a_text_that_goes_on_keeps_all_of_its_cache(engine: TorchEngine) -> None:
    cache = cached(engine, IDS[:20])
    engine.decode(IDS[20], cache)
    keep_common(cache, IDS)
    assert cache.length == 21
    assert goes_on(engine, cache, IDS)


def test_few_marks_are_kept_far_apart_and_the_newest_among_them(engine: TorchEngine) -> None:
    cache = engine.new_cache()
    for start in range(0, 48, 3):
        engine.prefill(IDS[start : start + 3], cache)
    marks = cache._marks if isinstance(cache, ProgramCache) else cache.states._marks
    lengths = [length for length, _ in marks._marks]
    assert len(lengths) == 4 and lengths[-1] == 47
    assert all(later - earlier < 24 for earlier, later in zip([0, *lengths], lengths, strict=False))
    for length in (lengths[1] + 1, lengths[0]):
        cache.truncate(length)
        assert goes_on(engine, cache, IDS[: cache.length + 2])


def test_a_step_that_fails_halfway_changes_nothing(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cached(engine, IDS[:20])
    run = Library.run

    def failing(*arguments: Any) -> Tensor:
        if len(arguments) == 3:
            run(*arguments)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "logits", failing)
        patch.setattr(Library, "run", failing)
        with pytest.raises(OutOfMemory):
            engine.decode(5, cache)
    assert goes_on(engine, cache, IDS[:22])


def test_copies_go_their_own_ways_and_the_prompt_can_be_continued_after_them(engine: TorchEngine) -> None:
    cache = cached(engine, IDS[:20])
    copies = [engine.copy_of(cache, 20) for _ in range(3)]
    for tokens in ([5, 6, 7], [8, 9, 10]):
        step = [Extension(copy, [token]) for copy, token in zip(copies, tokens, strict=True)]
        for copy, [logits] in zip(copies, engine.extend(step), strict=True):
            assert relative_error(logits, afresh(engine, copy.tokens)) < 1e-5
    assert goes_on(engine, cache, IDS[:25])


@pytest.mark.parametrize("library", ["torch"], indirect=True)  # a program has no rows of one cache
def test_rows_go_their_own_ways_and_the_prompt_can_be_continued_after_them(engine: TorchEngine) -> None:
    cache = cached(engine, IDS[:20])
    rows = TensorRows(engine)
    rows.begin(cache, 3)
    texts = [[*IDS[:20], token] for token in (5, 6, 7)]
    rows.step([5, 6, 7])
    rows.drop(0)
    texts[0] = texts.pop()
    for text, logits in zip(texts, rows.step([8, 9]), strict=True):
        assert relative_error(logits, afresh(engine, [*text, 8 if text is texts[0] else 9])) < 1e-5
    assert goes_on(engine, cache, IDS[:25])


def test_choices_after_one_prompt_do_not_run_it_again(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, ran = engine._run, []

    def counting(text: Extension) -> Tensor:
        ran.append(len(text.tokens))
        return run(text)

    monkeypatch.setattr(engine, "_run", counting)
    cache = engine.new_cache()
    for choice in ([5, 6], [7, 8]):
        keep_common(cache, IDS[:19])
        inputs = [*IDS[:20], *choice[:-1]]
        scores = [each for some in engine.score_tokens(inputs[cache.length :], cache, choice, 96, 0) for each in some]
        wanted = engine.logits([*IDS[:20], choice[0]])[-2:].log_softmax(-1)
        ran[-1:] = []
        for score, row, token in zip(scores, wanted, choice, strict=True):
            assert abs(score.logprob - float(row[token])) < 1e-4
    assert ran == [19, 2, 2]


@pytest.mark.parametrize("title", KINDS)
def test_a_conversation_that_goes_back_answers_as_one_that_never_went_there(tmp_path: Path, title: str) -> None:
    path = ROW[title].make(tmp_path)

    def conversation() -> Any:
        session = gptcli.load(path, device="cpu", dtype="fp32", quantize="none").session()
        for name, value in (("temperature", "0"), ("max_tokens", "6"), ("ignore_eos", "on")):
            session.change(name, value)
        return session

    def answer(events: Any) -> tuple[int, ...]:
        *_, finished = events
        return finished.ids

    session, straight = conversation(), conversation()
    first = answer(session.send("In a small town"))
    second = answer(session.send("lived a clockmaker"))
    assert answer(session.retry()) == second
    session.undo()
    answer(session.send("and a bell"))
    session.undo()
    session.undo()
    assert answer(session.send("In a small town")) == first == answer(straight.send("In a small town"))
    assert answer(session.send("there were 3 bells")) == answer(straight.send("there were 3 bells"))


def test_nothing_is_drafted_and_the_text_is_the_same(engine: TorchEngine) -> None:
    prompt = IDS[:6] * 4
    steps = SingleSteps(engine, engine.new_cache(), PromptLookup(), 8)
    _, logits = steps.begin(prompt, 1, no_progress, never_cancelled)
    text = list(prompt)
    for _ in range(8):
        assert logits is not None
        text.append(int(logits[0].argmax()))
        assert relative_error(logits[0], afresh(engine, text[:-1])) < 1e-5
        logits = steps.after([text])
    assert steps.drafted == 0


def test_samples_run_their_prompt_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed_library()
    lm = gptcli.load(ROW["qwen3_5"].make(tmp_path), device="cpu", dtype="fp32")
    engine = lm.full_engine()
    run, ran = engine._run_texts, list[int]()
    monkeypatch.setattr(
        engine, "_run_texts", lambda texts, *rest: ran.extend(len(text.tokens) for text in texts) or run(texts, *rest)
    )
    prompt = lm.tokenizer.encode(
        "In a small town there lived a clockmaker. The clockmaker had 3 clocks, and 12 small bells. 1 2 3 4"
    )
    streams = lm.streams(prompt, SamplingConfig(seed=1).for_samples(3), StopConfig(max_tokens=4, ignore_eos=True))
    assert len([event for events in streams for event in events if isinstance(event, Finished)]) == 3
    assert ran[0] == len(prompt) - 1 and set(ran[1:]) == {1}
