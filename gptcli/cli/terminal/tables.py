"""Records as a table on a terminal, as tab-separated values or JSON in a pipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptcli.cli.terminal.columns import terminal_columns, width, wrapped
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


def _facts(rows: list[list[str]]) -> Iterator[str]:
    """Lines of names and values. A value that does not fit begins below its name, and can still be copied."""
    columns = terminal_columns()
    start = min(max(width(name) for name, _ in rows) + 2, columns // 2)
    for name, value in rows:
        gap = start - width(name)
        fits = gap > 1 and start + width(value) <= columns
        yield f"{name}{' ' * gap}{value}\n" if fits else f"{name}\n{wrapped(f'  {value}', columns)}\n"


def print_records(
    records: Sequence[dict[str, Any]],
    as_json: bool,
    row: Callable[[dict[str, Any]], dict[str, str]] | None = None,
    header: bool = True,
) -> None:
    """On a terminal a table of `row`s or of all values; in a pipe a line for each record, tab-separated or JSON."""
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
    rows = [row(record) if row else {key: spelled(record[key]) for key in record} for record in records]
    if not header:
        sink.draw(clean("".join(_facts([list(cells.values()) for cells in rows]))))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0]:
        number = key in ("weights", "size")
        table.add_column(key, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for cells in rows:
        table.add_row(*(Text(clean(cell)) for cell in cells.values()))
    Console().print(table)
