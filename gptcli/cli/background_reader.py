"""Reads what comes through a pipe while other things go on."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Queue
from threading import Event, Thread
from typing import IO, TypeVar

_Item = TypeVar("_Item")
_AHEAD = 64  # items that are read ahead
_PATIENCE = 0.5  # seconds between looks at whether Ctrl-C was pressed


class BackgroundReader(Iterator[_Item | None]):
    """Items that a thread reads, so that nothing waits for them; None while there is none yet.

    Raises what reading them raises.
    """

    def __init__(self, items: Iterator[_Item]) -> None:
        self._queue = Queue[_Item | BaseException](_AHEAD)
        self._changed = Event()
        Thread(target=self._read, args=(items,), daemon=True).start()

    def _read(self, items: Iterator[_Item]) -> None:
        try:
            for item in items:
                self._put(item)
        except BaseException as error:  # raised where the items are taken
            self._put(error)
        else:
            self._put(StopIteration())

    def _put(self, item: _Item | BaseException) -> None:
        self._queue.put(item)
        self._changed.set()

    def __next__(self) -> _Item | None:
        self._changed.clear()
        try:
            item = self._queue.get_nowait()
        except Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def wait(self) -> None:
        """Waits, after None, until there is an item, or for half a second."""
        self._changed.wait(_PATIENCE)


def wait_for(items: Iterator[object]) -> Callable[[], object]:
    """A function that waits for the next item after a None."""
    return items.wait if isinstance(items, BackgroundReader) else lambda: None


@contextmanager
def readable_stdin() -> Iterator[IO[bytes]]:
    """Stdin for a thread. Python's own reader cannot be closed at the end while a thread waits for what comes."""
    try:
        stream = open(os.dup(sys.stdin.fileno()), "rb")
    except io.UnsupportedOperation:  # replaced by a stream without a file
        yield sys.stdin.buffer
        return
    with stream:
        yield stream
