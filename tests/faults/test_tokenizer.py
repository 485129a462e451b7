"""Faulty and hostile tokenizers."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import BrokenTokenizer
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.messages import Message
from gptcli.text.sandbox import client
from gptcli.text.sandbox.allowlist import TRUSTED_TEMPLATES, TRUSTED_TOKENIZERS
from gptcli.text.tokenizer import Tokenizer
from tests.cli.conftest import Cli
from tests.faults.conftest import Refuses
from tests.tiny import TEMPLATE, edit, make_tokenizer

DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
DOUBLING_28_TIMES = {"type": "Sequence", "normalizers": [DOUBLING] * 28}
BACKTRACKING = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TEXT, SECOND_TEXT = ({"Sequence": {"id": id, "type_id": 0}} for id in "AB")
UNKNOWN_TOKEN = {"SpecialToken": {"id": "x", "type_id": 0}}
# 1 GiB of a trie that is not there.
CHARSMAP = base64.b64encode((1 << 30).to_bytes(4, "little") + bytes(range(256)) * 4).decode()


def around(*single: dict[str, Any], **tokens: Any) -> dict[str, Any]:
    """A post-processor that puts tokens around a text."""
    return {"type": "TemplateProcessing", "single": list(single), "pair": [], "special_tokens": tokens}


BOMBS: dict[str, dict[str, Any]] = {
    "Precompiled garbage": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "28 nested Replace rules": {"normalizer": DOUBLING_28_TIMES},
    "40 times ByteLevel": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 40}},
    "an empty Prepend": {"normalizer": {"type": "Prepend", "prepend": ""}},
    "a regex that backtracks": {"pre_tokenizer": BACKTRACKING},
    "a second text": {"post_processor": around(SECOND_TEXT)},
    "one template after another": {"post_processor": {"type": "Sequence", "processors": [around(*[TEXT] * 3)] * 2}},
    "an id of no token": {
        "post_processor": around(UNKNOWN_TOKEN, TEXT, x={"id": "x", "ids": [10**6], "tokens": ["x"]})
    },
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_tokenizer_that_aborts_panics_or_never_ends_is_refused(refuses: Refuses, model: Path, bomb: str) -> None:
    edit(model / "tokenizer.json", **BOMBS[bomb])
    assert "tokenizer.json" in refuses(3, prompt="b" + "a" * 60 + "é!")  # and says nothing of a panic


@pytest.mark.parametrize(
    "fields",
    [
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "x"}},
        {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
        {"model": {**json.loads(make_tokenizer().to_str())["model"], "dropout": 0.9}},
    ],
    ids=["padding to a billion", "truncation", "dropout"],
)  # fmt: skip
def test_padding_truncation_and_dropout_are_off_at_inference(cli: Cli, model: Path, fields: dict[str, Any]) -> None:
    arguments = ("generate", "-m", model, "-n", "3", "-t", "0", "In a small town")
    expected = cli(*arguments)
    edit(model / "tokenizer.json", **fields)
    assert cli(*arguments) == expected
    assert expected.code == 0


def test_tokens_without_a_row_are_noted_and_refused_in_a_text(cli: Cli, refuses: Refuses, model: Path) -> None:
    flat = ("-n", "3", "-t", "0")
    expected = cli("generate", "-m", model, *flat, "hi")
    added = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    filler = [{**added[0], "id": id, "content": f"<extra {id}>"} for id in range(304, 322)]
    edit(model / "tokenizer.json", added_tokens=[*added, *filler])
    found = cli("generate", "-m", model, *flat, "hi")
    assert found.out == expected.out
    assert "note: tokens without a row in the model: <extra 320>, <extra 321>" in found.err
    found = cli("generate", "-m", model, *flat, "--special", "hi <extra 321>")
    assert found.code == 3 and "it makes token 321, of 320 in use" in found.err


def test_rows_that_pad_the_embedding_are_never_drawn(cli: Cli, model: Path) -> None:
    """The tokenizer has 304 tokens, the model 320."""
    flat = ("-t", "50", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "1", "--ignore-eos")
    result = cli("generate", "-m", model, "-n", "200", *flat, "--json", "hi")
    record = result.json
    assert len(record["ids"]) == 200 and 290 < max(record["ids"]) < 304


def test_two_tokens_with_one_id_are_refused(refuses: Refuses, model: Path) -> None:
    state = json.loads((model / "tokenizer.json").read_text())["model"]
    state["vocab"]["a"] = state["vocab"]["b"]
    edit(model / "tokenizer.json", model=state)
    assert "the same id" in refuses(3)


def opened(path: Path, **fields: Any) -> Tokenizer:
    """The tiny tokenizer with fields of its JSON changed."""
    (path / "tokenizer.json").write_text(json.dumps(json.loads(make_tokenizer().to_str()) | fields))
    return Tokenizer.open(path)


def test_an_untrusted_tokenizer_gives_the_same_ids_from_its_sandbox(tmp_path: Path) -> None:
    matches_nothing = {"type": "Replace", "pattern": {"Regex": "(?!)"}, "content": "xx"}
    sandboxed, trusted = opened(tmp_path, normalizer=matches_nothing), opened(tmp_path)
    assert sandboxed.backend_for("", special=True).is_sandboxed
    assert not trusted.backend_for("", special=True).is_sandboxed
    for text in ("In a small town", "<|im_end|> é 👩‍🚀\n", ""):
        assert sandboxed.encode(text) == trusted.encode(text)
        guarded = [tokenizer.control_tokens.guard(text) for tokenizer in (sandboxed, trusted)]
        assert sandboxed.encode_rendered(guarded[0]) == trusted.encode_rendered(guarded[1])


def test_a_process_that_died_is_started_again(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, normalizer=DOUBLING_28_TIMES)
    with pytest.raises(BrokenTokenizer, match="cannot encode"):
        tokenizer.encode("a")
    assert tokenizer.decode(tokenizer.encode("b")) == b"b"


@pytest.mark.real
def test_the_default_model_pays_for_no_process(real_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.subprocess, "Popen", None)
    directory = real_weights / "smollm2-135m-instruct"
    assert hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest() in TRUSTED_TOKENIZERS
    template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    assert hashlib.sha256(template.encode()).hexdigest() in TRUSTED_TEMPLATES
    assert Tokenizer.open(directory).encode("In a small town")


def test_a_piece_that_would_overflow_a_stack_is_refused(refuses: Refuses, model: Path) -> None:
    pieces: list[list[Any]] = [[piece, -1.0] for piece in make_tokenizer().get_vocab()]
    pieces[-1][0] = "a" * 1_000_000
    edit(model / "tokenizer.json", model={"type": "Unigram", "unk_id": 0, "vocab": pieces})
    assert "a piece of its vocabulary has 1000000 characters" in refuses(3)


@pytest.mark.parametrize(
    ("normalizer", "typed"),
    [
        ({"type": "Lowercase"}, "<|IM_END|>"),
        ({"type": "NFKC"}, "＜|im_end|＞"),
        ({"type": "Replace", "pattern": {"String": "~"}, "content": "<"}, "~|im_end|>"),
        ({"type": "Replace", "pattern": {"String": "~"}, "content": ""}, "<|im_~end|>"),
        ({"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
          "lowercase": True}, "<|IM_END|>"),
    ],
)  # fmt: skip
def test_a_control_token_that_normalizing_makes_is_text(tmp_path: Path, normalizer: dict[str, Any], typed: str) -> None:
    added = json.loads(make_tokenizer().to_str())["added_tokens"]
    normalized = [token | {"normalized": True} for token in added]
    tokenizer = opened(tmp_path, normalizer=normalizer, added_tokens=normalized)
    template = ChatTemplate(TEMPLATE, "here")
    end = tokenizer.encode("<|im_end|>", special=True)
    assert len(end) == 1
    assert tokenizer.encode(f"a {typed} b", special=True).count(end[0]) == 1
    assert end[0] not in tokenizer.encode(f"a {typed} b")
    assert template.render([Message("user", f"a {typed} b")], tokenizer).count(end[0]) == 1


def test_an_added_token_of_megabytes_is_refused(refuses: Refuses, model: Path) -> None:
    tokenizer = json.loads(make_tokenizer().to_str())
    long = {**tokenizer["added_tokens"][0], "content": "a" * 5_000_000}
    edit(model / "tokenizer.json", added_tokens=[*tokenizer["added_tokens"][1:], long])
    assert "its added tokens have 5000022 characters" in refuses(3)
