"""`gptcli cache`: the snapshots that models start fast from, which may be deleted at any time."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import typer

from gptcli.cli import options
from gptcli.cli.terminal.columns import terminal_columns
from gptcli.cli.terminal.stderr import print_note
from gptcli.cli.terminal.tables import print_records
from gptcli.runtime.fast_start.snapshots import delete_snapshots, stored_snapshots

_WIDE = 60  # columns that leave paths some room beside dates
_NONE = "there are no snapshots"


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all of it; models stay.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """List the snapshots that models start fast from, or delete them."""
    if clear:
        size = delete_snapshots()
        if as_json:
            print_records([{"deleted_bytes": size}], as_json)
        elif not quiet:
            print_note(f"deleted {size / 1e6:.0f} MB" if size else _NONE)
        return
    records = [
        {
            "model": snapshot.model,
            "size": snapshot.size,
            "used": datetime.datetime.fromtimestamp(snapshot.used).isoformat(" ", "minutes"),
            "path": str(snapshot.path),
            "content": snapshot.content,
        }
        for snapshot in stored_snapshots()
    ]
    print_records(records, as_json, _row)
    if not records and not as_json and not quiet:
        print_note(_NONE)


def _row(record: dict[str, Any]) -> dict[str, str]:
    shown = ("content", "model") if terminal_columns() < _WIDE else ("used", "content", "model")
    return {"size": f"{record['size'] / 1e6:.0f} MB"} | {key: record[key] for key in shown}
