from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gptcli
from gptcli.errors import InvalidModel, UnsupportedArchitecture
from tests.tiny import CONFIG, make_model, make_weights


def shard(path: Path) -> None:
    """Splits a model's single file in two with an index."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, half in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, path / file)
        weight_map |= dict.fromkeys(half, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refuses(path: Path, complaint: str, kind: type[Exception] = InvalidModel) -> None:
    with pytest.raises(kind, match=complaint):
        gptcli.load(path, device="cpu")


Q = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    "name",
    [f"{Q}bias", "model.layers.1.mlp.up_proj.bias", "model.norm.bias", "model.layers.2.mlp.up_proj.weight"],
)
def test_a_tensor_that_shows_another_model_is_refused(tmp_path: Path, name: str) -> None:
    extra = {name: np.ones(3, np.float32)}
    path = make_model(tmp_path, weights=make_weights(CONFIG) | extra)
    refuses(path, f"1 tensors that the architecture does not use: {name}")


@pytest.mark.parametrize("names", [
    ("v_head.summary.weight", "v_head.summary.bias"),
    ("score.weight",),
    ("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale"),
    ("model.layers.0.self_attn.rotary_emb.cos_cached",),
    ("model.layers.0.self_attn.q_proj.lora_A.weight",),
    ("vision_tower.layers.0.weight", "visual.blocks.0.attn.qkv.weight"),
], ids=str)  # fmt: skip
def test_tensors_that_nothing_uses_are_one_note(tiny_model: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    extra = {name: np.ones(3, np.float32) for name in names}
    lm = gptcli.load(make_model(tmp_path, weights=make_weights(CONFIG) | extra))
    assert [str(note) for note in lm.notes] == [f"tensors that nothing uses: {', '.join(sorted(names))}"]
    assert lm.logits([3, 4, 5]).equal(gptcli.load(tiny_model).logits([3, 4, 5]))


@pytest.mark.parametrize("root", ["model.model.", "model.language_model.", "language_model.model.", "language_model."])
def test_names_inside_of_another_model_are_read(tiny_model: Path, tmp_path: Path, root: str) -> None:
    weights = {f"{root}{name.removeprefix('model.')}": tensor for name, tensor in make_weights(CONFIG).items()}
    inside = gptcli.load(make_model(tmp_path, weights=weights))
    assert inside.logits([3, 4, 5]).equal(gptcli.load(tiny_model).logits([3, 4, 5]))
    assert inside.notes == []


def test_an_index_may_name_too_much_or_too_little_and_another_file(tiny_model: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(tiny_model, tmp_path / "sharded")
    shard(sharded)
    file = sharded / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"]
    files = sorted(set(weight_map.values()))
    weight_map.pop("model.norm.weight")
    weight_map |= {"lm_head.weight": files[0], Q + "weight": files[weight_map[Q + "weight"] == files[0]]}
    file.write_text(json.dumps({"weight_map": weight_map}))
    lm = gptcli.load(sharded)
    assert lm.logits([3, 4, 5]).equal(gptcli.load(tiny_model).logits([3, 4, 5]))
    assert [str(note) for note in lm.notes] == ["tensors that only the index names: lm_head.weight"]


def test_a_stop_id_outside_the_vocabulary_is_a_note(tmp_path: Path) -> None:
    lm = gptcli.load(make_model(tmp_path, eos_token_id=[2, 320, 2**63]))
    assert [str(note) for note in lm.notes] == [f"eos_token_id outside the vocabulary: 320, {2**63}"]
    assert [event.reason for event in lm.generate("hi", max_tokens=2) if hasattr(event, "reason")] == ["length"]


def test_a_head_beside_tied_embeddings_is_used(tiny_model: Path, tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    doubled = gptcli.load(make_model(tmp_path, weights=weights)).logits([3, 4])
    assert doubled.allclose(gptcli.load(tiny_model).logits([3, 4]) * 2, rtol=1e-5)


@pytest.mark.parametrize("field", [
    {"bos_token_id": 1},
    {"initializer_range": 0.02},
    {"foo": None},
    {"layer_types": ["full_attention"] * 2},
    {"is_encoder_decoder": False, "use_mrope": False, "top_k": 50, "temperature": 1.0},
    {"auto_map": {"AutoConfig": "configuration_llama.LlamaConfig", "AutoTokenizer": ["x.Y", None]}},
    {"auto_map": {"AutoModelForCausalLM": "someone/else--modeling_llama_yarn.LlamaForCausalLM"}},
], ids=str)  # fmt: skip
def test_harmless_fields_are_accepted_without_a_word(tmp_path: Path, field: dict[str, Any]) -> None:
    assert gptcli.load(make_model(tmp_path, **field)).notes == []


@pytest.mark.parametrize(("fields", "named"), [
    ({"some_new_thing": False}, ("some_new_thing",)),
    ({"logit_scale": 2.0, "attn_logit_softcapping": 50.0}, ("attn_logit_softcapping", "logit_scale")),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "surprise": 1}}, ("rope_scaling.surprise",)),
    ({"rope_scaling": {"factor": 8.0, "mrope_section": [1, 1, 2]}}, ("factor", "mrope_section")),
], ids=str)  # fmt: skip
def test_a_field_that_the_reference_does_not_read_either_is_one_note(
    tmp_path: Path, fields: dict[str, Any], named: tuple[str, ...]
) -> None:
    (note,) = gptcli.load(make_model(tmp_path, **fields)).notes
    assert note.what == "config.json: fields that nothing reads"
    assert [name.removeprefix("rope_scaling.") for name in note.names] == [
        name.removeprefix("rope_scaling.") for name in named
    ]


@pytest.mark.parametrize(("field", "complaint"), [
    ({"sliding_window": 8}, "sliding_window = 8"),
    ({"is_causal": False}, "is_causal = False"),
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"text_config": {"hidden_size": 4}}, "text_config"),
    ({"per_layer_config": {"0": {"hidden_act": "relu"}}}, "per_layer_config"),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights"),
    ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
    ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [1, 1, 2]}}, "rope type 'mrope'"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "the same in every layer"),
    ({"auto_map": {"AutoModelForCausalLM": "modeling_quick.QuickForCausalLM"}}, "code of the model's own"),
    ({"auto_map": {"AutoConfig": "someone/else--configuration_quick.QuickConfig"}}, "code of the model's own"),
    ({"model_type": "rwkv"}, "`rwkv` models are not supported"),
    ({"rope_interleaved": True}, "rope_interleaved"),
    ({"quantization_config": {"quant_method": "hqq"}}, "quantization 'hqq'"),
])  # fmt: skip
def test_a_field_that_may_change_the_numbers_is_refused_by_name(
    tmp_path: Path, field: dict[str, Any], complaint: str
) -> None:
    refuses(make_model(tmp_path, **field), complaint, UnsupportedArchitecture)


def test_a_tensor_of_another_shape_is_named_before_anything_is_read(tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    weights["model.layers.0.mlp.down_proj.weight"] = np.ones((32, 47), np.float32)
    refuses(make_model(tmp_path, weights=weights), r"down_proj.weight is \[32, 47\], the config wants \[32, 48\]")


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    gone = [name for name in weights if "layers.1" in name]
    path = make_model(tmp_path, weights={name: weights[name] for name in weights if name not in gone})
    refuses(path, f"{len(gone)} tensors are missing .*layers.1.*, \\.\\.\\.")
