"""Runs gptcli in a fork of this process, which has imported what every run imports. That saves a second a run.

torch is not among these imports: its threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from gptcli.__main__ import main
from tests.cli.scripted import Script, follow

_UNSEEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as in any Python


def gptcli_with(arguments: Sequence[str], environment: dict[str, str]) -> Callable[[], None]:
    """The `preexec_fn` that runs gptcli in a new process and never returns. Its streams are descriptors 0 to 2.

    With a GPTCLI_TEST_SCRIPT in the environment, models follow the script.
    """

    def run() -> None:
        try:
            os.closerange(3, 1024)  # the caller waits until its pipe for errors is closed
            os.environ.clear()
            os.environ.update(environment, TOKENIZERS_PARALLELISM="false")
            warnings.resetwarnings()
            for kind in _UNSEEN:
                warnings.simplefilter("ignore", kind)
            sys.stdin = open(0, encoding="utf-8", closefd=False)
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
            sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
            sys.argv = ["gptcli", *arguments]
            if script := environment.get("GPTCLI_TEST_SCRIPT"):
                follow(Script(**json.loads(script)), setattr)
            main()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    return run
