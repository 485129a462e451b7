"""`gptcli tokenize --decode` and `--roundtrip`: the text of ids, and whether a text's ids decode to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from gptcli.cli.json_records import json_line
from gptcli.cli.prompt_input import Decoding
from gptcli.cli.terminal.stdout import StdoutSink
from gptcli.cli.tokens.inputs import BlockWindow, TextReader, bytes_before, input_name, read_ids
from gptcli.errors import BrokenTokenizer
from gptcli.text.decoding.detokenizer import Detokenizer
from gptcli.text.tokenizer import Tokenizer

_BATCH = 4096  # tokens decoded together


def decode(arguments: Sequence[str], tokenizer: Tokenizer, sink: StdoutSink, decoding: Decoding) -> None:
    """Writes the text of ids."""
    ids = read_ids(arguments, decoding, tokenizer.size)
    if arguments and list(arguments) != ["-"]:
        ids = iter(list(ids))  # a wrong id fails before anything is written
    detokenizer = Detokenizer()
    for data in _decoded(ids, tokenizer):
        sink.write(detokenizer.push(data))
    sink.write(detokenizer.flush())
    if sink.is_terminal:
        sink.end_line()


def roundtrip(
    reader: TextReader, names: Sequence[str | None], tokenizer: Tokenizer, sink: StdoutSink, *, as_json: bool
) -> None:
    """Reports whether each text's ids decode to it. Raises BrokenTokenizer after the last text if any do not."""
    failed = None
    for name in names:
        size, tokens, difference = _first_difference(reader, name, tokenizer)
        if as_json:
            record = {"file": name, "same": difference is None, "bytes": size, "tokens": tokens}
            sink.write(json_line(record | {"first_difference": difference}))
        elif difference is None:
            sink.write_names(f"{input_name(name)}: the same, {size} bytes, {tokens} tokens\n")
        if difference is not None and failed is None:
            failed = f"{input_name(name)}: byte {difference}: decoding its tokens gives something else"
    if failed:
        raise BrokenTokenizer(f"not the same: {failed}")


def _first_difference(reader: TextReader, name: str | None, tokenizer: Tokenizer) -> tuple[int, int, int | None]:
    """Numbers of a text's bytes and tokens, and the first byte of the file that decodes to something else, if any."""
    blocks = reader.blocks(name)
    window, tokens = BlockWindow(blocks), 0

    def ids() -> Iterator[int]:
        nonlocal tokens
        for chunk in reader.chunks(tokenizer, name, window):
            tokens += len(chunk.ids)
            yield from chunk.ids

    start, difference = 0, None
    for data in _decoded(ids(), tokenizer):
        if difference is None:
            own = window.data(start, start + len(data))
            if own != data:
                unequal = (i for i, (a, b) in enumerate(zip(own, data, strict=False)) if a != b)
                difference = start + next(unequal, len(own))
            start += len(data)
            window.forget(start)
    if difference is None and start < window.size:
        difference = start
    return window.size, tokens, None if difference is None else difference + bytes_before(blocks)


def _decoded(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[bytes]:
    """The bytes of ids, in batches."""
    pieces = tokenizer.text_pieces(ids)
    while batch := list(itertools.islice(pieces, _BATCH)):
        yield b"".join(batch)
