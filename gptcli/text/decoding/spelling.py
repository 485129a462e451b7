"""How the pieces of a vocabulary spell bytes: byte-level, SentencePiece, WordPiece, or with marked ends of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from tokenizers.decoders import Decoder

from gptcli.text.hf_tokenizers import description, steps

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # as the library reads them
# The WordPiece decoder's replacements, in its order.
_TIDIED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


@dataclass(frozen=True)
class Spelling:
    """How pieces spell bytes.

    space: the characters for a space. byte_level: whether GPT-2's alphabet spells all pieces. byte_fallback: whether
    pieces such as `<0x0A>` are bytes. continuation: the prefix of pieces within a word. word_end: the suffix of a
    word's last piece. strips_lead: whether a decoded text loses a space at its beginning. first_without_spaces: whether
    a text's first piece loses all its spaces. tidy: whether decoding drops spaces before punctuation. separate: whether
    decoding puts a space between any two pieces. exact: False if none of these describes the decoder.
    """

    space: str = " "
    byte_level: bool = False
    byte_fallback: bool = False
    continuation: str = ""
    word_end: str = ""
    strips_lead: bool = False
    first_without_spaces: bool = False
    tidy: bool = False
    separate: bool = False
    exact: bool = True

    def surface(self, piece: str) -> bytes:
        """The bytes of a text that a piece stands for."""
        if self.byte_level:
            alphabet = _byte_level_alphabet()
            if all(char in alphabet for char in piece):
                return bytes(alphabet[char] for char in piece)
            return piece.encode()
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if self.continuation:
            piece = piece.removeprefix(self.continuation)
        if self.word_end:
            piece = piece.removesuffix(self.word_end)
        return piece.replace(self.space, " ").encode()

    def is_byte(self, piece: str) -> bool:
        """Whether a piece such as `<0x0A>` is a byte."""
        return self.byte_fallback and _BYTE_TOKEN.fullmatch(piece) is not None

    def decoded(self, piece: str) -> bytes:
        """The decoded bytes of a piece within a text: its surface, and spaces that only decoding adds."""
        if self.continuation:
            within_word = piece.startswith(self.continuation)
            return self._tidied(piece.removeprefix(self.continuation) if within_word else " " + piece)
        if self.word_end:
            return piece.replace(self.word_end, " ").encode()
        return b" " + piece.encode() if self.separate else self.surface(piece)

    def decoded_text(
        self, ids: Iterable[int], piece_of: Callable[[int], str | None], decoded: Callable[[int], bytes]
    ) -> Iterator[bytes]:
        """The decoded bytes of a whole text, whose two ends differ from `decoded`. decoded: gives those of an id."""
        ids = (id for id in ids if piece_of(id) is not None)
        if self.word_end:
            last: int | None = None
            for id in ids:
                if last is not None:
                    yield decoded(last)
                last = id
            if last is not None:
                yield (piece_of(last) or "").replace(self.word_end, "").encode()
            return
        if self.first_without_spaces or self.continuation or self.separate:
            yield from (self._first(piece_of(id) or "") for id in islice(ids, 1))
        elif self.strips_lead:
            for id in ids:
                if data := decoded(id):
                    yield data.removeprefix(b" ")
                    break
        yield from map(decoded, ids)

    def _first(self, piece: str) -> bytes:
        """The decoded bytes of a piece that begins a text."""
        if self.first_without_spaces:
            return self.surface(piece.replace(self.space, ""))
        return self._tidied(piece) if self.continuation else piece.encode()

    def _tidied(self, text: str) -> bytes:
        if self.tidy:
            for untidy, tidied in _TIDIED:
                text = text.replace(untidy, tidied)
        return text.encode()

    def plain_spaces(self, text: str) -> str:
        """A text with plain spaces for the characters that mean a space in pieces."""
        return text if self.byte_level else text.replace(self.space, " ")


def spelling_of(decoder: Decoder | None) -> Spelling:
    """The spelling that a decoder undoes; not `exact` for an unusual decoder."""
    if decoder is None:
        return Spelling(separate=True)
    described = steps(description(decoder), "decoders")
    each = [step for step in described if step["type"] != "Fuse"]
    fused_at = next((index for index, step in enumerate(described) if step["type"] == "Fuse"), len(described))
    match each:
        case [{"type": "ByteLevel"}] if fused_at > 0:
            return Spelling(byte_level=True)
        case [{"type": "Metaspace", "replacement": str(space)} as step] if fused_at > 0:
            return Spelling(space, first_without_spaces=step["prepend_scheme"] != "never")
        case [{"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(tidy)}] if prefix and fused_at > 0:
            return Spelling(continuation=prefix, tidy=tidy)
        case [{"type": "BPEDecoder", "suffix": str(suffix)}] if suffix and fused_at > 0:
            return Spelling(word_end=suffix)
    return _sentencepiece_spelling(described[:fused_at], described[fused_at:]) or Spelling(_space(each), exact=False)


def _sentencepiece_spelling(each: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]]) -> Spelling | None:
    """The spelling of a decoder like SentencePiece's, else None. whole: its steps from `Fuse` on."""
    stripped = False
    match [step for step in whole if step["type"] != "Fuse"]:
        case []:
            pass
        case [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            stripped = True
        case _:
            return None
    match each:
        case []:
            return Spelling(strips_lead=stripped)
        case [{"type": "ByteFallback"}]:
            return Spelling(byte_fallback=True, strips_lead=stripped)
        case [{"type": "Replace", "pattern": {"String": str(space)}, "content": " "}] if space:
            return Spelling(space, strips_lead=stripped)
        case [
            {"type": "Replace", "pattern": {"String": str(space)}, "content": " "},
            {"type": "ByteFallback"},
        ] if space and not set(space) & set("<0x>"):
            return Spelling(space, byte_fallback=True, strips_lead=stripped)
    return None


def _space(described: Iterable[Mapping[str, Any]]) -> str:
    """The characters that a step of a decoder replaces by a space; without such a step, a space."""
    for step in described:
        match step:
            case {"type": "Metaspace", "replacement": str(space)}:
                return space
            case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "} if space:
                return space
    return " "


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for each byte; printable bytes are themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
