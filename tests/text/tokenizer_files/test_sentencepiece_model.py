"""Tokenizers of SentencePiece's tokenizer.model, against transformers and the sentencepiece package."""

from __future__ import annotations

import json
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from transformers import AutoTokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sentencepiece

from gptcli.errors import BrokenTokenizer
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import CORPUS, texts

BPE: dict[str, Any] = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
LLAMA = BPE | {"remove_extra_whitespaces": False, "user_defined_symbols": ["<0x0A>x", "▁▁"]}
GEMMA = BPE | {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "pad_id": 3}
UNIGRAM: dict[str, Any] = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Llama": (LLAMA, {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
    "Llama, legacy": (LLAMA, {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizerFast", "legacy": True}),
    "Llama, of no class": (LLAMA, {"model_type": "llama"}, {}),
    "Code Llama": (LLAMA, {"model_type": "llama"}, {"tokenizer_class": "CodeLlamaTokenizer", "legacy": True}),
    "Llama, bare": (LLAMA, {"model_type": "llama"}, {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False,
         "add_eos_token": True}),
    "Gemma": (GEMMA, {"model_type": "gemma"}, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}),
    "Mistral": (LLAMA, {"model_type": "mistral"}, {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "Mistral, legacy": (BPE, {"model_type": "mistral"}, {"tokenizer_class": "LlamaTokenizer"}),
    "Phi 3": (BPE, {"model_type": "phi3"}, {"tokenizer_class": "LlamaTokenizer",
         "added_tokens_decoder": {"2": {"content": "<end>", "rstrip": True, "special": False},
         "400": {"content": "<|user|>", "rstrip": True, "special": True}}, "eos_token": "<|user|>"}),
    "Unigram": (UNIGRAM, {"model_type": "mistral"}, {}),
    "Unigram, bytes": (UNIGRAM | {"byte_fallback": True, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
         {"model_type": "mistral"}, {}),
    "BPE with user symbols": (BPE | {"user_defined_symbols": ["clock", " a", "町"], "control_symbols": ["<ctl>"]},
         {"model_type": "mistral"}, {}),
}  # fmt: skip
# In these the fast class agrees with SentencePiece on whole texts.
AS_SENTENCEPIECE = ["Mistral, legacy", "Unigram, bytes"]


@cache
def trained(options: str) -> bytes:
    written = BytesIO()
    lines = [line for text in CORPUS for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        **{"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2} | json.loads(options),
    )
    return written.getvalue()


def written(path: Path, options: dict[str, Any], config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    (path / "tokenizer.model").write_bytes(trained(json.dumps(options)))
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    path = written(tmp_path_factory.mktemp("model"), *MODELS[request.param])
    return AutoTokenizer.from_pretrained(path), Tokenizer.open(path)


def test_vocabulary_and_roles_are_as_in_transformers(both: tuple[Any, Tokenizer]) -> None:
    theirs, ours = both
    assert ours.library.get_vocab() == theirs.get_vocab()
    assert repr(ours.library.get_added_tokens_decoder()) == repr(theirs.added_tokens_decoder)
    assert ours.stop_ids == (theirs.eos_token_id,)
    assert ours.encode("a b") == theirs.encode("a b")
    assert json.loads(ours.library.to_str())["model"] == json.loads(theirs.backend_tokenizer.to_str())["model"]


@given(text=texts(8))
@example("a<s> b</s>  c<ctl>d")
@example("  a  b  ")
@settings(max_examples=40, deadline=None)
def test_ids_and_text_are_as_in_transformers(both: tuple[Any, Tokenizer], text: str) -> None:
    theirs, ours = both
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.library.encode(text, add_special_tokens=False).ids == ids
    assert b"".join(ours.text_pieces(ids)).decode("utf-8", "replace").replace("\ufffd", "") == theirs.decode(
        ids
    ).replace("\ufffd", "")


@pytest.mark.parametrize("name", AS_SENTENCEPIECE)
@pytest.mark.parametrize("text", CORPUS[:6])
def test_ids_are_as_in_sentencepiece_itself(tmp_path: Path, name: str, text: str) -> None:
    ours = Tokenizer.open(written(tmp_path, *MODELS[name]))
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained(json.dumps(MODELS[name][0])))
    assert ours.encode(text, add_special=False) == processor.encode(text)


@pytest.mark.parametrize("name", ["T5Tokenizer", "XLMRobertaTokenizer", "TheirTokenizer", "GPT2Tokenizer"])
def test_an_unknown_class_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, BPE, {"model_type": "llama"}, {"tokenizer_class": name})
    with pytest.raises(BrokenTokenizer, match=f"tokenizer.model: a tokenizer of class {name}"):
        Tokenizer.open(path)


@pytest.mark.parametrize(("options", "reason"), [
    ({"model_type": "char"}, "of words or characters"),
    (BPE | {"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
    (UNIGRAM, "a LlamaTokenizer that is no BPE"),
])  # fmt: skip
def test_models_of_another_kind_are_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BrokenTokenizer, match=reason):
        Tokenizer.open(written(tmp_path, options, {}, {"tokenizer_class": "LlamaTokenizer"}))


@pytest.mark.parametrize("cut", [1, 2, 9, 1000, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, BPE, {}, {"tokenizer_class": "LlamaTokenizer"})
    data = (path / "tokenizer.model").read_bytes()
    (path / "tokenizer.model").write_bytes(data[:cut])
    with pytest.raises(BrokenTokenizer, match="cannot read|not supported"):
        Tokenizer.open(path)


def test_random_bytes_are_no_sentencepiece_model(tmp_path: Path) -> None:
    path = written(tmp_path, BPE, {}, {"tokenizer_class": "LlamaTokenizer"})
    for seed in range(50):
        (path / "tokenizer.model").write_bytes(bytes((seed * 7 + i * i) % 256 for i in range(seed)))
        with pytest.raises(BrokenTokenizer):
            Tokenizer.open(path)


@pytest.mark.parametrize("field", ["added_tokens_decoder", "unk_token", "bos_token", "legacy", "extra_special_tokens"])
@pytest.mark.parametrize("value", [7, None, [], ["x"], {}, {"7": "x"}, {"²": {}}, {"content": 7}, "nope"], ids=repr)
def test_settings_of_any_type_are_taken_or_refused(tmp_path: Path, field: str, value: Any) -> None:
    path = written(tmp_path, BPE, {}, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, field: value})
    try:
        assert Tokenizer.open(path).encode("a")
    except BrokenTokenizer as error:
        assert str(tmp_path) in str(error)
