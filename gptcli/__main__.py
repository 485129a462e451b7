"""The process: signals and closed streams are settled before anything slow is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line; exits with a documented code, or dies by the signal that ended it."""
    gc.set_threshold(200_000)  # importing torch makes half a million objects that stay
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.SIG_IGN:  # imports may lose exceptions, and there is nothing to tidy yet
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.getcwd()
    except OSError:  # the directory is gone, and MKL ends a process that has none
        os.chdir(os.sep)
    try:
        from gptcli.cli.app import run
        from gptcli.cli.terminal.signals import Killed, die_by, handle
    except (ImportError, OSError, MemoryError) as error:  # too few open files are allowed, or too little memory
        if isinstance(error, ModuleNotFoundError):
            raise
        if sys.stderr is not None:
            print(f"gptcli: error: cannot start: {error or 'out of memory'}", file=sys.stderr)
        os._exit(5)

    ended_by: list[int] = []  # survives where another error covers what the handler raised

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        ended_by.append(signum)
        raise Killed

    try:
        signal.signal(signal.SIGINT, interrupt)
        handle(end, "SIGTERM", "SIGHUP")
        code = run(sys.argv[1:])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as it is where the descriptor was closed
                stream.flush()
    except Killed:
        pass
    except KeyboardInterrupt:
        die_by(signal.SIGINT)
    except BrokenPipeError:
        die_by(signal.SIGPIPE)
    finally:
        if ended_by:
            die_by(ended_by[0])
    os._exit(code)  # everything is written; tidying up after torch would take a quarter of a second


if __name__ == "__main__":
    main()
