"""A tokenizer of the library with only the pieces of a vocabulary that occur in the texts it encodes.

BPE merges pieces that occur in a text to pieces that occur in it. So these alone give the same ids.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import tokenizers
from tokenizers import AddedToken, models

from gptcli.text.fast_start.flat_vocabulary import FlatVocabulary
from gptcli.text.tokenizer_json import parse

NEVER = "\U0010ffff"  # a noncharacter, in no piece
_PARSED_PER_FOUND = 16  # finding the pieces at a character takes as long as parsing so many
_PARAMETERS = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class PartialTokenizer:
    """A `tokenizers.Tokenizer` for BPE without affixes. It takes all pieces once that is faster, or if asked for them.

    state: a tokenizer.json without pieces and merges. names: new names of control tokens, by their pieces.
    """

    def __init__(
        self, state: dict[str, Any], vocabulary: FlatVocabulary, names: Mapping[str, str] | None = None
    ) -> None:
        self._state, self._vocabulary, self._names = state, vocabulary, names or {}
        tokens = [
            token | {"content": self._names.get(token["content"], token["content"])} for token in state["added_tokens"]
        ]
        # The library takes the ids of added tokens from the vocabulary, and keeps them when the model changes.
        model = state["model"] | {"vocab": {token["content"]: token["id"] for token in tokens}, "merges": []}
        self._part = parse(json.dumps(state | {"added_tokens": tokens, "model": model}).encode())
        self._added = self._part.get_added_tokens_decoder()
        self._parameters = {name: state["model"][name] for name in _PARAMETERS if name in state["model"]}
        known = {added.content: id for id, added in self._added.items() if vocabulary.piece(id) == added.content}
        self.model = models.BPE(vocab=known, merges=[], **self._parameters)
        self._pieces = set(_BYTES if state["model"].get("byte_fallback") else ())
        self._last = self._bpe(self._pieces)
        self._work, self._is_whole = 0, False
        self._lock = threading.RLock()  # `_part` must not change while it encodes
        self.normalizer, self.pre_tokenizer = self._part.normalizer, self._part.pre_tokenizer
        self.decoder = self._part.decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole(), name)

    def renamed(self, names: Mapping[str, str]) -> PartialTokenizer:
        """The same tokenizer with other names for control tokens."""
        return PartialTokenizer(self._state, self._vocabulary, names)

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """As `tokenizers.Tokenizer`; so are the methods below."""
        return self._added

    def id_to_token(self, id: int) -> str | None:
        """The piece or added token of an id."""
        added = self._added.get(id)
        return self._vocabulary.piece(id) if added is None else added.content

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece or added token."""
        added = next((id for id, each in self._added.items() if each.content == token), None)
        return self._vocabulary.id_of(token) if added is None else added

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tokenizers.Encoding:
        """The encoding of a text."""
        with self._lock:
            return self._for([text]).encode(text, add_special_tokens=add_special_tokens)

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool = True) -> list[tokenizers.Encoding]:
        """The encodings of texts."""
        with self._lock:
            return self._for(texts).encode_batch(texts, add_special_tokens=add_special_tokens)

    def encode_batch_fast(self, texts: list[str], *, add_special_tokens: bool = True) -> list[tokenizers.Encoding]:
        """The same without offsets."""
        with self._lock:
            return self._for(texts).encode_batch_fast(texts, add_special_tokens=add_special_tokens)

    def _for(self, texts: list[str]) -> tokenizers.Tokenizer:
        """A tokenizer that encodes these texts as the whole one does."""
        self._work += _PARSED_PER_FOUND * sum(map(len, texts))
        if self._is_whole or self._work > len(self._vocabulary):
            return self._whole()
        # Unigram without a fitting piece returns each word unchanged, after normalizing and pre-tokenizing.
        self._part.model = models.Unigram([(NEVER, 0.0)], 0, False)
        encodings = self._part.encode_batch(texts, add_special_tokens=False)
        words = {token for encoding in encodings for token in encoding.tokens}
        found = set[str]().union(*map(self._vocabulary.within, words))
        if not found <= self._pieces:
            self._pieces |= found
            self._work += len(self._pieces)
            self._last = self._bpe(self._pieces)
        self._part.model = self._last
        return self._part

    def _bpe(self, pieces: Iterable[str] | None) -> models.BPE:
        """The model of these pieces, or of all."""
        parameters, unknown = dict(self._parameters), self._parameters.get("unk_token")
        vocab, merges = self._vocabulary.part(None if pieces is None else [*pieces, unknown or ""])
        if unknown is not None and unknown in self._names:
            parameters["unk_token"] = self._names[unknown]
        renamed = {self._names.get(piece, piece): id for piece, id in vocab.items()}
        return models.BPE(vocab=renamed, merges=merges, **parameters)

    def _whole(self) -> tokenizers.Tokenizer:
        with self._lock:
            if not self._is_whole:
                self._part.model, self._is_whole = self._bpe(None), True
            return self._part


Library: TypeAlias = tokenizers.Tokenizer | PartialTokenizer
