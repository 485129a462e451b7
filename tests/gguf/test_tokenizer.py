"""Token ids of converted tokenizers against llama.cpp's of the same files (record_llama_cpp_tokens.py)."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import BrokenCheckpoint
from gptcli.gguf.convert import convert
from gptcli.gguf.reader import GgufFile
from gptcli.gguf.tokenizer import stop_ids
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer
from tests.gguf.raw_gguf import RawGguf, texts
from tests.gguf.record_llama_cpp_tokens import SENTENCEPIECE
from tests.gguf.tiny_gguf import (
    BOS,
    CONTROL,
    PRE_TOKENIZERS,
    TOKENS,
    write_gguf,
    write_sentencepiece,
    write_vocabulary,
)

SENTENCEPIECE_CONTROL = {1, 2, 3, 4, 5}
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("llama_cpp_tokens.json").read_text())


@pytest.fixture(scope="module", params=[*PRE_TOKENIZERS, *SENTENCEPIECE])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer]:
    """A tokenizer's name, and the tokenizer of a file with it."""
    file = tmp_path_factory.mktemp("kind") / "tiny.gguf"
    if request.param in SENTENCEPIECE:
        write_sentencepiece(file, RECORDED["pieces"], **SENTENCEPIECE[request.param])
    else:
        merges = [tuple(merge.split(" ")) for merge in RECORDED["merges"]]
        write_vocabulary(file, request.param, merges)
    return request.param, Tokenizer.open(file)


def is_comparable(name: str, text: str, ids: list[int]) -> bool:
    """Whether llama.cpp splits a text as the model's own tokenizer does, which is what we promise."""
    if name in ("qwen2", "qwen35"):  # their own tokenizers compose characters first; llama.cpp does not
        return unicodedata.is_normalized("NFC", text)
    if name in ("deepseek-llm", "deepseek-coder"):  # llama.cpp takes all whitespace out of ranges of letters
        return "\u2028" not in text
    return "sentencepiece" not in name or not {*ids} & SENTENCEPIECE_CONTROL  # llama.cpp merges them from typed text


def check(tokenizer: Tokenizer, name: str, *, special: bool) -> None:
    expected = RECORDED["ids"][name]
    if special:
        expected = [RECORDED["special"][name].get(str(index), ids) for index, ids in enumerate(expected)]
    compared = [
        (text, ids)
        for text, ids in zip(RECORDED["texts"], expected, strict=True)
        if is_comparable(name, text, [] if special else ids)
    ]
    assert len(compared) > len(expected) - 16
    ours = {text: tokenizer.encode(text, special=special, add_special=False) for text, _ in compared}
    assert {text: (ours[text], ids) for text, ids in compared if ours[text] != ids} == {}


@pytest.mark.parametrize("special", [False, True], ids=["typed", "special"])
def test_ids_are_those_of_llama_cpp(kind: tuple[str, Tokenizer], special: bool) -> None:
    name, tokenizer = kind
    check(tokenizer, name, special=special)


@pytest.mark.real
@pytest.mark.parametrize("special", [False, True], ids=["typed", "special"])
def test_ids_of_the_default_model_are_those_of_llama_cpp(real_weights: Path, special: bool) -> None:
    check(Tokenizer.open(real_weights / DEFAULT_MODEL), "smollm2", special=special)


def tokenizer_of(path: Path, pre: str, tokens: list[str] | None = None, **changes: Any) -> Tokenizer:
    if tokens is not None:
        types = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))
        changes |= {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    convert(write_gguf(path / "tiny.gguf", pre=pre, **changes), path, lambda done, total: None)
    return Tokenizer.open(path)


def test_qwen_composes_characters_first(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "qwen2")
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


@pytest.mark.parametrize(("pre", "ids"), [("llama-bpe", [7]), ("qwen2", [3, 6])])
def test_only_llama_3_takes_a_word_of_the_vocabulary_whole(pre: str, ids: list[int], tmp_path: Path) -> None:
    tokens = [*CONTROL, "a", "b", "c", "bc", "abc"]
    tokenizer = tokenizer_of(tmp_path, pre, tokens, tokenizer__ggml__merges=["b c"])
    assert tokenizer.encode("abc", add_special=False) == ids


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("smollm", False), ("gpt-2", False), ("qwen2", False)])
def test_bos_is_added_by_default_as_in_llama_cpp(pre: str, adds: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, pre, tokenizer__ggml__add_bos_token=None)
    assert (tokenizer.encode("a")[0] == CONTROL.index(BOS)) == adds
    assert len(tokenizer.encode("a", add_special=False)) == 1


