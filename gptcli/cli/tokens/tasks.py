"""What `gptcli tokenize` does other than show tokens: decodes, cuts, checks and searches."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from gptcli.cli.json_records import json_line
from gptcli.cli.prompt_input import DecodingErrors
from gptcli.cli.terminal.stdout import Sink
from gptcli.cli.terminal.tables import print_records
from gptcli.cli.terminal.token_flow import spell
from gptcli.cli.tokens.formats import escaped
from gptcli.cli.tokens.inputs import Reading, given_ids, where
from gptcli.errors import BrokenTokenizer, UsageError
from gptcli.text.detokenizer import Detokenizer
from gptcli.text.located_tokens import Token
from gptcli.text.tokenizer import Tokenizer

_BATCH = 4096  # tokens that are written together


def decode(arguments: Sequence[str], tokenizer: Tokenizer, sink: Sink, errors: DecodingErrors) -> None:
    """Writes the text of ids."""
    ids = given_ids(arguments, errors, tokenizer.size)
    if arguments and list(arguments) != ["-"]:
        ids = iter(list(ids))  # a wrong one fails before anything is written
    detokenizer = Detokenizer()
    pieces = tokenizer.text_pieces(ids)
    while batch := list(itertools.islice(pieces, _BATCH)):
        sink.write(detokenizer.push(b"".join(batch)))
    sink.write(detokenizer.flush())
    if sink.is_terminal:
        sink.end_line()


def truncate(
    reading: Reading, name: str | None, tokenizer: Tokenizer, sink: Sink, limit: int, *, from_end: bool, partial: bool
) -> None:
    """Writes the beginning or the end of a text, as it is: the most that has at most `limit` tokens by itself.

    partial: exactly those tokens, even if they end within a character.
    """
    text = _Window(reading.blocks(name))
    tokens = reading.tokens(tokenizer, name, text)
    kept = _last(tokens, text, limit) if from_end else _first(tokens, text, limit)
    if not partial:
        fitting = map(_whole_characters, kept)
        kept = (data for data in fitting if not data or _count(reading, tokenizer, data) <= limit)
    sink.write(next(kept))
    if sink.is_terminal:
        sink.end_line()


def _first(tokens: Iterator[Token], text: _Window, limit: int) -> Iterator[bytes]:
    """Beginnings of a text, of at most `limit` tokens and of ever fewer."""
    taken = list(itertools.islice(tokens, limit))
    after = next(tokens, None)
    if after is None:
        yield text.data(0, None)
        return
    while taken:
        # What a character became may go on in the next token.
        yield text.data(0, min(taken[-1].end, after.start) if after.start < taken[-1].end else taken[-1].end)
        after = taken.pop()
    yield b""


def _last(tokens: Iterator[Token], text: _Window, limit: int) -> Iterator[bytes]:
    """Ends of a text, of at most `limit` tokens and of ever fewer."""
    taken: deque[Token] = deque(maxlen=limit + 1)
    for token in tokens:
        taken.append(token)
        text.forget(taken[0].start)
    if len(taken) <= limit:
        yield text.data(0, None)
        return
    while len(taken) > 1:
        before = taken.popleft()
        yield text.data(max(before.end, taken[0].start), None)
    yield b""


def _whole_characters(data: bytes) -> bytes:
    return data.decode("utf-8", "ignore").encode()


def _count(reading: Reading, tokenizer: Tokenizer, data: bytes) -> int:
    return sum(len(part.ids) for part in reading.parts(tokenizer, None, [data.decode()]))


class _Window:
    """A text that is read in blocks, of which those are kept that are still wanted."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._kept: deque[tuple[int, bytes]] = deque()
        self.size = 0  # bytes that have been read

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            data = block.encode()
            self._kept.append((self.size, data))
            self.size += len(data)
            yield block

    def forget(self, before: int) -> None:
        """Drops blocks that end before a byte."""
        while len(self._kept) > 1 and self._kept[1][0] <= before:
            self._kept.popleft()

    def data(self, start: int, end: int | None) -> bytes:
        """Bytes that have been read and not been dropped."""
        end = self.size if end is None else end
        wanted = (
            block[max(0, start - at) : end - at] for at, block in self._kept if at < end and at + len(block) > start
        )
        return b"".join(wanted)


def roundtrip(
    reading: Reading, names: Sequence[str | None], tokenizer: Tokenizer, sink: Sink, *, as_json: bool
) -> None:
    """Says of each text whether its tokens decode to it. Raises BrokenTokenizer behind the last where one does not."""
    failed = None
    for name in names:
        size, tokens, difference = _first_difference(reading, name, tokenizer)
        if as_json:
            record = {"file": name, "same": difference is None, "bytes": size, "tokens": tokens}
            sink.write(json_line(record | {"first_difference": difference}))
        elif difference is None:
            sink.write(f"{where(name)}: the same, {size} bytes, {tokens} tokens\n".encode())
        if difference is not None and failed is None:
            failed = f"{where(name)}: byte {difference}: decoding its tokens gives something else"
    if failed:
        raise BrokenTokenizer(f"not the same: {failed}")


def _first_difference(reading: Reading, name: str | None, tokenizer: Tokenizer) -> tuple[int, int, int | None]:
    """How many bytes and tokens a text has, and where what they decode to differs from it, if it does."""
    text, tokens = _Window(reading.blocks(name)), 0

    def ids() -> Iterator[int]:
        nonlocal tokens
        for part in reading.parts(tokenizer, name, text):
            tokens += len(part.ids)
            yield from part.ids

    at, difference = 0, None
    pieces = tokenizer.text_pieces(ids())
    while batch := list(itertools.islice(pieces, _BATCH)):
        data = b"".join(batch)
        if difference is None:
            own = text.data(at, at + len(data))
            if own != data:
                difference = at + next((i for i, (a, b) in enumerate(zip(own, data, strict=False)) if a != b), len(own))
            at += len(data)
            text.forget(at)
    if difference is None and at < text.size:
        difference = at
    return text.size, tokens, difference


def search(tokenizer: Tokenizer, pattern: str | None, ids: Sequence[int], *, as_json: bool) -> None:
    """Prints the tokens whose text a pattern finds, or those of ids. Raises UsageError for a wrong one."""
    if pattern is None:
        for id in ids:
            if not 0 <= id < tokenizer.size or not tokenizer.piece(id):
                raise UsageError(f"no token has the id {id}: they are 0 to {tokenizer.size - 1}")
    else:
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"not a regular expression: {pattern}: {error}") from None
        names = {
            id: tokenizer.surface(id).decode("utf-8", "replace") for id in range(tokenizer.size) if tokenizer.piece(id)
        }
        ids = [id for id, name in names.items() if found.search(name)]
    records = []
    for id in ids:
        data = tokenizer.surface(id)
        records.append(
            {
                "id": id,
                "token": data.decode("utf-8", "replace") if as_json else escaped(data),
                "piece": tokenizer.piece(id),
                "bytes": data.hex(),
                "special": tokenizer.is_control(id) if as_json else int(tokenizer.is_control(id)),  # as --tsv has it
            }
        )

    def row(record: dict[str, Any]) -> dict[str, str]:
        special = "special" if record["special"] else ""
        shown = {"id": str(record["id"]), "token": spell(tokenizer.surface(record["id"])), "piece": record["piece"]}
        return shown | {"bytes": bytes.fromhex(record["bytes"]).hex(" "), "": special}

    print_records(records, as_json, row)
