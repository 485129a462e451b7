"""`gptcli tokenize --vocab` and `--id`: tokens of the vocabulary, by a pattern or by id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gptcli.cli.terminal.tables import print_records
from gptcli.cli.terminal.token_flow import spell
from gptcli.cli.tokens.formats import escaped
from gptcli.errors import UsageError
from gptcli.text.tokenizer import Tokenizer


def search(tokenizer: Tokenizer, pattern: str | None, ids: Sequence[int], *, as_json: bool) -> None:
    """Prints the tokens that a regular expression finds, or those of ids. Raises UsageError."""
    if pattern is None:
        for id in ids:
            if not 0 <= id < tokenizer.size or not tokenizer.piece(id):
                raise UsageError(f"no token has the id {id}: they are 0 to {tokenizer.size - 1}")
    else:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"not a regular expression: {pattern}: {error}") from None
        used = filter(tokenizer.piece, range(tokenizer.size))
        ids = [id for id in used if compiled.search(tokenizer.surface(id).decode("utf-8", "replace"))]
    records = []
    for id in ids:
        data, special = tokenizer.surface(id), tokenizer.is_control(id)
        records.append(
            {
                "id": id,
                "token": data.decode("utf-8", "replace") if as_json else escaped(data),
                "piece": tokenizer.piece(id),
                "bytes": data.hex(),
                "special": special if as_json else int(special),  # as in --tsv
            }
        )

    def row(record: dict[str, Any]) -> dict[str, str]:
        special = "special" if record["special"] else ""
        shown = {"id": str(record["id"]), "token": spell(tokenizer.surface(record["id"])), "piece": record["piece"]}
        return shown | {"bytes": bytes.fromhex(record["bytes"]).hex(" "), "": special}

    print_records(records, as_json, row)
