"""Faulty and hostile configs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import empty_decoder
from gptcli.checkpoint.registry import architecture_of
from gptcli.checkpoint.safetensors_header import TensorInfo
from gptcli.errors import BrokenCheckpoint
from gptcli.files import Unusable, parse_json
from tests.cli.conftest import Cli
from tests.faults.conftest import Refuses
from tests.tiny import CONFIG, edit


@pytest.mark.parametrize(
    ("bomb", "complaint"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("9" * 5_000, "4300"),
        ('1, "hidden_size": 65', "hidden_size must be a whole number between 1 and 16777216, not '32 and 65'"),
        ('1, "hidden_size": NaN', "hidden_size must be a whole number between 1 and 16777216, not '32 and \"NaN\"'"),
        ('1, "rms_norm_eps": Infinity', "rms_norm_eps must be a number above 0"),
        ('1, "model_type": "qwen2"', "model_type must be a string"),
        ('1, "tie_word_embeddings": [true]', "tie_word_embeddings must be true or false"),
        ('1, "hidden_act": "gelu", "hidden_act": "silu"', "hidden_act"),
    ],
)
def test_hostile_or_ambiguous_json_is_refused(refuses: Refuses, model: Path, bomb: str, complaint: str) -> None:
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(f'{text[:-1]}, "x": {bomb}}}')
    assert complaint in refuses(3)


@pytest.mark.parametrize("field", ["hidden_size", "rope_theta", "rms_norm_eps", "num_hidden_layers"])
@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_or_infinity_where_it_is_read_is_refused(refuses: Refuses, model: Path, field: str, constant: str) -> None:
    edit(model / "config.json", **{field: float(constant.replace("Infinity", "inf"))})
    assert f"{field} must be a" in refuses(3) and constant in refuses(3)


ODDITIES = {
    "the same value twice": ('"model_type": "llama", "hidden_size": 32', "keys given twice: model_type, hidden_size"),
    "the same list twice": ('"label2id": [{"a": 1}], "label2id": [{"a": 1}]', "keys given twice: label2id"),
    "two values of what nothing reads": ('"torch_dtype": 1, "torch_dtype": 1.0', "keys given twice: torch_dtype"),
    "twice within what nothing reads": ('"label2id": {"a": 1, "a": 2}', "keys given twice: a"),
    "NaN in what nothing reads": ('"initializer_range": NaN', "NaN or infinity: initializer_range"),
    "infinity in a list": ('"id2label": {"x": [0.0, [Infinity]]}', "NaN or infinity: x"),
}


@pytest.mark.parametrize("what", ODDITIES)
def test_what_json_forbids_and_nothing_reads_is_a_note(what: str, cli: Cli, model: Path) -> None:
    given = ["generate", "-m", model, "-t", "0", "-n", "3", "hi"]
    expected = cli(*given)
    added, note = ODDITIES[what]
    text = (model / "config.json").read_text()
    (model / "config.json").write_text(f"{text[:-1]}, {added}}}")
    result = cli(*given)
    assert (result.code, result.out, expected.code) == (0, expected.out, 0)
    assert result.err == f"gptcli: note: config.json: {note}\n"
    assert cli(*given, "-q").err == ""


def test_what_json_forbids_is_noted_in_other_files_too(cli: Cli, model: Path) -> None:
    (model / "generation_config.json").write_text('{"top_k": 3, "top_k": 3, "guidance_scale": NaN}')
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (model / name).write_text('{"model_max_length": Infinity, "bos_token": "<|end|>", "bos_token": "<|end|>"}')
    err = cli("generate", "-m", model, "-n", "1", "hi").err
    for note in (
        "generation_config.json: keys given twice: top_k",
        "generation_config.json: NaN or infinity: guidance_scale",
        "tokenizer_config.json: keys given twice: bos_token",
        "special_tokens_map.json: NaN or infinity: model_max_length",
    ):
        assert note in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("generation_config.json", '{"do_sample": true, "do_sample": false}', "has two values: true and false"),
        ("tokenizer_config.json", '{"bos_token": "a", "bos_token": "b"}', "has two values"),
    ],
)
def test_two_values_of_a_key_are_refused(name: str, text: str, complaint: str, refuses: Refuses, model: Path) -> None:
    (model / name).write_text(text)
    assert complaint in refuses(3)


def test_a_key_that_is_there_twice_is_found_among_many() -> None:
    """Each key was once compared with all: 200,000 took minutes."""
    keys = ",".join(f'"{index}": 0' for index in [*range(200_000), 199_999])
    with pytest.raises(BrokenCheckpoint, match="duplicate key '199999'"):
        parse_json(f"{{{keys}}}".encode(), "here")


def test_an_unusable_value_cannot_be_compared() -> None:
    value = Unusable("config.json", "1 and 2")
    for use in (lambda: value == 1, lambda: value != 1, lambda: bool(value), lambda: value in (1, 2)):
        with pytest.raises(BrokenCheckpoint, match="1 and 2"):
            use()


def test_a_byte_order_mark_is_accepted(cli: Cli, model: Path) -> None:
    (model / "config.json").write_bytes(b"\xef\xbb\xbf" + (model / "config.json").read_bytes())
    assert cli("generate", "-m", model, "-n", "1", "hi").code == 0


def test_json_of_more_than_eight_megabytes_is_refused(refuses: Refuses, model: Path) -> None:
    with (model / "config.json").open("a") as file:
        file.write(" " * (8 << 20))
    assert "larger than 8 MB" in refuses(3)


def test_json_of_millions_of_lists_is_refused_before_memory_is_full(refuses: Refuses, model: Path) -> None:
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
        {"vocab_size": None},
        {"model_type": None},
        {"eos_token_id": "2"},
        {"auto_map": "LlamaConfig"},
        {"hidden_size": 33},
        {"rms_norm_eps": "1e-5"},
        {"rope_theta": 0},
        {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)
def test_a_field_out_of_range_is_refused_by_name(refuses: Refuses, model: Path, fields: dict[str, Any]) -> None:
    edit(model / "config.json", **fields)
    assert next(iter(fields)) in refuses(3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "rwkv"}, "`rwkv` models are not supported"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope type 'spiral'"),
        ({"hidden_act": "mish"}, "'mish'"),
        ({"quantization_config": {"quant_method": "magic"}}, "'magic'"),
        ({"is_causal": False}, "is_causal = False"),
        ({"num_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"sliding_window": 128}, "sliding_window = 128"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_quick.QuickForCausalLM"}}, "code of the model's own"),
    ],
)
def test_what_is_unknown_is_refused(refuses: Refuses, model: Path, fields: dict[str, Any], named: str) -> None:
    edit(model / "config.json", **fields)
    assert named in refuses(3)


@pytest.mark.parametrize(("alpha", "channels"), [(50.0, 2), (1e300, 8), (1e-300, 8)])
def test_a_stretch_of_rope_that_has_no_number_is_refused(
    refuses: Refuses, model: Path, alpha: float, channels: int
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0, "alpha": alpha}
    edit(model / "config.json", model_type="hunyuan_v1_dense", head_dim=channels, rope_theta=None, rope_parameters=rope)
    assert f"alpha {alpha:g} cannot stretch RoPE of {channels} channels" in refuses(3)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bamba", {"mamba_expand": 1e308}),
        ("bamba", {"attn_layer_indices": [1] * 1025}),
        ("gemma4_text", {"per_layer_config": {"1" * 5000: {}}}),
        ("glm4_moe", {"num_nextn_predict_layers": 1025}),
        ("granitemoehybrid", {"mamba_expand": 1e308}),
        ("lfm2", {"block_ffn_dim_multiplier": 1e308}),
        ("mamba2", {"expand": 1e308}),
        ("mamba2", {"time_step_limit": [0, 10**400], "num_heads": 2, "head_dim": 32}),
    ],
)
def test_a_number_that_gives_no_size_is_refused_by_name(
    refuses: Refuses, model: Path, family: str, fields: dict[str, Any]
) -> None:
    edit(model / "config.json", model_type=family, **fields)
    assert f"config.json: {next(iter(fields))} must be " in refuses(3)


@pytest.mark.parametrize("factor", [2.5, 1e308])
@pytest.mark.parametrize("family, field", [("phi", "partial_rotary_factor"), ("gpt_neox", "rotary_pct")])
def test_more_channels_than_a_head_has_are_not_rotated(
    refuses: Refuses, model: Path, family: str, field: str, factor: float
) -> None:
    edit(model / "config.json", model_type=family, **{field: factor})
    assert "RoPE cannot turn " in refuses(3)


def test_a_pattern_of_thousands_of_layers_is_refused(refuses: Refuses, model: Path) -> None:
    edit(model / "config.json", model_type="nemotron_h", hybrid_override_pattern="-" * 1025)
    assert "1025 layers are more than 1024" in refuses(3)


def test_positions_that_fill_the_memory_are_not_computed(refuses: Refuses, model: Path) -> None:
    edit(model / "config.json", model_type="xglm", max_position_embeddings=1 << 24, ffn_dim=64)
    assert "16777216 positions of 32 numbers are too many" in refuses(3)


def test_a_multiplier_of_attention_may_have_an_infinite_square() -> None:
    config = {"model_type": "falcon_h1", "attention_in_multiplier": 1e200, "mamba_n_heads": 2, "mamba_d_ssm": 32}
    architecture = architecture_of(HfConfig(CONFIG | config), ())
    assert architecture.config.attentions[0].scale == math.inf


def test_weights_too_large_to_be_counted_are_refused(tmp_path: Path) -> None:
    """Stacked experts may have tensors of any shape; the decoder is made before shapes are compared."""
    large = {"hidden_size": 1 << 24, "intermediate_size": 1 << 24, "num_local_experts": 1 << 16}
    config = CONFIG | {"model_type": "mixtral", "num_hidden_layers": 1} | large
    stacked = "model.layers.0.block_sparse_moe.switch_mlp.down_proj.weight"
    info = TensorInfo("F32", (1, 1, 1), tmp_path, 0, 4)
    tensors = dict.fromkeys(architecture_of(HfConfig(config), (stacked,)).tensors, info)
    with pytest.raises(BrokenCheckpoint, match="no weights are so large"):
        empty_decoder(ModelFolder(tmp_path, config, None, tensors))


def test_a_field_that_nothing_reads_is_one_note_on_stderr(cli: Cli, model: Path) -> None:
    edit(model / "config.json", dropout_of_the_toolkit=0.1, lora_alpha=8, rope_scaling={"factor": 2.0})
    result = cli("generate", "-m", model, "-n", "1", "hi")
    assert result.code == 0
    [note] = result.err.splitlines()
    assert note.startswith("gptcli: note: ") and "fields that nothing reads: " in note
    assert all(name in note for name in ("dropout_of_the_toolkit", "lora_alpha", "rope_scaling.factor"))
    assert cli("generate", "-q", "-m", model, "-n", "1", "hi").err == ""


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_config_of_millions_of_experts_is_refused(refuses: Refuses, model: Path, family: str) -> None:
    edit(model / "config.json", model_type=family, num_experts=1 << 24, moe_intermediate_size=8)
    assert "experts are more than" in refuses(3)
