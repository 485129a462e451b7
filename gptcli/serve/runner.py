"""Between the server's event loop and the engines: schedulers run texts in threads of their own."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from weakref import WeakSet

from gptcli.errors import GptcliError
from gptcli.generation.events import Event, Finished
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.openai_api.refusals import Refusal
from gptcli.scheduler import Scheduler

_Result = TypeVar("_Result")


class Runner:
    """Runs the texts of requests together, by model. Any thread may call `leave`.

    most_waiting: requests that may run or wait; another is refused. parallel: texts that share a step at most.
    """

    def __init__(self, most_waiting: int, parallel: int | None = None) -> None:
        self._most_waiting, self._parallel = most_waiting, parallel
        self._schedulers: dict[LanguageModel, Scheduler] = {}
        self._requests = Counter[LanguageModel]()
        self._left = WeakSet[LanguageModel]()
        self._lock = threading.Lock()  # for the three fields above
        # Starting waits for a grammar to be compiled, and scoring for the engine.
        self._starter, self._caller = ThreadPoolExecutor(1, "starter"), ThreadPoolExecutor(1, "caller")

    def close(self) -> None:
        """Ends all texts and threads."""
        for lm in list(self._schedulers):
            self._schedulers.pop(lm).close()
        for executor in (self._starter, self._caller):
            executor.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many requests run or wait."""
        return self._requests.total()

    @property
    def open(self) -> int:
        """How many texts run or wait."""
        return sum(scheduler.open for scheduler in self._schedulers.values())

    def leave(self, lm: LanguageModel) -> None:
        """Closes a model's scheduler: now, or once no request runs on it."""
        with self._lock:
            self._left.add(lm)
            scheduler = None if self._requests[lm] else self._schedulers.pop(lm, None)
        if scheduler is not None:
            scheduler.close()

    async def texts(self, lm: LanguageModel, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Event]]:
        """The events of several texts, each with the index of its request. Closing it ends them within a step.

        Raises GptcliError.
        """
        scheduler = self._begin(lm)
        loop, received = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event | BaseException]]()
        cancels, given_up, running = list[Callable[[], None]](), threading.Event(), len(requests)

        def deliver(index: int, event: Event | BaseException) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(received.put_nowait, (index, event))

        def start() -> None:
            for index, request in enumerate(requests):
                if given_up.is_set():
                    return
                cancels.append(scheduler.start(request, partial(deliver, index)))
                if given_up.is_set():
                    cancels[-1]()

        try:
            await loop.run_in_executor(self._starter, start)
            while running:
                index, event = await received.get()
                if isinstance(event, BaseException):
                    if not isinstance(event, GptcliError):  # the scheduler has ended; the next request gets another
                        self._forget(lm, scheduler)
                    raise event
                yield index, event
                running -= isinstance(event, Finished)
        finally:
            given_up.set()
            for cancel in cancels:
                cancel()
            self._end(lm)

    async def call(self, lm: LanguageModel, function: Callable[[], _Result]) -> _Result:
        """Runs a function that uses a model, and returns its result. Raises what it does."""
        self._begin(lm)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._caller, function)
        finally:
            self._end(lm)

    def _begin(self, lm: LanguageModel) -> Scheduler:
        if self.waiting >= self._most_waiting:
            raise Refusal(429, "too many requests wait", headers={"Retry-After": "1"})
        with self._lock:
            self._requests[lm] += 1
            if lm not in self._schedulers:
                self._schedulers[lm] = Scheduler(lm, parallel=self._parallel)
            return self._schedulers[lm]

    def _forget(self, lm: LanguageModel, scheduler: Scheduler) -> None:
        with self._lock:
            if self._schedulers.get(lm) is scheduler:
                del self._schedulers[lm]

    def _end(self, lm: LanguageModel) -> None:
        with self._lock:
            self._requests[lm] -= 1
            if self._requests[lm]:
                return
            del self._requests[lm]
            scheduler = self._schedulers.pop(lm, None) if lm in self._left else None
        if scheduler is not None:
            threading.Thread(target=scheduler.close).start()
