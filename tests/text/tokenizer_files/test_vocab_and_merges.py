"""Tokenizers of vocab.json and merges.txt against transformers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gptcli.errors import BrokenTokenizer
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import gpt2, texts

CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2Tokenizer": {"eos_token": "<|end|>"},
    "GPT2TokenizerFast": {"add_prefix_space": True, "bos_token": "<|end|>", "add_bos_token": True},
    "CodeGenTokenizer": {"add_prefix_space": False},
    "GPTNeoXTokenizer": {"added_tokens_decoder": {"420": {"content": "  ", "normalized": True}}},
    "Qwen2Tokenizer": {"added_tokens_decoder": {"0": {"content": "<|end|>", "rstrip": True, "special": True}},
         "pad_token": "<|end|>", "eos_token": "<|end|>", "bos_token": None, "unk_token": "<|end|>"},
}  # fmt: skip


def written(path: Path, name: str | None, tokenizer: dict[str, Any], **files: Any) -> Path:
    model = json.loads(gpt2().to_str())["model"]
    (path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    files["tokenizer_config"] = tokenizer if name is None else {"tokenizer_class": name} | tokenizer
    for file, value in files.items():
        (path / f"{file}.json").write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module", params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    path = written(tmp_path_factory.mktemp("model"), request.param, CONFIGS[request.param])
    return AutoTokenizer.from_pretrained(path), Tokenizer.open(path)


def test_vocabulary_and_roles_are_as_in_transformers(both: tuple[PreTrainedTokenizerBase, Tokenizer]) -> None:
    theirs, ours = both
    assert ours.library.get_vocab() == theirs.get_vocab()
    assert repr(ours.library.get_added_tokens_decoder()) == repr(theirs.added_tokens_decoder)
    assert ours.stop_ids == (theirs.eos_token_id,)
    assert ours.encode("a b") == theirs.encode("a b")


@given(text=texts(8))
@settings(max_examples=60, deadline=None)
def test_ids_and_text_are_as_in_transformers(both: tuple[PreTrainedTokenizerBase, Tokenizer], text: str) -> None:
    theirs, ours = both
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text, special=True, add_special=False) == ids
    assert b"".join(ours.text_pieces(ids)).decode("utf-8", "replace") == theirs.decode(ids)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "qwen3"])
def test_a_class_that_is_not_named_is_the_model_types(tmp_path: Path, model_type: str) -> None:
    written(tmp_path, None, {}, config={"model_type": model_type})
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.open(tmp_path)
    assert ours.library.get_vocab() == theirs.get_vocab()
    text = "e\u0301 12345 don't"
    assert ours.encode(text) == theirs.encode(text)


@pytest.mark.parametrize("name", ["WhisperTokenizer", "ClipTokenizer", None])
def test_an_unknown_class_is_refused_by_name(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(BrokenTokenizer, match=f"not supported: .*vocab.json: a tokenizer of class {name or 'unknown'}"):
        Tokenizer.open(written(tmp_path, name, {}))


@pytest.mark.parametrize(("file", "text", "reason"), [
    ("merges.txt", "a b c\n", "line 1 is no pair"),
    ("merges.txt", "#version: 0.2\n\n", "line 2 is no pair"),
    ("merges.txt", "zz yy\n", "cannot read"),
    ("vocab.json", '{"a": "b"}', "an id that is no number"),
    ("vocab.json", '{"a": 1, "a": 2}', "duplicate key 'a'"),
    ("vocab.json", "[]", "not a JSON object"),
])  # fmt: skip
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, file: str, text: str, reason: str) -> None:
    written(tmp_path, "GPT2Tokenizer", {})
    (tmp_path / file).write_text(text)
    with pytest.raises(BrokenTokenizer, match=reason):
        Tokenizer.open(tmp_path)
