"""Builds tokenizer.json and its companions from a GGUF file's `tokenizer.ggml.*` fields."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gptcli.errors import BrokenCheckpoint, BrokenTokenizer

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_PATTERNS = {
    "llama-bpe": _CONTRACTIONS + _WORDS % r"\p{N}{1,3}",
    "qwen2": _CONTRACTIONS + _WORDS % r"\p{N}",
}


class GgufTokenizer:
    """The tokenizer that a GGUF file's metadata describes. Raises BrokenTokenizer for kinds it does not know."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self._meta = meta
        model, self._pre = self._field("model"), self._field("pre")
        if model != "gpt2":
            raise BrokenTokenizer(f"cannot import: tokenizer model {model!r} is not read, only byte-level BPE")
        if self._pre not in ("gpt-2", "smollm", *_PATTERNS):
            known = ", ".join(["gpt-2", "smollm", *_PATTERNS])
            raise BrokenTokenizer(f"cannot import: pre-tokenizer {self._pre!r} is not known, only {known}")
        self._tokens: list[str] = self._field("tokens")
        self._types: list[int] = self._field("token_type")
        if len(self._types) != len(self._tokens) or len(set(self._tokens)) != len(self._tokens):
            raise BrokenCheckpoint("cannot import: token types do not match the tokens, or a token occurs twice")

    def files(self) -> dict[str, Any]:
        """Contents of tokenizer.json, tokenizer_config.json and generation_config.json by file name."""
        stops = [self._meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return {
            "tokenizer.json": json.loads(self._tokenizer().to_str()),
            "tokenizer_config.json": self._settings(),
            "generation_config.json": {
                "bos_token_id": self._meta.get("tokenizer.ggml.bos_token_id"),
                "eos_token_id": list(dict.fromkeys(stop for stop in stops if stop is not None)),
            },
        }

    def _field(self, name: str) -> Any:
        if f"tokenizer.ggml.{name}" not in self._meta:
            raise BrokenCheckpoint(f"cannot import: tokenizer.ggml.{name} is missing")
        return self._meta[f"tokenizer.ggml.{name}"]

    @property
    def _adds_bos(self) -> bool:
        return bool(self._meta.get("tokenizer.ggml.add_bos_token", self._pre == "llama-bpe"))

    def _tokenizer(self) -> Tokenizer:
        merges = [tuple(merge.split(" ")) for merge in self._field("merges")]
        vocabulary = {token: id for id, token in enumerate(self._tokens)}
        try:
            # Llama 3 takes a word that is in the vocabulary whole, whatever the merges would make of it.
            model = models.BPE(vocabulary, merges, ignore_merges=self._pre == "llama-bpe")
        except Exception as error:  # the library raises nothing more specific
            raise BrokenTokenizer(f"cannot import: {error}") from None
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = self._pre_tokenizer()
        tokenizer.decoder = decoders.ByteLevel()
        if self._pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        if self._adds_bos:
            bos = self._named("bos")
            if bos is None:
                raise BrokenCheckpoint("cannot import: a BOS token is to be added, but none is named")
            template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
            tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
        tokenizer.add_tokens(
            [
                AddedToken(token, special=kind == _CONTROL, normalized=False)
                for token, kind in zip(self._tokens, self._types, strict=True)
                if kind in (_CONTROL, _USER_DEFINED)
            ]
        )
        return tokenizer

    def _pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        if self._pre == "gpt-2":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        if self._pre == "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        words = pre_tokenizers.Split(Regex(_PATTERNS[self._pre]), "isolated")
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([words, spelled])

    def _settings(self) -> dict[str, Any]:
        roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        named = {f"{role}_token": self._named(field) for field, role in roles.items()}
        return {
            **{role: token for role, token in named.items() if token is not None},
            "add_bos_token": self._adds_bos,
            "chat_template": self._meta.get("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self._meta.get("llama.context_length"),
            "tokenizer_class": "PreTrainedTokenizerFast",
        }

    def _named(self, field: str) -> str | None:
        id = self._meta.get(f"tokenizer.ggml.{field}_token_id")
        if id is None:
            return None
        if id >= len(self._tokens):
            raise BrokenCheckpoint(f"cannot import: {field}_token_id {id} is outside the vocabulary")
        return str(self._tokens[id])
