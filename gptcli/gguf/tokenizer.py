"""Builds a tokenizer.json and its settings from a GGUF file's fields, so that ids are llama.cpp's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gptcli.errors import BrokenTokenizer
from gptcli.gguf.pre_tokenizers import ADDS_BOS, COMPOSES, DIGIT, GPT2, IGNORES_MERGES, LINES, SPLITTERS, split_by
from gptcli.gguf.reader import GgufFile

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "eot": "eot", "eom": "eom"}
# Tokens that end a text or a turn in llama.cpp, whatever a file says.
_ENDS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>
    <｜end▁of▁sentence｜> [e~[
    """.split()
)
_LONGEST_PIECE = 256  # characters; longer tokens get no merges
_Json = dict[str, Any]
_BYTE_LEVEL: _Json = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def gguf_tokenizer(file: GgufFile) -> tuple[_Json, _Json]:
    """A file's tokenizer as the contents of a tokenizer.json, and the settings of a tokenizer_config.json.

    Raises BrokenTokenizer for unknown types of tokenizers, and BrokenCheckpoint.
    """
    kind = file.get("tokenizer.ggml.model", str, "none")
    if kind in ("none", "no_vocab"):
        raise BrokenTokenizer(
            f"cannot read: {file.path}: it has no tokenizer", "convert the model anew, with its tokenizer beside it"
        )
    if kind not in ("gpt2", "llama", "gemma4"):
        known = "gpt2 (byte-level BPE), llama (SentencePiece) and gemma4 are read"
        raise BrokenTokenizer(f"cannot read: {file.path}: tokenizer {kind[:40]!r}; {known}")
    pre = file.get("tokenizer.ggml.pre", str, "default")
    if kind == "gpt2" and pre not in SPLITTERS:
        raise BrokenTokenizer(
            f"cannot read: {file.path}: pre-tokenizer {pre[:40]!r} is not known", f"known are {', '.join(SPLITTERS)}"
        )
    tokens = file.values("tokenizer.ggml.tokens", str)
    if "" in tokens:
        tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(tokens)]
    types = file.values("tokenizer.ggml.token_type", int)
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(types) != len(tokens) or len(vocabulary) != len(tokens):
        raise file.broken("token types do not match the tokens, or a token occurs twice")
    ids = _role_ids(file, len(tokens))
    around = _around(file, ids, adds_bos=kind != "gpt2" or pre in ADDS_BOS)
    if kind == "gpt2":
        components = _byte_level(file, pre, vocabulary)
    elif kind == "llama":
        components = _sentencepiece(file, tokens, types, vocabulary)
    else:
        components = _pieces(tokens, types, vocabulary, _merges(file, vocabulary))
        components["pre_tokenizer"] = split_by(LINES)
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": tokens[id],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": type == _CONTROL,
            }
            for id, type in enumerate(types)
            if type in (_CONTROL, _USER_DEFINED)
        ],
        **components,
        "post_processor": _post_processor(components["post_processor"], around, tokens),
    }
    template = file.optional("tokenizer.chat_template", str)
    with_tools = file.optional("tokenizer.chat_template.tool_use", str)
    named = (("default", template), ("tool_use", with_tools))
    settings = {
        **{f"{role}_token": tokens[id] for role in ("bos", "eos", "unk", "pad") if (id := ids[role]) is not None},
        "chat_template": template
        if with_tools is None
        else [{"name": name, "template": text} for name, text in named if text is not None],
    }
    return state, {name: value for name, value in settings.items() if value is not None}


