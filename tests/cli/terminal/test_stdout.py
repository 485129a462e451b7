"""Text on stdout: unchanged in a pipe, without control characters on a terminal."""

from __future__ import annotations

import os
import pty
import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli.terminal.stdout import StdoutSink, clean
from gptcli.errors import OutputError

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
DRIVING = BIDI + "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xD800, 0xDFFF]))
ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.text(DRIVING + "a\u200d")  # surrogates too


@given(ANY_TEXT)
def test_a_cleaned_text_has_nothing_that_drives_a_terminal(text: str) -> None:
    for character in clean(text):
        assert character not in BIDI
        assert character in "\t\n" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")


@given(ANY_TEXT, ANY_TEXT)
def test_a_text_can_be_cleaned_in_pieces(first: str, second: str) -> None:
    assert clean(first) + clean(second) == clean(first + second)


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_harmless_characters_stay(text: str) -> None:
    assert clean(text + "\t\n\u200d\ufe0f\u0301") == text + "\t\n\u200d\ufe0f\u0301"


@contextmanager
def stdout_piped() -> Iterator[BinaryIO]:
    """Makes stdout a pipe; yields its other end."""
    reader, writer = os.pipe()
    with open(writer, "w") as stdout, open(reader, "rb") as piped, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        yield piped


@given(st.lists(st.binary()))
def test_a_pipe_gets_exactly_the_bytes(pieces: list[bytes]) -> None:
    with stdout_piped() as piped:
        sink = StdoutSink()
        for piece in pieces:
            sink.write(piece)
        sys.stdout.close()
        assert piped.read() == b"".join(pieces)


def test_a_text_larger_than_the_pipe_arrives_whole() -> None:
    with stdout_piped() as piped, ThreadPoolExecutor() as pool:
        received = pool.submit(piped.read)
        StdoutSink().write(b"x" * 1_000_000)
        sys.stdout.close()
        assert received.result() == b"x" * 1_000_000


def test_a_terminal_gets_the_cleaned_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        sink = StdoutSink()
        sink.write(b"a\x1b[31m\xff")
        sink.end_line()
        sink.end_line()
        expected = "a\u241b[31m\ufffd\r\n".encode()
        shown = b""
        while len(shown) < len(expected):  # what is written at once may be read in pieces
            shown += os.read(ours, 99)
        assert shown == expected
        monkeypatch.undo()
    os.close(ours)


def test_text_printed_before_comes_first() -> None:
    with stdout_piped() as piped:
        print("before")
        StdoutSink().write(b"after")
        assert piped.read(12) == b"before\nafter"


def test_closed_stdout_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match="standard output is closed"):
        StdoutSink()
