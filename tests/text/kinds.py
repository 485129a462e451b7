"""Tiny tokenizers of every kind that is in use, trained on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Inner

from gptcli.text.tokenizer import Tokenizer

CORPUS = [
    "In a small town there lived a clockmaker. The clockmaker had 3 clocks, and 12 small bells.",
    "Der Uhrmacher wohnte in Köln; er hatte früher 1984 Bücher über Uhren gelesen.\n\n    return x == 10\n",
    "В маленьком городе жил часовщик. Он чинил часы, и часы шли.",
    "小さな町に時計屋がいました。時計は三つ。\n在一个小镇上住着一位钟表匠。他有三个钟。",
    "작은 마을에 시계공이 살았다. naïve café résumé ﬁne ﬁnal １２３ 😀 👩‍🚀 é ñ",
    "def tokens(text):\n\treturn [word for word in text.split() if word]\n",
] * 3

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pre: pre_tokenizers.PreTokenizer, size: int = 420) -> Inner:
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken("<|end|>", special=True)],
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def gpt2() -> Inner:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta() -> Inner:
    """A space is put in front of a text, and the library's offsets leave spaces out."""
    inner = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    inner.add_special_tokens(["<s>", "</s>"])
    pair = [(name, inner.token_to_id(name)) for name in ("</s>", "<s>")]
    inner.post_processor = processors.RobertaProcessing(*pair, trim_offsets=True, add_prefix_space=True)
    return inner


def _split(pattern: str) -> Inner:
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([words, spelled]))


def llama3() -> Inner:
    inner = _split(LLAMA3)
    inner.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    return inner


def qwen2() -> Inner:
    inner = _split(LLAMA3.replace("{1,3}", ""))
    inner.normalizer = normalizers.NFC()
    return inner


def o200k() -> Inner:
    return _split(O200K)


def _sentencepiece() -> Inner:
    """A BPE over whole texts, in which only `▁` begins a word, with bytes for what it does not know."""
    trained = Inner(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    trained.train_from_iterator(CORPUS[:3], trainer)
    merges = [tuple(merge) for merge in _model(trained)["merges"]]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "\n"]
    pieces += [piece for piece in trained.get_vocab() if piece not in pieces]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges.append(("▁", "▁"))
    inner = Inner(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def _model(inner: Inner) -> dict[str, Any]:
    return json.loads(inner.to_str())["model"]


def llama2() -> Inner:
    """A normalizer puts `▁` in front and for every space; no words are split off."""
    inner = _sentencepiece()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return inner


def metaspace() -> Inner:
    inner = _sentencepiece()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return inner


def unigram() -> Inner:
    """In the manner of T5 and XLM-R: NFKC, runs of spaces made one, `▁` before every word, pieces by probability."""
    inner = Inner(models.Unigram())
    inner.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return inner


def wordpiece() -> Inner:
    inner = Inner(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    inner.train_from_iterator(CORPUS[:3], trainer)
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return inner


def greedy() -> Inner:
    """Byte-level, with tokens that take the whitespace beside them, stand alone, or hold spaces themselves."""
    inner = gpt2()
    inner.add_tokens(
        [
            AddedToken("<mask>", lstrip=True),
            AddedToken("<note>", rstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True),
            AddedToken("clock", single_word=True),
            AddedToken("in a row", normalized=False),
            AddedToken("    ", normalized=False),
        ]
    )
    return inner


KINDS = {
    make.__name__: make for make in (gpt2, roberta, llama3, qwen2, o200k, llama2, metaspace, unigram, wordpiece, greedy)
}
_made: dict[str, tuple[Inner, Tokenizer]] = {}


def made(kind: str) -> tuple[Inner, Tokenizer]:
    """A tokenizer of a kind: the library's, and ours."""
    if kind not in _made:
        inner = KINDS[kind]()
        _made[kind] = inner, Tokenizer(inner.to_str().encode(), {}, Path(kind))
    return _made[kind]
