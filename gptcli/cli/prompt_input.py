"""Reads texts from arguments, files and pipes. Bytes are taken as they are and must be UTF-8."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, cast

from gptcli.errors import InputError, UsageError

DecodingErrors = Literal["strict", "replace"]
_BLOCK = 1 << 20  # bytes


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...


def read_prompt(argument: str | None, file: Path | None, errors: DecodingErrors, max_input: int) -> str:
    """The whole prompt: a file or piped stdin, then a blank line and the argument if both are given.

    `-` stands for stdin, as argument or file. Raises UsageError if there is no prompt at all. Raises InputError for an
    input that cannot be read, is not UTF-8 text, or is larger than `max_input` bytes.
    """
    if argument == "-" or str(file) == "-":
        given = _read_stdin(errors, max_input)
    elif file is not None:
        given = read_text(file, errors, max_input)
    elif sys.stdin is not None and not sys.stdin.isatty():
        given = _read_stdin(errors, max_input)
    else:
        given = ""
    own = "" if argument in (None, "-") else argument_text(argument or "")
    if not given and not own:
        raise UsageError(
            "there is no prompt",
            hint='give one as an argument, with --file, or through a pipe: printf "Once" | gptcli ...',
        )
    if not given or not own:
        return given or own
    return given + "\n" * max(0, 2 - _trailing_newlines(given)) + own


def messages_of_script(text: str, where: str) -> list[str]:
    """The messages of a conversation's script: one a line, or all lines between two lines of three quotes.

    Blank lines are skipped, and `//` begins a line that begins with `/`, as at the prompt. Raises UsageError for a
    script without messages, and for a command, which only the prompt takes.
    """
    messages, block = list[str](), list[str]()
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
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


def read_text(file: Path, errors: DecodingErrors, max_input: int) -> str:
    """A whole text file, or a pipe such as a shell's `<(...)`. Raises InputError as `read_prompt` does."""
    try:
        stream = open(file, "rb")
    except OSError as error:
        raise InputError(f"cannot open: {file}: {error.strerror}") from None
    with stream:
        return _decode(stream, str(file), errors, max_input)


def _read_stdin(errors: DecodingErrors, max_input: int) -> str:
    if sys.stdin is None:
        raise InputError("cannot read: standard input is closed")
    return _decode(cast(_Readable, sys.stdin.buffer), "standard input", errors, max_input)


def text_blocks(file: Path, errors: DecodingErrors, max_input: int | None) -> Iterator[str]:
    """The text of a file, or of stdin for `-`, in blocks as they are read. max_input: in bytes; None is no limit.

    Raises InputError as `read_prompt` does.
    """
    if str(file) == "-":
        if sys.stdin is None:
            raise InputError("cannot read: standard input is closed")
        yield from _decoded(cast(_Readable, sys.stdin.buffer), "standard input", errors, max_input)
        return
    try:
        stream = open(file, "rb")
    except OSError as error:
        raise InputError(f"cannot open: {file}: {error.strerror}") from None
    with stream:
        yield from _decoded(stream, str(file), errors, max_input)


def text_lines(file: Path, errors: DecodingErrors, max_input: int) -> Iterator[str]:
    """The lines of a file, or of stdin for `-`, as they come and without their newlines.

    Raises InputError for a line longer than `max_input` characters, and as `read_prompt` does.
    """
    rest = ""
    for block in text_blocks(file, errors, None):
        *lines, rest = (rest + block).split("\n")
        for line in lines:
            yield _short_enough(line, file, max_input)
        _short_enough(rest, file, max_input)
    if rest:
        yield rest


def _short_enough(line: str, file: Path, limit: int) -> str:
    if len(line) > limit:
        raise InputError(
            f"too large: {file}: a line of more than {limit} characters", hint="raise the limit with --max-input"
        )
    return line


def _decode(stream: _Readable, where: str, errors: DecodingErrors, max_input: int) -> str:
    return "".join(_decoded(stream, where, errors, max_input))


def _decoded(stream: _Readable, where: str, errors: DecodingErrors, max_input: int | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    done = 0
    for data in _blocks(stream, where, max_input):
        if b"\0" in data:
            raise InputError(f"not a text: {where}: a NUL byte at {done + data.index(0)}; it looks binary")
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise InputError(
                f"not UTF-8: {where}: byte {done - pending + error.start}",
                hint="--errors replace takes it with U+FFFD in its place",
            ) from None
        done += len(data)
        if text:
            yield text


def _blocks(stream: _Readable, where: str, max_input: int | None) -> Iterator[bytes]:
    """The bytes of each read, and empty bytes at the end; a terminal must say end of file only once."""
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


def _trailing_newlines(text: str) -> int:
    return len(text) - len(text.rstrip("\n"))
