"""Reads texts from arguments, files and pipes. They must be UTF-8; only a byte-order mark of a file is dropped.

A line ends at a newline, perhaps after a carriage return, and nowhere else.
"""

from __future__ import annotations

import codecs
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal, Protocol, Self, cast

from gptcli.cli.background_reader import readable_stdin
from gptcli.errors import InputError, UsageError

DecodingErrors = Literal["strict", "replace"]
LINE = "{}"  # stands for the line in a prompt of --lines
_BLOCK = 1 << 20  # bytes
# Byte-order marks of other encodings. UTF-32's come first: they begin with UTF-16's.
_FOREIGN_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_MARKS = [codecs.BOM_UTF8, *_FOREIGN_MARKS]


@dataclass(frozen=True)
class Decoding:
    """How bytes become texts. max_input: the most bytes; None: no limit. note: called with what is dropped.

    has_option: whether the user can choose `errors` here.
    """

    errors: DecodingErrors
    max_input: int | None
    note: Callable[[str], None]
    has_option: bool = True


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def read_prompt(argument: str | None, file: Path | None, decoding: Decoding) -> str:
    """The whole prompt: piped stdin, then the file, then the argument, with blank lines between them.

    `-` stands for stdin, as argument or file. Raises UsageError if there is no prompt at all. Raises InputError for an
    input that cannot be read, is not UTF-8 text, or is larger than the limit.
    """
    piped = sys.stdin is not None and not sys.stdin.isatty()
    texts = [read_text(None, decoding)] if piped or argument == "-" or str(file) == "-" else []
    if file is not None and str(file) != "-":
        texts.append(read_text(file, decoding))
    if argument not in (None, "-"):
        texts.append(argument_text(argument or ""))
    prompt = ""
    for text in filter(None, texts):
        newlines = len(prompt) - len(prompt.rstrip("\n"))
        prompt += "\n" * max(0, 2 - newlines) + text if prompt else text
    if not prompt:
        raise UsageError(
            "there is no prompt",
            hint='give one as an argument, with --file, or through a pipe: printf "Once" | gptcli ...',
        )
    return prompt


def messages_of_script(text: str, where: str) -> list[str]:
    """The messages of a conversation's script: one a line, or all lines between two lines of three quotes.

    Blank lines are skipped, and `//` begins a line that begins with `/`, as at the prompt. Raises UsageError for a
    script without messages, and for a command, which only the prompt takes.
    """
    messages, block = list[str](), list[str]()
    inside = False
    for number, line in enumerate(_lines(text), 1):
        if line.strip() == '"""':
            if inside:
                messages.append("\n".join(block))
                block.clear()
            inside = not inside
        elif inside:
            block.append(line)
        elif line.startswith("/") and not line.startswith("//"):
            raise UsageError(
                f"{where}: line {number}: commands are for the prompt", hint="// begins a message that begins with /"
            )
        elif line.strip():
            messages.append(line.removeprefix("/"))
    if inside:
        raise UsageError(f'{where}: a message that begins with """ does not end')
    if not any(map(str.strip, messages)):
        raise UsageError(f"{where}: there is no message")
    return messages


