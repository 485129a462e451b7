"""`gptcli tokenize --truncate`: the longest beginning or end of a text within a number of tokens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator

from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tokens.inputs import BlockWindow, TextReader
from gptcli.text.located_tokens import Token
from gptcli.text.tokenizer import Tokenizer


def truncate(
    reader: TextReader,
    name: str | None,
    tokenizer: Tokenizer,
    sink: StdoutSink,
    limit: int,
    *,
    from_end: bool,
    partial: bool,
) -> None:
    """Writes the longest beginning, or end, that encodes to at most `limit` tokens by itself.

    partial: exactly `limit` tokens of the whole text, even if they end within a character.
    """
    window = BlockWindow(reader.blocks(name))
    tokens = reader.tokens(tokenizer, name, window)
    candidates = _ends(tokens, window, limit) if from_end else _beginnings(tokens, window, limit)
    if not partial:
        whole = (data.decode("utf-8", "ignore").encode() for data in candidates)
        candidates = (data for data in whole if not data or _count(reader, tokenizer, data) <= limit)
    sink.write(next(candidates))
    if sink.is_terminal:
        sink.end_line()


def _beginnings(tokens: Iterator[Token], window: BlockWindow, limit: int) -> Iterator[bytes]:
    """Beginnings of a text: of `limit` tokens, then one fewer each time."""
    taken = list(itertools.islice(tokens, limit))
    after = next(tokens, None)
    if after is None:
        yield window.data(0, None)
        return
    while taken:
        # The bytes of a normalized character may continue in the next token.
        yield window.data(0, min(taken[-1].end, after.start) if after.start < taken[-1].end else taken[-1].end)
        after = taken.pop()
    yield b""


def _ends(tokens: Iterator[Token], window: BlockWindow, limit: int) -> Iterator[bytes]:
    """Ends of a text: of `limit` tokens, then one fewer each time."""
    taken: deque[Token] = deque(maxlen=limit + 1)
    for token in tokens:
        taken.append(token)
        window.forget(taken[0].start)
    if len(taken) <= limit:
        yield window.data(0, None)
        return
    while len(taken) > 1:
        before = taken.popleft()
        yield window.data(max(before.end, taken[0].start), None)
    yield b""


def _count(reader: TextReader, tokenizer: Tokenizer, data: bytes) -> int:
    return sum(len(chunk.ids) for chunk in reader.chunks(tokenizer, None, [data.decode()]))
