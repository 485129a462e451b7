"""Text to token ids and token ids to bytes, over the tokenizers library. Knows nothing of models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gptcli.errors import BrokenTokenizer, ModelNotFound
from gptcli.files import is_there, open_within, read_json
from gptcli.notes import Note
from gptcli.text.backend import BackendTokenizer
from gptcli.text.control_tokens import ControlTokens
from gptcli.text.spelling import spelling_of

_FILE_LIMIT = 64 << 20  # bytes of a tokenizer.json; the largest in use are about 35 MB


class Tokenizer:
    """A model's tokenizer: encoding that keeps typed text apart from control tokens, and the exact bytes of tokens.

    library: the library's tokenizer, for its vocabulary and components; `backend_for` encodes. notes: what of its files
    has no effect.
    """

    def __init__(self, data: bytes, settings: dict[str, Any], where: Path) -> None:
        """data: the contents of a tokenizer.json, found at `where`. Raises BrokenTokenizer.

        settings: the contents of tokenizer_config.json, and of special_tokens_map.json where that says more.
        """
        self.settings = settings
        self.notes: list[Note] = []
        self._backend = BackendTokenizer(data, where)
        self.library = self._backend.library
        self._added = self.library.get_added_tokens_decoder()
        self.control_tokens = ControlTokens(self._backend, self._added)
        self.spelling = spelling_of(self.library, where)
        self._surfaces: dict[int, bytes] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads tokenizer.json, and tokenizer_config.json beside it, from a model directory.

        Raises ModelNotFound where it is missing and BrokenTokenizer where it cannot be used.
        """
        file = path / "tokenizer.json"
        if not is_there(file):
            hint = "only tokenizer.json is read, not tokenizer.model; AutoTokenizer.save_pretrained writes it"
            raise ModelNotFound(f"no tokenizer: {file}", hint)
        with open_within(file) as stream:
            data = stream.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise BrokenTokenizer(f"cannot read: {file}: larger than {_FILE_LIMIT >> 20} MB")
        settings: dict[str, Any] = {}
        notes = list[Note]()
        for name in ("special_tokens_map.json", "tokenizer_config.json"):  # older models name tokens only in the first
            if is_there(path / name):
                settings |= read_json(path / name, notes=notes)
        tokenizer = cls(data, settings, file)
        tokenizer.notes += notes
        return tokenizer

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def named_tokens(self) -> dict[str, str]:
        """Control tokens by the role that tokenizer_config.json gives them, such as `bos_token`."""
        named = {}
        for role, value in self.settings.items():
            content = value.get("content") if isinstance(value, dict) else value
            if role.endswith("_token") and isinstance(content, str):
                named[role] = content
        return named

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id of the tokenizer's end-of-sequence token, if it names one."""
        id = self.library.token_to_id(self.named_tokens.get("eos_token", ""))
        return () if id is None else (id,)

    @cached_property
    def unknown_id(self) -> int | None:
        """The id for whatever the vocabulary cannot spell, if it has one."""
        name = getattr(self.library.model, "unk_token", None)
        if name is None and type(self.library.model).__name__ == "Unigram":  # whose id only its state tells
            id = json.loads(self.library.to_str())["model"]["unk_id"]
            return id if isinstance(id, int) else None
        return None if name is None else self.library.token_to_id(name)

    @cached_property
    def surroundings(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the model expects before and after a text, such as BOS and EOS."""
        encoding = self._backend.encode("a", True)
        added = encoding.special_tokens_mask
        own = [index for index, special in enumerate(added) if not special]
        start, end = (own[0], own[-1] + 1) if own else (len(added), len(added))
        return tuple(encoding.ids[:start]), tuple(encoding.ids[end:])

    def takes_whitespace_after(self, id: int) -> bool:
        """Whether a token includes the whitespace that follows it."""
        return id in self._added and self._added[id].rstrip

    def is_added(self, id: int) -> bool:
        """Whether the library searches texts for a token before it does anything else."""
        return id in self._added

    def backend_for(self, text: str, *, special: bool) -> BackendTokenizer:
        """What encodes a text; `special` as for `encode`."""
        if special or not self.control_tokens.may_be_in(text):
            return self._backend
        return self.control_tokens.renamed_backend

    def encode(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        special: whether control tokens that it spells, such as `<|im_end|>`, are those tokens, or plain text.
        add_special: whether what the model expects around a text, such as BOS, is added.
        """
        ids = self._ids(self.backend_for(text, special=special), text, add_special)
        if not ids and any(map(str.isalnum, text)):
            where = self._backend.where
            raise BrokenTokenizer(f"cannot encode: {where}: it makes no token of {len(text)} characters")
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat: its control tokens are those that `ControlTokens.guard` did not mark."""
        return self._ids(*self.control_tokens.resolve(text), False)

    def _ids(self, backend: BackendTokenizer, text: str, add_special: bool) -> list[int]:
        ids = list(backend.encode(text, add_special).ids)
        # A tokenizer.json may add ids that no token has.
        if ids and max(ids) >= self.size:
            raise BrokenTokenizer(f"cannot encode: {backend.where}: it makes token {max(ids)} of {self.size}")
        return ids

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of a token, such as `Ġthe`."""
        piece = self.library.id_to_token(id)
        return "" if piece is None else piece

    def surface(self, id: int) -> bytes:
        """The bytes of a text that a token stands for: `token_bytes` without spaces that only decoding adds."""
        surface = self._surfaces.get(id)
        if surface is None:
            added = self._added.get(id)
            surface = self.spelling.surface(self.piece(id)) if added is None else added.content.encode()
            if surface:  # ids without a token, of which there is no end, are not cached
                self._surfaces[id] = surface
        return surface

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text; empty for an id without a token."""
        surface, spelling = self.surface(id), self.spelling
        if surface and (spelling.continuation or spelling.word_end):
            return spelling.with_spaces(surface, self.piece(id))
        return surface

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens, concatenated."""
        return b"".join(map(self.token_bytes, ids))

    def text_pieces(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The text of tokens, in pieces: as `decode`, without the space that decoding adds at its beginning or end."""
        return self.spelling.without_outer_space(map(self.token_bytes, ids))

    def token_name(self, id: int) -> str:
        """A token for a person to read: its text, with U+FFFD for bytes that are not UTF-8."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def is_control(self, id: int) -> bool:
        """Whether a token is a control token, such as `<|im_end|>`."""
        return id in self._added and self._added[id].special

    def spelled_controls(self, text: str) -> tuple[str, ...]:
        """The control tokens that a text spells."""
        return self.control_tokens.spelled_in(text)

    def difference(self, other: Tokenizer) -> str | None:
        """How the tokens of another tokenizer differ, for a person to read; None where every id is the same."""
        for id in range(max(self.size, other.size)):
            mine, theirs = self.piece(id), other.piece(id)
            if mine != theirs or self.token_bytes(id) != other.token_bytes(id):
                return f"token {id} is {theirs!r}, not {mine!r}"
        return None
