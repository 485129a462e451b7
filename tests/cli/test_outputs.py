"""What commands write: where nothing can be written, an input is never touched and nothing half is left."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gptcli.training import log
from tests.cli.conftest import Cli
from tests.tiny import TEXT

Write = Callable[[Path], list[str | Path]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (file := tmp_path / "text.txt").write_text("In a small town")
    return file


@pytest.fixture(params=["batch", "export", "html", "svg"])
def write(request: pytest.FixtureRequest, tiny_model: Path, text: Path, tmp_path: Path) -> Write:
    """The arguments of a command that writes this file."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "In a"}\n')
    commands = {
        "batch": ("batch", tmp_path / "in.jsonl", "-m", tiny_model, "-n", "2", "-o", ...),
        "export": ("models", "export", tiny_model, ..., "--gguf", "--force"),
        "html": ("generate", "In a", "-m", tiny_model, "-n", "2", "--html", ...),
        "svg": ("score", text, "-m", tiny_model, "--svg", ...),
    }
    return lambda out: [out if each is ... else each for each in commands[request.param]]


def _pipe(out: Path) -> Path:
    os.mkfifo(out)
    return out


def _loop(out: Path) -> Path:
    out.symlink_to(out)
    return out


BAD: dict[str, Callable[[Path], Path]] = {
    "a long name": lambda out: out.with_name("n" * 300),
    "beneath a file": lambda out: out.parent / "text.txt" / "out",
    "a pipe": _pipe,
    "a link to itself": _loop,
    "a device": lambda out: Path("/dev/full"),
}


@pytest.mark.parametrize("bad", BAD)
def test_where_no_file_can_be_is_an_output_error_that_names_it(
    cli: Cli, write: Write, bad: str, tmp_path: Path
) -> None:
    out = BAD[bad](tmp_path / "out")
    before = sorted(tmp_path.iterdir())
    cli(*write(out)).fails(8, "cannot write", str(out))
    assert sorted(tmp_path.iterdir()) == before


def test_names_that_are_long_or_not_utf8_are_written_and_printed_as_they_are(
    cli: Cli, write: Write, tmp_path: Path
) -> None:
    for name in ("\U0001f600" * 60 + ".x", os.fsdecode(b"\xff\xfe"), "a\x1b[31m\nb"):
        out = tmp_path / name
        result = cli(*write(out))
        assert (result.code, out.stat().st_size > 0) == (0, True)
        if "export" in write(out):
            assert result.out == os.fsencode(out) + b"\n"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits, writes_none = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # else Python would keep half of what is imported meanwhile
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = writes_none


@pytest.mark.parametrize("command", ["export", "--html", "--svg"])
def test_a_full_disk_leaves_what_was_there(cli: Cli, tiny_model: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "there").mkdir()
    (out := tmp_path / "there" / "out").write_text("as it was")
    arguments = {"export": ["models", "export", tiny_model, out, "--gguf", "--force"]}.get(
        command, ["generate", "In a", "-m", tiny_model, "-n", "2", command, out]
    )
    with files_of_at_most(1000):
        result = cli(*arguments)
    assert result.code == 8 and f"cannot write: {out}: File too large" in result.err
    assert (sorted(out.parent.iterdir()), out.read_text()) == ([out], "as it was")


def test_an_output_is_no_input(cli: Cli, tiny_model: Path, text: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link.html").symlink_to(text)
    for out in (text, link):
        cli("score", text, "-m", tiny_model, "--html", out).fails(2, "would replace an input")
        cli("generate", "-f", text, "-m", tiny_model, "-n", "2", "--svg", out).fails(2, "would replace an input")
    assert text.read_text() == "In a small town"
    assert cli("models", "export", tiny_model, file := tmp_path / "a.gguf", "--gguf").code == 0
    whole = file.read_bytes()
    cli("models", "export", file, file, "--gguf", "--force").fails(2, "would replace an input")
    cli("models", "quantize", file, file, "--to", "q8_0", "--force").fails(2, "would replace an input")
    assert file.read_bytes() == whole
    weights = tiny_model / "model.safetensors"
    cli("models", "export", tiny_model, weights, "--gguf", "--force").fails(2, "would replace an input")


@pytest.mark.parametrize("theirs", [b"my only line", b'{"prompt": "hi"}', b"{", b'{"id": "batch_re'])
def test_a_line_without_an_end_is_cut_off_only_if_a_batch_began_it(
    cli: Cli, tiny_model: Path, tmp_path: Path, theirs: bytes
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "In a"}\n')
    (out := tmp_path / "out").write_bytes(theirs)
    result = cli("batch", tmp_path / "in.jsonl", "-m", tiny_model, "-n", "2", "-o", out)
    if b'{"id": "batch_req_'.startswith(theirs):
        assert result.code == 0 and "was cut off" in result.err
    else:
        result.fails(8, "it is not the output of a batch")
        assert out.read_bytes() == theirs


def test_texts_whose_names_are_not_utf8_keep_them(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    files = [tmp_path / os.fsdecode(name) for name in (b"\xff", b"b")]
    for file in files:
        file.write_text("In a")
    for option in ("--count", "--roundtrip", "--table"):
        result = cli("tokenize", *files, "-m", tiny_model, option)
        assert result.code == 0 and b"/\xff" in result.out


def test_training_that_could_not_begin_leaves_nothing(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (data := tmp_path / "d.txt").write_text(TEXT * 40)
    (other := tmp_path / os.fsdecode(b"\xff.txt")).write_text(TEXT)
    train = ("train", "-m", tiny_model, "--block-size", "16", "--max-steps", "1", "-o", tmp_path / "new" / "out")
    cli(*train, other).fails(2, "not UTF-8")
    with files_of_at_most(1000):
        cli(*train, data).fails(8, "cannot write", "File too large")
    assert not (tmp_path / "new").exists()


def test_a_curve_is_drawn_whatever_a_run_is_called(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        '{"event": "step", "step": 1, "loss": 1.0}\n{"event": "step", "step": 2, "loss": 1.5}\n'
    )
    log.write_curve(tmp_path / "log", tmp_path / "svg", os.fsdecode(b"a\xff\x1b<&"))
    assert "a??<&" in "".join(ElementTree.parse(tmp_path / "svg").getroot().itertext())
