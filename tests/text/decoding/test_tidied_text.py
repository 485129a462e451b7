"""clean_up_tokenization_spaces against transformers, as a whole and token by token."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gptcli.text.decoding.tidied_text import TidyStream, wants_tidied
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import KINDS, texts

FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
CASES = {
    "unigram": {"clean_up_tokenization_spaces": True},
    "wordpiece": {"clean_up_tokenization_spaces": True},
    "gpt2": {"clean_up_tokenization_spaces": True},
    "llama3": {"clean_up_tokenization_spaces": True, FORCED: True},
    "metaspace": {"clean_up_tokenization_spaces": False, FORCED: True},
}
PIECES = st.sampled_from([" ", "'", ".", " '", "n't", " n", "'t", " 've", "' ", "a", "é", " ,", "?", "!", "  ", "'s"])
untidy = st.lists(PIECES, max_size=12)


@cache
def both(kind: str) -> tuple[Any, Tokenizer]:
    path = Path(mkdtemp())
    (path / "tokenizer.json").write_text(KINDS[kind]().to_str())
    (path / "tokenizer_config.json").write_text(json.dumps(CASES[kind]))
    return PreTrainedTokenizerFast.from_pretrained(path), Tokenizer.open(path)


def tidied(pieces: Iterable[bytes]) -> str:
    stream = TidyStream()
    return (b"".join(map(stream.push, pieces)) + stream.flush()).decode("utf-8", "replace")


@pytest.mark.parametrize("kind", CASES)
@given(text=texts(4) | untidy.map("".join))
@example(" a ' b n't . , ' s")
@settings(max_examples=80, deadline=None)
def test_text_is_tidied_as_in_transformers(kind: str, text: str) -> None:
    theirs, ours = both(kind)
    ids = theirs.encode(text, add_special_tokens=False)
    tidies = wants_tidied(CASES[kind], type(ours.library.model).__name__)
    pieces = list(ours.text_pieces(ids))
    assert (tidied(pieces) if tidies else b"".join(pieces).decode("utf-8", "replace")) == theirs.decode(ids)
    untidied = theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert b"".join(pieces).decode("utf-8", "replace") == ours.library_texts([ids])[0] == untidied


@given(pieces=untidy)
@settings(max_examples=300, deadline=None)
def test_pieces_are_tidied_as_the_whole(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert (
        tidied(map(str.encode, pieces)) == tidied([whole.encode()]) == both("unigram")[0].clean_up_tokenization(whole)
    )


def test_a_reply_is_tidied_as_it_comes() -> None:
    theirs, ours = both("wordpiece")
    ids = theirs.encode("in a town . clocks , bells ! it ' s", add_special_tokens=False)
    detokenizer = ours.detokenizer()
    streamed = b"".join(map(detokenizer.push, ids)) + detokenizer.flush()
    assert streamed.decode().strip() == theirs.decode(ids)
    assert b" ." not in streamed