def argument_text(argument: str) -> str:
    """A command-line argument decoded as UTF-8, whatever the locale. Raises UsageError if it is not UTF-8."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UsageError(f"an argument is not UTF-8 at byte {error.start}") from None


def unless_dash(file: Path) -> Path | None:
    """A file that is read, or None for `-`, which stands for stdin."""
    return None if str(file) == "-" else file


def read_text(file: Path | None, decoding: Decoding) -> str:
    """A whole text as `TextBlocks` reads it. Raises InputError as `read_prompt` does."""
    return "".join(TextBlocks(file, decoding))


class TextBlocks:
    """The text of a file, a pipe such as a shell's `<(...)`, or stdin for None, in blocks as they are read.

    start: the bytes of the file before the text, those of a byte-order mark; known once the first block is read.
    Iterating raises InputError as `read_prompt` does.
    """

    def __init__(self, file: Path | None, decoding: Decoding) -> None:
        self.start = 0
        self._file = file
        self._decoding = decoding
        self._where = "standard input" if file is None else str(file)
        self._blocks = self._read()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        return next(self._blocks)

    def _read(self) -> Iterator[str]:
        if self._file is None:
            if sys.stdin is None:
                raise InputError("cannot read: standard input is closed")
            with readable_stdin() as stream:
                yield from self._decoded(cast(_Readable, stream))
            return
        try:
            stream = open(self._file, "rb")
        except OSError as error:
            raise InputError(f"cannot open: {self._where}: {error.strerror}") from None
        with stream:
            yield from self._decoded(stream)

    def _decoded(self, stream: _Readable) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(self._decoding.errors)
        done, pending = 0, 0
        for data in self._without_mark(_blocks(stream, self._where, self._decoding.max_input)):
            first = self.start + done
            before, nul, _ = data.partition(b"\0")
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(before, final=not data)
            except UnicodeDecodeError as error:
                yield error.object[: error.start].decode()
                replace = "--errors replace takes it with U+FFFD in its place"
                raise InputError(
                    f"not UTF-8: {self._where}: byte {first - pending + error.start}",
                    hint=replace if self._decoding.has_option else "convert it: iconv -f ENCODING -t UTF-8",
                ) from None
            done += len(data)
            if text:
                yield text
            if nul:
                raise InputError(f"not a text: {self._where}: a NUL byte at {first + len(before)}; it looks binary")

    def _without_mark(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Raises InputError for the mark of another encoding, which --errors replace would make nonsense of."""
        data = block = b""
        for block in blocks:
            data += block
            if not block or not any(len(data) < len(mark) and mark.startswith(data) for mark in _MARKS):
                break  # enough bytes to tell whether there is a mark
        for mark, encoding in _FOREIGN_MARKS.items():
            if data.startswith(mark):
                raise InputError(
                    f"not UTF-8: {self._where}: it begins with the byte-order mark of {encoding}",
                    hint=f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(self._file or '-'))}",
                )
        if self._file is not None and data.startswith(codecs.BOM_UTF8):
            self.start = len(codecs.BOM_UTF8)
            self._decoding.note(f"byte-order mark dropped: {self._where}")
            data = data[self.start :]
        if data:
            yield data
        if not block:
            yield block
        yield from blocks


def text_lines(file: Path, decoding: Decoding, longest: int) -> Iterator[str]:
    """The lines of a file, or of stdin for `-`, as they come and without their ends. longest: in characters.

    Raises InputError for a line that is longer, and as `read_prompt` does.
    """
    return chain.from_iterable(blocks_of_lines(file, decoding, longest))


def blocks_of_lines(file: Path, decoding: Decoding, longest: int) -> Iterator[list[str]]:
    """The same, in lists of those that came together."""
    rest = ""
    for block in TextBlocks(unless_dash(file), replace(decoding, max_input=None)):
        *lines, rest = (rest + block).split("\n")
        lines = [line.removesuffix("\r") for line in lines]
        whole = list(takewhile(lambda line: len(line) <= longest, lines))
        if whole:
            yield whole
        for line in (*lines[len(whole) :], rest.removesuffix("\r")):
            _check_length(line, file, longest)
    if rest:
        _check_length(rest, file, longest)
        yield [rest]


def _lines(text: str) -> list[str]:
    """The lines of a text; `str.splitlines` would also cut at form feeds, U+2028 and the like."""
    *lines, rest = text.split("\n")
    return [*(line.removesuffix("\r") for line in lines), rest]


def _check_length(line: str, file: Path, limit: int) -> None:
    if len(line) > limit:
        raise InputError(
            f"too large: {file}: a line of more than {limit} characters", hint="raise the limit with --max-input"
        )


def _blocks(stream: _Readable, where: str, max_input: int | None) -> Iterator[bytes]:
    """The bytes of each read, and empty bytes at the end. Reads the end once: a terminal would ask for it again."""
    done = 0
    while True:
        size = _BLOCK if max_input is None else min(_BLOCK, max_input + 1 - done)
        try:
            data = stream.read1(size)
        except OSError as error:
            raise InputError(f"cannot read: {where}: {error.strerror}") from None
        done += len(data)
        if max_input is not None and done > max_input:
            raise InputError(
                f"too large: {where}: more than {max_input} bytes", hint="raise the limit with --max-input"
            )
        yield data
        if not data:
            return
