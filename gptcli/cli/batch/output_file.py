"""The file of a batch's answers, which is resumed after any end of the process."""

from __future__ import annotations

import json
import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

from gptcli.cli.batch.input_lines import InputLine
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.errors import OutputError
from gptcli.files import lock, written_whole

# What an answer begins with: its id, and if it succeeded, what it was made with.
_BEGINNING = re.compile(
    rb'\{"id": "batch_req_(\d{1,15})_([0-9a-f]{16})", '
    rb'(?:"custom_id": "[^"\\]*(?:\\.[^"\\]*)*", "response": '
    rb'\{"status_code": 200, "request_id": "req_\d+_[0-9a-f]+_?([0-9a-f]*)", )?'
)
_FIRST, _END = b'{"id": "batch_req_', b', "error": null}\n'


def line_id(line: InputLine) -> str:
    """The part of an answer's id that identifies its line: number and hash."""
    return f"{line.number}_{line.key}"


class StdoutAnswers:
    """Answers that go to stdout, where nothing is resumed."""

    failed = torn = 0
    made_with = frozenset[bytes]()

    def __init__(self) -> None:
        self._sink = StdoutSink()
        self.is_terminal = self._sink.is_terminal

    def has(self, line: InputLine) -> bool:
        """No line is answered yet."""
        return False

    def write(self, number: int, record: bytes) -> None:
        """Writes a line."""
        self._sink.write(record)

    def close(self, last: int, *, sort: bool) -> None:
        """Has nothing to do."""


class AnswersFile:
    """Answers in a file, locked until `close`. Each is known by its line's number and hash, 8 bytes in memory.

    failed: answers found in it that are errors. torn: bytes of an incomplete last line that were cut off.
    made_with: the hashes of settings in its other answers; see `BatchSettings`.
    """

    is_terminal = False

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._keys = array("Q")  # by number; 0 where there is no answer
        self._last, self._ordered = 0, True
        self._size = os.fstat(descriptor).st_size
        self.failed = self.torn = 0
        self.made_with = set[bytes]()

    @classmethod
    def open(cls, path: Path, *, retry_failed: bool) -> Self:
        """Opens or makes the file. Cuts off a torn last line, and with `retry_failed` every failed answer.

        Raises OutputError for a file that is in use, not regular, or not the output of a batch.
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0), 0o666)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutputError(f"cannot write: {path}: it is not a regular file", "-o - writes to a pipe")
            if not lock(descriptor):
                raise OutputError(f"cannot write: {path}: another process writes to it")
        except OSError as error:
            raise OutputError(f"cannot write: {path}: {error.strerror}") from None
        answers = cls(path, descriptor)
        answers._check_unchanged()  # another process may have sorted it before this one locked it
        answers._take(retry_failed)
        return answers

    def _take(self, retry_failed: bool) -> None:
        end = 0
        for number, key, made_with, start, line in self._lines():
            end = start + len(line)
            if made_with is None:
                self.failed += 1
            elif made_with:
                self.made_with.add(made_with)
            if made_with is not None or not retry_failed:
                self._add(number, key)
        self.torn = self._size - end
        os.ftruncate(self._descriptor, end)
        self._size = end
        if self.failed and retry_failed:
            self._rewrite(start for _, _, made_with, start, _ in self._lines() if made_with is not None)
            self.failed = 0

    def _lines(self) -> Iterator[tuple[int, int, bytes | None, int, bytes]]:
        """Each whole answer: number and key of its line, what it was made with, offset in the file, bytes.

        What it was made with is empty if the line does not say, and None for an error. Only a line's beginning and end
        are read. Raises OutputError for a line that is no answer.
        """
        start = 0
        with open(self._path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    if line[: len(_FIRST)] != _FIRST[: len(line)]:  # somebody else's only line, say
                        raise self._of_no_batch()
                    return
                if (match := _BEGINNING.match(line)) is None:
                    raise self._of_no_batch()
                number, key, made_with = match.groups()
                if made_with is None or not line.endswith(_END):
                    made_with = b"" if self._succeeded(line) else None
                yield int(number), int(key, 16), made_with, start, line
                start += len(line)

    def _succeeded(self, line: bytes) -> bool:
        try:
            response = json.loads(line)["response"]
            return response is not None and bool(response["status_code"] == 200)
        except (ValueError, LookupError, TypeError):
            raise self._of_no_batch() from None

    def _of_no_batch(self) -> OutputError:
        return OutputError(f"cannot go on with: {self._path}: it is not the output of a batch", "choose another -o")

    def _add(self, number: int, key: int) -> None:
        if number >= len(self._keys):
            self._keys.extend([0] * (number + 1 - len(self._keys)))
        if self._keys[number]:
            raise OutputError(f"cannot go on with: {self._path}: it answers line {number} twice", "choose another -o")
        self._keys[number] = key
        self._follow(number)

    def _follow(self, number: int) -> None:
        self._ordered = self._ordered and number > self._last
        self._last = number

    def has(self, line: InputLine) -> bool:
        """Whether a line is answered. Raises OutputError if the answer with its number is of another line."""
        key = self._keys[line.number] if line.number < len(self._keys) else 0
        if key and key != int(line.key, 16):
            raise self._of_another_input(f"it answers another line {line.number}")
        return bool(key)

    def write(self, number: int, record: bytes) -> None:
        """Appends a whole line. Raises OutputError, on a full disk for example."""
        self._check_unchanged()
        self._follow(number)
        self._size += len(record)
        view = memoryview(record)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            raise OutputError(f"cannot write: {self._path}: {error.strerror}") from None

    def close(self, last: int, *, sort: bool) -> None:
        """Unlocks the file. sort: brings the lines into the order of the input.

        last: the number of the input's last line. Raises OutputError if there are answers of later lines.
        """
        self._check_unchanged()
        if any(islice(self._keys, last + 1, None)):
            raise self._of_another_input(f"the input ends with line {last}, the answers do not")
        if sort and not self._ordered:
            starts = array("q")  # by number
            for number, _, _, start, _ in self._lines():
                starts.extend([-1] * (number + 1 - len(starts)))
                starts[number] = start
            self._rewrite(start for start in starts if start >= 0)
        os.close(self._descriptor)

    def _check_unchanged(self) -> None:
        """Raises OutputError if the path no longer leads to this file, or others changed the file's size."""
        try:
            there = os.stat(self._path)
        except OSError:
            there = None
        if there is None or not os.path.samestat(there, os.fstat(self._descriptor)) or there.st_size != self._size:
            raise OutputError(f"cannot write: {self._path}: it was removed, replaced or changed meanwhile")

    def _of_another_input(self, why: str) -> OutputError:
        return OutputError(f"cannot go on with: {self._path}: {why}", "choose another -o for another input")

    def _rewrite(self, starts: Iterable[int]) -> None:
        """Replaces the file at once by its lines at these offsets; it stays locked."""
        with written_whole(self._path) as draft:
            descriptor = os.open(draft, os.O_RDWR | os.O_APPEND)
            lock(descriptor)
            with open(self._path, "rb") as file, open(descriptor, "wb", closefd=False) as new:
                for start in starts:
                    file.seek(start)
                    new.write(file.readline())
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, os.fstat(descriptor).st_size
