"""Opens a text in the user's editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

_FALLBACKS = ("/usr/bin/editor", "nano", "vi")


def edited(text: str) -> str:
    """A text as $VISUAL or $EDITOR leaves it, less one newline at its end; unchanged if the editor fails.

    Invalid UTF-8 becomes U+FFFD: prompt_toolkit's own editor support stops there with a traceback.
    """
    with tempfile.TemporaryDirectory(prefix="gptcli-") as directory:
        file = Path(directory) / "message.md"
        file.write_text(text, encoding="utf-8")
        for editor in filter(None, (os.environ.get("VISUAL"), os.environ.get("EDITOR"), *_FALLBACKS)):
            try:
                code = subprocess.call([*shlex.split(editor), str(file)])
            except (OSError, ValueError):  # not installed, or not a command line
                continue
            return file.read_bytes().decode("utf-8", "replace").removesuffix("\n") if code == 0 else text
    return text
