"""Tokens named only by files beside tokenizer.json, compared with transformers on generated directories."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gptcli.errors import BrokenTokenizer
from gptcli.text.tokenizer import Tokenizer
from gptcli.text.tokenizer_files.named_tokens import Vocabulary, named_tokens, read_settings
from gptcli.text.tokenizer_files.tokenizer_classes import with_roles
from tests.tiny import make_tokenizer

LIBRARY = make_tokenizer().to_str()
SIZE = make_tokenizer().get_vocab_size()
CONTENTS = ["<|new|>", "<extra>", "town", "[PAD]", " b", "<|im_end|>", "<|endoftext|>", "é"]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
TEXT = "In a town<|new|> <extra>  town [PAD] towns b <|im_end|> <|endoftext|>é<|new|>"
flags = st.fixed_dictionaries({}, optional={flag: st.booleans() for flag in FLAGS})


def written(path: Path, **files: Any) -> Path:
    (path / "tokenizer.json").write_text(LIBRARY)
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def as_transformers(path: Path) -> Tokenizer:
    """Our tokenizer, after a comparison with transformers'."""
    theirs, ours = PreTrainedTokenizerFast.from_pretrained(path), Tokenizer.open(path)
    assert ours.library.get_vocab() == theirs.get_vocab()
    assert {id: str(token) for id, token in theirs.added_tokens_decoder.items()} == {
        id: ours.added_content(id) for id in range(ours.size) if ours.is_added(id)
    }
    assert list(map(repr, ours.library.get_added_tokens_decoder().values())) == list(
        map(repr, theirs.added_tokens_decoder.values())
    )
    ids = theirs.encode(TEXT, add_special_tokens=False)
    assert ours.encode(TEXT, special=True, add_special=False) == ids
    assert b"".join(ours.text_pieces(ids)).decode("utf-8", "replace") == theirs.decode(ids)
    end = theirs.eos_token
    assert ours.stop_ids == (() if end is None else (theirs.eos_token_id,))
    assert {role: ours.named_tokens.get(role) for role in ("bos_token", "pad_token")} == {
        "bos_token": theirs.bos_token,
        "pad_token": theirs.pad_token,
    }
    return ours


@st.composite
def with_ids(draw: st.DrawFn) -> dict[str, int]:
    """Token contents with their ids; new tokens get ids after the last."""
    library, ids, following = make_tokenizer(), {}, SIZE
    for content in draw(st.lists(st.sampled_from(CONTENTS), unique=True, max_size=5)):
        id = library.token_to_id(content)
        if id is None:
            id, following = following, following + 1
        ids[content] = id
    return ids


names = st.sampled_from(CONTENTS)
roles = st.fixed_dictionaries(
    {},
    optional={
        "eos_token": names,
        "pad_token": names,
        "bos_token": names.flatmap(
            lambda name: flags.map(lambda some: {"__type": "AddedToken", "content": name} | some)
        ),
        "image_token": st.just("<image>"),
        "additional_special_tokens": st.lists(names | st.just("<|also|>"), unique=True, max_size=2),
    },
)


@given(ids=with_ids(), data=st.data(), roles=roles)
@settings(max_examples=60, deadline=None)
def test_tokens_of_tokenizer_config_are_as_in_transformers(
    ids: dict[str, int], data: st.DataObject, roles: dict[str, Any]
) -> None:
    decoder = {str(id): {"content": content} | data.draw(flags) for content, id in ids.items()}
    with TemporaryDirectory() as path:
        as_transformers(written(Path(path), tokenizer_config={"added_tokens_decoder": decoder} | roles))


@given(ids=with_ids(), roles=roles, older=roles)
@settings(max_examples=60, deadline=None)
def test_tokens_of_older_files_are_as_in_transformers(
    ids: dict[str, int], roles: dict[str, Any], older: dict[str, Any]
) -> None:
    older = {
        role: {key: part for key, part in value.items() if key != "__type"} if isinstance(value, dict) else value
        for role, value in older.items()
    }
    files = {"tokenizer_config": roles, "special_tokens_map": older, "added_tokens": ids}
    with TemporaryDirectory() as path:
        as_transformers(written(Path(path), **files))


