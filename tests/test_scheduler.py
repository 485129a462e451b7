"""Many threads submit requests to one scheduler, read their events, and leave."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import pytest

from gptcli import Finished, LanguageModel, Request, TextDelta
from gptcli.errors import ContextOverflow
from gptcli.scheduler import Scheduler

ENDLESS = Request([5], max_tokens=-1, overflow="shift", ignore_eos=True, temperature=0.0)
REQUESTS = [Request([5, 6, n], max_tokens=4 + n, seed=n, ignore_eos=True, temperature=1.2) for n in range(20)]


def ids_alone(lm: LanguageModel, request: Request) -> tuple[int, ...]:
    [(_, answer)] = lm.complete_many([request])
    return answer.finished.ids


def test_threads_read_what_each_request_is_alone(tiny: LanguageModel) -> None:
    wanted = [ids_alone(tiny, request) for request in REQUESTS]

    def read(request: Request) -> tuple[int, ...]:
        *deltas, end = scheduler.submit(request)
        assert isinstance(end, Finished) and all(isinstance(delta, TextDelta) for delta in deltas)
        return end.ids

    with Scheduler(tiny, parallel=4) as scheduler, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, REQUESTS)) == wanted
        assert scheduler.open == 0


@pytest.mark.parametrize("leave", ["close", "forget"])
def test_a_reader_that_leaves_frees_its_place(tiny: LanguageModel, leave: str) -> None:
    with Scheduler(tiny, parallel=1) as scheduler:
        stream = scheduler.submit(ENDLESS)
        assert isinstance(next(stream), TextDelta)
        if leave == "close":
            stream.close()
            assert list(stream) == []
        else:
            del stream
        *_, end = scheduler.submit(REQUESTS[3])  # which waits for the only place
        assert isinstance(end, Finished) and end.ids == ids_alone(tiny, REQUESTS[3])


def test_a_request_is_refused_at_once_or_fails_in_its_reader(tiny: LanguageModel) -> None:
    with Scheduler(tiny) as scheduler:
        with pytest.raises(ContextOverflow):
            scheduler.submit(Request([5] * 300))
        stream = scheduler.submit(Request([5] * 250, max_tokens=20, ignore_eos=True, overflow="error"))
        with pytest.raises(ContextOverflow):
            list(stream)
        assert list(stream) == []


def test_closing_ends_what_runs_and_takes_nothing_more(tiny: LanguageModel) -> None:
    scheduler = Scheduler(tiny, parallel=2)
    streams = [scheduler.submit(ENDLESS) for _ in range(4)]
    next(streams[0])
    scheduler.close()
    assert [list(stream)[-1].reason for stream in streams] == ["interrupt"] * 4
    with pytest.raises(RuntimeError):
        scheduler.submit(ENDLESS)


def test_events_are_handed_over_until_the_text_is_cancelled(tiny: LanguageModel) -> None:
    events = SimpleQueue[Any]()
    with Scheduler(tiny) as scheduler:
        cancel = scheduler.start(ENDLESS, events.put)
        assert isinstance(events.get(), TextDelta)
        cancel()
        while not isinstance(event := events.get(), Finished):
            pass
        assert event.reason == "interrupt"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_reaches_every_reader(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(tiny)
    monkeypatch.setattr(scheduler._batch, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(scheduler.submit(REQUESTS[0]))
    with pytest.raises(RuntimeError):
        scheduler.submit(REQUESTS[0])
