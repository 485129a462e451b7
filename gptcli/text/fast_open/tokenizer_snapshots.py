"""Keeps snapshots of trusted tokenizers in the cache directory, so that a large vocabulary need not be parsed again.

    32 bytes    the SHA-256 of the rest
    8 bytes     size of the header, little-endian
    header      JSON: the key, the tokenizer.json without pieces and merges, and its settings
    arrays      of `FlatVocabulary`, each at a multiple of 8 bytes of the file

A snapshot is used only while the files that it was made from are unchanged, and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from gptcli.environment import prepared_directory
from gptcli.errors import InputError
from gptcli.files import identity, open_own, program_identity, replaced
from gptcli.model_notes import Note
from gptcli.text.fast_open.flat_vocabulary import FlatVocabulary, flatten
from gptcli.text.fast_open.partial_tokenizer import NEVER, Library, PartialTokenizer
from gptcli.version import VERSION

_SUFFIX = ".tokenizer"
_MOST_SNAPSHOTS = 8
_FEWEST_PIECES = 10_000  # smaller vocabularies are parsed as fast
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerSlot:
    """The file of a tokenizer's snapshot, and the key that it must have now. model: a directory or GGUF file."""

    model: Path
    path: Path
    key: dict[str, Any]


@dataclass(frozen=True)
class OpenedTokenizer:
    """The fields of an opened `Tokenizer`, but its library. size: before `Tokenizer.limit`."""

    settings: dict[str, Any]
    notes: tuple[Note, ...]
    unread: tuple[str, ...]
    where: Path
    size: int


def tokenizer_slot(path: Path) -> TokenizerSlot | None:
    """The slot for the tokenizer of a model's directory or GGUF file; None if snapshots are off or a file is gone."""
    if os.environ.get("GPTCLI_PREPARED") == "off":
        return None
    try:
        files = [path / name for name in _FILES] if path.is_dir() else [path]
        key = {
            "version": [VERSION, tokenizers.__version__, program_identity()],
            "files": {str(file): identity(file) for file in files if file.exists()},
        }
    except OSError:  # a file is being replaced, or gone
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:24]
    return TokenizerSlot(path, prepared_directory() / (name + _SUFFIX), key)


def read_tokenizer(slot: TokenizerSlot) -> tuple[PartialTokenizer, OpenedTokenizer] | None:
    """The tokenizer in a slot; None without a whole snapshot that has the slot's key."""
    try:
        with open_own(slot.path) as file:
            digest, data = file.read(32), memoryview(file.read())
    except (OSError, InputError):
        return None
    if hashlib.sha256(data).digest() != digest:
        return None
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:end]))
    if header["key"] != slot.key:
        return None
    parts = []
    for size in header["sizes"]:
        begin = _aligned(end)
        end = begin + size
        parts.append(data[begin:end])
    opened = OpenedTokenizer(
        header["settings"],
        tuple(Note(what, tuple(names)) for what, names in header["notes"]),
        tuple(header["unread"]),
        Path(header["where"]),
        header["size"],
    )
    with contextlib.suppress(OSError):  # it may be read-only, or just removed
        os.utime(slot.path)  # the least recently used are removed first
    return PartialTokenizer(header["state"], FlatVocabulary(parts)), opened


def kept_tokenizers() -> dict[Path, Path]:
    """The model's directory or GGUF file, by the file of its snapshot."""
    found = {}
    for path in prepared_directory().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError, InputError, ValueError), open_own(path) as file:
            file.seek(32)
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            found[path] = Path(header["model"])
    return found


def keep_tokenizer(slot: TokenizerSlot, library: Library, opened: OpenedTokenizer) -> None:
    """Writes a snapshot of a trusted tokenizer of a large vocabulary; a failure to write is ignored.

    slot: from before the tokenizer was opened.
    """
    if type(library.model).__name__ != "BPE" or library.get_vocab_size() < _FEWEST_PIECES:
        return
    state = json.loads(library.to_str())
    model = state["model"]
    vocab, merges = model.pop("vocab"), model.pop("merges")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"] or any(NEVER in piece for piece in vocab):
        return
    parts = flatten(vocab, merges)
    header = {
        "key": slot.key,
        "model": str(slot.model),
        "state": state,
        "settings": opened.settings,
        "notes": [(note.what, note.names) for note in opened.notes],
        "unread": opened.unread,
        "where": str(opened.where),
        "size": opened.size,
        "sizes": list(map(len, parts)),
    }
    try:
        encoded = json.dumps(header, separators=(",", ":")).encode()
    except TypeError:  # settings that JSON cannot spell
        return
    data = len(encoded).to_bytes(8, "little") + encoded
    for part in parts:
        data += bytes(_aligned(len(data)) - len(data)) + part
    with contextlib.suppress(OSError):
        slot.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replaced(slot.path) as file:
            file.write(hashlib.sha256(data).digest() + data)
        kept = sorted(slot.path.parent.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_MOST_SNAPSHOTS]:
            path.unlink(missing_ok=True)


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
