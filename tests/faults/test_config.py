"""Faulty and hostile configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.faults.conftest import Refuses, edit


@pytest.mark.parametrize(
    ("bomb", "complaint"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("9" * 5_000, "4300"),
        ("NaN", "NaN is not a JSON number"),
        ('1, "model_type": "llama"', "duplicate key 'model_type'"),
    ],
    ids=["nested brackets", "a long integer", "NaN", "duplicate keys"],
)
def test_json_that_nests_too_deeply_or_holds_huge_integers_nan_or_duplicate_keys_is_refused(
    refuses: Refuses, model: Path, bomb: str, complaint: str
) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(f'{text[:-1]}, "x": {bomb}}}')
    assert complaint in refuses(3)


def test_a_byte_order_mark_is_accepted(cli: Cli, model: Path) -> None:
    (model / "config.json").write_bytes(b"\xef\xbb\xbf" + (model / "config.json").read_bytes())
    assert cli("generate", "-m", model, "-n", "1", "hi").code == 0


def test_json_of_more_than_eight_megabytes_is_refused(refuses: Refuses, model: Path) -> None:
    with (model / "config.json").open("a") as file:
        file.write(" " * (8 << 20))
    assert "larger than 8 MB" in refuses(3)


def test_json_of_millions_of_lists_is_refused_before_it_fills_the_memory(refuses: Refuses, model: Path) -> None:
    (model / "config.json").write_text("[" + "[]," * 2_000_000 + "[]]")
    assert "more than 2000000 lists and objects" in refuses(3)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -3},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 12.0},
        {"num_attention_heads": 0},
        {"hidden_size": 33},
        {"rms_norm_eps": "1e-5"},
        {"rope_theta": 0},
        {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)
def test_a_config_out_of_range_or_of_another_type_is_refused_by_its_field(
    refuses: Refuses, model: Path, fields: dict[str, Any]
) -> None:
    edit(model / "config.json", **fields)
    assert next(iter(fields)) in refuses(3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "mamba2"}, "`mamba2` models are not supported"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'"),
        ({"hidden_act": "mish"}, "'mish'"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic'"),
        ({"is_causal": False}, "is_causal = False"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_quick.QuickForCausalLM"}}, "code of the model's own"),
    ],
)
def test_an_unknown_architecture_rope_type_activation_or_field_is_refused_and_never_approximated(
    refuses: Refuses, model: Path, fields: dict[str, Any], named: str
) -> None:
    edit(model / "config.json", **fields)
    assert named in refuses(3)


def test_a_field_that_nothing_reads_is_one_note_on_stderr(cli: Cli, model: Path) -> None:
    edit(model / "config.json", dropout_of_the_toolkit=0.1, lora_alpha=8, rope_scaling={"factor": 2.0})
    result = cli("generate", "-m", model, "-n", "1", "hi")
    assert result.code == 0
    (note,) = [line for line in result.err.splitlines() if line.startswith("gptcli: note: ")]
    assert "fields that nothing reads: " in note
    assert all(name in note for name in ("dropout_of_the_toolkit", "lora_alpha", "rope_scaling.factor"))
    assert cli("generate", "-q", "-m", model, "-n", "1", "hi").err == ""


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_config_of_millions_of_experts_is_refused_before_they_are_counted(
    refuses: Refuses, model: Path, family: str
) -> None:
    edit(model / "config.json", model_type=family, num_experts=1 << 24, moe_intermediate_size=8)
    assert "experts are more than" in refuses(3)


def test_python_beside_a_model_is_never_imported(cli: Cli, model: Path) -> None:
    for name in ("modeling_tiny.py", "json.py", "torch.py", "tokenizers.py"):
        (model / name).write_text("raise SystemExit('I was run')")
    edit(model / "config.json", auto_map={"AutoModelForCausalLM": "modeling_tiny.LlamaForCausalLM"})
    assert cli("generate", "-m", model, "-n", "1", "hi").code == 0


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("id", [-1, 1.0, True, "2", [[2]], {}], ids=str)
def test_an_end_of_text_that_is_no_token_id_is_refused(refuses: Refuses, model: Path, file: str, id: Any) -> None:
    (model / "generation_config.json").write_text("{}")
    edit(model / file, eos_token_id=id)
    assert "eos_token_id" in refuses(3)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": "hot"}, {"temperature": -1}, {"top_p": 7}, {"top_k": 1.5}, {"repetition_penalty": 0}],
    ids=str,
)
def test_absurd_sampling_defaults_are_refused_by_name(refuses: Refuses, model: Path, fields: dict[str, Any]) -> None:
    (model / "generation_config.json").write_text(json.dumps(fields))
    assert "generation_config.json: " in refuses(3)
