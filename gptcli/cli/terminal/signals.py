"""Signal handlers. The process dies by the signal itself, so that a shell loop around it stops too.

`deadly` is for loading and scoring, `interruptible` for a text, `stoppable` for a chat's reply and training. Any other
Ctrl-C is caught by `__main__.py`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_Handler = Callable[[int, FrameType | None], object]


class Killed(BaseException):
    """SIGTERM or SIGHUP came. Raised in the main thread, so that open files and sessions are closed."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def resend(ignored: sys.UnraisableHookArgs) -> None:
    """For `sys.unraisablehook`: a signal in a destructor is sent again soon after.

    No exception gets out of a destructor, nor of this function.
    """
    if isinstance(ignored.exc_value, Killed | KeyboardInterrupt):
        signum = ignored.exc_value.signum if isinstance(ignored.exc_value, Killed) else signal.SIGINT

        def send() -> None:
            while any(frame.f_code is resend.__code__ for frame in _main_frames()):
                time.sleep(0.01)
            os.kill(os.getpid(), signum)

        timer = threading.Timer(0.01, send)
        timer.daemon = True
        timer.start()
    else:
        sys.__unraisablehook__(ignored)


def _main_frames() -> Iterator[FrameType]:
    """What the main thread runs, innermost first."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        yield frame
        frame = frame.f_back


def die_by(signum: int) -> NoReturn:
    """Ends the process by a signal's default action."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # only where the signal does not end the process


def handle(handler: _Handler, *names: str) -> dict[int, signal._HANDLER]:
    """Installs a handler for signals by name. Returns the previous handlers by number.

    Signals that the platform lacks or that are ignored stay so: SIGHUP under nohup, SIGINT in a script's background.
    """
    before = {int(number): signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    replaced = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, handler)
    return replaced


@contextmanager
def handled(handler: _Handler, *names: str) -> Iterator[None]:
    """`handle` within the block."""
    before = handle(handler, *names)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether Ctrl-C was pressed within the block. A second Ctrl-C raises."""
    pressed = False

    def press(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    with handled(press, "SIGINT"):
        yield lambda: pressed


@contextmanager
def suspending(before: Callable[[], object], after: Callable[[], object]) -> Iterator[None]:
    """Ctrl-Z within the block stops the process between `before` and `after`, and between those of an outer block."""

    def suspend(signum: int, frame: FrameType | None) -> None:
        before()
        if callable(outer):
            outer(signum, frame)
        else:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)  # returns when the shell resumes us
        signal.signal(signum, suspend)
        after()

    outer = signal.getsignal(signal.SIGTSTP) if hasattr(signal, "SIGTSTP") else None
    with handled(suspend, "SIGTSTP"):
        yield


@contextmanager
def unsuspended() -> Iterator[None]:
    """Ctrl-Z within the block has its effect after it."""
    received = list[int]()
    try:
        with handled(lambda signum, frame: received.append(signum), "SIGTSTP"):
            yield
    finally:
        if received:
            signal.raise_signal(received[0])


class Stop:
    """Why an answer must end: Ctrl-C, or a signal that ends the process once the answer is saved."""

    def __init__(self) -> None:
        self.pressed = 0  # times that Ctrl-C was pressed
        self.killed_by = 0  # the signal that ends the process; 0: none

    def __call__(self) -> bool:
        """Whether the answer must end."""
        return bool(self.pressed or self.killed_by)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals within the block only set the yielded `Stop`; SIGTERM and SIGHUP are raised again after the block.

    The third of a kind raises at once, even if the answer is lost.
    """
    stop, received = Stop(), list[int]()

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if signum == signal.SIGINT:
            stop.pressed += 1
        else:
            stop.killed_by = signum
        if received.count(signum) > 2:
            raise KeyboardInterrupt if signum == signal.SIGINT else Killed(signum)

    try:
        with handled(receive, "SIGINT", "SIGTERM", "SIGHUP"):
            yield stop
    finally:
        if stop.killed_by:
            signal.raise_signal(stop.killed_by)


@contextmanager
def deadly(tidy: Callable[[], object]) -> Iterator[None]:
    """Signals within the block end the process at once, after `tidy`, even in native code.

    For loading and scoring, when only the terminal needs tidying. An exception would not do: imports such as numpy's
    swallow those that a signal handler raises.
    """

    def die(signum: int, frame: FrameType | None) -> NoReturn:
        tidy()
        die_by(signum)

    with handled(die, "SIGINT", "SIGTERM", "SIGHUP"), _watched(tidy):
        yield


@contextmanager
def _watched(tidy: Callable[[], object]) -> Iterator[None]:
    """Does the same from a thread: the main thread runs no handler before native code returns."""
    if os.name == "nt":
        yield
        return
    import ctypes

    received, arrives = os.pipe()
    os.set_blocking(arrives, False)
    before = signal.set_wakeup_fd(arrives, warn_on_full_buffer=False)

    def watch() -> None:
        while signum := os.read(received, 1)[0]:  # 0 ends the thread: a fork may keep the pipe open
            if signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                tidy()
                ctypes.CDLL(None).signal(signum, 0)  # SIG_DFL, which Python lets only the main thread set
                os.kill(os.getpid(), signum)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(arrives, b"\0")
        thread.join()
        os.close(arrives)
        os.close(received)
