"""The Hugging Face tokenizers library: encoding, decoding and describing. Every failure is a BrokenTokenizer.

Knows nothing of files or processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers.decoders import Decoder
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from gptcli.text.tokenizer_json import raises_broken_tokenizer

if TYPE_CHECKING:
    from gptcli.text.fast_start.partial_tokenizer import Library


_SHORT = 1 << 13  # characters; a longer text is encoded without Python's lock


@dataclass(frozen=True)
class Encoded:
    """The fields of an encoding that gptcli uses, from another process."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


@raises_broken_tokenizer
def encode(library: Library, text: str, add_special: bool) -> tokenizers.Encoding:
    """The encoding of a text. Raises BrokenTokenizer as `parse` does."""
    if len(text) <= _SHORT:
        return library.encode(text, add_special_tokens=add_special)
    [encoding] = library.encode_batch([text], add_special_tokens=add_special)  # releases Python's lock
    return encoding


@raises_broken_tokenizer
def encode_batch(library: Library, texts: Sequence[str], offsets: bool) -> list[tokenizers.Encoding]:
    """The encodings of texts, in parallel, with nothing added around them. Raises BrokenTokenizer as `parse` does."""
    encode_all = library.encode_batch if offsets else library.encode_batch_fast
    return list(encode_all(list(texts), add_special_tokens=False))


@raises_broken_tokenizer
def decode_batch(library: Library, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of ids, control tokens included. Raises BrokenTokenizer as `parse` does."""
    return [library.decode(list(ids), skip_special_tokens=False) for ids in sequences]


def decoder_name(decoder: Decoder | None) -> str:
    """The types of a decoder's steps, such as `ByteFallback+Fuse`."""
    return "+".join(step["type"] for step in steps(description(decoder), "decoders"))


def description(component: Normalizer | PreTokenizer | Decoder | None) -> dict[str, Any] | None:
    """A component of a tokenizer as tokenizer.json describes it."""
    if component is None:
        return None
    described: dict[str, Any] = json.loads(component.__getstate__())
    return described


def steps(described: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a described component in order. members: the field in which a sequence lists its own."""
    if described is None:
        return []
    if described.get("type") != "Sequence":
        return [described]
    return [step for member in described[members] for step in steps(member, members)]
