"""Byte ranges of tokens, checked against an independent description of each kind of tokenizer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptcli.text.long_text.offsets import Offsets, Range
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import made, texts

TEXTS = texts(8)
Stretch = tuple[list[int], bytes, Range]  # ids, their own bytes, the range of their text


def ranges(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[tuple[int, bytes, Range]]:
    """Id, own bytes and range of each token."""
    encoding = tokenizer.backend_for(text, special=special).encode(text, False)
    found = Offsets(tokenizer).of(text, encoding)
    return [(id, tokenizer.surface(id), span) for id, span in zip(encoding.ids, found, strict=True)]


def stretches(tokens: list[tuple[int, bytes, Range]]) -> list[Stretch]:
    """Tokens joined where they share bytes of the text."""
    joined: list[Stretch] = []
    for id, data, (start, end) in tokens:
        if joined and start < joined[-1][2][1]:
            ids, before, (first, last) = joined.pop()
            joined.append(([*ids, id], before + data, (first, max(last, end))))
        else:
            joined.append(([id], data, (start, end)))
    return joined


def assert_consecutive(found: Iterable[Range], size: int) -> None:
    """Each range begins where the one before ends, and they cover all bytes."""
    borders = [border for span in found for border in span]
    assert [0, *borders[1::2]] == [*borders[::2], size]


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "o200k"])
@given(text=TEXTS)
def test_byte_level_tokens_are_the_very_bytes_of_their_ranges(kind: str, text: str) -> None:
    data, tokens = text.encode(), ranges(made(kind)[1], text)
    assert_consecutive((span for *_, span in tokens), len(data))
    assert [own for _, own, _ in tokens] == [data[slice(*span)] for *_, span in tokens]


@pytest.mark.parametrize("kind", ["roberta", "llama2", "metaspace"])
@given(text=TEXTS)
def test_an_added_space_is_in_no_range_and_the_others_are_exact(kind: str, text: str) -> None:
    text = text.replace("▁", "_")  # see the next test
    data, tokens = text.encode(), ranges(made(kind)[1], text)
    assert_consecutive((span for *_, span in tokens), len(data))
    spelled = b"".join(own for _, own, _ in tokens)
    assert spelled in (data, b" " + data)
    lead = len(spelled) - len(data)
    for _, own, span in tokens:
        assert data[slice(*span)] == own[lead:]
        lead = max(0, lead - len(own))


def test_a_character_that_the_model_gets_as_a_space_is_three_bytes_of_the_text() -> None:
    assert [span for *_, span in ranges(made("llama2")[1], "x▁x")] == [(0, 1), (1, 5)]


@given(text=TEXTS)
def test_composed_characters_have_the_range_of_their_components(text: str) -> None:
    data, joined = text.encode(), stretches(ranges(made("qwen2")[1], text))
    assert_consecutive((span for *_, span in joined), len(data))
    for _, own, span in joined:
        source = data[slice(*span)].decode("utf-8", "surrogateescape")
        assert unicodedata.normalize("NFC", source).encode("utf-8", "surrogateescape") == own


def _unigram(text: str) -> str:
    return re.sub(" {2,}", " ", unicodedata.normalize("NFKC", text))


@given(text=TEXTS)
@example("In\u0301")  # an unknown character that is composed
@example("½２")  # one that becomes three characters: the second is unknown, the third equals what follows
def test_unigram_ranges_are_of_text_that_normalizes_to_the_token(text: str) -> None:
    tokenizer = made("unigram")[1]
    source, joined = text.encode(), stretches(ranges(tokenizer, text))
    end = joined[-1][2][1] if joined else 0
    assert_consecutive((span for *_, span in joined), end)
    for ids, own, span in joined:
        if tokenizer.unknown_id not in ids:
            normal = _unigram(source[slice(*span)].decode()).replace("▁", " ")
            assert own in (normal.encode(), b" " + normal.encode())
    assert not _unigram(source[end:].decode()).strip()


def _wordpiece(text: str) -> str:
    kept = (char for char in text if char in "\t\n\r" or unicodedata.category(char)[0] != "C")
    lowered = "".join(char.lower() for char in kept)
    marked = unicodedata.normalize("NFD", lowered)
    return "".join(char for char in marked if unicodedata.category(char) != "Mn").strip()


@given(text=TEXTS)
@example("R\x1fé")
def test_wordpiece_ranges_are_of_text_that_is_lowered_and_stripped_to_the_token(text: str) -> None:
    tokenizer = made("wordpiece")[1]
    source, last = text.encode(), 0
    for ids, own, (start, end) in stretches(ranges(tokenizer, text)):
        dropped = source[last:start].decode()
        assert all(char.isspace() or unicodedata.category(char)[0] in "CMZ" for char in dropped)
        assert start < end
        if tokenizer.unknown_id not in ids:
            assert _wordpiece(source[start:end].decode()).encode() == own
        last = end


def test_tokens_that_share_a_character_have_all_of_it() -> None:
    found = {own: span for _, own, span in ranges(made("unigram")[1], "a ㎞")}
    assert found[b"k"] == found[b"m"] == (2, 5)


PIECES = ["<mask>", "<note>", "<both>", "clock", "clocks", "in a row", "    ", " ", "\n", "x", "é", "😀"]


@given(text=st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_added_tokens_have_the_whitespace_that_they_take(text: str) -> None:
    tokenizer = made("greedy")[1]
    data, tokens = text.encode(), ranges(tokenizer, text, special=True)
    assert_consecutive((span for *_, span in tokens), len(data))
    for id, own, span in tokens:
        source = data[slice(*span)]
        assert source.strip() == own.strip() if tokenizer.is_added(id) else source == own


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "qwen2", "llama2", "unigram", "wordpiece", "greedy"])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=50)
def test_ranges_are_in_order_and_within_the_text(kind: str, text: str) -> None:
    last = (0, 0)
    for _, _, (start, end) in ranges(made(kind)[1], text):
        assert last[0] <= start <= end <= len(text.encode())
        assert last[1] <= end
        last = start, end


def test_accents_that_are_stripped_stay_within_the_word() -> None:
    text = "Cafés CAFE\u0301S"
    found = [text.encode()[slice(*span)].decode() for *_, span in ranges(made("wordpiece")[1], text)]
    assert "".join(found) == text.replace(" ", "")
