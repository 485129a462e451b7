"""Encodes with the tokenizers library: here, or in a sandboxed process if the tokenizer might hang or crash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tokenizers

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer
from gptcli.files import parse_json
from gptcli.text.hf_tokenizers import Encoded, decode_batch, encode, encode_batch
from gptcli.text.sandbox.allowlist import TRUSTED_TOKENIZERS, is_harmless
from gptcli.text.sandbox.client import SandboxClient, SandboxFailure
from gptcli.text.tokenizer_json import from_state, parse

if TYPE_CHECKING:
    from gptcli.text.fast_start.partial_tokenizer import Library

_SANDBOX_MEMORY = 512 << 20  # bytes, plus 16 for each byte of tokenizer.json
_LONGEST_PIECE = 256  # characters; longer pieces are slow and overflow the stack of the library's recursion
_MOST_ADDED = 1 << 20  # characters of all added tokens, which the library searches every text for
_OPENED_PER_SECOND, _ENCODED_PER_SECOND = 4e6, 0.5e6  # bytes, characters: the CPU time that is granted
_DECODED_PER_SECOND = 1e5  # ids

Encoding = tokenizers.Encoding | Encoded


class BackendTokenizer:
    """An opened tokenizer.json. library: for vocabulary and components, which depend on no text."""

    def __init__(self, data: bytes | dict[str, Any], where: Path, state: dict[str, Any] | None = None) -> None:
        """data: a tokenizer.json found at `where`, as bytes or parsed. state: the parsed bytes, if they are at hand.

        Raises BrokenTokenizer.
        """
        self.where = where
        self.library: Library
        self._sandbox: SandboxClient | None = None
        try:
            if not isinstance(data, bytes):
                state = data
            elif hashlib.sha256(data).hexdigest() in TRUSTED_TOKENIZERS:
                self.library = parse(data)
                return
            elif state is None:
                state = parse_json(data, str(where))
            _check_lengths(state)
            if not is_harmless(state):
                written = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
                seconds = _seconds(written, _OPENED_PER_SECOND)
                memory = _SANDBOX_MEMORY + 16 * len(written)
                self._sandbox = SandboxClient("tokenizer", written, seconds=seconds, memory=memory)
                self._sandbox.open()
            # A tokenizer that the sandbox opened within its limits is safe to open here; encoding depends on texts.
            self.library = parse(data) if isinstance(data, bytes) else from_state(state)
            _check_ids(state, self.library)
        except BrokenCheckpoint as error:
            raise BrokenTokenizer(error.message) from None
        except (BrokenTokenizer, SandboxFailure) as error:
            raise BrokenTokenizer(f"cannot read: {where}: {error}") from None

    @classmethod
    def trusted(cls, library: Library, where: Path) -> Self:
        """A backend for an opened tokenizer that needs no sandbox."""
        backend = cls.__new__(cls)
        backend.library, backend.where, backend._sandbox = library, where, None
        return backend

    @property
    def is_sandboxed(self) -> bool:
        """Whether another process encodes."""
        return self._sandbox is not None

    def encode(self, text: str, add_special: bool) -> Encoding:
        """The encoding of a text. Raises BrokenTokenizer."""
        try:
            if self._sandbox is None:
                return encode(self.library, text, add_special)
            request = {"text": text, "add_special": add_special}
            return Encoded(**self._sandbox.ask(request, _seconds(text, _ENCODED_PER_SECOND)))
        except (BrokenTokenizer, SandboxFailure) as error:
            raise BrokenTokenizer(f"cannot encode: {self.where}: {error}") from None

    def encode_batch(self, texts: Sequence[str], *, offsets: bool) -> Sequence[Encoding]:
        """The encodings of texts, with nothing added. offsets: whether they have offsets. Raises BrokenTokenizer."""
        if self._sandbox is not None:
            return [self.encode(text, False) for text in texts]
        try:
            return encode_batch(self.library, texts, offsets)
        except BrokenTokenizer as error:
            raise BrokenTokenizer(f"cannot encode: {self.where}: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The library's text of ids, control tokens included. Raises BrokenTokenizer."""
        return self.decode_batch([ids])[0] if ids else ""

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """As `decode`, for many sequences of ids."""
        try:
            if self._sandbox is None:
                return decode_batch(self.library, sequences)
            request = {"sequences": [list(ids) for ids in sequences]}
            count = sum(map(len, sequences))
            texts: list[str] = self._sandbox.ask(request, 1 + count / _DECODED_PER_SECOND)
            return texts
        except (BrokenTokenizer, SandboxFailure) as error:
            raise BrokenTokenizer(f"cannot decode: {self.where}: {error}") from None


def _check_lengths(state: Mapping[str, Any]) -> None:
    """Raises BrokenTokenizer for added tokens or a piece of Unigram, whose vocabulary is a list, that are too long."""
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
    """Raises BrokenTokenizer if two tokens share an id, or an added token's id is not the stated one."""
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) < len(vocabulary):
        raise BrokenTokenizer("two tokens of its vocabulary have the same id")
    for token in state.get("added_tokens") or ():
        if library.token_to_id(token["content"]) != token["id"]:
            raise BrokenTokenizer(f"the added token {token['content'][:40]!r} has not the id {token['id']}")


def _seconds(content: Sized, per_second: float) -> float:
    """CPU time for content of this length, at least one second."""
    return 1 + len(content) / per_second
