"""Builds tokenizer.json, tokenizer_config.json and generation_config.json from a GGUF file's fields."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptcli.errors import BrokenTokenizer
from gptcli.gguf.reader import GgufFile

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_PATTERNS = {
    "llama-bpe": _CONTRACTIONS + _WORDS % r"\p{N}{1,3}",
    "qwen2": _CONTRACTIONS + _WORDS % r"\p{N}",
}
_KNOWN = ("gpt-2", "smollm", *_PATTERNS)


def tokenizer_files(file: GgufFile) -> dict[str, Any]:
    """Contents of the three files by name.

    Raises BrokenTokenizer for unknown types of tokenizers, and BrokenCheckpoint.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise BrokenTokenizer(f"cannot import: {file.path}: tokenizer {model!r} is not read, only byte-level BPE")
    pre = file.get("tokenizer.ggml.pre", str)
    if pre not in _KNOWN:
        known = ", ".join(_KNOWN)
        raise BrokenTokenizer(f"cannot import: {file.path}: pre-tokenizer {pre!r} is not known, only {known}")
    tokens = file.texts("tokenizer.ggml.tokens")
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "eot": "eot", "eom": "eom"}
    ids = {role: file.optional(f"tokenizer.ggml.{field}_token_id", int) for field, role in roles.items()}
    outside = {role: id for role, id in ids.items() if id is not None and not 0 <= id < len(tokens)}
    if outside:
        raise file.broken(f"outside the vocabulary of {len(tokens)}: {outside}")
    adds_bos = file.get("tokenizer.ggml.add_bos_token", bool, pre == "llama-bpe")
    bos = tokens[ids["bos"]] if adds_bos and ids["bos"] is not None else None
    if adds_bos and bos is None:
        raise file.broken("a BOS token is to be added, but none is named")
    stops = [ids[role] for role in ("eos", "eot", "eom")]
    return {
        "tokenizer.json": json.loads(_tokenizer(file, pre, tokens, bos).to_str()),
        "tokenizer_config.json": {
            **{f"{role}_token": tokens[id] for role in ("bos", "eos", "unk", "pad") if (id := ids[role]) is not None},
            "add_bos_token": adds_bos,
            "chat_template": file.optional("tokenizer.chat_template", str),
            "clean_up_tokenization_spaces": False,
            "model_max_length": file.optional("llama.context_length", int),
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config.json": {
            "bos_token_id": ids["bos"],
            "eos_token_id": list(dict.fromkeys(stop for stop in stops if stop is not None)),
        },
    }


def _tokenizer(file: GgufFile, pre: str, tokens: list[str], bos: str | None) -> Tokenizer:
    vocabulary = {token: id for id, token in enumerate(tokens)}
    types = file.numbers("tokenizer.ggml.token_type")
    merges = [merge.partition(" ")[::2] for merge in file.texts("tokenizer.ggml.merges")]
    if len(types) != len(tokens) or len(vocabulary) != len(tokens):
        raise file.broken("token types do not match the tokens, or a token occurs twice")
    try:
        # In Llama 3 a word in the vocabulary is one token, whatever the merges give.
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises nothing more specific
        raise BrokenTokenizer(f"cannot import: {file.path}: {error}") from None
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos is not None:
        template = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, vocabulary[bos])])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, spelled])
