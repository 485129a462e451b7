"""`gptcli tokenize --compare`: how many tokens two tokenizers make of a text, and where they cut it differently."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptcli.cli.terminal.columns import width
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.terminal.token_flow import painted
from gptcli.cli.tokens.formats import write_pieces
from gptcli.cli.tokens.inputs import TextReader, from_start_of_file, input_name
from gptcli.text.located_tokens import Token
from gptcli.text.tokenizer import Tokenizer

Pair = tuple[list[Token], list[Token]]  # each tokenizer's tokens of the same stretch of text


@dataclass
class _Counts:
    """Tokens of each tokenizer, bytes of the text, and borders between tokens: of both tokenizers, of one alone."""

    tokens: list[int]
    both: int = 0
    alone: tuple[int, int] = (0, 0)
    bytes: int = 0

    def add(self, pair: Pair) -> None:
        ends = [{token.end for token in side if token.end > token.start} for side in pair]
        self.tokens = [count + len(side) for count, side in zip(self.tokens, pair, strict=True)]
        self.both += len(ends[0] & ends[1])
        self.alone = self.alone[0] + len(ends[0] - ends[1]), self.alone[1] + len(ends[1] - ends[0])


def compare(
    reader: TextReader,
    names: Sequence[str | None],
    models: tuple[str, str],
    tokenizers: tuple[Tokenizer, Tokenizer],
    sink: StdoutSink,
    columns: int,
    *,
    colour: bool,
    as_json: bool,
) -> None:
    """Writes the stretches of each text that are cut differently, and figures."""
    for name in names:
        counts = _Counts([0, 0])
        pairs = _pairs(reader, name, tokenizers, counts)
        if as_json:
            write_pieces(_json(name, models, pairs, counts), sink)
            continue
        if len(names) > 1:
            sink.write_names(f"==> {input_name(name)} <==\n")
        for pair in pairs:
            if _differs(pair):
                sink.draw(_line(pair, columns, colour))
        size = max(map(len, models))
        for model, tokens in zip(models, counts.tokens, strict=True):
            each = f"{counts.bytes / tokens:.2f} bytes a token" if tokens else ""
            sink.write(f"{model:<{size}}  {tokens:>9,} tokens  {each}".rstrip().encode() + b"\n")
        first, second = counts.alone
        sink.write(
            f"borders: {counts.both:,} in both, {first:,} in the first alone, {second:,} in the second\n".encode()
        )


def _pairs(
    reader: TextReader, name: str | None, tokenizers: tuple[Tokenizer, Tokenizer], counts: _Counts
) -> Iterator[Pair]:
    """The tokens of both, in stretches between common borders."""
    blocks = reader.blocks(name)

    def counted() -> Iterator[str]:
        for block in blocks:
            counts.bytes += len(block.encode())
            yield block

    streams = [
        _Peekable(from_start_of_file(reader.tokens(tokenizer, name, own), blocks))
        for tokenizer, own in zip(tokenizers, itertools.tee(counted()), strict=True)
    ]
    while any(stream.peek() for stream in streams):
        pair: Pair = [], []
        ends = [-1, -1]
        while True:
            side = 0 if ends[0] <= ends[1] else 1
            if streams[side].peek() is None:
                side = 1 - side
            token = streams[side].take()
            if token is None:
                break
            pair[side].append(token)
            ends[side] = token.end
            if ends[0] == ends[1] and any(token.end > token.start for token in pair[0] + pair[1]):
                break
        for side, stream in enumerate(streams):  # further tokens of the same characters
            while (token := stream.peek()) and token.start < token.end <= ends[side]:
                pair[side].append(token)
                stream.take()
        counts.add(pair)
        yield pair


def _differs(pair: Pair) -> bool:
    """Whether the two cut the stretch differently; otherwise both make one token of it."""
    return any(len([token for token in side if token.end > token.start]) != 1 for side in pair)


def _extent(pair: Pair) -> tuple[int, int]:
    tokens = [token for side in pair for token in side if token.end > token.start]
    return min((token.start for token in tokens), default=0), max((token.end for token in tokens), default=0)


def _line(pair: Pair, columns: int, colour: bool) -> str:
    start, end = _extent(pair)
    extent = f"{start}-{end}"
    plain = [painted([token.data for token in side], colour=False) for side in pair]
    left, right = (painted([token.data for token in side], colour=colour) for side in pair)
    room = max(1, (columns - 18) // 2)
    if max(map(width, plain)) > room:
        return f"{extent}\n  {left}\n  {right}\n"
    return f"{extent:>13}  {left}{' ' * (room - width(plain[0]))} │ {right}\n"


def _json(name: str | None, models: tuple[str, str], pairs: Iterator[Pair], counts: _Counts) -> Iterator[str]:
    head = json.dumps({"file": name, "models": models}, ensure_ascii=False)
    yield head[:-1] + ', "differences": ['
    first = True
    for pair in pairs:
        if _differs(pair):
            start, end = _extent(pair)
            ids = [[token.id for token in side] for side in pair]
            record = {"start": start, "end": end, "ids": ids}
            yield ("" if first else ", ") + json.dumps(record)
            first = False
    borders = {"both": counts.both, "first": counts.alone[0], "second": counts.alone[1]}
    yield f'], "tokens": {json.dumps(counts.tokens)}, "borders": {json.dumps(borders)}}}\n'


class _Peekable:
    """Tokens of which the next can be looked at; None is the end."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self._next = next(tokens, None)

    def peek(self) -> Token | None:
        return self._next

    def take(self) -> Token | None:
        taken, self._next = self._next, next(self._tokens, None)
        return taken
