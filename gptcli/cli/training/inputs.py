"""Reads the data of `gptcli train`: texts in blocks, lines of JSON, rows of CSV."""

from __future__ import annotations

import codecs
import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from gptcli.cli.batch.input_lines import InputLines
from gptcli.cli.prompt_input import Decoding, TextBlocks, unless_dash
from gptcli.errors import InputError
from gptcli.training.documents import Document, Text, document_of

Format = Literal["auto", "text", "jsonl", "json", "csv"]
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv"}
_NO_TEXTS = (".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".pdf", ".docx", ".xlsx", ".epub")
_BLOCK = 1 << 16
_BLANK = " \t\r\n"


def expanded(names: Sequence[str]) -> list[str]:
    """The files of names and patterns, a pattern's in sorted order. Raises InputError."""
    found = list[str]()
    for name in names:
        if name == "-" or os.path.exists(name):
            found.append(name)
        elif matches := sorted(glob.glob(name, recursive=True)):
            found += matches
        else:
            raise InputError(f"cannot open: {name}: No such file or directory")
    for name in found:
        if Path(name).is_dir():
            raise InputError(f"cannot read: {name}: it is a directory", f"'{name}/**/*.txt' takes the texts in it")
    return found


def documents_of(
    format: Format, max_line: int, note: Callable[[str], None]
) -> Callable[[Sequence[str]], Iterator[Document]]:
    """Returns a function that reads the documents of files. It raises InputError for data of another format."""

    def read(names: Sequence[str]) -> Iterator[Document]:
        for name in names:
            path = Path(name)
            kind = _ENDINGS.get(path.suffix.lower(), "text") if format == "auto" else format
            if kind == "text" and format == "auto" and path.suffix.lower() in _NO_TEXTS:
                raise InputError(f"no text: {name}", "unpack it, or make text, JSON lines or CSV of it")
            if kind == "text":
                decoding = Decoding("strict", None, note, has_option=False)
                yield Text(TextBlocks(unless_dash(path), decoding), name)
                continue
            left = dict[str, None]()
            for where, fields in _records(path, kind, max_line, note):
                if isinstance(fields, InputError):
                    raise InputError(f"{name}: {fields.message}", fields.hint)
                document, known = document_of(fields, where)
                left |= dict.fromkeys(field for field in fields if field not in known)
                yield document
            if left:
                note(f"nothing is learned of {', '.join(left)[:200]}: {name}")

    return read


def _records(
    path: Path, kind: str, max_line: int, note: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """The objects of a file, each after its location. An error names its line itself."""
    if kind == "json" and str(path) != "-" and _is_list(path):
        for number, element in enumerate(_elements(path, max_line), 1):
            where = f"{path}: element {number}"
            yield where, element if isinstance(element, dict) else InputError(f"element {number}: it is no object")
        return
    for line in InputLines(path, max_line, note, csv=kind == "csv"):
        yield f"{path}: {'row' if kind == 'csv' else 'line'} {line.number}", line.fields


def _is_list(path: Path) -> bool:
    """Whether a file is one JSON list, and not an object a line."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            while block := file.read(_BLOCK):
                if begun := block.lstrip(_BLANK):
                    return begun[0] == "["
    except OSError as error:
        raise InputError(f"cannot open: {path}: {error.strerror}") from None
    return False


def _elements(path: Path, limit: int) -> Iterator[Any]:
    """The elements of a JSON list, one at a time. limit: the most characters of one. Raises InputError."""
    decode = json.JSONDecoder().raw_decode
    with path.open("rb") as file:
        texts = codecs.getreader("utf-8-sig")(file)
        rest, number, more, wanted = "", 0, True, _BLOCK

        def fill() -> None:
            nonlocal rest, more
            try:
                block = texts.read(wanted)
            except UnicodeDecodeError:
                raise InputError(f"not UTF-8: {path}: after element {number}") from None
            rest, more = rest + block, bool(block)

        while more and not rest.strip(_BLANK):
            fill()
        rest = rest.lstrip(_BLANK)[1:]
        while True:
            rest = rest.lstrip(_BLANK)
            if number and rest.startswith(","):
                rest = rest[1:].lstrip(_BLANK)
            if rest.startswith("]"):
                return
            try:
                element, end = decode(rest)
                if end == len(rest) and more:  # a number could continue
                    raise ValueError
            except ValueError:
                if not more:
                    raise InputError(f"not JSON: {path}: element {number + 1}") from None
                if len(rest) > limit:
                    raise InputError(
                        f"too large: {path}: element {number + 1} has more than {limit} characters, or is no JSON",
                        "raise the limit with --max-input",
                    ) from None
                fill()
                wanted *= 2
                continue
            yield element
            rest, number, wanted = rest[end:], number + 1, _BLOCK
