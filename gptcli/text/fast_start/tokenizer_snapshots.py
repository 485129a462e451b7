"""Keeps snapshots of trusted tokenizers, so that a large vocabulary need not be parsed again.

The header has the tokenizer.json without pieces and merges, and its settings. The content is the arrays of a
`FlatVocabulary`, each at a multiple of 8 bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from gptcli.model_notes import Note
from gptcli.snapshot_format import SnapshotFile
from gptcli.text.fast_start.flat_vocabulary import FlatVocabulary, flatten
from gptcli.text.fast_start.partial_tokenizer import NEVER, Library, PartialTokenizer

TOKENIZERS = ".tokenizer"  # how the names of their files end
_MOST_SNAPSHOTS = 8
_FEWEST_PIECES = 10_000  # smaller vocabularies are parsed as fast
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True)
class OpenedTokenizer:
    """The fields of an opened `Tokenizer` without its library. size: before `Tokenizer.limit`."""

    settings: dict[str, Any]
    notes: tuple[Note, ...]
    unread: tuple[str, ...]
    where: Path
    size: int


def tokenizer_slot(path: Path) -> SnapshotFile | None:
    """The slot for the tokenizer of a model's directory or GGUF file; None if snapshots are off or a file is gone."""
    files = [path / name for name in _FILES] if path.is_dir() else [path]
    return SnapshotFile.of(path, TOKENIZERS, filter(Path.exists, files), tokenizers.__version__)


def read_tokenizer(slot: SnapshotFile) -> tuple[PartialTokenizer, OpenedTokenizer] | None:
    """The tokenizer in a slot, if it is whole and has the slot's key."""
    found = slot.read()
    if found is None:
        return None
    header, content = found
    parts, end = [], 0
    for size in header["sizes"]:
        begin = _aligned(end)
        end = begin + size
        parts.append(content[begin:end])
    opened = OpenedTokenizer(
        header["settings"],
        tuple(Note(what, tuple(names)) for what, names in header["notes"]),
        tuple(header["unread"]),
        Path(header["where"]),
        header["size"],
    )
    return PartialTokenizer(header["state"], FlatVocabulary(parts)), opened


def write_tokenizer(slot: SnapshotFile, library: Library, opened: OpenedTokenizer) -> None:
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
        "state": state,
        "settings": opened.settings,
        "notes": [(note.what, note.names) for note in opened.notes],
        "unread": opened.unread,
        "where": str(opened.where),
        "size": opened.size,
        "sizes": list(map(len, parts)),
    }
    content = b""
    for part in parts:
        content += bytes(_aligned(len(content)) - len(content)) + part
    slot.write(header, content, most=_MOST_SNAPSHOTS)


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
