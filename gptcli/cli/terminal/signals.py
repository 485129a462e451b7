"""What signals do here: they end the process by themselves, so that a shell's loop around it stops too."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_Handler = Callable[[int, FrameType | None], object]


class Killed(BaseException):
    """SIGTERM or SIGHUP asked the process to end; raised in the main thread, so that what is open is closed."""


def die_by(signum: int) -> NoReturn:
    """Ends the process by a signal."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # not reached where signals are signals


def handle(handler: _Handler, *names: str) -> dict[int, signal._HANDLER]:
    """Installs a handler for the signals that this platform has and that our parent did not have us ignore.

    Ignored are SIGHUP under nohup, and SIGINT in the background of a script. Returns the handlers of before.
    """
    before = {int(number): signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    heard = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in heard:
        signal.signal(number, handler)
    return heard


@contextmanager
def handled(handler: _Handler, *names: str) -> Iterator[None]:
    """`handle` for the block."""
    before = handle(handler, *names)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C within the block only makes what is yielded true, so that the text so far is kept; a second one raises."""
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    with handled(press, "SIGINT"):
        yield lambda: pressed


class Stop:
    """Why an answer is to end: Ctrl-C, or a signal that ends the process once the answer is kept."""

    def __init__(self) -> None:
        self.pressed = 0  # how often Ctrl-C was
        self.killed_by = 0

    def __call__(self) -> bool:
        """Whether it is to end."""
        return bool(self.pressed or self.killed_by)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals within the block only set what is yielded; those that end the process come again behind the block.

    The third of a kind raises at once, whatever is lost by it.
    """
    stop, heard = Stop(), list[int]()

    def hear(signum: int, frame: FrameType | None) -> None:
        heard.append(signum)
        if signum == signal.SIGINT:
            stop.pressed += 1
        else:
            stop.killed_by = signum
        if heard.count(signum) > 2:
            raise KeyboardInterrupt if signum == signal.SIGINT else Killed

    try:
        with handled(hear, "SIGINT", "SIGTERM", "SIGHUP"):
            yield stop
    finally:
        if stop.killed_by:
            signal.raise_signal(stop.killed_by)


@contextmanager
def deadly(tidy: Callable[[], object]) -> Iterator[None]:
    """Signals within the block end the process at once, after `tidy`.

    For loading a model, where nothing but the terminal needs tidying: numpy's import, for one, loses exceptions that
    come out of a signal handler.
    """

    def die(signum: int, frame: FrameType | None) -> NoReturn:
        tidy()
        die_by(signum)

    with handled(die, "SIGINT", "SIGTERM", "SIGHUP"):
        yield
