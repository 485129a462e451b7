"""Compares gptcli's decoding of ids with the tokenizers library's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from gptcli.text.tokenizer import Tokenizer

_SECONDS = 10.0
_MOST_FOUND = 20
_SEQUENCES, _LONGEST = 2000, 12
_BATCH = 1000
_CHARACTERS = " \nAé€😀"


def decode_differences(tokenizer: Tokenizer) -> list[str]:
    """Ids that gptcli decodes otherwise than the library, for a person to read: the first twenty.

    Tries every id alone and between others, and random sequences, for about ten seconds. Byte tokens are tried as whole
    characters: beside an invalid byte, SentencePiece's decoder drops characters that gptcli keeps. Raises
    BrokenTokenizer.
    """
    found: list[str] = []
    deadline = time.monotonic() + _SECONDS
    for batch in _batches(tokenizer):
        for ids, theirs in zip(batch, tokenizer.library_texts(batch), strict=True):
            ours = b"".join(tokenizer.text_pieces(ids)).decode("utf-8", "replace")
            if ours != theirs:
                found.append(f"ids {' '.join(map(str, ids))} are {ours!r}, which the library decodes as {theirs!r}")
        if len(found) >= _MOST_FOUND or time.monotonic() > deadline:
            break
    return found[:_MOST_FOUND]


def _batches(tokenizer: Tokenizer) -> Iterator[Sequence[Sequence[int]]]:
    """Sequences of ids to try."""
    known = sorted(set(tokenizer.library.get_vocab(with_added_tokens=True).values()))
    spelling = tokenizer.spelling
    single = {}  # id of each byte token
    if spelling.byte_fallback:
        single = {tokenizer.token_bytes(id): id for id in known if spelling.is_byte(tokenizer.piece(id))}
    chance = random.Random(0)
    others = [(id,) for id in known if id not in single.values()]
    spelled = [tuple(single.get(bytes([byte]), -1) for byte in char.encode()) for char in _CHARACTERS]
    words = others + len(others) // 8 * [ids for ids in spelled if min(ids) >= 0]
    if words:
        counts = [chance.randint(2, _LONGEST) for _ in range(_SEQUENCES)]
        yield [[id for ids in chance.choices(words, k=count) for id in ids] for count in counts]
    between = next((id for id in known if tokenizer.piece(id).isalpha()), 0)
    for start in range(0, len(known), _BATCH):
        yield [ids for id in known[start : start + _BATCH] for ids in ([id], [between, id, between])]