def test_an_end_that_only_the_settings_name_ends_a_text(tmp_path: Path) -> None:
    end = {"content": "<|end|>", "special": True, "normalized": False}
    config = {"added_tokens_decoder": {str(SIZE): end}, "eos_token": "<|end|>"}
    tokenizer = as_transformers(written(tmp_path, tokenizer_config=config))
    assert tokenizer.stop_ids == (SIZE,)
    assert tokenizer.is_control(SIZE)
    assert tokenizer.encode("a<|end|>", special=True)[-1] == SIZE
    assert SIZE not in tokenizer.encode("a<|end|>")


@pytest.mark.parametrize(("decoder", "reason"), [
    ({"5": "<new>"}, "the token '<new>' has the id 304, and 5 in"),
    ({"400": "<new>"}, "the token '<new>' has the id 304, and 400 in"),
    ({"7": "<|im_end|>"}, "the token '<|im_end|>' has the id 2, and 7 in"),
    ({"304": "<new>", "305": "<new>"}, "the token '<new>' has the id 304, and 305 in"),
])  # fmt: skip
def test_ids_that_contradict_are_refused_by_name(tmp_path: Path, decoder: dict[str, str], reason: str) -> None:
    tokens = {id: {"content": content, "special": True, "normalized": False} for id, content in decoder.items()}
    with pytest.raises(BrokenTokenizer, match=f"contradictory: .*{reason}".replace("|", r"\|")):
        Tokenizer.open(written(tmp_path, tokenizer_config={"added_tokens_decoder": tokens}))


def test_ids_of_added_tokens_json_that_contradict_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BrokenTokenizer, match="'<new>' has the id 304, and 9 in added_tokens.json"):
        Tokenizer.open(written(tmp_path, added_tokens={"<new>": 9}))


@pytest.mark.parametrize(
    "token", [7, "x", {"content": 7}, {"content": "x", "lstrip": 1}, {"content": "x", "colour": True}, {}], ids=repr
)
def test_entries_that_are_no_tokens_are_refused(tmp_path: Path, token: Any) -> None:
    with pytest.raises(BrokenTokenizer, match="cannot read"):
        Tokenizer.open(written(tmp_path, tokenizer_config={"added_tokens_decoder": {"304": token}}))


def test_an_id_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenTokenizer, match="token '1+' of added_tokens_decoder"):
        Tokenizer.open(written(tmp_path, tokenizer_config={"added_tokens_decoder": {"1" * 5000: {"content": "<new>"}}}))


class Counted(str):
    """A string that counts how often strings are looked up or compared."""

    count = 0

    def __hash__(self) -> int:
        Counted.count += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.count += 1
        return super().__eq__(other)


def lookups(size: int) -> int:
    """How often strings are looked up for so many tokens with ids, and as many listed ones."""
    with_id, listed = ([Counted(f"<{kind}{index}>") for index in range(size)] for kind in ("id", "listed"))
    decoder = {str(id): {"content": content, "special": True} for id, content in enumerate(with_id)}
    settings = {"added_tokens_decoder": decoder, "extra_special_tokens": listed, "eos_token": with_id[0]}
    vocabulary = Vocabulary(size, {str(content): id for id, content in enumerate(with_id)}.get, {})
    Counted.count = 0
    tokens = named_tokens(vocabulary, with_roles("Qwen2Tokenizer", settings), {}, Path("tokenizer.json"))
    assert tokens is not None and len(tokens) > 2 * size
    return Counted.count


def test_the_work_for_named_tokens_grows_with_their_number_not_with_its_square() -> None:
    assert lookups(400) < 3 * lookups(200)


def test_two_lists_of_special_tokens_are_joined_without_repetition(tmp_path: Path) -> None:
    first, both = {"content": "<a>", "lstrip": True}, {"lstrip": True, "content": "<a>"}
    files = {"tokenizer_config": ["<b>", first], "special_tokens_map": [both, "<c>", "<b>"]}
    path = written(tmp_path, **{name: {"extra_special_tokens": tokens} for name, tokens in files.items()})
    assert read_settings(path, [])[0]["extra_special_tokens"] == ["<b>", first, "<c>"]
