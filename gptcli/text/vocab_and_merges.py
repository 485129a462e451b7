"""A tokenizer of vocab.json and merges.txt: byte-level BPE, whose class says how texts are split into words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer
from gptcli.files import is_there, open_within, parse_json, read_json

_LIMIT = 32 << 20  # bytes of each file
_Json = dict[str, Any]

_END = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
# The classes of transformers, and the tokens that they have unless settings say otherwise.
_CLASSES: dict[str, _Json] = {
    "GPT2Tokenizer": _END,
    "CodeGenTokenizer": _END,
    "GPTNeoXTokenizer": _END | {"pad_token": "<|padding|>"},
    "Qwen2Tokenizer": {"unk_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
# For models that do not name their class.
_CLASS_OF_TYPE = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "phi", "starcoder2", "opt", "codegen"), "GPT2Tokenizer"),
    **dict.fromkeys(("qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    "gpt_neox": "GPTNeoXTokenizer",
}
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_vocab_and_merges(path: Path, settings: Mapping[str, Any]) -> tuple[bytes, _Json]:
    """A tokenizer.json made of a model's vocab.json and merges.txt, and the settings with what their class adds.

    Raises BrokenTokenizer for a class that is not known, and where the files cannot be used.
    """
    name = _class(path, settings)
    settings = _CLASSES[name] | dict(settings)
    vocabulary = _vocabulary(path / "vocab.json")
    prefix = settings.get("add_prefix_space") is True
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True}
    splitter: _Json = byte_level
    if name == "Qwen2Tokenizer":
        words = {"type": "Split", "pattern": {"Regex": _QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
        splitter = {"type": "Sequence", "pretokenizers": [words, byte_level | {"use_regex": False}]}
    state: _Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if name in ("Qwen2Tokenizer", "GPTNeoXTokenizer") else None,
        "pre_tokenizer": splitter,
        "post_processor": tokens_around(settings, vocabulary, path / "vocab.json"),
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": _merges(path / "merges.txt")},
    }
    return json.dumps(state).encode(), _plain(settings) if name == "Qwen2Tokenizer" else settings


def _class(path: Path, settings: Mapping[str, Any]) -> str:
    config = read_json(path / "config.json") if is_there(path / "config.json") else {}
    model_type = config.get("model_type")
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if model_type == "qwen2":  # whatever it names: so does transformers
        named = "Qwen2Tokenizer"
    elif named is None:
        named = _CLASS_OF_TYPE.get(str(model_type))
    name = str(named).removesuffix("Fast")
    if name not in _CLASSES:
        raise BrokenTokenizer(
            f"not supported: {path / 'vocab.json'}: a tokenizer of class {named or 'unknown'} without tokenizer.json",
            hint=f"known are {', '.join(_CLASSES)}; AutoTokenizer.save_pretrained writes tokenizer.json for others",
        )
    return name


def tokens_around(settings: Mapping[str, Any], vocabulary: Mapping[str, int], file: Path) -> _Json | None:
    """The post-processor that adds the tokens which settings want around a text, if they want any."""
    single: list[_Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {}
    for end, place in (("bos", 0), ("eos", 2)):
        value = settings.get(f"{end}_token")
        if settings.get(f"add_{end}_token") is not True or value is None:
            continue
        content = str(value.get("content") if isinstance(value, dict) else value)
        if content not in vocabulary:
            raise BrokenTokenizer(f"not supported: {file}: add_{end}_token, of a token that it lacks")
        single.insert(place, {"SpecialToken": {"id": content, "type_id": 0}})
        tokens[content] = {"id": content, "ids": [vocabulary[content]], "tokens": [content]}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    return template if tokens else None


def _plain(settings: _Json) -> _Json:
    """Settings in which special tokens have no flags of their own, which this class overrides."""

    def content(value: object) -> object:
        return value["content"] if isinstance(value, dict) and "content" in value else value

    roles = {role: content(value) for role, value in settings.items() if role.endswith("_token")}
    lists = {
        role: list(map(content, settings[role]))
        for role in ("extra_special_tokens", "additional_special_tokens")
        if isinstance(settings.get(role), list)
    }
    names = [*roles.values(), *(name for listed in lists.values() for name in listed)]
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        special = {"special": True, "normalized": False}
        lists["added_tokens_decoder"] = {  # type: ignore[assignment]
            id: {"content": content(token), **special} if content(token) in names else token
            for id, token in decoder.items()
        }
    return settings | roles | lists


def _vocabulary(file: Path) -> _Json:
    try:
        vocabulary = parse_json(_read(file), str(file))
    except BrokenCheckpoint as error:
        raise BrokenTokenizer(error.message) from None
    if not all(type(id) is int and id >= 0 for id in vocabulary.values()):
        raise BrokenTokenizer(f"cannot read: {file}: an id that is no number")
    return vocabulary


def _merges(file: Path) -> list[str]:
    try:
        lines = _read(file).decode().removesuffix("\n").split("\n")
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


def _read(file: Path) -> bytes:
    with open_within(file) as stream:
        data = stream.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise BrokenTokenizer(f"cannot read: {file}: larger than {_LIMIT >> 20} MB")
    return data
