"""Text to token ids and token ids to bytes, over the tokenizers library. Knows nothing of models."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers

from gptcli.errors import BrokenTokenizer, ModelNotFound
from gptcli.files import is_there, open_within, read_json
from gptcli.text.backend import Inner
from gptcli.text.literal_regex import any_of

_LIMIT = 64 << 20  # bytes of a tokenizer.json; the largest in use are about 35 MB
# Control tokens by their looks: some vocabularies do not mark theirs as special.
_BARRED = re.compile(r"<[|｜].*[|｜]>")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A model's tokenizer: encoding that keeps typed text apart from control tokens, and the exact bytes of tokens."""

    def __init__(self, data: bytes, settings: dict[str, Any], where: Path) -> None:
        """data: the contents of a tokenizer.json, found at `where`. Raises BrokenTokenizer."""
        self._inner = Inner(data, where)
        self._settings = settings
        self._where = where
        self._added = self.library.get_added_tokens_decoder()
        self._control = {
            token.content: id for id, token in self._added.items() if token.special or _BARRED.fullmatch(token.content)
        }
        self._nonce = secrets.token_hex(16)  # what no text contains
        self._spelling = _spelling(self.library, where)
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
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise BrokenTokenizer(f"cannot read: {file}: larger than {_LIMIT >> 20} MB")
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):  # older models name tokens in the first alone
            if is_there(path / name):
                settings |= read_json(path / name)
        return cls(data, settings, file)

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The library's tokenizer, for its vocabulary and its parts; `inner_for` encodes."""
        return self._inner.library

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def settings(self) -> dict[str, Any]:
        """The contents of tokenizer_config.json, and of special_tokens_map.json where that says more."""
        return self._settings

    @property
    def named_tokens(self) -> dict[str, str]:
        """Control tokens by the role that tokenizer_config.json gives them, such as `bos_token`."""
        named = {}
        for role, value in self._settings.items():
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
        """The id that stands for whatever the vocabulary cannot spell, if there is one."""
        name = getattr(self.library.model, "unk_token", None)
        if name is None and type(self.library.model).__name__ == "Unigram":  # whose state alone knows
            id = json.loads(self.library.to_str())["model"]["unk_id"]
            return id if isinstance(id, int) else None
        return None if name is None else self.library.token_to_id(name)

    @cached_property
    def surroundings(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of what the model expects before and behind a text, such as BOS and EOS."""
        encoding = self._inner.encode("a", True)
        added = encoding.special_tokens_mask
        own = [index for index, special in enumerate(added) if not special]
        before, behind = (own[0], own[-1] + 1) if own else (len(added), len(added))
        return tuple(encoding.ids[:before]), tuple(encoding.ids[behind:])

    def swallows(self, id: int) -> bool:
        """Whether a token takes the whitespace behind it, too."""
        return id in self._added and self._added[id].rstrip

    def is_added(self, id: int) -> bool:
        """Whether a token is looked for in texts before anything else is done to them."""
        return id in self._added

    def inner_for(self, text: str, *, special: bool) -> Inner:
        """What encodes a text; control tokens spelled out in it are those if `special`."""
        return self._inner if special or not self._mentions_control(text) else self._guarded[0]

    def encode(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        special: whether control tokens spelled out in it, such as `<|im_end|>`, are those tokens, or mere text.
        add_special: whether what the model expects around a text, such as BOS, is added.
        """
        ids = self._ids(self.inner_for(text, special=special), text, add_special)
        if not ids and any(map(str.isalnum, text)):
            raise BrokenTokenizer(f"cannot encode: {self._where}: it makes no token of {len(text)} characters")
        return ids

    def _ids(self, inner: Inner, text: str, add_special: bool) -> list[int]:
        ids = list(inner.encode(text, add_special).ids)
        # What is put around a text need not be a token at all.
        if ids and max(ids) >= self.size:
            raise BrokenTokenizer(f"cannot encode: {self._where}: it makes token {max(ids)} of {self.size}")
        return ids

    def guard(self, text: str, *, wholly: bool = False) -> str:
        """Marks control tokens spelled out in a text, so that `encode_rendered` takes them for text.

        wholly: marks whatever could be the beginning of one, were something behind it taken away.
        """
        if not self._control:
            return text
        pattern = self._beginning_pattern if wholly else self._control_pattern
        return pattern.sub(lambda match: match[0][0] + self._nonce + match[0][1:], text)

    def unguard(self, text: str) -> str:
        """A text without the marks of `guard`."""
        return text.replace(self._nonce, "")

    def written_controls(self, text: str) -> list[str]:
        """The control tokens in a rendered chat, one after the other, without those that `guard` marked."""
        return self._control_pattern.findall(text) if self._control else []

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat: control tokens are what the template wrote, not what `guard` marked."""
        written = self.written_controls(text)
        parts = self._control_pattern.split(text) if written else [text]
        if self._nonce not in text and not any(map(self._mentions_control, parts)):
            return self._ids(self._inner, text, False)
        inner, renamed = self._guarded
        text = parts[0].replace(self._nonce, "")
        for control, part in zip(written, parts[1:], strict=True):
            text += renamed[control] + part.replace(self._nonce, "")
        return self._ids(inner, text, False)

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of a token, such as `Ġthe`."""
        piece = self.library.id_to_token(id)
        return "" if piece is None else piece

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text; nothing for an id without a token."""
        spelling, surface = self._spelling, self.surface(id)
        if not surface:
            return surface
        if spelling.continuation and not self.piece(id).startswith(spelling.continuation):
            return _without_wide_punctuation(b" " + surface) if spelling.tidy else b" " + surface
        if spelling.word_end and self.piece(id).endswith(spelling.word_end):
            return surface + b" "
        return surface

    def surface(self, id: int) -> bytes:
        """The bytes of a text that a token stands for: as `token_bytes`, without spaces that only decoding adds."""
        known = self._surfaces.get(id)
        if known is None:
            known = self._surface(id)
            if known:  # else there are as many ids as numbers
                self._surfaces[id] = known
        return known

    def _surface(self, id: int) -> bytes:
        if id in self._added:
            return self._added[id].content.encode()
        spelling, piece = self._spelling, self.piece(id)
        if spelling.byte_level:
            alphabet = _byte_level_alphabet()
            if all(char in alphabet for char in piece):
                return bytes(alphabet[char] for char in piece)
            return piece.encode()
        if spelling.byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if spelling.continuation:
            piece = piece.removeprefix(spelling.continuation)
        if spelling.word_end:
            piece = piece.removesuffix(spelling.word_end)
        return piece.replace(spelling.space, " ").encode()

    def as_space(self, text: str) -> str:
        """A text as the pieces spell it, with spaces where they have something for one."""
        return text if self._spelling.byte_level else text.replace(self._spelling.space, " ")

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens, one after the other."""
        return b"".join(map(self.token_bytes, ids))

    def decode_text(self, ids: Iterable[int]) -> bytes:
        """The text that tokens are: `decode` without the space that such a tokenizer puts before, or behind, a text."""
        return b"".join(self.text_pieces(ids))

    def text_pieces(self, ids: Iterable[int]) -> Iterator[bytes]:
        """`decode_text`, a piece at a time."""
        held, first = b"", self._spelling.leads_with_space
        for piece in map(self.token_bytes, ids):
            if first:
                piece, first = piece.removeprefix(b" "), False
            yield held
            held = piece
        yield held.removesuffix(b" ") if self._spelling.word_end else held

    def token_name(self, id: int) -> str:
        """A token for a person to read: its text, with what is no character replaced."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def is_control(self, id: int) -> bool:
        """Whether a token is a control token, such as `<|im_end|>`."""
        return id in self._added and self._added[id].special

    def spelled_controls(self, text: str) -> tuple[str, ...]:
        """The control tokens that are spelled out in a text."""
        return tuple(content for content in self._control if content in text)

    def difference(self, other: Tokenizer) -> str | None:
        """What sets the tokens of another tokenizer apart, for a person to read; None where every id is the same."""
        for id in range(max(self.size, other.size)):
            mine, theirs = self.piece(id), other.piece(id)
            if mine != theirs or self.token_bytes(id) != other.token_bytes(id):
                return f"token {id} is {theirs!r}, not {mine!r}"
        return None

    def _mentions_control(self, text: str) -> bool:
        if not self._control or self._control_pattern.search(text):
            return bool(self._control)
        if not self._normalizer_spells_control:
            return False
        normalizer = self.library.normalizer
        assert normalizer is not None
        # One that nobody has vouched for is not run here.
        return self._inner.is_isolated or self._control_pattern.search(normalizer.normalize_str(text)) is not None

    @cached_property
    def _normalizer_spells_control(self) -> bool:
        """Whether a text may spell a control token once it is normalized, in capitals or wide letters say."""
        normalizer, model = self.library.normalizer, self.library.model
        # The others are looked for before a text is normalized, and the model knows no pieces that spell them.
        known_behind = [
            content
            for content, id in self._control.items()
            if self._added[id].normalized or model.token_to_id(content) is not None
        ]
        if normalizer is None or not known_behind:
            return False
        state = json.loads(normalizer.__getstate__())
        parts = state.get("normalizers", [state])
        return not all(_only_puts_between(part, "".join(known_behind)) for part in parts)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(any_of(sorted(self._control)))
        except RecursionError:
            raise BrokenTokenizer(f"cannot read: {self._where}: its control tokens begin with one another") from None

    @cached_property
    def _beginning_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted({content[0] for content in self._control}))))

    @cached_property
    def _guarded(self) -> tuple[Inner, dict[str, str]]:
        """Encodes where control tokens have names that nobody can type; and those names by the real ones."""
        renamed = {content: f"<{self._nonce}-{id}>" for content, id in self._control.items()}
        state = json.loads(self.library.to_str())
        for token in state["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(piece, piece): id for piece, id in model["vocab"].items()}
        else:  # Unigram: [piece, score] in order of ids
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        return Inner(json.dumps(state).encode(), self._where), renamed


def _only_puts_between(part: Mapping[str, Any], letters: str) -> bool:
    """Whether a part of a normalizer leaves something in a text wherever it takes something, and none of the letters.

    Then whatever consists of them is in a normalized text only where it was before.
    """
    match part:
        case {"type": "Prepend", "prepend": str(put)}:
            return not set(put) & set(letters)
        case {"type": "Replace", "pattern": {"String": str()}, "content": str(put)}:
            return put != "" and not set(put) & set(letters)
    return False


@dataclass(frozen=True)
class _Spelling:
    """How pieces spell bytes.

    space: what stands for one. byte_level, byte_fallback: whether all, or some, pieces are in an alphabet for bytes.
    continuation, word_end: what begins a piece within a word, or ends one at its end. leads_with_space: whether a text
    begins with a space that is not its own. tidy: whether decoding leaves out spaces before punctuation.
    """

    space: str = " "
    byte_level: bool = False
    byte_fallback: bool = False
    continuation: str = ""
    word_end: str = ""
    leads_with_space: bool = False
    tidy: bool = False


def _spelling(inner: tokenizers.Tokenizer, where: Path) -> _Spelling:
    state = {} if inner.decoder is None else json.loads(inner.decoder.__getstate__())
    parts = state.get("decoders", [state])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return _Spelling(byte_level=True)
    fallback = "ByteFallback" in kinds
    stripped = any(part.get("type") == "Strip" and part.get("start") and part.get("content") == " " for part in parts)
    for part in parts:
        match part:
            case {"type": "Metaspace", "replacement": str(space)}:
                stripped = stripped or part.get("prepend_scheme", "always") != "never"
                return _Spelling(space, byte_fallback=fallback, leads_with_space=stripped)
            case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "}:
                return _Spelling(space, byte_fallback=fallback, leads_with_space=stripped)
            case {"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(tidy)} if prefix:
                return _Spelling(continuation=prefix, leads_with_space=True, tidy=tidy)
            case {"type": "BPEDecoder", "suffix": str(suffix)} if suffix:
                return _Spelling(word_end=suffix)
    raise BrokenTokenizer(
        f"not supported: {where}: a decoder of type {'+'.join(sorted(map(str, kinds)))}",
        hint="byte-level, SentencePiece-style and WordPiece tokenizers are supported",
    )


def _without_wide_punctuation(data: bytes) -> bytes:
    """A token behind its space, and without that where the library's WordPiece decoder leaves it out."""
    bare = (b" .", b" ?", b" !", b" ,", b" n't", b" 'm", b" 's", b" 've", b" 're")
    return data[1:] if data.startswith(bare) else data


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a printable character; those that are printable stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
