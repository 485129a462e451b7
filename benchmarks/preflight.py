"""What checking untrusted files costs. Prints medians and minima of 15 runs, in milliseconds.

python benchmarks/preflight.py MODEL_DIRECTORY
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gptcli.checkpoint.folder import ModelFolder
from gptcli.files import parse_json
from gptcli.text.sandbox.allowlist import is_harmless
from gptcli.text.sandbox.client import SandboxClient

MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}


def measure(what: str, run: Callable[[], object]) -> None:
    """Prints how long a call takes."""
    times = []
    for _ in range(15):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    print(f"{what:<50} {statistics.median(times):8.1f} {min(times):8.1f}")


def main() -> None:
    """Runs the measurements."""
    path = Path(sys.argv[1])
    data = (path / "tokenizer.json").read_bytes()
    source = json.dumps(json.loads((path / "tokenizer_config.json").read_text())["chat_template"]).encode()
    measure("headers, configs and architecture", lambda: ModelFolder.open(path).architecture)
    measure("a tokenizer's components", lambda: is_harmless(parse_json(data, "tokenizer.json")))
    measure("a template in a limited process, first", lambda: SandboxClient("template", source).ask(MESSAGES))
    again = SandboxClient("template", source)
    measure("a template in a limited process, again", lambda: again.ask(MESSAGES))


if __name__ == "__main__":
    main()
