"""How the pieces of a vocabulary spell bytes: byte-level, SentencePiece, WordPiece, or with marked ends of words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tokenizers

from gptcli.errors import BrokenTokenizer
from gptcli.text.hf_tokenizers import description

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_NO_SPACE_BEFORE = (b" .", b" ?", b" !", b" ,", b" n't", b" 'm", b" 's", b" 've", b" 're")  # the WordPiece decoder's


@dataclass(frozen=True)
class Spelling:
    """How pieces spell bytes.

    space: the character for a space. byte_level: whether GPT-2's alphabet spells all pieces. byte_fallback: whether
    pieces such as `<0x0A>` are bytes. continuation: how pieces within a word begin. word_end: how the last piece of a
    word ends. leads_with_space: whether a decoded text begins with an added space. tidy: whether decoding drops spaces
    before punctuation.
    """

    space: str = " "
    byte_level: bool = False
    byte_fallback: bool = False
    continuation: str = ""
    word_end: str = ""
    leads_with_space: bool = False
    tidy: bool = False

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

    def with_spaces(self, surface: bytes, piece: str) -> bytes:
        """A surface with the space that decoding adds: WordPiece's before a word, or that for `word_end`."""
        if self.continuation and not piece.startswith(self.continuation):
            spaced = b" " + surface
            return surface if self.tidy and spaced.startswith(_NO_SPACE_BEFORE) else spaced
        if self.word_end and piece.endswith(self.word_end):
            return surface + b" "
        return surface

    def without_outer_space(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """The pieces of a decoded text without the space that decoding adds at its beginning or end."""
        pending, first = b"", self.leads_with_space
        for piece in pieces:
            if first:
                piece, first = piece.removeprefix(b" "), False
            yield pending
            pending = piece
        yield pending.removesuffix(b" ") if self.word_end else pending

    def plain_spaces(self, text: str) -> str:
        """A text with a space for each character that pieces have for one."""
        return text if self.byte_level else text.replace(self.space, " ")


def spelling_of(library: tokenizers.Tokenizer, where: Path) -> Spelling:
    """The spelling that a tokenizer's decoder undoes. Raises BrokenTokenizer for a decoder of another type."""
    described = description(library.decoder) or {}
    steps = described.get("decoders", [described])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return Spelling(byte_level=True)
    fallback = "ByteFallback" in kinds
    stripped = any(step.get("type") == "Strip" and step.get("start") and step.get("content") == " " for step in steps)
    for step in steps:
        match step:
            case {"type": "Metaspace", "replacement": str(space)}:
                stripped = stripped or step.get("prepend_scheme", "always") != "never"
                return Spelling(space, byte_fallback=fallback, leads_with_space=stripped)
            case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "}:
                return Spelling(space, byte_fallback=fallback, leads_with_space=stripped)
            case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(tidy)} if prefix:
                return Spelling(continuation=prefix, leads_with_space=True, tidy=tidy)
            case {"type": "BPEDecoder", "suffix": str(suffix)} if suffix:
                return Spelling(word_end=suffix)
    raise BrokenTokenizer(
        f"not supported: {where}: a decoder of type {'+'.join(sorted(map(str, kinds)))}",
        hint="byte-level, SentencePiece-style and WordPiece tokenizers are supported",
    )


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a printable character; bytes that are printable spell themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
