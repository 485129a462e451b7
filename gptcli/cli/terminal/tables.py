"""Records as a table on a terminal, as tab-separated values or JSON in a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from gptcli.cli.terminal.stdout import StdoutSink, clean


def spelled(value: Any) -> str:
    """A value, for a person."""
    match value:
        case {"value": tuple() as ids, "from": origin}:
            return f"{' '.join(map(_ids, ids)) or 'none'} ({origin})"
        case {"value": inner, "from": origin}:
            return f"{inner:g} ({origin})"
        case list():
            return ", ".join(map(str, value)) or "none"
        case bool():
            return "yes" if value else "no"
        case int() if value >= 10_000:
            return f"{value:,}"
    return str(value)


def _ids(ids: int | tuple[int, ...]) -> str:
    return ",".join(map(str, ids)) if isinstance(ids, tuple) else str(ids)


def print_records(
    records: Sequence[dict[str, Any]],
    as_json: bool,
    row: Callable[[dict[str, Any]], dict[str, str]] | None = None,
    header: bool = True,
) -> None:
    """A table on a terminal, of `row`s or of all values; in a pipe, a line a record: JSON or tab-separated values."""
    sink = StdoutSink()
    if as_json:
        for record in records:
            sink.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        return
    if not sink.is_terminal:
        for record in records:
            values = (" ".join(str("" if value is None else value).splitlines()) for value in record.values())
            line = "\t".join(value.replace("\t", " ") for value in values)
            sink.write(line.encode("utf-8", "replace") + b"\n")  # a session can contain half a surrogate pair
        return
    if not records:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [row(record) if row else {key: spelled(record[key]) for key in record} for record in records]
    table = Table(box=None, show_header=header, pad_edge=False, header_style="bold")
    for key in rows[0]:
        number = key in ("weights", "size")
        table.add_column(key, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(clean(cell)) for cell in cells.values()))
    Console().print(table)
