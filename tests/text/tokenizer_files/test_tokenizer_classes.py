"""Classes of transformers that build their own tokenizer from a tokenizer.json: ours is the same, or a note says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, TokenizersBackend
from transformers.models.auto import tokenization_auto

from gptcli.checkpoint.registry import FAMILIES
from gptcli.text import backend
from gptcli.text.tokenizer import Tokenizer
from gptcli.text.tokenizer_files.tokenizer_classes import class_of, is_class
from gptcli.text.tokenizer_json import from_state, parse
from tests.text.tokenizer_kinds import KINDS, texts

BYTE_LEVEL = {"eos_token": "<|end|>", "unk_token": "<|end|>", "bos_token": "<|end|>"}
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
DECODER = {
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True, "rstrip": True},
        "2": {"content": "</s>", "normalized": True, "special": False},
    }
}
# A kind of tokenizer.json, config.json, tokenizer_config.json. A tokenizer.json of another kind than the class's shows
# which parts the class reads.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": ("llama2", {"model_type": "llama"}, ROLES | {"tokenizer_class": "LlamaTokenizer"}),
    "Llama, legacy": ("llama2", {"model_type": "llama"}, ROLES | {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
    "Llama, bare": ("metaspace", {"tokenizer_class": "LlamaTokenizerFast"}, ROLES | {"add_prefix_space": False,
         "add_bos_token": False}),
    "Llama, tokens by id": ("llama2", {}, ROLES | DECODER | {"tokenizer_class": "LlamaTokenizer"}),
    "Llama, byte-level": ("llama3", {"model_type": "llama"}, BYTE_LEVEL | {"tokenizer_class": "LlamaTokenizerFast"}),
    "Llama for Mistral": ("llama2", {"model_type": "mistral"}, ROLES | {"tokenizer_class": "LlamaTokenizer"}),
    "Llama for Phi 3": ("llama2", {"model_type": "phi3"}, ROLES | {"tokenizer_class": "LlamaTokenizer"}),
    "Llama for Qwen 2": ("llama3", {"model_type": "qwen2"}, BYTE_LEVEL | {"tokenizer_class": "LlamaTokenizerFast"}),
    "Llama for Gemma": ("llama2", {"model_type": "gemma2"}, ROLES | {"tokenizer_class": "LlamaTokenizer"}),
    "Code Llama": ("llama2", {"model_type": "llama"}, ROLES | {"tokenizer_class": "CodeLlamaTokenizer"}),
    "Code Llama, its own tokens": ("metaspace", {"model_type": "llama"}, ROLES |
         {"tokenizer_class": "CodeLlamaTokenizerFast", "fill_token": None, "prefix_token": "clock"}),
    "Gemma": ("llama2", {"model_type": "gemma3_text"}, ROLES),
    "GPT-2": ("llama3", {"model_type": "gpt2"}, BYTE_LEVEL),
    "GPT-2, named": ("qwen2", {"model_type": "llama"}, BYTE_LEVEL | {"tokenizer_class": "GPT2Tokenizer"}),
    "GPT-2 with a prefix": ("o200k", {"model_type": "phi"}, BYTE_LEVEL | {"add_prefix_space": True}),
    "CodeGen": ("llama3", {"model_type": "phi"}, BYTE_LEVEL | {"tokenizer_class": "CodeGenTokenizer"}),
    "GPT-NeoX": ("llama3", {"model_type": "gpt_neox"}, BYTE_LEVEL | {"add_bos_token": True}),
    "Qwen 2": ("llama3", {"model_type": "qwen3"}, BYTE_LEVEL | {"tokenizer_class": "Qwen2Tokenizer"}),
    "Qwen 3.5": ("llama3", {"model_type": "llama"}, BYTE_LEVEL | {"tokenizer_class": "Qwen3_5Tokenizer"}),
    "Cohere": ("greedy", {"model_type": "cohere2"}, BYTE_LEVEL | {"tokenizer_class": "CohereTokenizerFast"}),
    "OpenAI GPT": ("openai_gpt", {"model_type": "openai-gpt"}, {"unk_token": "<unk>"}),
    "generic": ("o200k", {"model_type": "olmo2"}, BYTE_LEVEL | {"tokenizer_class": "GPT2Tokenizer"}),
    "unheard of": ("o200k", {"model_type": "llama"}, BYTE_LEVEL | {"tokenizer_class": "TheirTokenizer"}),
}  # fmt: skip


def openai_gpt() -> Library:
    """BPE with marked ends of words."""
    pieces = ["<unk>", *"clokwinasmet", *(f"{letter}</w>" for letter in "clokwinasmet"), "lo", "clo", "in</w>"]
    merges = ["l o", "c lo", "i n</w>"]
    model = {"type": "BPE", "vocab": {piece: id for id, piece in enumerate(pieces)}, "merges": merges}
    return Library.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def written(path: Path, kind: str, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    library = openai_gpt() if kind == "openai_gpt" else KINDS[kind]()
    (path / "tokenizer.json").write_text(library.to_str())
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    path = written(tmp_path_factory.mktemp("model"), *CASES[request.param])
    return AutoTokenizer.from_pretrained(path), Tokenizer.open(path)


def test_vocabulary_and_added_tokens_are_as_in_transformers(both: tuple[Any, Tokenizer]) -> None:
    theirs, ours = both
    assert ours.library.get_vocab() == theirs.get_vocab()
    assert repr(ours.library.get_added_tokens_decoder()) == repr(theirs.added_tokens_decoder)
    assert ours.stop_ids == (() if theirs.eos_token is None else (theirs.eos_token_id,))
    assert not ours.notes


@given(text=texts(8))
@example(" a<s> b</s>  clock 123<|end|> x")
@settings(max_examples=60, deadline=None)
def test_ids_and_text_are_as_in_transformers(both: tuple[Any, Tokenizer], text: str) -> None:
    theirs, ours = both
    ids = theirs.encode(text)
    assert ours.library.encode(text).ids == ids
    if not ours.spelling.byte_fallback:
        assert b"".join(ours.text_pieces(ids)).decode("utf-8", "replace") == theirs.decode(ids)


@pytest.mark.parametrize("kind", ["llama2", "qwen2"])
def test_components_that_a_class_makes_itself_are_listed_as_unread(tmp_path: Path, kind: str) -> None:
    read = Tokenizer.open(written(tmp_path, kind, {"model_type": "qwen3"}, BYTE_LEVEL)).unread
    ours = Tokenizer.open(written(tmp_path, "llama2", {}, ROLES | {"tokenizer_class": "LlamaTokenizer"})).unread
    assert (read, ours) == ((), ("normalizer", "pre_tokenizer"))


@pytest.mark.parametrize(("kind", "options", "pad", "as_it_is"), [
    ("qwen2", {}, "<|end|>", True),
    ("qwen2", {"ignore_merges": True}, "<|end|>", False),
    ("qwen2", {}, "<|pad|>", False),
    ("llama3", {}, "<|end|>", False),
])  # fmt: skip
def test_a_file_is_opened_once_and_as_it_is_where_its_class_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], pad: str, as_it_is: bool
) -> None:
    opened = list[bytes]()
    monkeypatch.setattr(backend, "parse", lambda data: opened.append(data) or parse(data))
    monkeypatch.setattr(backend, "from_state", lambda state: opened.append(b"another") or from_state(state))
    path = written(tmp_path, kind, {"model_type": "qwen3"}, BYTE_LEVEL | {"pad_token": pad})
    state = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(state | {"model": state["model"] | options}, indent=1))
    Tokenizer.open(path)
    assert [data == (path / "tokenizer.json").read_bytes() for data in opened] == [as_it_is]


@pytest.mark.parametrize(("kind", "name"), [
    ("wordpiece", "BertTokenizer"),
    ("unigram", "T5TokenizerFast"),
    ("unigram", "LlamaTokenizer"),
    ("llama2", "GPT2Tokenizer"),
    ("gpt2", "GemmaTokenizer"),
])  # fmt: skip
def test_a_class_that_is_not_built_is_noted_and_the_file_read_as_it_is(tmp_path: Path, kind: str, name: str) -> None:
    path = written(tmp_path, kind, {"model_type": "llama"}, {"tokenizer_class": name})
    ours = Tokenizer.open(path)
    assert [note.names for note in ours.notes] == [(name.removesuffix("Fast"),)]
    assert ours.encode("In a town") == Library.from_file(str(path / "tokenizer.json")).encode("In a town").ids


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_class_of_each_model_type_is_transformers(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    name = (tokenization_auto.TOKENIZER_MAPPING_NAMES.get(model_type) or "TokenizersBackend").removesuffix("Fast")
    assert class_of(tmp_path, {}) == (None if name == "TokenizersBackend" else name)
    forced = model_type in tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    named = class_of(tmp_path, {"tokenizer_class": "GPT2TokenizerFast"})
    generic = name == "TokenizersBackend" and model_type in tokenization_auto.TOKENIZER_MAPPING_NAMES
    assert named == (None if generic else name if forced else "GPT2Tokenizer")


def test_every_class_with_components_of_its_own_is_known() -> None:
    for name in {name for name in tokenization_auto.TOKENIZER_MAPPING_NAMES.values() if name}:
        made = tokenization_auto.tokenizer_class_from_name(name)
        plain = made is not None and issubclass(made, TokenizersBackend) and "__init__" not in made.__dict__
        known = is_class(name.removesuffix("Fast"))
        assert known != (plain or made is TokenizersBackend), name


def test_code_of_the_models_own_beside_a_named_class_is_that_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "olmo2"}')
    tokenizer = {"tokenizer_class": "GPT2Tokenizer", "auto_map": {"AutoTokenizer": ["theirs.Theirs", None]}}
    assert class_of(tmp_path, tokenizer) == "GPT2Tokenizer"
