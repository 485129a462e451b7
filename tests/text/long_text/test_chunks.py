"""Chunks have the ids of the whole text, whatever the tokenizer, the text, and the cuts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Library

from gptcli.errors import InputError
from gptcli.text.located_tokens import Token, tokens_of
from gptcli.text.long_text import chunks
from gptcli.text.long_text.borders import Borders, border_kinds
from gptcli.text.long_text.chunks import Chunk, encode_chunks
from gptcli.text.long_text.patterns import CharKind
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import CORPUS, KINDS, LLAMA3, gpt2, made, ours, texts

LARGEST = 1 << 20


def encoded(
    tokenizer: Tokenizer, blocks: Iterable[str], *, chunk: int = 100, special: bool = False, largest: int = LARGEST
) -> Iterator[Chunk]:
    """The chunks of a text, each of at least `chunk` characters, three of them encoded together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_CHUNK", chunk)
        patch.setattr(chunks, "_BATCH", 3)
        yield from encode_chunks(tokenizer, blocks, special=special, largest=largest, where="a.txt")


def in_blocks(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts(120), size=st.integers(1, 300), chunk=st.integers(1, 200), special=st.booleans())
@settings(max_examples=60)
def test_chunks_have_the_ids_of_the_whole(kind: str, text: str, size: int, chunk: int, special: bool) -> None:
    tokenizer = made(kind)[1]
    found = list(encoded(tokenizer, in_blocks(text, size), chunk=chunk, special=special))
    assert "".join(chunk.text[chunk.lead :] for chunk in found) == text
    assert [id for chunk in found for id in chunk.ids] == tokenizer.encode(text, special=special, add_special=False)


CHINESE = "在一个小镇上住着一位钟表匠。\n他有三个钟。\n" * 50  # has no space


@pytest.mark.parametrize(("kind", "text"), [*((kind, "\n".join(CORPUS) * 3) for kind in KINDS), ("llama3", CHINESE)])
def test_a_text_is_cut_at_spaces_or_newlines_by_every_kind_of_tokenizer(kind: str, text: str) -> None:
    assert len(list(encoded(made(kind)[1], [text]))) > 5


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts(120))
@settings(max_examples=20)
def test_positions_and_ranges_do_not_depend_on_the_chunks(kind: str, text: str) -> None:
    def tokens(chunk: int) -> list[Token]:
        patch.setattr(chunks, "_CHUNK", chunk)
        return list(tokens_of(made(kind)[1], [text], special=True, add_special=True, largest=LARGEST, where="a"))

    with pytest.MonkeyPatch.context() as patch:
        assert tokens(50) == tokens(LARGEST)


def test_only_a_few_chunks_are_read_ahead() -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "The clockmaker had 3 clocks. " * 10

    found = encoded(made("gpt2")[1], endless())
    assert [len(next(found).ids) > 10 for _ in range(20)] == [True] * 20
    assert read < 40


def test_a_text_that_cannot_be_cut_is_refused_beyond_the_limit() -> None:
    with pytest.raises(InputError, match=r"too large: a\.txt: no place to cut it safely within 1000 characters"):
        list(encoded(made("gpt2")[1], ["x" * 100] * 100, largest=1000))


def split(**pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(content: str, **pattern: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": pattern, "content": content}


NO_KIND, BOTH_KINDS = CharKind(0), CharKind.SPACE | CharKind.NEWLINE


@pytest.mark.parametrize(("normalizer", "pre_tokenizer", "kinds"), [
    (None, split(Regex='"[^"]*"|.'), NO_KIND),
    (None, split(Regex=LLAMA3), BOTH_KINDS),
    (None, split(Regex=r"(?<=a) \w+"), NO_KIND),
    (None, split(Regex=r"\w+\b"), NO_KIND),
    (None, split(Regex=r"\w+( \w+)*"), CharKind.NEWLINE),
    (None, split(Regex=r"\n\p{L}+"), CharKind.SPACE),
    (None, split(String="a b"), CharKind.NEWLINE),
    (None, {"type": "UnicodeScripts"}, NO_KIND),
    (replace(" ", Regex=r"\s+"), None, NO_KIND),
    (replace("", String="x"), None, NO_KIND),
    (replace(" ", Regex=" {2,}"), None, BOTH_KINDS),
    ({"type": "ByteLevel"}, None, NO_KIND),
    ({"type": "Something new"}, None, NO_KIND),
])  # fmt: skip
def test_a_pattern_that_may_lie_across_a_border_leaves_none(
    normalizer: dict[str, object] | None, pre_tokenizer: dict[str, object] | None, kinds: CharKind
) -> None:
    assert border_kinds(normalizer, pre_tokenizer) == kinds


def test_a_pattern_over_whole_sentences_is_never_cut_through() -> None:
    """Here, a quotation is one word, far longer than the context of a border."""
    library = gpt2()
    quotations = pre_tokenizers.Split(Regex('"[^"]*"|.'), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([quotations, library.pre_tokenizer])
    text = 'He said "' + "a small town " * 500 + '" and left. ' * 3
    assert [id for chunk in encoded(ours(library), [text]) for id in chunk.ids] == library.encode(text).ids


TEXT = "In a small town there lived a clockmaker. " * 20


def test_a_unigram_without_words_is_not_cut() -> None:
    unsplit = Library.from_str(made("unigram")[0].to_str())
    unsplit.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    assert Borders(ours(unsplit), special=False).find(TEXT, 1) is None
    assert Borders(made("unigram")[1], special=False).find(TEXT, 1) is not None


def test_a_token_with_an_inner_space_forbids_cuts_where_there_are_no_words() -> None:
    state = json.loads(made("llama2")[0].to_str())
    state["model"]["vocab"] |= {"n▁": len(state["model"]["vocab"])}
    state["model"]["merges"].append(["n", "▁"])
    assert Borders(ours(Library.from_str(json.dumps(state))), special=False).find(TEXT, 1) is None
    assert Borders(made("llama2")[1], special=False).find(TEXT, 1) is not None
