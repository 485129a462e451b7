"""Reads SentencePiece's tokenizer.model, and builds the tokenizer of the model's class as transformers does.

The file is a protobuf message, of which only the fields that matter are read.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenTokenizer
from gptcli.files import read_within
from gptcli.gguf.pre_tokenizers import split_by
from gptcli.gguf.tokenizer import piece_pairs
from gptcli.text.tokenizer_files.named_tokens import is_id
from gptcli.text.tokenizer_files.tokenizer_classes import (
    built,
    class_without_tokenizer_json,
    sentencepiece_decoder,
    tokens_around,
    with_roles,
)

_LIMIT = 64 << 20  # bytes
_MOST_PIECES, _LONGEST_PIECE = 1 << 21, 256
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # types of pieces
_UNIGRAM, _BPE = 1, 2
_Json = dict[str, Any]


@dataclass
class _Model:
    """The fields of tokenizer.model, with SentencePiece's defaults. pieces: text, score and type of each."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    algorithm: int = _UNIGRAM
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_piece: str = "<unk>"
    bos_piece: str = "<s>"
    eos_piece: str = "</s>"
    charsmap: bytes = b""
    dummy_prefix: bool = True
    merges_spaces: bool = True
    escapes_spaces: bool = True
    suffixes: bool = False

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece: id for id, (piece, _, _) in enumerate(self.pieces)}


def read_sentencepiece(path: Path, settings: Mapping[str, Any]) -> tuple[_Json, _Json]:
    """A tokenizer.json made of a model's tokenizer.model, and the settings with what their class adds.

    Raises BrokenTokenizer for an unknown class, and for a file that cannot be used.
    """
    file = path / "tokenizer.model"
    data = read_within(file, _LIMIT, BrokenTokenizer)
    try:
        model = _parsed(data)
    except (ValueError, struct.error, IndexError):
        raise BrokenTokenizer(f"cannot read: {file}: no SentencePiece model") from None
    _check(model, file)
    name = class_without_tokenizer_json(path, settings, file.name)
    settings = dict(settings)
    listed = [
        {"content": piece, "normalized": False, "special": kind == _CONTROL}
        for piece, _, kind in model.pieces
        if kind == _CONTROL or (kind == _USER_DEFINED and name is not None)
    ]
    if "extra_special_tokens" not in settings:  # as in transformers, where these come first
        settings["additional_special_tokens"] = listed
    if name is not None:
        if model.algorithm != _BPE:
            raise BrokenTokenizer(f"not supported: {file}: a {name} that is no BPE")
        settings = with_roles(name, settings)
        return built(name, settings, model.vocabulary, _merges_by_id(model), file), settings
    roles = {"bos": (model.bos_id, model.bos_piece), "eos": (model.eos_id, model.eos_piece)}
    roles["unk"] = model.unk_id, model.unk_piece
    settings = {f"{role}_token": piece for role, (id, piece) in roles.items() if id >= 0} | settings
    settings = _rename_pieces(model, settings)
    around = tokens_around(settings, model.vocabulary, file)
    return {**_generic(model, settings), "post_processor": around}, settings


def _generic(model: _Model, settings: Mapping[str, Any]) -> _Json:
    """A tokenizer.json that encodes as SentencePiece itself."""
    legacy = bool(settings.get("legacy", True))
    normalizers: list[_Json] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.merges_spaces:
        normalizers += [_replace(r"\A +| +\z", ""), _replace(" {2,}", " ")]
    if model.escapes_spaces:
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    splitters: list[_Json] = []
    if model.dummy_prefix:
        if legacy:
            normalizers.append(_replace(r"\A▁", "▁▁"))
        scheme = "always" if legacy else "first"
        splitters.append({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False})
    whole = [piece for piece, _, kind in model.pieces if kind == _USER_DEFINED]
    if whole:
        pattern = "|".join(re.escape(piece) for piece in sorted(whole, key=len, reverse=True))
        splitters.append(split_by(pattern))
    if model.algorithm == _UNIGRAM:
        vocabulary = [[piece, score] for piece, score, _ in model.pieces]
        described: _Json = {"type": "Unigram", "unk_id": model.unk_id, "vocab": vocabulary}
        described["byte_fallback"] = model.byte_fallback
    else:
        described = {"type": "BPE", "vocab": model.vocabulary, "merges": _merges_by_score(model), "fuse_unk": True}
        described |= {"unk_token": model.unk_piece, "byte_fallback": model.byte_fallback, "ignore_merges": bool(whole)}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters} if splitters else None,
        "decoder": sentencepiece_decoder(byte_fallback=model.byte_fallback, strip=model.dummy_prefix),
        "model": described,
    }


