"""From text to token ids, and from token ids to bytes, with the tokenizers library. Knows nothing of models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gptcli.errors import BrokenTokenizer, ModelNotFound
from gptcli.files import is_gguf, is_there, read_within
from gptcli.model_notes import Note
from gptcli.snapshot_format import SnapshotFile
from gptcli.text.backend import BackendTokenizer
from gptcli.text.control_tokens import ControlTokens
from gptcli.text.decoding.detokenizer import ExactDetokenizer, TokenDetokenizer
from gptcli.text.decoding.library_detokenizer import LibraryDetokenizer
from gptcli.text.decoding.spelling import spelling_of
from gptcli.text.decoding.tidied_text import TidyDetokenizer, wants_tidied
from gptcli.text.fast_start.tokenizer_snapshots import OpenedTokenizer, read_tokenizer, tokenizer_slot, write_tokenizer
from gptcli.text.hf_tokenizers import decoder_name
from gptcli.text.tokenizer_files.named_tokens import read_settings, with_named_tokens
from gptcli.text.tokenizer_files.sentencepiece_model import read_sentencepiece
from gptcli.text.tokenizer_files.tokenizer_classes import class_of, is_class, rebuilt_by
from gptcli.text.tokenizer_files.vocab_and_merges import read_vocab_and_merges

if TYPE_CHECKING:
    from gptcli.gguf.reader import GgufFile

_FILE_LIMIT = 64 << 20  # bytes of a tokenizer.json; the largest in use are about 35 MB


class Tokenizer:
    """A model's tokenizer: encodes without making control tokens of typed text, and knows the exact bytes of tokens.

    library: the library's tokenizer, for its vocabulary and components; `backend_for` encodes. notes: what has no
    effect in its files. unread: components of tokenizer.json that its class replaces, as in transformers. All that
    encodes or decodes raises BrokenTokenizer.
    """

    def __init__(
        self,
        data: bytes | dict[str, Any],
        settings: dict[str, Any],
        where: Path,
        added: Mapping[str, int] | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """data, where, state: see `BackendTokenizer`. settings, added: see `read_settings`. Raises BrokenTokenizer."""
        backend = BackendTokenizer(data, where, state)
        if (named := with_named_tokens(backend.library, settings, added or {}, where)) is not None:
            backend = BackendTokenizer(named, where)
        self._begin(backend, settings)

    def _begin(self, backend: BackendTokenizer, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.notes: list[Note] = []
        self.unread: tuple[str, ...] = ()
        self._unwritten: tuple[SnapshotFile, tuple[Note, ...]] | None = None
        self._backend = backend
        self.library = backend.library
        self._added = self.library.get_added_tokens_decoder()
        self.control_tokens = ControlTokens(self._backend, self._added)
        self.spelling = spelling_of(self.library.decoder)
        self._tidies = wants_tidied(settings, type(self.library.model).__name__)
        self._surfaces: dict[int, bytes] = {}
        self._decoded: dict[int, bytes] = {}
        if not self.spelling.exact:
            what = "the bytes of a token depend on its neighbours, so those of single tokens are approximate"
            self.notes.append(Note(f"{what}; decoder of type", (decoder_name(self.library.decoder),)))

    @classmethod
    def open(cls, path: Path, gguf: GgufFile | None = None) -> Self:
        """Opens the tokenizer of a model's directory, of tokenizer.json or older formats, or of a GGUF file.

        gguf: the file at `path`, if it is open already. Raises ModelNotFound without a tokenizer, and BrokenTokenizer
        for one that cannot be used.
        """
        slot = tokenizer_slot(path)
        kept = None if slot is None else read_tokenizer(slot)
        if kept is None:
            tokenizer = cls._read(path, gguf)
            if slot is not None and not tokenizer._backend.is_sandboxed:
                tokenizer._unwritten = slot, tuple(tokenizer.notes)
            return tokenizer
        library, opened = kept
        tokenizer = cls.__new__(cls)
        tokenizer._begin(BackendTokenizer.trusted(library, opened.where), opened.settings)
        tokenizer.notes, tokenizer.unread, tokenizer.size = list(opened.notes), opened.unread, opened.size
        return tokenizer

    def keep(self) -> None:
        """Keeps a snapshot of a tokenizer that `open` parsed, for a faster next start."""
        if self._unwritten is None:
            return
        (slot, notes), self._unwritten = self._unwritten, None
        if tokenizer_slot(slot.model) == slot:
            size = max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1
            opened = OpenedTokenizer(self.settings, notes, self.unread, self._backend.where, size)
            write_tokenizer(slot, self.library, opened)

    @classmethod
    def _read(cls, path: Path, gguf: GgufFile | None) -> Self:
        if gguf is not None or is_gguf(path):
            from gptcli.gguf.reader import GgufFile  # most models do not need it
            from gptcli.gguf.tokenizer import gguf_tokenizer

            return cls(*gguf_tokenizer(gguf or GgufFile(path)), path)
        notes = list[Note]()
        settings, added = read_settings(path, notes)
        data, settings, file = _read_data(path, settings)
        rebuilt = None
        if isinstance(data, bytes) and (name := class_of(path, settings, byte_level=b'"ByteLevel"' in data)):
            rebuilt = rebuilt_by(name, data, settings, added, file)
            if rebuilt is None and is_class(name):
                what = "tokenizer.json is read as it is; ids may differ where transformers builds its own, of class"
                notes.append(Note(what, (name,)))
        if rebuilt is None:
            tokenizer = cls(data, settings, file, added)
        else:
            tokenizer = cls(rebuilt.data, rebuilt.settings, file, rebuilt.added, rebuilt.state)
            tokenizer.unread = rebuilt.unread
        tokenizer.notes += notes
        return tokenizer

    def limit(self, rows: int) -> None:
        """Leaves out ids from `rows` on, for which the model has no rows; texts that need them are refused."""
        if self.size <= rows:
            return
        vocabulary = self.library.get_vocab(with_added_tokens=True)  # ids may be far apart
        beyond = sorted((id, piece) for piece, id in vocabulary.items() if id >= rows)
        self.notes.append(Note("tokens without a row in the model", tuple(piece for _, piece in beyond)))
        self.size = rows

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
        """The id for text that the vocabulary cannot spell, if there is one."""
        name = getattr(self.library.model, "unk_token", None)
        if name is None and type(self.library.model).__name__ == "Unigram":  # only its JSON has the id
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
        """Whether a token is an added one, which the library searches texts for before all else."""
        return id in self._added

    def added_content(self, id: int) -> str:
        """The text of an added token, as texts are searched for it; `piece` may be its normal form."""
        return self._added[id].content

    def backend_for(self, text: str, *, special: bool) -> BackendTokenizer:
        """The backend that encodes a text. special: as for `encode`."""
        if special or not self.control_tokens.may_be_in(text):
            return self._backend
        return self.control_tokens.renamed_backend

    def encode(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        special: whether control tokens that the text spells, such as `<|im_end|>`, are control tokens. add_special:
        whether the tokens that the model expects around a text, such as BOS, are added.
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
        # A post-processor may add ids that no token has.
        if ids and max(ids) >= self.size:
            raise BrokenTokenizer(f"cannot encode: {backend.where}: it makes token {max(ids)}, of {self.size} in use")
        return ids

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of a token, such as `Ġthe`."""
        piece = self.library.id_to_token(id)
        return "" if piece is None else piece

    def surface(self, id: int) -> bytes:
        """The bytes of a token in a text: `token_bytes` without spaces that only decoding adds."""
        surface = self._surfaces.get(id)
        if surface is None:
            surface = self._surface(id)
            if surface:  # ids without a token are not cached: there are too many
                self._surfaces[id] = surface
        return surface

    def _surface(self, id: int) -> bytes:
        if not self.spelling.exact:
            return self._backend.decode([id]).encode()
        added = self._added.get(id)
        if added is None:
            return self.spelling.surface(self.piece(id))
        if self.library.model.token_to_id(added.content) == id:  # other tokens may merge to it
            return self.spelling.surface(added.content)
        return self.spelling.plain_spaces(added.content).encode()

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text; empty for an id without a token."""
        data = self._decoded.get(id)
        if data is None:
            piece = self.library.id_to_token(id)
            if piece is None:
                return b""
            data = self.spelling.decoded(piece) if self.spelling.exact else self.surface(id)
            self._decoded[id] = data
        return data

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens within a text, concatenated."""
        if self.spelling.exact:
            return b"".join(map(self.token_bytes, ids))
        return b"".join(self.text_pieces(ids))

    def text_pieces(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The text of tokens, in pieces, as the library decodes it. Its two ends may differ from `decode`'s."""
        if self.spelling.exact:
            yield from self.spelling.decoded_text(ids, self.library.id_to_token, self.token_bytes)
            return
        detokenizer = LibraryDetokenizer(self._backend)
        yield from map(detokenizer.push, ids)
        yield detokenizer.flush()

    def library_texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The library's text of each sequence of ids, control tokens included."""
        return self._backend.decode_batch(sequences)

    def detokenizer(self, before: Sequence[int] = ()) -> TokenDetokenizer:
        """A detokenizer for a reply, tidied if transformers tidies it. before: the ids that the reply follows."""
        exact = self.spelling.exact
        made = ExactDetokenizer(self.token_bytes) if exact else LibraryDetokenizer(self._backend, before)
        return TidyDetokenizer(made) if self._tidies else made

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


def _read_data(path: Path, settings: dict[str, Any]) -> tuple[bytes | dict[str, Any], dict[str, Any], Path]:
    """The tokenizer.json of a directory, or one made of older files; its settings; the file that was read."""
    file = path / "tokenizer.json"
    if not is_there(file):
        if is_there(path / "vocab.json") and is_there(path / "merges.txt"):
            return *read_vocab_and_merges(path, settings), path / "vocab.json"
        if is_there(path / "tokenizer.model"):
            return *read_sentencepiece(path, settings), path / "tokenizer.model"
        hint = "vocab.json with merges.txt, and SentencePiece's tokenizer.model, are read as well"
        raise ModelNotFound(f"no tokenizer: {file}", hint)
    return read_within(file, _FILE_LIMIT, BrokenTokenizer), settings, file
