"""Runs `gptcli` under an audit hook: `python -m tests.faults.audited REPORT ARGUMENT...` reports what it touched.

The report is a JSON object: `sockets`, `read` and `written` paths, `started` commands, `modules` and their files.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

seen: dict[str, list[Any]] = {"sockets": [], "read": [], "written": [], "started": []}


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Records each event that reaches outside of the process."""
    if event.startswith("socket."):
        seen["sockets"].append(f"{event} {arguments!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        seen["written" if writes else "read"].append(os.path.realpath(os.fsdecode(path)))
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"):
        seen["started"].append(repr(arguments[:2]))


if __name__ == "__main__":
    report, *arguments = sys.argv[1:]
    sys.addaudithook(hook)
    from gptcli.cli.app import run

    code = run(arguments)
    found = {name: list(paths) for name, paths in seen.items()}
    modules = {name: str(getattr(module, "__file__", None)) for name, module in sorted(sys.modules.items())}
    with open(report, "w") as file:
        json.dump(found | {"modules": modules, "code": int(code)}, file)
