"""Reads the lines of a batch as they come: JSON objects of a file or stdin, or rows of CSV."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from gptcli.cli.arrivals import Arrivals, readable_stdin
from gptcli.errors import BrokenCheckpoint, InputError
from gptcli.files import parse_json

_MORE = "raise the limit with --max-input"
_REST = 1 << 16  # bytes of a read in a line that is too long


_SEPARATORS = {".csv": ",", ".tsv": "\t"}  # of columns


def is_table(path: Path) -> bool:
    """Whether a file is CSV, by its ending."""
    return path.suffix.lower() in _SEPARATORS


@dataclass(frozen=True)
class InputLine:
    """A line. number: from 1. key: a hash of its content. content: bytes of JSON, or what was read."""

    number: int
    key: str  # 16 hexadecimal digits
    content: bytes | dict[str, Any] | InputError

    @cached_property
    def fields(self) -> dict[str, Any] | InputError:
        """Its object, or why there is none. Parsed only here: a resumed batch skips most lines."""
        if not isinstance(self.content, bytes):
            return self.content
        try:
            return parse_json(self.content, f"line {self.number}")
        except BrokenCheckpoint as error:
            return InputError(error.message)


@dataclass
class InputLines:
    """The lines of a file, or of stdin for `-`, one at a time. Blank lines are counted and skipped.

    limit: the most bytes of a line. size: bytes of the file, 0 if unknown. read: bytes read so far. last: the number of
    the last line so far. csv: whether it is CSV; None asks the file's ending.
    """

    path: Path
    limit: int
    note: Callable[[str], None]
    size: int = 0
    read: int = 0
    last: int = 0
    csv: bool | None = None

    def without_waiting(self) -> Iterator[InputLine | None]:
        """The lines, or None while a pipe has none yet. Raises as iterating does."""
        return iter(self) if self.path.is_file() else Arrivals(iter(self))

    def __iter__(self) -> Iterator[InputLine]:
        """Raises InputError for a file that cannot be read, and for CSV that is not UTF-8 or names a column twice."""
        if str(self.path) == "-" and sys.stdin is None:
            raise InputError("cannot read: standard input is closed")
        try:
            read = self._csv if self._is_csv else self._json
            with readable_stdin() if str(self.path) == "-" else open(self.path, "rb") as file:
                self.size = self.path.stat().st_size if self.path.is_file() else 0
                yield from read(file)
        except OSError as error:
            raise InputError(f"cannot read: {self.path}: {error.strerror}") from None

    @property
    def _is_csv(self) -> bool:
        return is_table(self.path) if self.csv is None else self.csv

    def _json(self, file: IO[bytes]) -> Iterator[InputLine]:
        while data := file.readline(self.limit + 2):
            self.last = number = self.last + 1
            hashed = hashlib.sha256(data)
            self.read += len(data)
            if number == 1 and data.startswith(codecs.BOM_UTF8):
                self.note(f"byte-order mark dropped: {self.path}")
            too_long = len(data.rstrip(b"\r\n")) > self.limit
            while too_long and not data.endswith(b"\n") and (data := file.readline(_REST)):
                hashed.update(data)
                self.read += len(data)
            if too_long:
                wrong = InputError(f"line {number} has more than {self.limit} bytes", _MORE)
                yield InputLine(number, hashed.hexdigest()[:16], wrong)
            elif data.strip():
                yield InputLine(number, hashed.hexdigest()[:16], data)

    def _csv(self, file: IO[bytes]) -> Iterator[InputLine]:
        csv.field_size_limit(self.limit)
        separator = _SEPARATORS.get(self.path.suffix.lower(), ",")
        rows = csv.reader(self._texts(file), strict=True, delimiter=separator)
        try:
            if (names := next(rows, None)) is None:
                return
            if len(names) == 1 and any(other in names[0] for other in ";\t,"):
                self.note(f"one column in {self.path}: {names[0][:80]!r}; commas separate those of .csv, tabs of .tsv")
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise InputError(f"ambiguous: {self.path}: several columns are called {twice}", "rename one")
            for number, row in enumerate(rows, 1):
                self.last = number
                if not row:
                    continue
                key = hashlib.sha256(json.dumps([names, row]).encode()).hexdigest()[:16]
                wrong = InputError(f"row {number} has {len(row)} fields, the first row {len(names)}")
                yield InputLine(number, key, dict(zip(names, row, strict=True)) if len(row) == len(names) else wrong)
        except csv.Error as error:
            raise InputError(f"not CSV: {self.path}: line {rows.line_num}: {error}") from None

    def _texts(self, file: IO[bytes]) -> Iterator[str]:
        number = 0
        while data := file.readline(self.limit + 1):
            number += 1
            self.read += len(data)
            if len(data) > self.limit:
                raise InputError(f"too large: {self.path}: line {number} has more than {self.limit} bytes", _MORE)
            if number == 1 and data.startswith(codecs.BOM_UTF8):
                self.note(f"byte-order mark dropped: {self.path}")
            try:
                yield data.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"not UTF-8: {self.path}: line {number}") from None
