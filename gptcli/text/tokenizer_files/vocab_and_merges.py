"""Reads vocab.json and merges.txt, and builds the BPE of the model's class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer
from gptcli.files import parse_json, read_within
from gptcli.text.tokenizer_files.tokenizer_classes import built, class_without_tokenizer_json, with_roles

_LIMIT = 32 << 20  # bytes of each file
_Json = dict[str, Any]


def read_vocab_and_merges(path: Path, settings: Mapping[str, Any]) -> tuple[_Json, _Json]:
    """A tokenizer.json made of a model's vocab.json and merges.txt, and the settings with what their class adds.

    Raises BrokenTokenizer for an unknown class, and for files that cannot be used.
    """
    file = path / "vocab.json"
    name = class_without_tokenizer_json(path, settings, file.name)
    assert name is not None
    settings = with_roles(name, settings)
    return built(name, settings, _vocabulary(file), _merges(path / "merges.txt"), file), settings


def _vocabulary(file: Path) -> _Json:
    try:
        vocabulary = parse_json(read_within(file, _LIMIT, BrokenTokenizer), str(file))
    except BrokenCheckpoint as error:
        raise BrokenTokenizer(error.message) from None
    if not all(type(id) is int and id >= 0 for id in vocabulary.values()):
        raise BrokenTokenizer(f"cannot read: {file}: an id that is no number")
    return vocabulary


def _merges(file: Path) -> list[str]:
    try:
        lines = read_within(file, _LIMIT, BrokenTokenizer).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise BrokenTokenizer(f"cannot read: {file}: not UTF-8") from None
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if line.startswith("#version"):
            continue
        if line.count(" ") != 1:
            raise BrokenTokenizer(f"cannot read: {file}: line {number} is no pair")
        merges.append(line)
    return merges
