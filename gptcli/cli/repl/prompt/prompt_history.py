"""The history of the prompt, in a file that several processes append to at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from prompt_toolkit.history import History

from gptcli.chat.state_files import AppendOnlyFile, state_directory
from gptcli.cli.repl.prompt.pastes import Pastes
from gptcli.errors import OutputError

_NEWEST = 4 << 20  # bytes read from the file's end: some ten thousand entries


class PromptHistory(History):
    """One JSON string a line, each written at once, so that processes side by side lose none.

    prompt_toolkit's FileHistory writes an entry in pieces, to a file that everybody can read. warn: called once if the
    file cannot be used. Then, and with kept=False, the history ends with the process. pastes: folds long entries, which
    the file has whole.
    """

    def __init__(self, warn: Callable[[str], object], *, kept: bool = True) -> None:
        super().__init__()
        self.pastes = Pastes()
        self._warn = warn
        self._file: AppendOnlyFile | None = None
        if not kept:
            return
        try:
            path = state_directory() / "history.jsonl"
            try:
                self._file = AppendOnlyFile(path)
            except OSError as error:
                raise OutputError(f"cannot write: {path}: {error.strerror}") from None
        except OutputError as error:
            warn(f"what you type is not remembered: {error.message}")

    def load_history_strings(self) -> Iterable[str]:
        """The entries in the file, newest first, without lines that a crash or a full disk tore."""
        lines = self._file.read()[-_NEWEST:].split(b"\n") if self._file else []
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, str):
                yield self.pastes.refold(entry)

    def store_string(self, string: str) -> None:
        """Appends an entry to the file."""
        if self._file is None:
            return
        # The newline ends a line that another process left torn.
        self._file.append(b"\n" + json.dumps(self.pastes.expand(string)).encode())
        if self._file.problem is not None:
            self._warn(f"what you type is not remembered: {self._file.problem.strerror}")
            self._file.close()
            self._file = None

    def append_string(self, string: str) -> None:
        """Remembers an entry, unless it is blank, starts with a space or repeats the last one."""
        if string.strip() and not string.startswith(" ") and self.get_strings()[-1:] != [string]:
            super().append_string(string)
