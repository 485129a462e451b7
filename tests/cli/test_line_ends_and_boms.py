"""Where a line ends, and what becomes of a byte-order mark, wherever texts are read."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli.prompt_input import Decoding, TextBlocks, messages_of_script, read_text, text_lines
from gptcli.errors import InputError
from tests.cli.conftest import Cli

BOM = codecs.BOM_UTF8
# What str.splitlines takes for the end of a line, and editors do not.
NO_ENDS = ["\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "text"


def decoding(notes: list[str] | None = None, errors: str = "strict") -> Decoding:
    return Decoding(errors, 1 << 20, (notes if notes is not None else []).append)


@given(st.lists(st.sampled_from(["a", "\n", "\r\n", *NO_ENDS])).map("".join), st.integers(1, 4))
def test_a_line_ends_at_lf_or_crlf_and_nowhere_else(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptcli.cli.prompt_input._BLOCK", block)
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        lines = list(text_lines(Path("-"), decoding(), longest=1 << 20))
    expected = text.replace("\r\n", "\n").split("\n")
    assert lines == expected[: len(expected) - (not expected[-1])]


@pytest.mark.parametrize("inside", NO_ENDS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_message_of_a_script_keeps_other_separators(inside: str, end: str) -> None:
    script = end.join([f"one{inside}1", '"""', f"two{inside}2", "three", '"""', f"four{inside}4"])
    assert messages_of_script(script, "here") == [f"one{inside}1", f"two{inside}2\nthree", f"four{inside}4"]


def test_carriage_returns_change_no_score(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_PREPARED", "off")  # a snapshot's last digit may differ

    def scored(text: bytes, *options: str) -> bytes:
        return cli("score", "-m", tiny_model, "--lines", *options, stdin=text).out

    for options in [(), ("--choices", "a,b"), ("--json",)]:
        assert scored(b"In a\r\n\r\nsmall\r\n", *options) == scored(b"In a\n\nsmall\n", *options) != b""


def test_the_limit_of_a_line_counts_neither_of_its_ends(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr("gptcli.cli.prompt_input._BLOCK", 5)
    file.write_bytes(b"1234\r\n12345")
    assert list(text_lines(file, decoding(), longest=5)) == ["1234", "12345"]
    with pytest.raises(InputError, match="more than 3 characters"):
        list(text_lines(file, decoding(), longest=3))


READS: dict[str, Callable[[Path], list[str | Path]]] = {
    "a prompt": lambda file: ["generate", "-n", "4", "-t", "0", "-f", file],
    "a system message": lambda file: ["generate", "-n", "4", "-t", "0", "--chat", "--system-file", file, "hello"],
    "a template": lambda file: ["generate", "-n", "4", "-t", "0", "--chat", "--chat-template", file, "hello"],
    "a question": lambda file: ["chat", "-n", "4", "-t", "0", "-f", file],
    "a script": lambda file: ["chat", "-n", "4", "-t", "0", "--script", file],
    "a scored text": lambda file: ["score", file],
    "scored lines": lambda file: ["score", "--lines", file],
    "what choices continue": lambda file: ["score", "--choices", "a,b", file],
    "a tokenized text": lambda file: ["tokenize", "--ids", file],
    "a cut text": lambda file: ["tokenize", "--truncate", "3", file],
    "compared texts": lambda file: ["tokenize", "--roundtrip", file],
}


@pytest.mark.parametrize("what", READS)
def test_a_mark_at_the_start_is_dropped_with_a_note(what: str, cli: Cli, tiny_by_default: None, file: Path) -> None:
    content = b"hello {{ messages[-1].content }}"
    file.write_bytes(content)
    without = cli(*READS[what](file), stdin=b"")
    file.write_bytes(BOM + content)
    with_mark, quietly = cli(*READS[what](file), stdin=b""), cli(*READS[what](file), "-q", stdin=b"")
    assert without.code == 0 and without.err == quietly.err == ""
    assert with_mark.out == quietly.out == without.out
    assert with_mark.err == f"gptcli: note: byte-order mark dropped: {file}\n"


def test_a_second_mark_is_text(file: Path) -> None:
    file.write_bytes(BOM + BOM + b"a" + BOM)
    assert read_text(file, decoding()) == "\ufeffa\ufeff"


def test_places_of_tokens_count_from_the_first_byte_of_the_file(cli: Cli, tiny_by_default: None, file: Path) -> None:
    content = "In a ßmall town".encode()
    file.write_bytes(BOM + content)
    record = cli("tokenize", "--json", file).json
    ranges = [(token["start"], token["end"]) for token in record["tokens"]]
    assert b"".join(file.read_bytes()[start:end] for start, end in ranges) == content
    assert record["stats"]["bytes"] == len(content)
    rows = [line.split("\t") for line in cli("tokenize", "--tsv", file).out.decode().splitlines()]
    start = rows[0].index("start")
    assert [(int(row[start]), int(row[start + 1])) for row in rows[1:]] == ranges


def test_the_byte_that_is_no_text_counts_from_the_first_byte_of_the_file(file: Path) -> None:
    for content, complaint in [(BOM + b"ab\xff", "byte 5"), (BOM + b"ab\0", "a NUL byte at 5")]:
        file.write_bytes(content)
        with pytest.raises(InputError, match=complaint):
            read_text(file, decoding())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("text", ["\ufeffhello", "\ufeff漢字", "\ufeff"])
def test_another_encoding_is_named_with_the_way_out(encoding: str, errors: str, text: str, file: Path) -> None:
    file.write_bytes(text.encode(encoding))
    name = encoding[:6].upper()
    with pytest.raises(InputError, match=f"it begins with the byte-order mark of {name}$") as error:
        read_text(file, decoding(errors=errors))
    assert error.value.hint == f"convert it: iconv -f {name} -t UTF-8 {file}"


class Trickle:
    """A pipe whose writer writes single bytes."""

    def __init__(self, data: bytes) -> None:
        self._bytes: Iterator[bytes] = (data[i : i + 1] for i in range(len(data)))
        self.taken = 0

    def read1(self, size: int) -> bytes:
        self.taken += 1
        return next(self._bytes, b"")


@pytest.mark.parametrize("data", [b"", b"a", b"\xef", b"\xef\xbb", BOM, BOM + b"a", b"\xfe", b"\xffa", b"\xef\xbb\xbe"])
def test_a_mark_is_found_however_its_bytes_come(data: bytes, file: Path) -> None:
    notes = list[str]()
    blocks = TextBlocks(file, decoding(notes, errors="replace"))
    text = "".join(blocks._decoded(Trickle(data)))
    assert text == data.removeprefix(BOM).decode("utf-8", "replace")
    assert (blocks.start, len(notes)) == ((3, 1) if data.startswith(BOM) else (0, 0))


def test_nothing_waits_for_more_bytes_than_could_be_a_mark(file: Path) -> None:
    pipe = Trickle(b"a\nb\n")
    assert next(TextBlocks(file, decoding())._decoded(pipe)) == "a"
    assert pipe.taken == 1
