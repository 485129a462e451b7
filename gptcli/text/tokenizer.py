"""Text to token ids and token ids to bytes, over the tokenizers library. Knows nothing of models."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Self

import tokenizers

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer, ModelNotFound
from gptcli.files import is_there, open_within, parse_json, read_json
from gptcli.text.isolation import Isolated, Misbehaved
from gptcli.text.known import KNOWN_TOKENIZERS, is_harmless
from gptcli.text.library import encode, parse

_Encode = Callable[[str, bool], list[int]]  # a text, and whether to add what belongs around it

_LIMIT = 64 << 20  # bytes of a tokenizer.json; the largest in use are about 35 MB
_MEMORY = 512 << 20  # bytes for a process that opens a tokenizer, beside 16 for each byte of it
# Control tokens by their looks: some vocabularies do not mark theirs as special.
_BARRED = re.compile(r"<[|｜].*[|｜]>")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """A model's tokenizer: encoding that keeps typed text apart from control tokens, and the exact bytes of tokens."""

    def __init__(self, data: bytes, settings: dict[str, Any], where: Path) -> None:
        """data: the contents of a tokenizer.json, found at `where`. Raises BrokenTokenizer."""
        inner, self._ids = _opened(data, where)
        self._inner = inner
        self._settings = settings
        self._where = where
        self._added = inner.get_added_tokens_decoder()
        self._control = {
            token.content: id for id, token in self._added.items() if token.special or _BARRED.fullmatch(token.content)
        }
        self._nonce = secrets.token_hex(16)  # what no text contains
        self._space, self._byte_level, self._byte_fallback = _decoder_kind(inner, where)

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

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1

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
        id = self._inner.token_to_id(self.named_tokens.get("eos_token", ""))
        return () if id is None else (id,)

    def encode(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text.

        special: whether control tokens spelled out in it, such as `<|im_end|>`, are those tokens, or mere text.
        add_special: whether what the model expects around a text, such as BOS, is added.
        """
        encoded = self._ids if special or not self._mentions_control(text) else self._guarded[0]
        ids = encoded(text, add_special)
        # What is put around a text need not be a token at all.
        if ids and max(ids) >= self.size:
            raise BrokenTokenizer(f"cannot encode: {self._where}: it makes token {max(ids)} of {self.size}")
        if not ids and text.strip():
            raise BrokenTokenizer(f"cannot encode: {self._where}: it makes no token of {len(text)} characters")
        return ids

    def guard(self, text: str) -> str:
        """Marks control tokens spelled out in a text, so that `encode_rendered` takes them for text."""
        if not self._control:
            return text
        return self._control_pattern.sub(lambda match: match[0][0] + self._nonce + match[0][1:], text)

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of a rendered chat: control tokens are what the template wrote, not what `guard` marked."""
        if self._nonce not in text:
            return self._ids(text, False)
        ids, renamed = self._guarded
        parts = self._control_pattern.split(text)
        written = self._control_pattern.findall(text)
        text = parts[0].replace(self._nonce, "")
        for control, part in zip(written, parts[1:], strict=True):
            text += renamed[control] + part.replace(self._nonce, "")
        return ids(text, False)

    def piece(self, id: int) -> str:
        """The vocabulary's own spelling of a token, such as `Ġthe`."""
        piece = self._inner.id_to_token(id)
        return "" if piece is None else piece

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to a text; nothing for an id without a token."""
        if id in self._added:
            return self._added[id].content.encode()
        piece = self.piece(id)
        if self._byte_level:
            alphabet = _byte_level_alphabet()
            if all(char in alphabet for char in piece):
                return bytes(alphabet[char] for char in piece)
            return piece.encode()
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(self._space, " ").encode()

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens, one after the other."""
        return b"".join(map(self.token_bytes, ids))

    def token_name(self, id: int) -> str:
        """A token for a person to read: its text, with what is no character replaced."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def is_control(self, id: int) -> bool:
        """Whether a token is a control token, such as `<|im_end|>`."""
        return id in self._added and self._added[id].special

    def _mentions_control(self, text: str) -> bool:
        return any(content in text for content in self._control)

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._control, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def _guarded(self) -> tuple[_Encode, dict[str, str]]:
        """Encodes where control tokens have names that nobody can type; and those names by the real ones."""
        renamed = {content: f"<{self._nonce}-{id}>" for content, id in self._control.items()}
        state = json.loads(self._inner.to_str())
        for token in state["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(piece, piece): id for piece, id in model["vocab"].items()}
        else:  # Unigram: [piece, score] in order of ids
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        return _opened(json.dumps(state).encode(), self._where)[1], renamed


def _opened(data: bytes, where: Path) -> tuple[tokenizers.Tokenizer, _Encode]:
    """A tokenizer and what encodes with it: itself, or, where its parts may hang or crash, a process of its own.

    What that has opened within its limits can be opened here too: only encoding depends on a text. Raises
    BrokenTokenizer.
    """
    try:
        if hashlib.sha256(data).hexdigest() in KNOWN_TOKENIZERS:
            inner = parse(data)
            return inner, _reporting(where, partial(encode, inner))
        state = parse_json(data, str(where))
        isolated = None
        if not is_harmless(state):
            isolated = Isolated("tokenizer", data, seconds=_seconds(data, 4), memory=_MEMORY + 16 * len(data))
            isolated.open()
        inner = parse(data)
        _check_ids(state, inner)
    except BrokenCheckpoint as error:
        raise BrokenTokenizer(error.message) from None
    except (BrokenTokenizer, Misbehaved) as error:
        raise BrokenTokenizer(f"cannot read: {where}: {error}") from None
    if isolated is None:
        return inner, _reporting(where, partial(encode, inner))

    def ask(text: str, add_special: bool) -> list[int]:
        seconds = _seconds(text, 0.5)
        ids: list[int] = isolated.ask({"text": text, "add_special": add_special}, seconds)
        return ids

    return inner, _reporting(where, ask)


def _check_ids(state: Mapping[str, Any], inner: tokenizers.Tokenizer) -> None:
    """Raises BrokenTokenizer where two tokens have one id, or a token another one than it says."""
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) < len(vocabulary):
        raise BrokenTokenizer("two tokens of its vocabulary have the same id")
    for token in state.get("added_tokens") or ():
        if inner.token_to_id(token["content"]) != token["id"]:
            raise BrokenTokenizer(f"the added token {token['content'][:40]!r} has not the id {token['id']}")


def _seconds(content: Sized, rate: float) -> float:
    """CPU time for something so long, at so many MB a second; a second is always granted."""
    return 1 + len(content) / (rate * 1e6)


def _reporting(where: Path, ids: _Encode) -> _Encode:
    def reported(text: str, add_special: bool) -> list[int]:
        try:
            return ids(text, add_special)
        except (BrokenTokenizer, Misbehaved) as error:
            raise BrokenTokenizer(f"cannot encode: {where}: {error}") from None

    return reported


def _decoder_kind(inner: tokenizers.Tokenizer, where: Path) -> tuple[str, bool, bool]:
    """How pieces spell bytes: the character that stands for a space, byte-level or not, byte fallback or not."""
    state = {} if inner.decoder is None else json.loads(inner.decoder.__getstate__())
    parts = state.get("decoders", [state])
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return " ", True, False
    for part in parts:
        match part:
            case {"type": "Metaspace", "replacement": str(space)}:
                return space, False, "ByteFallback" in kinds
            case {"type": "Replace", "pattern": {"String": str(space)}, "content": " "}:
                return space, False, "ByteFallback" in kinds
    raise BrokenTokenizer(
        f"not supported: {where}: a decoder of type {'+'.join(sorted(map(str, kinds)))}",
        hint="byte-level and SentencePiece-style tokenizers are supported",
    )


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a printable character; those that are printable stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
