"""The process: sets up signals before anything slow is imported, and exits by code or signal."""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line; exits with a documented code, or dies by the signal that ended it."""
    gc.set_threshold(200_000)  # importing torch creates half a million objects that stay
    if _files_are_limited():
        sys.dont_write_bytecode = True  # Python would keep half of it, which no later run can read
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is not signal.SIG_IGN:  # imports can swallow KeyboardInterrupt, so the default ends the process
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.getcwd()
    except OSError:  # the directory was deleted; MKL ends a process without one
        os.chdir(os.sep)
    try:
        from gptcli.cli.app import run
        from gptcli.cli.terminal.signals import Killed, die_by, handle, resend
    except (ImportError, OSError, MemoryError) as error:  # too few open files or too little memory
        if isinstance(error, ModuleNotFoundError):
            raise
        if sys.stderr is not None:
            print(f"gptcli: error: cannot start: {error or 'out of memory'}", file=sys.stderr)
        os._exit(5)

    ended_by: list[int] = []  # signals; another error may replace the handler's exception

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        ended_by.append(signum)
        raise Killed(signum)

    sys.unraisablehook = resend
    try:
        signal.signal(signal.SIGINT, interrupt)
        handle(end, "SIGTERM", "SIGHUP")
        code = run(sys.argv[1:])
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:  # None if the descriptor was closed
                    stream.flush()
            except BrokenPipeError:
                raise
            except OSError:  # `run` has reported it, as far as it can be
                pass
    except Killed:
        pass
    except KeyboardInterrupt:
        die_by(signal.SIGINT)
    except BrokenPipeError:
        die_by(signal.SIGPIPE)
    finally:
        if ended_by:
            die_by(ended_by[0])
    os._exit(code)  # all output is written; an ordinary exit with torch loaded takes a quarter of a second


def _files_are_limited() -> bool:
    """Whether `ulimit -f` bounds the size of files."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


if __name__ == "__main__":
    main()