def _rename_pieces(model: _Model, settings: _Json) -> _Json:
    """Renames pieces to the tokens that settings have for their ids. Returns settings with unnormalized tokens."""
    decoder = settings.get("added_tokens_decoder")
    if not isinstance(decoder, dict) or not decoder or not all(isinstance(token, dict) for token in decoder.values()):
        return settings  # refused later if they are wrong
    names = {int(id): str(token.get("content")) for id, token in decoder.items() if is_id(id)}
    kept = {piece for id, (piece, _, _) in enumerate(model.pieces) if id not in names}
    for id, (piece, score, kind) in enumerate(model.pieces):
        name = names.get(id, piece)
        model.pieces[id] = (piece if name in kept else name), score, kind
    if not model.dummy_prefix:
        return settings
    return settings | {"added_tokens_decoder": {id: {**token, "normalized": False} for id, token in decoder.items()}}


def _replace(regex: str, content: str) -> _Json:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def _merges_by_id(model: _Model) -> list[tuple[str, str]]:
    """The pairs that merge to a piece, in the order of the pieces' ids."""
    ids = model.vocabulary
    ranked = [(ids[left + right], len(left), len(right), left, right) for left, right in piece_pairs(ids)]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _merges_by_score(model: _Model) -> list[tuple[str, str]]:
    """The pairs that merge to a piece, as SentencePiece ranks them: normal pieces only."""
    ranks = {piece: (-score, id) for id, (piece, score, kind) in enumerate(model.pieces) if kind == _NORMAL}
    ranked = [(*ranks[left + right], left, right) for left, right in piece_pairs(ranks)]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _check(model: _Model, file: Path) -> None:
    if not model.pieces or len(model.pieces) > _MOST_PIECES:
        raise BrokenTokenizer(f"cannot read: {file}: {len(model.pieces)} pieces")
    if model.algorithm not in (_UNIGRAM, _BPE):
        raise BrokenTokenizer(f"not supported: {file}: a SentencePiece model of words or characters")
    if model.suffixes:
        raise BrokenTokenizer(f"not supported: {file}: spaces at the ends of words (treat_whitespace_as_suffix)")
    pieces = [piece for piece, _, _ in model.pieces]
    longest = max(map(len, pieces))
    if longest > _LONGEST_PIECE:
        raise BrokenTokenizer(f"cannot read: {file}: a piece of its vocabulary has {longest} characters")
    if len(set(pieces)) < len(pieces):
        raise BrokenTokenizer(f"cannot read: {file}: a piece is there twice")
    if not 0 <= model.unk_id < len(pieces):
        raise BrokenTokenizer(f"cannot read: {file}: an unknown id of {model.unk_id}")


def _parsed(data: bytes) -> _Model:
    """Raises ValueError, struct.error or IndexError for anything but the message."""
    model = _Model()
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                piece = dict(_fields(value))
                text, score, kind = piece[1] if 1 in piece else b"", piece.get(2, b"\0\0\0\0"), piece.get(3, _NORMAL)
                if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int):
                    raise ValueError
                model.pieces.append((text.decode(), struct.unpack("<f", score)[0], kind))
            case 2, bytes():
                _read_fields(model, value, _TRAINER)
            case 3, bytes():
                _read_fields(model, value, _NORMALIZER)
    return model


# Field numbers of TrainerSpec and NormalizerSpec in sentencepiece_model.proto.
_TRAINER = {
    3: "algorithm",
    24: "suffixes",
    35: "byte_fallback",
    40: "unk_id",
    41: "bos_id",
    42: "eos_id",
    45: "unk_piece",
    46: "bos_piece",
    47: "eos_piece",
}
_NORMALIZER = {2: "charsmap", 3: "dummy_prefix", 4: "merges_spaces", 5: "escapes_spaces"}


def _read_fields(model: _Model, data: bytes, names: Mapping[int, str]) -> None:
    for number, value in _fields(data):
        if (name := names.get(number)) is None:
            continue
        default = getattr(model, name)
        if isinstance(default, bytes | str) != isinstance(value, bytes):
            raise ValueError
        if isinstance(value, bytes):
            setattr(model, name, value if isinstance(default, bytes) else value.decode())
        else:  # a negative number has 64 bits
            setattr(model, name, bool(value) if isinstance(default, bool) else value - (value >> 63 << 64))


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Number and value of each field of a protobuf message: an int for a varint, else its bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise ValueError
