"""The formats of tokens: flow, lines, TSV, table, JSON. Knows no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from gptcli.cli.terminal.columns import fitted
from gptcli.cli.terminal.stdout import StdoutSink, clean
from gptcli.cli.terminal.token_flow import PLAIN, TokenFlow, grouped, spell
from gptcli.text.located_tokens import Token

Piece = Callable[[int], str]  # the vocabulary's own spelling of a token

_BUFFER = 1 << 16  # characters
_ROLE = 10  # columns of a role in the margin
TSV_HEADER = "index\tid\ttoken\tbytes\tstart\tend\tspecial\trole"


def write_flow(tokens: Iterable[Token], sink: StdoutSink, columns: int, *, colour: bool) -> None:
    """Tokens as running text, with roles in the margin."""
    flow = TokenFlow(columns, colour=colour)
    out = _Buffer(sink.draw)
    try:
        _write_turns(tokens, flow, out, columns)
    except BaseException:  # Ctrl-C, too, can come within a coloured token
        if colour:
            sink.draw(PLAIN)
        raise


def _write_turns(tokens: Iterable[Token], flow: TokenFlow, out: _Buffer, columns: int) -> None:
    for (_, role, in_chat), run in groupby(tokens, _turn):
        if in_chat:
            name = clean(role or "")[:_ROLE]
            # On a narrow terminal the role takes a line of its own.
            narrow = columns < 2 * _ROLE + 2
            margins = ("", "") if narrow else (f"{name:>{_ROLE}} │ ", f"{'':>{_ROLE}} │ ")
            out.add(flow.set_margin(*margins))
            if narrow and name:
                out.add(f"[{name}]\n")
        for group in grouped((token.data, token.special) for token in run):
            out.add(flow.add(group))
    out.add(flow.end())
    out.flush()


def _turn(token: Token) -> tuple[int | None, str | None, bool]:
    return token.message, token.role, token.in_chat


def lines(tokens: Iterable[Token]) -> Iterator[str]:
    """`ID<TAB>TOKEN`, a line a token, every character visible."""
    return (f"{token.id}\t{spell(token.data)}\n" for token in tokens)


def tsv(tokens: Iterable[Token]) -> Iterator[str]:
    """A header, and a line a token, whose text is `escaped`."""
    yield TSV_HEADER + "\n"
    for token in tokens:
        fields = (
            token.position,
            token.id,
            escaped(token.data),
            token.data.hex(),
            token.start,
            token.end,
            int(token.special),
            token.role or "",
        )
        yield "\t".join(map(str, fields)) + "\n"


def escaped(data: bytes) -> str:
    """A token's text in a TSV field: tab, newline, return and backslash escaped, invalid bytes as `\\xe2`."""
    text = data.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    text = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def table(tokens: Iterable[Token], piece: Piece, columns: int | None) -> Iterator[str]:
    """A header, and a row for each token. columns: of the terminal, which limit the table's; None shows all."""
    shown: list[_Column] = []
    taken = 0
    for column in _COLUMNS:
        taken += column[1] + 2
        if columns is None or taken - 2 <= columns or len(shown) < 3:
            shown.append(column)
    if columns is not None and taken > columns and len(shown) == 3:  # too narrow for the usual widths
        name, _, order, cell = shown[2]
        shown[2] = name, max(4, columns - 16), order, cell
    shown.sort(key=lambda column: column[2])

    def row(cells: Iterable[str]) -> str:
        padded = (fitted(cell, size) for cell, (_, size, _, _) in zip(cells, shown, strict=True))
        return "  ".join(padded).rstrip() + "\n"

    yield row(name for name, *_ in shown)
    for token in tokens:
        yield row(cell(token, piece) for *_, cell in shown)


_Column = tuple[str, int, int, Callable[[Token, Piece], str]]  # name, width, order from the left, cell

# The most wanted first.
_COLUMNS: list[_Column] = [
    ("index", 6, 0, lambda token, piece: str(token.position)),
    ("id", 6, 1, lambda token, piece: str(token.id)),
    ("token", 16, 2, lambda token, piece: spell(token.data)),
    ("bytes", 11, 5, lambda token, piece: f"{token.start}-{token.end}"),
    ("special", 7, 7, lambda token, piece: "special" if token.special else ""),
    ("chars", 11, 6, lambda token, piece: f"{token.first_char}-{token.end_char}"),
    ("piece", 16, 3, lambda token, piece: clean(piece(token.id).replace("\n", "⏎").replace("\t", "⇥"))),
    ("hex", 24, 4, lambda token, piece: token.data.hex(" ")),
    ("role", 10, 8, lambda token, piece: clean(token.role or "")),
]


def token_record(token: Token) -> dict[str, Any]:
    """A token as `--json` writes it; in a conversation with its message's index and role."""
    record = {
        "index": token.position,
        "id": token.id,
        "token": token.data.decode("utf-8", "replace"),
        "bytes": token.data.hex(),
        "start": token.start,
        "end": token.end,
        "special": token.special,
    }
    if token.in_chat:
        record |= {"message": token.message, "role": token.role}
    return record


def json_pieces(name: str | None, tokens: Iterable[Token], stats: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """One object on one line, in pieces; `stats` is called after the last token."""
    yield f'{{"file": {json.dumps(name, ensure_ascii=False)}, "tokens": ['
    for index, token in enumerate(tokens):
        yield (", " if index else "") + json.dumps(token_record(token), ensure_ascii=False)
    yield f'], "stats": {json.dumps(stats())}}}\n'


def write_pieces(pieces: Iterable[str], sink: StdoutSink) -> None:
    """Writes text that comes in small pieces."""
    out = _Buffer(lambda text: sink.write(text.encode("utf-8", "replace")))
    for piece in pieces:
        out.add(piece)
    out.flush()


class _Buffer:
    """Collects small pieces, and writes them together."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._pieces: list[str] = []
        self._size = 0

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _BUFFER:
            self.flush()

    def flush(self) -> None:
        self._write("".join(self._pieces))
        self._pieces, self._size = [], 0
