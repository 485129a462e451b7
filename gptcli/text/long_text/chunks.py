"""Encodes a text of any length in chunks, a few at a time, to the ids of the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptcli.errors import BrokenTokenizer, InputError
from gptcli.text.backend import Encoding
from gptcli.text.long_text.borders import Borders
from gptcli.text.tokenizer import Tokenizer

_CHUNK = 1 << 16  # characters; the library slows down beyond
_BATCH = 16  # chunks that are encoded in parallel


@dataclass(frozen=True)
class Chunk:
    """A chunk of a text and its encoding.

    text: begins with `lead` characters of the chunk before. encoding: of all the text; its first `skip` tokens are of
    the lead.
    """

    text: str
    lead: int
    encoding: Encoding
    skip: int

    @property
    def ids(self) -> list[int]:
        """The chunk's own ids."""
        ids: list[int] = self.encoding.ids
        return ids[self.skip :] if self.skip else ids


@dataclass(frozen=True)
class _Cut:
    """A chunk that is not encoded yet."""

    text: str
    lead: int
    lead_ids: Sequence[int]


def encode_chunks(
    tokenizer: Tokenizer, blocks: Iterable[str], *, special: bool, largest: int, where: str, offsets: bool = False
) -> Iterator[Chunk]:
    """The chunks, in order, of a text that comes in blocks; nothing is added around it.

    special: as for `Tokenizer.encode`. where: names the text in errors. offsets: whether the encodings have offsets,
    which take time. Raises InputError if more than `largest` characters have no safe border, and BrokenTokenizer.
    """
    pending: list[_Cut] = []
    for cut in _cut(Borders(tokenizer, special=special), blocks, largest, where):
        pending.append(cut)
        if len(pending) == _BATCH:
            yield from _encode(tokenizer, pending, special, offsets)
            pending = []
    yield from _encode(tokenizer, pending, special, offsets)


def _cut(borders: Borders, blocks: Iterable[str], largest: int, where: str) -> Iterator[_Cut]:
    text, lead = "", 0  # the text not cut yet, after its lead
    lead_ids: Sequence[int] = ()
    start = _CHUNK
    for block in blocks:
        text += block
        while borders.kinds and len(text) > start + borders.context:
            found = borders.find(text, start)
            if found is None:
                start = len(text) - borders.context
                break
            border, ids = found
            yield _Cut(text[:border], lead, lead_ids)
            kept = max(0, border - borders.context)
            text, lead, lead_ids = text[kept:], border - kept, ids
            start = lead + _CHUNK
        if len(text) - lead > largest:
            raise InputError(
                f"too large: {where}: no place to cut it safely within {largest} characters",
                hint="such a text is encoded in one piece, in about 150 times its size of memory; "
                "raise the limit with --max-input",
            )
    yield _Cut(text, lead, lead_ids)


def _encode(tokenizer: Tokenizer, cuts: list[_Cut], special: bool, offsets: bool) -> Iterator[Chunk]:
    encodings: dict[int, Encoding] = {}
    backends = [tokenizer.backend_for(cut.text, special=special) for cut in cuts]
    for backend in dict.fromkeys(backends):
        chosen = [index for index, own in enumerate(backends) if own is backend]
        encoded = backend.encode_batch([cuts[index].text for index in chosen], offsets=offsets)
        encodings |= dict(zip(chosen, encoded, strict=True))
    for index, cut in enumerate(cuts):
        skip = len(cut.lead_ids)
        if list(cut.lead_ids) != encodings[index].ids[:skip]:
            raise BrokenTokenizer("cannot encode in parts: what comes much later in a text changes its tokens")
        yield Chunk(cut.text, cut.lead, encodings[index], skip)
