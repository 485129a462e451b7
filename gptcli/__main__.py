"""The process: signals and closed streams are settled before anything slow is imported."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Killed(BaseException):
    """A signal asked the process to end; raised in the main thread, so that what is open is closed on the way."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def main() -> NoReturn:
    """Runs the command line; exits with a documented code, or dies by the signal that ended it."""
    try:
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), _kill)
        from gptcli.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        _die_by(signal.SIGINT)
    except Killed as killed:
        _die_by(killed.signum)
    except BrokenPipeError:
        _die_by(signal.SIGPIPE)
    sys.exit(code)


def _kill(signum: int, frame: FrameType | None) -> NoReturn:
    raise Killed(signum)


def _die_by(signum: int) -> NoReturn:
    """Ends the process by a signal, as shells expect of what a signal stopped: a loop around it stops too."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
    os._exit(128 + signum)  # not reached where signals are signals


if __name__ == "__main__":
    main()
