"""The one place where the server meets the engine: a thread that runs requests in turn, read from an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from gptcli.generation.events import Finished, TextDelta
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.runtime.engine import PromptCache
from gptcli.serve.refusals import Refusal

Event = TextDelta | Finished
_Result = TypeVar("_Result")


class EngineThread:
    """Runs calls one after another. A call that is given up ends within a token, or a chunk of its prompt.

    most_waiting: calls that may be under way or wait; another is refused.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._cache = PromptCache()  # what prompts have in common is not run again
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()
        self.waiting = 0
        self.idle = True  # whether the engine runs nothing

    def close(self) -> None:
        """Ends the thread, once what it runs has ended: whoever reads that must have given it up."""
        self._jobs.put(None)
        self._thread.join()

    async def texts(self, lm: LanguageModel, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Event]]:
        """The events of several texts, each with the index of its request. Raises GptcliError."""

        def produce(put: Callable[[tuple[int, Event]], None], given_up: threading.Event) -> None:
            for index, request in enumerate(requests):
                for event in lm.answer(request, cache=self._cache, cancelled=given_up.is_set):
                    put((index, event))
                if given_up.is_set():
                    return

        async with aclosing(self._run(produce)) as items:
            async for item in items:
                yield item

    async def call(self, function: Callable[[PromptCache], _Result]) -> _Result:
        """What a function returns that the engine's thread runs, with the cache of prompts. Raises what it does."""

        def produce(put: Callable[[_Result], None], given_up: threading.Event) -> None:
            put(function(self._cache))

        async with aclosing(self._run(produce)) as results:
            return await anext(results)

    async def _run(
        self, produce: Callable[[Callable[[_Result], None], threading.Event], None]
    ) -> AsyncGenerator[_Result]:
        if self.waiting >= self._most_waiting:
            raise Refusal(429, "too many requests wait", headers={"Retry-After": "1"})
        loop, given_up = asyncio.get_running_loop(), threading.Event()
        received: asyncio.Queue[tuple[_Result] | BaseException | None] = asyncio.Queue()

        def tell(what: tuple[_Result] | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(received.put_nowait, what)

        def job() -> None:
            try:
                if not given_up.is_set():
                    produce(lambda item: tell((item,)), given_up)
                tell(None)
            except BaseException as error:  # for whoever reads
                self._cache = PromptCache()
                tell(error)

        self.waiting += 1
        self._jobs.put(job)
        try:
            while (item := await received.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            given_up.set()
            self.waiting -= 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.idle = False
            job()
            self.idle = True
