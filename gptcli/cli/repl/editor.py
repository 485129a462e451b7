"""Hands a text to the editor that a person prefers, and takes it back. Knows nothing of prompts."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

_USUAL = ("/usr/bin/editor", "nano", "vi")  # where neither variable names one that is there


def edited(text: str) -> str:
    """A text as $VISUAL or $EDITOR leaves it, less one line break at its end; as it was where the editor fails.

    What is not UTF-8 becomes U+FFFD: prompt_toolkit's own way to the editor stops there with a traceback.
    """
    with tempfile.TemporaryDirectory(prefix="gptcli-") as directory:
        file = Path(directory) / "message.md"
        file.write_text(text, encoding="utf-8")
        for editor in filter(None, (os.environ.get("VISUAL"), os.environ.get("EDITOR"), *_USUAL)):
            try:
                code = subprocess.call([*shlex.split(editor), str(file)])
            except (OSError, ValueError):  # it is not there, or no command
                continue
            return file.read_bytes().decode("utf-8", "replace").removesuffix("\n") if code == 0 else text
    return text
