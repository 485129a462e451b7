"""Spreads the lines of a batch over workers of a Ray cluster, each of which has the model loaded."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

from gptcli.cli.batch.answer_records import Vectors
from gptcli.cli.batch.input_lines import InputLine
from gptcli.cli.batch.requests import Answered, BatchSettings, Requests
from gptcli.cli.run_options import RunOptions, template_of
from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.errors import GptcliError, NoSuchDevice, UsageError
from gptcli.generation.events import Completed, Event
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.scheduler import Scheduler

_LINES = 16  # of a chunk, which a worker is given at once
_CHUNKS = 2  # of a worker at once, so that it never waits for the next
_POLL_SECONDS = 0.2


class Worker:
    """A model in a process of the cluster. If it dies, Ray starts it again and repeats its calls."""

    def __init__(self, run: RunOptions, settings: BatchSettings, parallel: int | None) -> None:
        self._run, self._settings, self._parallel = run, settings, parallel
        self._lock = Lock()
        self._loaded: tuple[LanguageModel, Scheduler] | None = None

    def load(self) -> None:
        """Loads the model. Raises what that raises."""
        self._model()

    def answer(self, lines: Sequence[InputLine]) -> list[Answered]:
        """Answers lines. Threads that call it at once share the model's steps."""
        lm, scheduler = self._model()
        requests = Requests(lm, self._settings, template_of(self._run, lm), lambda name: None)
        started = [_started(scheduler, request) for request in requests.of(lines) if request is not None]
        ended = (requests.finished(index, _ended(events)) for index, events in enumerate(started))
        return [work.answered(lm.name, self._settings.made_with) for work in ended if work is not None]

    def _model(self) -> tuple[LanguageModel, Scheduler]:
        with self._lock:
            if self._loaded is None:
                with ProgressLine(quiet=True) as activity:
                    lm = self._run.open_model(activity)
                lm.load()
                self._loaded = lm, Scheduler(lm, parallel=self._parallel)
            return self._loaded


def _started(scheduler: Scheduler, request: Request | Vectors | GptcliError) -> Iterator[Event] | Vectors | GptcliError:
    try:
        return scheduler.submit(request) if isinstance(request, Request) else request
    except GptcliError as error:
        return error


def _ended(events: Iterator[Event] | Vectors | GptcliError) -> Completed | Vectors | GptcliError:
    try:
        return events if isinstance(events, Vectors | GptcliError) else Completed.of(events)
    except GptcliError as error:
        return error


def answered_by_workers(
    cluster: str,
    workers: int | None,
    make: tuple[RunOptions, BatchSettings, int | None],
    lines: Iterable[InputLine | None],
    *,
    ordered: bool,
    cancelled: Callable[[], bool],
) -> Iterator[Answered]:
    """Answers lines, in their order or as answers come, until cancelled.

    cluster: see `_connected`. workers: how many; None for one on each GPU, else one on each machine. make: the
    arguments of `Worker`. lines: None while there is none yet. Raises what loading the model raises there.
    """
    with _connected(cluster) as ray:
        from ray.util import ActorPool

        count, resources = _resources(ray, workers)
        run, *rest = make
        threads = run.runtime.threads or resources.get("num_cpus")
        run = replace(run, runtime=replace(run.runtime, threads=threads))
        remote = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=_CHUNKS, **resources)(Worker)
        actors = [remote.remote(run, *rest) for _ in range(count)]
        ray.get([actor.load.remote() for actor in actors])
        pool = ActorPool(actors * _CHUNKS)
        chunks, more = _chunks(lines), True
        while (more or pool.has_next()) and not cancelled():
            while more and pool.has_free():
                chunk = next(chunks, None)
                more = chunk is not None
                if not chunk:
                    break
                pool.submit(lambda actor, given: actor.answer.remote(given), chunk)
            if not pool.has_next():
                time.sleep(_POLL_SECONDS if more else 0)
                continue
            try:
                yield from (pool.get_next if ordered else pool.get_next_unordered)(timeout=_POLL_SECONDS)
            except TimeoutError:
                continue


def _chunks(lines: Iterable[InputLine | None]) -> Iterator[list[InputLine]]:
    """Lines that a worker gets at once; an empty list while there is none yet."""
    chunk = list[InputLine]()
    for line in lines:
        if line is not None:
            chunk.append(line)
        if line is None or len(chunk) == _LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _resources(ray: Any, workers: int | None) -> tuple[int, dict[str, int]]:
    """How many workers there are, and what each needs."""
    has = ray.cluster_resources()
    if gpus := int(has.get("GPU", 0)):
        return workers or gpus, {"num_gpus": 1}
    machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    if workers is None:
        return len(machines), {"num_cpus": int(min(machines))}
    return workers, {"num_cpus": max(1, int(sum(machines)) // workers)}


@contextmanager
def _connected(cluster: str) -> Iterator[Any]:
    """Ray, connected to a cluster by its address, `auto` for this machine's, or `local` for a new one of this machine.

    Raises UsageError if Ray is not installed, and NoSuchDevice if the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray", 'run `pip install "gptcli[ray]"`') from None
    own = {"include_dashboard": False} if cluster == "local" else {}
    try:
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NoSuchDevice(f"no such Ray cluster: {cluster}: {error}") from None
    try:
        yield ray
    finally:
        ray.shutdown()
