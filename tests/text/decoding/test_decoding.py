"""The text of ids is the library's: of every id, alone and between others, and of random sequences."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders
from tokenizers import Tokenizer as Library

from gptcli.errors import BrokenTokenizer
from gptcli.text.decode_check import decode_differences
from gptcli.text.decoding.spelling import Spelling
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import KINDS, gpt2, llama2, ours

# Added tokens whose text a decoder changes, of one kind or another.
ADDED = [
    AddedToken("▁▁", normalized=False), AddedToken("▁▁▁"), AddedToken("▁a▁b", special=True), AddedToken("é"),
    AddedToken("Ġx"), AddedToken("a b ▁"), AddedToken("##y"), AddedToken("町 ."), AddedToken(" do not"),
    AddedToken("x</w>y</w>"), AddedToken("<0x4a>"), AddedToken("<0x+A>"),
]  # fmt: skip
Replace, ByteFallback, Fuse, Strip = decoders.Replace, decoders.ByteFallback, decoders.Fuse, decoders.Strip
SPACE = Replace("▁", " ")
EXACT = {
    "null": None,
    "Fuse": Fuse(),
    "an empty sequence": decoders.Sequence([]),
    "Gemma's": decoders.Sequence([SPACE, ByteFallback(), Fuse()]),
    "Metaspace with nothing before": decoders.Metaspace(prepend_scheme="never"),
    "WordPiece that keeps spaces": decoders.WordPiece("▁", cleanup=False),
    "BPEDecoder": decoders.BPEDecoder("n"),
    "nested": decoders.Sequence([decoders.Sequence([SPACE, ByteFallback()]), Fuse(), Strip(" ", 1, 0)]),
}
UNUSUAL = {
    "CTC": decoders.CTC("<s>", "▁", True),
    "ByteFallback first": decoders.Sequence([ByteFallback(), SPACE, Fuse(), Strip(" ", 1, 0)]),
    "Strip each token": decoders.Sequence([SPACE, ByteFallback(), Strip(" ", 1, 0)]),
    "Strip at the end": decoders.Sequence([SPACE, Fuse(), Strip(" ", 1, 1)]),
    "Strip letters": decoders.Sequence([Fuse(), Strip("a", 2, 0)]),
    "a regular expression": decoders.Sequence([Replace(Regex("[▁ ]"), " "), ByteFallback(), Fuse()]),
    "Replace the whole": decoders.Sequence([Fuse(), Replace("to", "T")]),
    "bytes of spaces": decoders.Sequence([ByteFallback(), decoders.Metaspace()]),
    "bytes of bytes": decoders.Sequence([SPACE, decoders.ByteLevel()]),
    "ends of words": decoders.Sequence([decoders.BPEDecoder("n"), Replace(" ", "_")]),
}


def with_decoder(library: Library, decoder: decoders.Decoder | None) -> Library:
    if decoder is None:
        return Library.from_str(json.dumps(json.loads(library.to_str()) | {"decoder": None}))
    library.decoder = decoder
    return library


@cache
def made(name: str) -> tuple[Library, Tokenizer]:
    """A tokenizer with added tokens that are hard to decode: of KINDS, or with a decoder of EXACT or UNUSUAL."""
    if name in KINDS:
        library = KINDS[name]()
    else:
        library = with_decoder(llama2(), (EXACT | UNUSUAL)[name])
    library.add_tokens(ADDED)
    return library, ours(library)


def decoded(library: Library, ids: list[int]) -> str:
    return library.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", [*KINDS, *EXACT])
def test_every_id_and_random_sequences_decode_as_in_the_library(name: str) -> None:
    tokenizer = made(name)[1]
    assert tokenizer.spelling.exact and not tokenizer.notes
    assert decode_differences(tokenizer) == []


@pytest.mark.parametrize("name", [*KINDS, *EXACT])
def test_a_token_adds_its_bytes_to_the_text_around_it(name: str) -> None:
    library, tokenizer = made(name)
    letter = next(id for id in range(tokenizer.size) if tokenizer.piece(id) == "e")
    after = tokenizer.token_bytes(letter)
    before = decoded(library, [letter, letter]).encode().removesuffix(after)
    for id in range(tokenizer.size):
        expected = before + tokenizer.token_bytes(id) + after
        assert decoded(library, [letter, id, letter]) == expected.decode("utf-8", "replace")


@pytest.mark.parametrize("name", UNUSUAL)
@given(data=st.data())
def test_a_decoder_of_an_unusual_kind_is_the_library_itself(name: str, data: st.DataObject) -> None:
    library, tokenizer = made(name)
    assert not tokenizer.spelling.exact and "approximate; decoder of type" in str(tokenizer.notes[0])
    number = st.integers(0, tokenizer.size + 2)
    few = st.lists(st.sampled_from([100, 141, 142, 143, 258, 259, 300]), min_size=1, max_size=4)
    ids = data.draw(st.lists(number, max_size=30) | st.lists(few, max_size=40).map(lambda runs: sum(runs, [])))
    if name == "Strip at the end":
        ids = [0, *ids]  # the library panics on text shorter than what it strips
    text = "".join(piece.decode() for piece in tokenizer.text_pieces(ids))
    assert text == (decoded(library, ids) if ids else "")


@pytest.mark.parametrize("name", ["CTC", "Strip each token", "Strip at the end", "bytes of bytes"])
def test_text_comes_while_it_is_made(name: str) -> None:
    library, tokenizer = made(name)
    ids = tokenizer.encode("In a small town there lived a clockmaker. " * 8, add_special=False)
    pieces = list(tokenizer.text_pieces(ids))
    assert len(pieces[-1]) < 8
    assert b"".join(pieces).decode() == decoded(library, ids)


@pytest.mark.parametrize("name", ["Strip each token", "CTC", "ByteFallback first", "Replace the whole"])
def test_a_text_that_follows_another_is_the_rest_of_both(name: str) -> None:
    library, tokenizer = made(name)
    ids = tokenizer.encode("In a small town there lived", add_special=False)
    for cut in range(1, len(ids)):
        detokenizer = tokenizer.detokenizer(ids[:cut])
        text = b"".join([*map(detokenizer.push, ids[cut:]), detokenizer.flush()]).decode()
        assert decoded(library, ids) == decoded(library, ids[:cut]) + text


def test_wrong_bytes_are_kept_where_the_library_gives_up_the_characters_beside_them() -> None:
    library, tokenizer = made("llama2")
    euro = [library.token_to_id(f"<0x{byte:02X}>") for byte in "€".encode() + b"\xff"]
    assert tokenizer.decode(euro) == "€".encode() + b"\xff"
    assert decoded(library, euro) == "\ufffd" * 4


@pytest.mark.parametrize(("piece", "text"), [("▁▁", b"  "), ("▁a▁b", b" a b")])
def test_an_added_token_of_spaces_stands_for_spaces_in_a_text(piece: str, text: bytes) -> None:
    tokenizer = made("llama2")[1]
    id = tokenizer.library.token_to_id(piece)
    assert tokenizer.token_bytes(id) == tokenizer.surface(id) == text


def test_a_difference_is_told_with_both_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ours(gpt2())
    right: Callable[[Spelling, str], bytes] = Spelling.surface
    monkeypatch.setattr(Spelling, "surface", lambda spelling, piece: right(spelling, piece).replace(b" ", b"_"))
    found = decode_differences(tokenizer)
    assert len(found) == 20
    assert "which the library decodes as" in found[0]


def test_what_a_sandbox_decodes_is_the_same(tmp_path: Path) -> None:
    library = with_decoder(llama2(), UNUSUAL["a regular expression"])
    tokenizer = ours(library)
    assert tokenizer.backend_for("", special=True).is_sandboxed
    ids = tokenizer.encode("In a small town €", add_special=False)
    assert b"".join(tokenizer.text_pieces(ids)).decode() == decoded(library, ids)
    assert decode_differences(tokenizer) == []


def test_a_decoder_that_never_ends_is_an_error_with_the_file() -> None:
    doubling = [Replace("a", "aa")] * 40
    tokenizer = ours(with_decoder(llama2(), decoders.Sequence([*doubling, Fuse()])))
    ids = tokenizer.encode("a", add_special=False)
    with pytest.raises(BrokenTokenizer, match=r"cannot decode: tokenizer\.json: it takes too"):
        list(tokenizer.text_pieces(ids))
