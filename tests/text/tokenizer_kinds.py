"""Tiny tokenizers of each kind in use, trained on the spot, and awkward texts to try them on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from gptcli.text.tokenizer import Tokenizer

CORPUS = [
    "In a small town there lived a clockmaker. The clockmaker had 3 clocks, and 12 small bells.",
    "Der Uhrmacher wohnte in Köln; er hatte früher 1984 Bücher über Uhren gelesen.\n\n    return x == 10\n",
    "В маленьком городе жил часовщик. Он чинил часы, и часы шли.",
    "小さな町に時計屋がいました。時計は三つ。\n在一个小镇上住着一位钟表匠。他有三个钟。",
    "작은 마을에 시계공이 살았다. naïve café résumé ﬁne ﬁnal １２３ 😀 👩‍🚀 é ñ",
    "def tokens(text):\n\treturn [word for word in text.split() if word]\n",
] * 3

# Pieces of text in which characters, spaces, normal forms or control tokens are hard to get right.
WORDS = [
    "a", " In", " a", "\n", "\n\n", "   ", "   \n", "\r\n", "\t", "é", "e\u0301", "\u0301", "町", "。", "、", "😀",
    "👩‍🚀", "1", "２", "123456", "ﬁ", "½", "㎞", "Ⅳ", "'s", "...", "?!", " small", "NAÏVE", "ﬁne", "Ω", "Å", "İ", "가",
    "नि", "<|end|>", " <mask> ", "<note>", "<both>", "clock", " in a row", "    ", "<s>", "</s>", "[MASK]", "▁", "▁x",
    "\u00a0", "\u3000", "\u200b", "\u037a", "//", "\n/", *CORPUS[:6],
]  # fmt: skip


def texts(most_words: int) -> st.SearchStrategy[str]:
    """Texts of awkward words and arbitrary characters."""
    return st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=most_words).map("".join)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(pre: pre_tokenizers.PreTokenizer, size: int = 420) -> Library:
    library = Library(models.BPE())
    library.pre_tokenizer = pre
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken("<|end|>", special=True)],
        show_progress=False,
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def gpt2() -> Library:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta() -> Library:
    """A space is added at the start of a text, and the library's offsets leave spaces out."""
    library = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    library.add_special_tokens(["<s>", "</s>"])
    pair = [(name, library.token_to_id(name)) for name in ("</s>", "<s>")]
    library.post_processor = processors.RobertaProcessing(*pair, trim_offsets=True, add_prefix_space=True)
    return library


def _split(pattern: str) -> Library:
    words = pre_tokenizers.Split(Regex(pattern), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([words, spelled]))


def llama3() -> Library:
    library = _split(LLAMA3)
    library.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    return library


def qwen2() -> Library:
    library = _split(LLAMA3.replace("{1,3}", ""))
    library.normalizer = normalizers.NFC()
    return library


def o200k() -> Library:
    return _split(O200K)


def _sentencepiece() -> Library:
    """A BPE over whole texts, in which only `▁` begins a word, with bytes for unknown characters."""
    trained = Library(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>"])
    trained.train_from_iterator(CORPUS[:3], trainer)
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "\n"]
    pieces += [piece for piece in trained.get_vocab() if piece not in pieces]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges.append(("▁", "▁"))
    library = Library(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def llama2() -> Library:
    """A normalizer adds `▁` at the start and replaces every space by it; texts are not split into words."""
    library = _sentencepiece()
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return library


def metaspace() -> Library:
    library = _sentencepiece()
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return library


def unigram() -> Library:
    """As in T5 and XLM-R: NFKC, runs of spaces merged, `▁` before every word, pieces by probability."""
    library = Library(models.Unigram())
    library.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=260, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    library.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return library


def wordpiece() -> Library:
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    library.train_from_iterator(CORPUS[:3], trainer)
    library.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return library


def greedy() -> Library:
    """Byte-level, with added tokens that include whitespace around them, match whole words only, or have spaces."""
    library = gpt2()
    library.add_tokens(
        [
            AddedToken("<mask>", lstrip=True),
            AddedToken("<note>", rstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True),
            AddedToken("clock", single_word=True),
            AddedToken("in a row", normalized=False),
            AddedToken("    ", normalized=False),
        ]
    )
    return library


KINDS = {
    make.__name__: make for make in (gpt2, roberta, llama3, qwen2, o200k, llama2, metaspace, unigram, wordpiece, greedy)
}


@cache
def made(kind: str) -> tuple[Library, Tokenizer]:
    """A tokenizer of a kind: the library's, and ours."""
    library = KINDS[kind]()
    return library, ours(library)


def ours(library: Library) -> Tokenizer:
    """Our tokenizer over one of the library's."""
    return Tokenizer(library.to_str().encode(), {}, Path("tokenizer.json"))
