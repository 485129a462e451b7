"""Copies text to the clipboard, through a desktop program or through the terminal."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import subprocess
import sys

from gptcli.cli.terminal.capabilities import is_dumb_terminal
from gptcli.errors import OutputError

# (command, the environment variable that its desktop sets; "" if it needs none)
_PROGRAMS = (
    (["pbcopy"], ""),
    (["wl-copy"], "WAYLAND_DISPLAY"),
    (["xclip", "-selection", "clipboard"], "DISPLAY"),
    (["xsel", "--clipboard", "--input"], "DISPLAY"),
)


def copy(text: str) -> str:
    """Copies a text and returns how. Over SSH only the terminal reaches the user's clipboard.

    Raises OutputError if there is no way.
    """
    if "SSH_CONNECTION" not in os.environ:
        for command, variable in _PROGRAMS:
            if (not variable or os.environ.get(variable)) and shutil.which(command[0]):
                # xclip keeps running to serve the clipboard, and would keep a pipe open.
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    subprocess.run(
                        command,
                        input=text.encode(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        timeout=5,
                        check=True,
                    )
                    return f"with {command[0]}"
    if is_dumb_terminal():
        raise OutputError("nothing to copy with: neither a program for it, nor a terminal that could")
    encoded = base64.b64encode(text.encode())
    os.write(sys.stdout.fileno(), b"\x1b]52;c;" + encoded + b"\x07")
    return "through the terminal (OSC 52)"
