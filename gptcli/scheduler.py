"""Runs requests of many threads together, in a thread of its own. Requests come and go at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from gptcli.generation.events import Event, TextDelta
from gptcli.generation.request import Request
from gptcli.generation.together.continuous_batch import ContinuousBatch
from gptcli.generation.together.job import Job
from gptcli.language_model import LanguageModel

Deliver = Callable[[Event | BaseException], None]


class Stream(Iterator[Event]):
    """The events of a request: TextDelta as text comes, then one Finished, or the error that ended it is raised.

    `close`, or its end, frees its row of the batch within a step.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._open = job, True
        self._events = SimpleQueue[Event | BaseException]()

    def __next__(self) -> Event:
        if not self._open:
            raise StopIteration
        event = self._events.get()
        self._open = isinstance(event, TextDelta)
        if isinstance(event, BaseException):
            raise event
        return event

    def close(self) -> None:
        """Ends the text, if it runs. Any thread may call it."""
        self._job.cancelled, self._open = True, False

    def __del__(self) -> None:
        self.close()


class Scheduler:
    """Runs requests to a model together. parallel: see `LanguageModel.complete_many`.

    Any thread may call it. As a context manager it ends with `close`.
    """

    def __init__(self, language_model: LanguageModel, *, parallel: int | None = None) -> None:
        self._lm = language_model
        self._batch = ContinuousBatch(parallel)
        self._delivers = dict[Job, Deliver]()
        self._changed = threading.Condition()
        self._new = list[Job]()
        self._closed = False
        self._error: BaseException | None = None  # what ended it
        self._thread = threading.Thread(target=self._run, name="gptcli scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def submit(self, request: Request) -> Stream:
        """Lets a request run as soon as there is room for it. Raises UsageError and ContextOverflow at once."""
        stream = Stream(self._lm.job(request))
        self._start(stream._job, stream._events.put)
        return stream

    def start(self, request: Request, deliver: Deliver) -> Callable[[], None]:
        """As `submit`, but the scheduler's thread hands each event, or the error that ended it, to `deliver`.

        For event loops: `deliver` must be quick and raise nothing. Returns what ends the text, as `Stream.close` does.
        """
        job = self._lm.job(request)
        self._start(job, deliver)

        def cancel() -> None:
            job.cancelled = True

        return cancel

    @property
    def open(self) -> int:
        """How many requests run or wait."""
        return len(self._delivers)

    def close(self) -> None:
        """Ends all texts with reason "interrupt", and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _start(self, job: Job, deliver: Deliver) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError("the scheduler is closed") from self._error
            self._delivers[job] = deliver
            self._new.append(job)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._take_new():
                for job in self._batch.step():
                    deliver = self._delivers[job]
                    if job.ended:
                        del self._delivers[job]
                    for event in job.events():
                        deliver(event)
        except BaseException as error:  # nobody may wait for ever, whatever went wrong
            with self._changed:
                self._closed, self._error = True, error
            for deliver in self._delivers.values():
                deliver(error)

    def _take_new(self) -> bool:
        """Waits until there is something to do, and takes what is new; False once all is done and it is closed."""
        with self._changed:
            while not (self._new or self._closed) and self._batch.idle:
                self._changed.wait()
            for job in self._new:
                self._batch.add(job)
            self._new.clear()
            if self._closed:
                self._batch.cancel()
            return not (self._closed and self._batch.idle)
