"""Reads the data of `gptcli train`: texts in blocks, lines of JSON, rows of CSV."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from gptcli.cli.batch.input_lines import InputLines
from gptcli.cli.prompt_input import Decoding, TextBlocks, unless_dash
from gptcli.errors import InputError
from gptcli.training.documents import Document, Text, document_of

Format = Literal["auto", "text", "jsonl", "csv"]
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def expanded(names: Sequence[str]) -> list[str]:
    """The files that names and patterns stand for, those of a pattern in order. Raises InputError."""
    found = list[str]()
    for name in names:
        if name == "-" or Path(name).exists():
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
    """What reads the documents of files. It raises InputError for data that is not what its ending says."""

    def read(names: Sequence[str]) -> Iterator[Document]:
        for name in names:
            path = Path(name)
            kind = _ENDINGS.get(path.suffix.lower(), "text") if format == "auto" else format
            if kind == "text":
                yield Text(TextBlocks(unless_dash(path), Decoding("strict", None, note)), name)
                continue
            for line in InputLines(path, max_line, note, csv=kind == "csv"):
                where = f"{name}: {'row' if kind == 'csv' else 'line'} {line.number}"
                if isinstance(line.fields, InputError):
                    raise InputError(f"{where}: {line.fields.message}", line.fields.hint)
                yield document_of(line.fields, where)

    return read