def stop_ids(file: GgufFile) -> list[int]:
    """Every id that ends a text or a turn: named by the file, or a control token whose text is in _ENDS."""
    ids = [file.optional(f"tokenizer.ggml.{role}_token_id", int) for role in ("eos", "eot", "eom")]
    tokens = file.any("tokenizer.ggml.tokens")  # checked when the tokenizer is made
    types = file.any("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        control = (id for id, type in enumerate(types[: len(tokens)]) if type == _CONTROL)
        ends = {tokens[id]: id for id in control if tokens[id] in _ENDS}
        if {"<|return|>", "<|call|>"} <= ends.keys():  # of gpt-oss, where <|end|> ends a message within a turn
            ends.pop("<|end|>", None)
        ids += ends.values()
    return list(dict.fromkeys(id for id in ids if id is not None))


def _role_ids(file: GgufFile, size: int) -> dict[str, int | None]:
    ids = {role: file.optional(f"tokenizer.ggml.{field}_token_id", int) for field, role in _ROLES.items()}
    outside = {role: id for role, id in ids.items() if id is not None and not 0 <= id < size}
    if outside:
        raise file.broken(f"outside the vocabulary of {size}: {outside}")
    return ids


def _around(file: GgufFile, ids: Mapping[str, int | None], *, adds_bos: bool) -> tuple[list[int], list[int]]:
    """The ids before and after a text."""
    result: tuple[list[int], list[int]] = [], []
    for role, default, where in (("bos", adds_bos, result[0]), ("eos", False, result[1])):
        if not file.get(f"tokenizer.ggml.add_{role}_token", bool, default):
            continue
        id = ids[role]
        if id is None:
            raise file.broken(f"{role.upper()} is to be added to texts, but is not named")
        where.append(id)
    return result


def _post_processor(first: _Json | None, around: tuple[list[int], list[int]], tokens: Sequence[str]) -> _Json | None:
    """A post-processor that runs `first`, then adds the ids around a text."""
    before, after = around
    if not before and not after:
        return first
    text: _Json = {"Sequence": {"id": "A", "type_id": 0}}
    named = [*({"SpecialToken": {"id": tokens[id], "type_id": 0}} for id in before), text]
    named += ({"SpecialToken": {"id": tokens[id], "type_id": 0}} for id in after)
    special = {tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in before + after}
    template = {"type": "TemplateProcessing", "single": named, "pair": named, "special_tokens": special}
    return template if first is None else {"type": "Sequence", "processors": [first, template]}


def _byte_level(file: GgufFile, pre: str, vocabulary: Mapping[str, int]) -> _Json:
    """Byte-level BPE. Qwen composes characters first, as its tokenizer.json does and llama.cpp does not."""
    model = {
        "type": "BPE",
        "vocab": vocabulary,
        "merges": _merges(file, vocabulary),
        "ignore_merges": pre in IGNORES_MERGES,
    }
    return {
        "normalizer": {"type": "NFC"} if pre in COMPOSES else None,
        "pre_tokenizer": _pre_tokenizer(SPLITTERS[pre]),
        "post_processor": _BYTE_LEVEL | {"trim_offsets": False},
        "decoder": _BYTE_LEVEL,
        "model": model,
    }


def _pre_tokenizer(regexes: Sequence[str]) -> _Json:
    """Uses the library's own, faster forms of two of the regular expressions."""
    *splits, last = regexes
    steps: list[_Json] = []
    for regex in splits if last == GPT2 else regexes:
        if regex == DIGIT:
            steps.append({"type": "Digits", "individual_digits": True})
        else:
            steps.append(split_by(regex))
    steps.append(_BYTE_LEVEL | {"add_prefix_space": False, "use_regex": last == GPT2})
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _merges(file: GgufFile, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs by rank, split as in llama.cpp: at the first space after the first letter."""
    merges = []
    if not (written := file.values("tokenizer.ggml.merges", str)):  # llama.cpp would make bytes of every text
        raise file.broken("tokenizer.ggml.merges is empty")
    for merge in written:
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise BrokenTokenizer(f"cannot read: {file.path}: the merge {merge[:40]!r} is of tokens that are not there")
        merges.append((left, right))
    return merges


def _sentencepiece(file: GgufFile, tokens: Sequence[str], types: Sequence[int], vocabulary: Mapping[str, int]) -> _Json:
    """SentencePiece's BPE: merges the neighbours first that make the token with the highest score."""
    scores = file.values("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens) or any(map(math.isnan, scores)):
        raise file.broken("token scores do not match the tokens, or are no numbers")
    by_score = sorted(range(len(tokens)), key=scores.__getitem__, reverse=True)
    ranked = [tokens[id] for id in by_score if types[id] != _CONTROL]
    components = _pieces(tokens, types, vocabulary, piece_pairs(ranked))
    if file.get("tokenizer.ggml.add_space_prefix", bool, True):
        components["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})
        components["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    file.any("tokenizer.ggml.remove_extra_whitespaces")  # which llama.cpp does not do for these
    return components


def _pieces(
    tokens: Sequence[str], types: Sequence[int], vocabulary: Mapping[str, int], merges: list[tuple[str, str]]
) -> _Json:
    """BPE of characters, with ▁ for spaces; what is no token falls back to bytes."""
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": merges,
            "unk_token": tokens[types.index(_UNKNOWN)] if _UNKNOWN in types else None,
            "fuse_unk": False,
            "byte_fallback": True,
        },
    }


def piece_pairs(pieces: Collection[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes one of at most 256 characters, in the pieces' order."""
    known = frozenset(pieces)
    return [
        (left, right)
        for piece in pieces
        if len(piece) <= _LONGEST_PIECE
        for split in range(1, len(piece))
        if (left := piece[:split]) in known and (right := piece[split:]) in known
    ]