def test_a_file_that_forbids_bos_has_none(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "llama-bpe", tokenizer__ggml__add_bos_token=False)
    assert len(tokenizer.encode("a")) == 1


def test_user_defined_tokens_that_look_like_control_tokens_are_text_when_typed(tmp_path: Path) -> None:
    types = [3, 4, 3, *[1] * (len(TOKENS) - 3)]
    tokenizer = tokenizer_of(tmp_path, "gpt-2", tokenizer__ggml__token_type=types)
    for token in ("<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(token)) == len(token)
    assert tokenizer.encode("<|im_start|>", special=True) == [1]


def test_every_stop_token_is_in_the_generation_config(tmp_path: Path) -> None:
    tokenizer_of(tmp_path, "gpt-2", tokenizer__ggml__eot_token_id=0, tokenizer__ggml__eom_token_id=2)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
    assert Tokenizer.open(tmp_path).stop_ids == (2,)


def test_tokens_that_are_never_drawn_are_in_the_generation_config(tmp_path: Path) -> None:
    tokenizer_of(tmp_path, "gpt-2", tokenizer__ggml__suppress_tokens=[1, 2])
    assert json.loads((tmp_path / "generation_config.json").read_text())["suppress_tokens"] == [1, 2]


@pytest.mark.parametrize(("texts_of_control", "ends"), [
    (["<eos>", "<end_of_turn>", "<start_of_turn>"], [0, 1]),
    (["<|return|>", "<|end|>", "<|call|>"], [0, 2]),  # gpt-oss: several messages are one turn
    (["<|start|>", "<|end|>", "<|call|>"], [1, 2]),
])  # fmt: skip
def test_control_tokens_that_llama_cpp_ends_at_end_a_text(
    texts_of_control: list[str], ends: list[int], tmp_path: Path
) -> None:
    tokens = [*texts_of_control, *TOKENS[len(CONTROL) : -1], "</s>"]  # the last one is text
    file = write_gguf(
        tmp_path / "tiny.gguf",
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__merges=["h e"],
        tokenizer__ggml__eos_token_id=None,
    )
    assert sorted(stop_ids(GgufFile(file))) == ends


def test_the_chat_template_is_kept(tmp_path: Path) -> None:
    template = "{{ '\u00e9\n' }}"
    tokenizer = tokenizer_of(tmp_path, "gpt-2", tokenizer__chat_template=template)
    assert tokenizer.settings["chat_template"] == template
    both = {"tokenizer__chat_template": template, "tokenizer__chat_template__tool_use": "{{ tools }}"}
    (tmp_path / "both").mkdir()
    chosen = ChatTemplate.of_model(tmp_path / "both", tokenizer_of(tmp_path / "both", "gpt-2", **both))
    assert chosen.source == template
    assert chosen.with_tools is not None and chosen.with_tools.source == "{{ tools }}"


def test_a_file_without_merges_is_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    raw = RawGguf.of(file)
    raw.fields["tokenizer.ggml.merges"] = texts([])
    file.write_bytes(raw.written())
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer\.ggml\.merges is empty"):
        Tokenizer.open(file)


@pytest.mark.parametrize("name", [name for name in SENTENCEPIECE if "sentencepiece" in name])
def test_pieces_never_add_up_to_a_control_token(name: str, tmp_path: Path) -> None:
    file = write_sentencepiece(tmp_path / "tiny.gguf", RECORDED["pieces"], **SENTENCEPIECE[name])
    tokenizer = Tokenizer.open(file)
    typed = "a<|im_start|>user\nhi<|im_end|>\n</s> b"
    theirs = RECORDED["ids"][name][RECORDED["texts"].index("<|im_end|>")]
    assert SENTENCEPIECE_CONTROL & {*theirs}
    assert not SENTENCEPIECE_CONTROL & {*tokenizer.encode(typed, add_special=False)}
    assert tokenizer.decode(tokenizer.encode(typed, add_special=False)).decode().lstrip() == typed


def test_sentencepiece_adds_bos_by_default(tmp_path: Path) -> None:
    file = write_sentencepiece(tmp_path / "tiny.gguf", RECORDED["pieces"], prefix=True)
    assert Tokenizer.open(file).encode("a")[0] == 1
    assert Tokenizer.open(file).surroundings == ((1,), ())
