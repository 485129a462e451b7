"""What was typed at the prompt, in a file that several programs append to at once. Knows nothing of sessions."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import History

_NEWEST = 4 << 20  # bytes at the file's end that are read: some ten thousand entries


class FileHistory(History):
    """One JSON string a line, each appended by a single write, so that programs side by side keep all of them.

    prompt_toolkit's own writes an entry in pieces, into a file that everybody may read. Where the file cannot be used,
    `warn` is called once with the reason, and the history lasts as long as the program.
    """

    def __init__(self, file: Path | None, warn: Callable[[str], object]) -> None:
        super().__init__()
        self._file = file
        self._warn = warn

    def load_history_strings(self) -> Iterable[str]:
        """What the file holds, the newest first; lines that a crash or a full disk left torn are passed over."""
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            self._give_up(error)
            return
        if descriptor is None:
            return
        with os.fdopen(descriptor, "rb") as stream:
            stream.seek(max(0, os.fstat(descriptor).st_size - _NEWEST))
            lines = stream.read().split(b"\n")
        for line in reversed(lines):
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, str):
                    yield entry

    def store_string(self, string: str) -> None:
        """Appends an entry, unless it begins with a space or repeats the last one."""
        # The line break before it ends what another program left torn.
        record = b"\n" + json.dumps(string).encode() + b"\n"
        try:
            descriptor = self._open(os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            if descriptor is None:
                return
            try:
                if os.write(descriptor, record) < len(record):
                    raise OSError(0, "the disk is full")
            finally:
                os.close(descriptor)
        except OSError as error:
            self._give_up(error)

    def append_string(self, string: str) -> None:
        """Remembers an entry, here and in the file; not one that begins with a space or repeats the last."""
        if not string.startswith(" ") and string.strip() and self.get_strings()[-1:] != [string]:
            super().append_string(string)

    def _open(self, flags: int) -> int | None:
        """The file, opened; None where there is none to use."""
        if self._file is None:
            return None
        # Of a link nobody knows where it leads, and opening a pipe would wait for its other end.
        return os.open(self._file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)

    def _give_up(self, error: OSError) -> None:
        self._warn(f"the history is not kept: {self._file}: {error.strerror}")
        self._file = None
