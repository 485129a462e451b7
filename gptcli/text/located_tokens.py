"""The tokens of a text, each with its range of bytes and characters in the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gptcli.text.long_text.chunks import encode_chunks
from gptcli.text.long_text.offsets import Offsets
from gptcli.text.tokenizer import Tokenizer


class Token(NamedTuple):
    """A token in its text.

    position: its index, from 0. data: its bytes, as the model spells them. start, end: the range of bytes in the text.
    first_char, end_char: the range of characters. special: whether it is a control token. in_chat: whether the text is
    a rendered conversation. message, role: the index and role of its message, or None.
    """

    position: int
    id: int
    data: bytes
    start: int
    end: int
    first_char: int
    end_char: int
    special: bool
    in_chat: bool = False
    message: int | None = None
    role: str | None = None


def tokens_of(
    tokenizer: Tokenizer, blocks: Iterable[str], *, special: bool, add_special: bool, largest: int, where: str
) -> Iterator[Token]:
    """The tokens of a text of any length. add_special: whether the tokens that the model expects around it are added.

    special, largest, where, and what is raised: as for `encode_chunks`.
    """
    before, after = tokenizer.surroundings if add_special else ((), ())
    offsets = Offsets(tokenizer)
    position, byte, char = 0, 0, 0  # of the next block
    for id in before:
        yield Token(position, id, tokenizer.surface(id), 0, 0, 0, 0, tokenizer.is_control(id))
        position += 1
    for chunk in encode_chunks(tokenizer, blocks, special=special, largest=largest, where=where, offsets=True):
        lead = len(chunk.text[: chunk.lead].encode())
        ranges = offsets.of(chunk.text, chunk.encoding)[chunk.skip :]
        chars = _chars(chunk.text)
        for id, (start, end) in zip(chunk.ids, ranges, strict=True):
            # A token that shares a changed character with the lead would begin in the lead.
            start, end = max(start, lead), max(end, lead)
            first = chars[start]
            last = chars[end - 1] + 1 if end > start else first
            span = (byte + start - lead, byte + end - lead, char + first - chunk.lead, char + last - chunk.lead)
            yield Token(position, id, tokenizer.surface(id), *span, tokenizer.is_control(id))
            position += 1
        byte += len(chunk.text.encode()) - lead
        char += len(chunk.text) - chunk.lead
    for id in after:
        yield Token(position, id, tokenizer.surface(id), byte, byte, char, char, tokenizer.is_control(id))
        position += 1


def _chars(text: str) -> Sequence[int]:
    """The index of the character of each byte of a text, and of its end."""
    if text.isascii():
        return range(len(text) + 1)
    return [index for index, char in enumerate(text) for _ in char.encode()] + [len(text)]
