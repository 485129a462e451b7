"""A text in parts gives the ids of the whole, whatever the tokenizer, the text, and the places of the cuts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Inner

from gptcli.errors import InputError
from gptcli.text.long_text import chunks
from gptcli.text.long_text.borders import Borders, kinds_of
from gptcli.text.long_text.chunks import encode_parts
from gptcli.text.long_text.patterns import Kind
from gptcli.text.token_spans import tokens_of
from gptcli.text.tokenizer import Tokenizer
from tests.text.kinds import CORPUS, KINDS, LLAMA3, gpt2, made

WORDS = [
    *(
        "a",
        " In",
        " a",
        "\n",
        "\n\n",
        "   ",
        "   \n",
        "\r\n",
        "\t",
        "é",
        "e\u0301",
        "\u0301",
        "町",
        "。",
        "、",
        "😀",
        "👩‍🚀",
    ),
    *(
        "1",
        "２",
        "123456",
        "ﬁ",
        "½",
        "'s",
        "...",
        "?!",
        "<|end|>",
        " <mask> ",
        "<note>",
        "<both>",
        "clock",
        " in a row",
    ),
    *(
        "    ",
        "<s>",
        "</s>",
        "[MASK]",
        "▁",
        "▁x",
        "\u00a0",
        "\u3000",
        "\u200b",
        "Å",
        "İ",
        "가",
        "नि",
        "//",
        "\n/",
        "\u037a",
    ),
    *CORPUS[:6],
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=120).map("".join)


def in_blocks(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS, size=st.integers(1, 300), part=st.integers(1, 200), special=st.booleans())
@settings(max_examples=60)
def test_parts_have_the_ids_of_the_whole(kind: str, text: str, size: int, part: int, special: bool) -> None:
    tokenizer = made(kind)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_PART", part)
        patch.setattr(chunks, "_BATCH", 3)
        parts = list(encode_parts(tokenizer, in_blocks(text, size), special=special, largest=1 << 20, where="a"))
    assert "".join(part.text[part.lead :] for part in parts) == text
    assert [id for part in parts for id in part.ids] == tokenizer.encode(text, special=special, add_special=False)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_has_borders(kind: str) -> None:
    text = "\n".join(CORPUS) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_PART", 100)
        parts = list(encode_parts(made(kind)[1], [text], special=False, largest=1 << 20, where="a"))
    assert len(parts) > 5


@pytest.mark.parametrize("kind", KINDS)
@given(text=TEXTS)
@settings(max_examples=20)
def test_places_do_not_depend_on_the_parts(kind: str, text: str) -> None:
    def places(part: int) -> list[tuple[int, ...]]:
        patch.setattr(chunks, "_PART", part)
        tokens = tokens_of(made(kind)[1], [text], special=True, add_special=True, largest=1 << 20, where="a")
        return [(token.number, token.id, token.start, token.end, token.first_char, token.end_char) for token in tokens]

    with pytest.MonkeyPatch.context() as patch:
        assert places(50) == places(1 << 20)


def test_chinese_without_a_space_is_cut_at_its_lines() -> None:
    text = "在一个小镇上住着一位钟表匠。\n他有三个钟。\n" * 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_PART", 100)
        parts = list(encode_parts(made("llama3")[1], [text], special=False, largest=1 << 20, where="a"))
    assert len(parts) > 5


def test_only_a_few_parts_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_PART", 100)
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "The clockmaker had 3 clocks. " * 10

    parts = encode_parts(made("gpt2")[1], endless(), special=False, largest=1 << 20, where="a")
    assert [len(next(parts).ids) > 10 for _ in range(20)] == [True] * 20
    assert read < 40


def test_a_text_that_cannot_be_cut_is_refused_beyond_the_limit() -> None:
    parts = encode_parts(made("gpt2")[1], ["x" * 100] * 100, special=False, largest=1000, where="a.txt")
    with pytest.raises(InputError, match=r"too large: a\.txt: no place to cut it safely within 1000 characters"):
        list(parts)


QUOTED = {"type": "Split", "pattern": {"Regex": '"[^"]*"|.'}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "kinds"),
    [
        (None, QUOTED, Kind(0)),
        (None, QUOTED | {"pattern": {"Regex": LLAMA3}}, Kind.SPACE | Kind.NEWLINE),
        (None, QUOTED | {"pattern": {"Regex": r"(?<=a) \w+"}}, Kind(0)),
        (None, QUOTED | {"pattern": {"Regex": r"\w+\b"}}, Kind(0)),
        (None, QUOTED | {"pattern": {"Regex": r"\w+( \w+)*"}}, Kind.NEWLINE),
        (None, QUOTED | {"pattern": {"Regex": r"\n\p{L}+"}}, Kind.SPACE),
        (None, QUOTED | {"pattern": {"String": "a b"}}, Kind.NEWLINE),
        (None, {"type": "UnicodeScripts"}, Kind(0)),
        ({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, None, Kind(0)),
        ({"type": "Replace", "pattern": {"String": "x"}, "content": ""}, None, Kind(0)),
        ({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, None, Kind.SPACE | Kind.NEWLINE),
        ({"type": "ByteLevel"}, None, Kind(0)),
        ({"type": "Something new"}, None, Kind(0)),
    ],
)
def test_a_pattern_that_may_lie_across_a_border_leaves_none(
    normalizer: dict[str, object] | None, pre_tokenizer: dict[str, object] | None, kinds: Kind
) -> None:
    assert kinds_of(normalizer, pre_tokenizer) == kinds


def test_a_pattern_over_whole_sentences_is_never_cut_through() -> None:
    """What is between quotes is one word here, far longer than what is looked at around a border."""
    inner = gpt2()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QUOTED["pattern"]["Regex"]), "isolated"), inner.pre_tokenizer]  # type: ignore[index]
    )
    text = 'He said "' + "a small town " * 500 + '" and left. ' * 3
    tokenizer = Tokenizer(inner.to_str().encode(), {}, Path("a"))
    parts = list(encode_parts(tokenizer, [text], special=False, largest=1 << 20, where="a"))
    assert [id for part in parts for id in part.ids] == inner.encode(text).ids


def test_a_unigram_without_words_is_not_cut() -> None:
    inner = made("unigram")[0]
    unsplit = Inner.from_str(inner.to_str())
    unsplit.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    borders = Borders(Tokenizer(unsplit.to_str().encode(), {}, Path("a")), special=False)
    assert borders.find("a small town and more " * 40, 1) is None


def test_a_token_that_holds_a_space_forbids_cuts_where_there_are_no_words() -> None:
    state = json.loads(made("llama2")[0].to_str())
    size = len(state["model"]["vocab"])
    state["model"]["vocab"] |= {"n▁": size}
    state["model"]["merges"].append(["n", "▁"])
    borders = Borders(Tokenizer(json.dumps(state).encode(), {}, Path("a")), special=False)
    text = "In a small town there lived a clockmaker. " * 20
    assert borders.find(text, 1) is None
    assert Borders(made("llama2")[1], special=False).find(text, 1) is not None
