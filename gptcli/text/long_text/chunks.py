"""Encodes a text of any length in parts whose ids are those of the whole, in memory for a few parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gptcli.errors import BrokenTokenizer, InputError
from gptcli.text.backend import Encoding
from gptcli.text.long_text.borders import Borders
from gptcli.text.tokenizer import Tokenizer

_PART = 1 << 16  # characters; the library's speed falls beyond
_BATCH = 16  # parts that are encoded side by side


@dataclass(frozen=True)
class Part:
    """A part of a text and its encoding.

    text: the part, behind `lead` characters of what comes before. encoding: of both; the first `skip` tokens are the
    lead's.
    """

    text: str
    lead: int
    encoding: Encoding
    skip: int

    @property
    def ids(self) -> list[int]:
        """The part's own ids."""
        ids: list[int] = self.encoding.ids
        return ids[self.skip :] if self.skip else ids


@dataclass(frozen=True)
class _Cut:
    text: str
    lead: int
    lead_ids: Sequence[int]


def encode_parts(
    tokenizer: Tokenizer, blocks: Iterable[str], *, special: bool, largest: int, where: str, offsets: bool = False
) -> Iterator[Part]:
    """The parts of a text that comes in blocks, one after the other; nothing is added around it.

    special: as for `Tokenizer.encode`. offsets: whether the encodings have offsets, which take time.
    Raises InputError where more than `largest` characters have no border that is sure to be one.
    """
    waiting: list[_Cut] = []
    for cut in _cut(Borders(tokenizer, special=special), blocks, largest, where):
        waiting.append(cut)
        if len(waiting) == _BATCH:
            yield from _encoded(tokenizer, waiting, special, offsets)
            waiting = []
    yield from _encoded(tokenizer, waiting, special, offsets)


def _cut(borders: Borders, blocks: Iterable[str], largest: int, where: str) -> Iterator[_Cut]:
    text, lead = "", 0  # text begins with the lead of what is to be cut off next
    lead_ids: Sequence[int] = ()
    start = _PART
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
            start = lead + _PART
        if len(text) - lead > largest:
            raise InputError(
                f"too large: {where}: no place to cut it safely within {largest} characters",
                hint="such a text is encoded in one piece, in about 150 times its size of memory; "
                "raise the limit with --max-input",
            )
    yield _Cut(text, lead, lead_ids)


def _encoded(tokenizer: Tokenizer, cuts: list[_Cut], special: bool, offsets: bool) -> Iterator[Part]:
    encodings: dict[int, Encoding] = {}
    inners = [tokenizer.inner_for(cut.text, special=special) for cut in cuts]
    for inner in dict.fromkeys(inners):
        chosen = [index for index, own in enumerate(inners) if own is inner]
        encoded = inner.encode_batch([cuts[index].text for index in chosen], offsets=offsets)
        encodings |= dict(zip(chosen, encoded, strict=True))
    for index, cut in enumerate(cuts):
        skip = len(cut.lead_ids)
        if list(cut.lead_ids) != encodings[index].ids[:skip]:
            raise BrokenTokenizer("cannot encode in parts: what is far behind a place changes the tokens before it")
        yield Part(cut.text, cut.lead, encodings[index], skip)
