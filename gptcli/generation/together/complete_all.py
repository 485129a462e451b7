"""Completes a stream of requests, each taken once there is room for it. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from gptcli.errors import GptcliError
from gptcli.generation.events import Completed, Event
from gptcli.generation.together.continuous_batch import ContinuousBatch
from gptcli.generation.together.job import Job
from gptcli.runtime.engine import Cancelled

Ready = TypeVar("Ready")  # an answer without a job

_MOST_HELD = 256  # answers that wait for an earlier one


def complete_all(
    jobs: Iterable[Job | Ready | None],
    parallel: int | None,
    *,
    ordered: bool,
    cancelled: Cancelled,
    wait: Callable[[], object],
) -> Iterator[tuple[int, Completed | GptcliError | Ready]]:
    """See `LanguageModel.complete_many`. jobs: its requests, or answers in their place."""
    batch, source = ContinuousBatch(parallel), iter(jobs)
    running = dict[Job, tuple[int, list[Event]]]()
    answers = dict[int, Completed | GptcliError | Ready]()
    taken = given = 0
    more, failure = True, None
    while more or running or answers:
        if cancelled():
            more = False
            batch.cancel()
        while more and not batch.full and len(answers) < _MOST_HELD:
            try:
                job = next(source)
            except StopIteration:
                more = False
                break
            except GptcliError as error:
                more, failure = False, error
                break
            if job is None:
                break
            index, taken = taken, taken + 1
            if not isinstance(job, Job):
                answers[index] = job
                break  # it took time to make, and is given before the next
            running[job] = index, []
            batch.add(job)
        if more and batch.idle and not answers:
            wait()
            continue
        for job in batch.step():
            index, events = running[job]
            events += (event for event in job.events() if not isinstance(event, GptcliError))
            if job.ended:
                del running[job]
                answers[index] = job.completion.error or Completed.of(events)
        while answers and (not ordered or given in answers):
            index = given if ordered else next(iter(answers))
            given += 1
            yield index, answers.pop(index)
    if failure is not None:
        raise failure
