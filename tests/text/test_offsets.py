"""Ranges of tokens are checked byte by byte against what each kind of tokenizer does, written down here once more."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptcli.text.long_text.offsets import Offsets, Range
from gptcli.text.tokenizer import Tokenizer
from tests.text.kinds import CORPUS, made

WORDS = [
    *("In", " small", " town", "  ", "\n", "\n\n", "\t", "\r\n", "é", "e\u0301", "町", "。", "😀", "👩‍🚀", "12", "２"),
    *(
        "ﬁne",
        "½",
        "㎞",
        "\u0301",
        "...",
        "▁",
        "\u00a0",
        "\u3000",
        "\u200b",
        "Ω",
        "Å",
        "İ",
        "가",
        "नि",
        "Ⅳ",
        "clock",
        "NAÏVE",
    ),
    *CORPUS[:6],
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=8).map("".join)


def ranges(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[tuple[int, bytes, Range]]:
    """Id, own bytes and range of each token."""
    encoding = tokenizer.inner_for(text, special=special).encode(text, False)
    found = Offsets(tokenizer).of(text, encoding)
    return [(id, tokenizer.surface(id), place) for id, place in zip(encoding.ids, found, strict=True)]


def stretches(tokens: list[tuple[int, bytes, Range]]) -> list[tuple[list[int], bytes, int, int]]:
    """Tokens that share bytes of the text taken together: their ids, their own bytes, and their range."""
    merged: list[tuple[list[int], bytes, int, int]] = []
    for id, data, (start, end) in tokens:
        if merged and start < merged[-1][3]:
            ids, before, first, last = merged.pop()
            merged.append(([*ids, id], before + data, first, max(last, end)))
        else:
            merged.append(([id], data, start, end))
    return merged


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "o200k"])
@given(text=TEXTS)
def test_byte_level_tokens_are_the_very_bytes_of_their_ranges(kind: str, text: str) -> None:
    data, at = text.encode(), 0
    for _, own, (start, end) in ranges(made(kind)[1], text):
        assert (start, data[start:end]) == (at, own)
        at = end
    assert at == len(data)


@pytest.mark.parametrize("kind", ["roberta", "llama2", "metaspace"])
@given(text=TEXTS)
def test_a_space_put_in_front_is_in_no_range_and_the_rest_is_exact(kind: str, text: str) -> None:
    text = text.replace("▁", "_")  # three bytes that such a model may get as one: see below
    tokens = ranges(made(kind)[1], text)
    data, at = text.encode(), 0
    spelled = b"".join(own for _, own, _ in tokens)
    assert spelled in (data, b" " + data)
    lead = len(spelled) - len(data)
    for _, own, (start, end) in tokens:
        assert (start, data[start:end]) == (at, own[lead:])
        lead = max(0, lead - len(own))
        at = end
    assert at == len(data)


def test_a_character_that_the_model_gets_as_a_space_is_three_bytes_of_the_text() -> None:
    assert [place for *_, place in ranges(made("llama2")[1], "x▁x")] == [(0, 1), (1, 5)]


@given(text=TEXTS)
def test_composed_characters_have_the_range_of_their_parts(text: str) -> None:
    data = text.encode()
    at = 0
    for _, own, start, end in stretches(ranges(made("qwen2")[1], text)):
        assert start == at
        assert (
            unicodedata.normalize("NFC", data[start:end].decode("utf-8", "surrogateescape")).encode(
                "utf-8", "surrogateescape"
            )
            == own
        )
        at = end
    assert at == len(data)


def _unigram(text: str) -> str:
    return re.sub(" {2,}", " ", unicodedata.normalize("NFKC", text))


@given(text=TEXTS)
@example("In\u0301")  # an unknown character that is composed
@example("½２")  # one that becomes three, the second unknown, the third as what follows
def test_unigram_ranges_hold_what_normalizes_to_the_token(text: str) -> None:
    tokenizer = made("unigram")[1]
    source = text.encode()
    at = 0
    for ids, own, start, end in stretches(ranges(tokenizer, text)):
        assert start == at
        at = end
        if tokenizer.unknown_id not in ids:
            normal = _unigram(source[start:end].decode()).replace("▁", " ")
            assert own in (normal.encode(), b" " + normal.encode())
    assert not _unigram(source[at:].decode()).strip()


def _wordpiece(text: str) -> str:
    kept = (char for char in text if char in "\t\n\r" or unicodedata.category(char)[0] != "C")
    lowered = "".join(char.lower() for char in kept)
    marked = unicodedata.normalize("NFD", lowered)
    return "".join(char for char in marked if unicodedata.category(char) != "Mn").strip()


@given(text=TEXTS)
@example("R\x1fé")
def test_wordpiece_ranges_hold_what_is_lowered_and_stripped_to_the_token(text: str) -> None:
    tokenizer = made("wordpiece")[1]
    source, at = text.encode(), 0
    for ids, own, start, end in stretches(ranges(tokenizer, text)):
        dropped = source[at:start].decode()
        assert all(char.isspace() or unicodedata.category(char)[0] in "CMZ" for char in dropped)
        assert start < end
        if tokenizer.unknown_id not in ids:
            assert _wordpiece(source[start:end].decode()).encode() == own
        at = end


def test_accents_that_are_stripped_stay_within_the_word() -> None:
    text = "Cafés CAFE\u0301S"
    found = [text.encode()[start:end].decode() for _, _, (start, end) in ranges(made("wordpiece")[1], text)]
    assert "".join(found) == text.replace(" ", "")


def test_tokens_that_share_a_character_have_all_of_it() -> None:
    found = {own: place for _, own, place in ranges(made("unigram")[1], "a ㎞")}
    assert found[b"k"] == found[b"m"] == (2, 5)


@given(
    parts=st.lists(
        st.sampled_from(
            ["<mask>", "<note>", "<both>", "clock", "clocks", "in a row", "    ", " ", "\n", "x", "é", "😀"]
        ),
        max_size=8,
    )
)
def test_added_tokens_have_the_whitespace_that_they_take(parts: list[str]) -> None:
    text, tokenizer = "".join(parts), made("greedy")[1]
    data, at = text.encode(), 0
    for id, own, (start, end) in ranges(tokenizer, text, special=True):
        assert start == at
        at = end
        if tokenizer.is_added(id):
            assert data[start:end].strip() == own.strip()
        else:
            assert data[start:end] == own
    assert at == len(data)


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "qwen2", "llama2", "unigram", "wordpiece", "greedy"])
@given(text=st.text(max_size=60))
@settings(max_examples=50)
def test_ranges_are_in_order_and_within_the_text(kind: str, text: str) -> None:
    last = (0, 0)
    for _, _, (start, end) in ranges(made(kind)[1], text.replace("\0", "")):
        assert last[0] <= start <= end <= len(text.replace("\0", "").encode())
        assert last[1] <= end
        last = start, end
