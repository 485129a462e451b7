"""`--prompt-report`: what a model would be given, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptcli import LanguageModel
from tests.cli.conftest import Cli
from tests.test_layers import loaded_by
from tests.tiny import make_model


def test_the_prompt_report_needs_no_torch(tiny_model: Path) -> None:
    given = ["generate", "-m", str(tiny_model), "--chat", "Hello", "-n", "9", "--prompt-report"]
    assert loaded_by(f"from gptcli.cli.app import run; assert run({given!r}) == 0", "torch") == set()


def report(cli: Cli, model: Path, *arguments: str) -> dict[str, Any]:
    result = cli("generate", "-m", model, "--prompt-report", "--json", *arguments)
    assert (result.code, result.err) == (0, "")
    return result.json


def test_a_report_shows_the_prompt_and_where_tokens_come_from(cli: Cli, tiny_model: Path, tiny: LanguageModel) -> None:
    shown = report(cli, tiny_model, "--chat", "Hello <|im_end|>", "-t", "0.3", "-n", "9", "--stop", "END")
    assert shown["text"] == "<|im_start|>user\nHello <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    tokens = shown["tokens"]
    assert tiny.tokenizer.decode([token["id"] for token in tokens]).decode() == shown["text"]
    special = [(token["token"], token["special"]) for token in tokens if token["special"]]
    assert special == [(name, "template") for name in ("<|im_start|>", "<|im_end|>", "<|im_start|>")]
    assert shown["stop_ids"] == [{"id": 2, "token": "<|im_end|>", "from": ["config.json", "tokenizer_config.json"]}]
    assert (shown["stop"], shown["max_tokens"], shown["doubled_bos"]) == (["END"], 9, False)
    assert shown["sampling"]["temperature"] == {"value": 0.3, "from": "flag"}
    assert shown["sampling"]["top_k"] == {"value": 40, "from": "gptcli"}
    assert shown["notes"] == ["<|im_end|> in the prompt is text, not a control token"]


def test_a_prompt_report_flags_a_doubled_bos(cli: Cli, tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "model", adds_bos=True, template=None, generation_config={"temperature": 0.5, "do_sample": True}
    )
    shown = report(cli, model, "-n", "9", "--special", "<|im_start|>In a")
    tokens = shown["tokens"]
    assert [token["special"] for token in tokens[:3]] == ["tokenizer", "typed", None]
    assert shown["doubled_bos"] is True
    assert shown["notes"] == [
        "the text begins with <|im_start|> twice (from: tokenizer and typed), which no model was trained on"
    ]
    assert shown["sampling"]["temperature"] == {"value": 0.5, "from": "generation_config.json"}


def test_a_prompt_report_says_what_makes_models_answer_nonsense(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    notes = report(cli, tiny_model, "-n", "9", "<|im_end|> ")["notes"]
    begin = ("this model has a chat template", "<|im_end|> in the prompt is te", "the prompt ends with a space, ")
    assert tuple(note[:30] for note in notes) == begin
    assert "does not fit: " in str(report(cli, tiny_model, "--chat", "x" * 400)["notes"])
    assert "are more than the context of 256" in str(report(cli, tiny_model, "--chat", "x", "-n", "300")["notes"])
    without_bos = make_model(tmp_path / "m", adds_bos=True, template="{{ messages[0]['content'] }}", eos_token_id=None)
    assert "the template does not begin with <|im_start|>" in str(report(cli, without_bos, "--chat", "x")["notes"])


def test_a_prompt_report_in_a_pipe_is_names_and_values(cli: Cli, tiny_model: Path) -> None:
    result = cli("generate", "-m", tiny_model, "--chat", "Hi", "--prompt-report")
    rows = dict(result.rows)
    assert json.loads(rows["text"]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rows["special.0"] == "1 <|im_start|> (template)"
    assert rows["doubled_bos"] == "no"
    assert rows["sampling.temperature"] == "0.8 (gptcli)"
    assert {"bytes.weights_as_stored", "bytes.cache_in_fp32", "ids", "stop.2"} <= set(rows)


def test_a_prompt_report_lists_the_models_notes_once(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config={"num_beams": 2, "suppress_tokens": [5, 6]})
    note = "not done, though generation_config.json asks for it: num_beams"
    shown = report(cli, model, "Hi")
    assert note in shown["notes"]
    assert shown["sampling"]["suppress_tokens"] == {"value": [5, 6], "from": "generation_config.json"}
    plain = cli("generate", "-m", model, "--prompt-report", "Hi")
    assert plain.err.count(note) == 1
    assert b"sampling.suppress_tokens\t5 6 (generation_config.json)\n" in plain.out
