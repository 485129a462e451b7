"""A tokenizer of the library that encodes here or, where its parts may hang or crash, in a process of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import tokenizers

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer
from gptcli.files import parse_json
from gptcli.text.sandbox.client import Isolated, Misbehaved
from gptcli.text.sandbox.trusted import KNOWN_TOKENIZERS, is_harmless
from gptcli.text.tokenizers_library import Encoded, encode, encode_batch, parse

_MEMORY = 512 << 20  # bytes for a process that opens a tokenizer, beside 16 for each byte of it
_LONGEST_PIECE = 256  # characters; the library's trees of them are as deep, take as long, and overflow the stack
_MOST_ADDED = 1 << 20  # characters of all added tokens; they are looked for in every text
_OPENED, _ENCODED = 4e6, 0.5e6  # bytes, and characters, that may take a second of CPU time

Encoding = tokenizers.Encoding | Encoded


class Inner:
    """An opened tokenizer.json. `library` is for what does not depend on a text: vocabulary, parts."""

    def __init__(self, data: bytes, where: Path) -> None:
        """data: the contents of a tokenizer.json, found at `where`. Raises BrokenTokenizer."""
        self._where = where
        self._isolated: Isolated | None = None
        try:
            if hashlib.sha256(data).hexdigest() in KNOWN_TOKENIZERS:
                self.library = parse(data)
                return
            state = parse_json(data, str(where))
            _check_pieces(state)
            if not is_harmless(state):
                seconds = _seconds(data, _OPENED)
                self._isolated = Isolated("tokenizer", data, seconds=seconds, memory=_MEMORY + 16 * len(data))
                self._isolated.open()
            # What was opened there within its limits can be opened here too: only encoding depends on a text.
            self.library = parse(data)
            _check_ids(state, self.library)
        except BrokenCheckpoint as error:
            raise BrokenTokenizer(error.message) from None
        except (BrokenTokenizer, Misbehaved) as error:
            raise BrokenTokenizer(f"cannot read: {where}: {error}") from None

    @property
    def is_isolated(self) -> bool:
        """Whether texts are encoded in another process."""
        return self._isolated is not None

    def encode(self, text: str, add_special: bool) -> Encoding:
        """The encoding of a text. Raises BrokenTokenizer."""
        try:
            if self._isolated is None:
                return encode(self.library, text, add_special)
            found = self._isolated.ask({"text": text, "add_special": add_special}, _seconds(text, _ENCODED))
        except (BrokenTokenizer, Misbehaved) as error:
            raise BrokenTokenizer(f"cannot encode: {self._where}: {error}") from None
        return Encoded(**found)

    def encode_batch(self, texts: Sequence[str], *, offsets: bool) -> Sequence[Encoding]:
        """The encodings of texts, with nothing around them; offsets take time. Raises BrokenTokenizer."""
        if self._isolated is not None:
            return [self.encode(text, False) for text in texts]
        try:
            return encode_batch(self.library, texts, offsets)
        except BrokenTokenizer as error:
            raise BrokenTokenizer(f"cannot encode: {self._where}: {error}") from None


def _check_pieces(state: Mapping[str, Any]) -> None:
    """Raises BrokenTokenizer where added tokens, or a piece of Unigram, whose vocabulary is a list, are too long."""
    match state.get("model"):
        case {"vocab": list(entries)}:
            pieces = (entry[0] for entry in entries if isinstance(entry, list) and entry)
            longest = max((len(piece) for piece in pieces if isinstance(piece, str)), default=0)
            if longest > _LONGEST_PIECE:
                raise BrokenTokenizer(f"a piece of its vocabulary has {longest} characters")
    match state.get("added_tokens"):
        case list(tokens):
            contents = (token.get("content") for token in tokens if isinstance(token, dict))
            added = sum(len(content) for content in contents if isinstance(content, str))
            if added > _MOST_ADDED:
                raise BrokenTokenizer(f"its added tokens have {added} characters")


def _check_ids(state: Mapping[str, Any], library: tokenizers.Tokenizer) -> None:
    """Raises BrokenTokenizer where two tokens have one id, or a token another one than it says."""
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) < len(vocabulary):
        raise BrokenTokenizer("two tokens of its vocabulary have the same id")
    for token in state.get("added_tokens") or ():
        if library.token_to_id(token["content"]) != token["id"]:
            raise BrokenTokenizer(f"the added token {token['content'][:40]!r} has not the id {token['id']}")


def _seconds(content: Sized, rate: float) -> float:
    """CPU time for something so long; a second is always granted."""
    return 1 + len(content) / rate
