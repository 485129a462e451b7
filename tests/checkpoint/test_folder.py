from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gptcli
from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import BrokenCheckpoint, BrokenTokenizer, InvalidModel, ModelNotFound, UnsupportedArchitecture
from tests.tiny import CONFIG, make_model, make_weights


def shard(path: Path) -> dict[str, str]:
    """Splits a model's single file in two, with an index; returns the weight map."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(path, weight_map)
    return weight_map


def write_index(path: Path, weight_map: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def refuses(path: Path, complaint: str, kind: type[Exception] = InvalidModel) -> None:
    with pytest.raises(kind, match=complaint):
        gptcli.load(path, device="cpu")


def test_shards_give_the_same_logits_as_one_file(tiny_model: Path, tmp_path: Path) -> None:
    sharded = shutil.copytree(tiny_model, tmp_path / "sharded")
    shard(sharded)
    ids = list(range(3, 40))
    assert gptcli.load(sharded).logits(ids).equal(gptcli.load(tiny_model).logits(ids))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    file = next(iter(shard(path).values()))
    (path / file).unlink()
    refuses(path, f"a shard is missing: .*{file}")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    weight_map = shard(path)
    first, second = (path / file for file in sorted(set(weight_map.values())))
    tensors = load_file(second)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor}, second)
    refuses(path, f"does not say that '{name}' is in {second.name}")


def test_an_index_that_names_more_than_the_shards_hold_is_refused(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    weight_map = shard(path)
    write_index(path, weight_map | {"ghost": next(iter(weight_map.values()))})
    refuses(path, "1 tensors named in .* are in no shard: ghost")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", None, 3, "x.bin", ".."])
def test_an_index_cannot_lead_out_of_the_directory(tmp_path: Path, file: object) -> None:
    path = make_model(tmp_path)
    weight_map: dict[str, Any] = shard(path)
    write_index(path, weight_map | {"model.norm.weight": file})
    refuses(path, "no file name beside it")


def test_missing_tensors_are_named_and_counted(tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    gone = [name for name in weights if "layers.1" in name]
    path = make_model(tmp_path, weights={name: weights[name] for name in weights if name not in gone})
    refuses(path, f"{len(gone)} tensors are missing .*layers.1.*, \\.\\.\\.")


def test_a_tensor_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    extra = {"model.layers.0.self_attn.secret.weight": np.ones(3, np.float32)}
    refuses(make_model(tmp_path, weights=weights | extra), "1 tensors that the architecture does not use: .*secret")


def test_rotary_buffers_of_old_checkpoints_may_lie_unused(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    gptcli.load(make_model(tmp_path, weights=make_weights(CONFIG) | buffer))


def test_a_tensor_of_another_shape_is_named_before_anything_is_read(tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    weights["model.layers.0.mlp.down_proj.weight"] = np.ones((32, 47), np.float32)
    refuses(make_model(tmp_path, weights=weights), r"down_proj.weight is \[32, 47\], the config wants \[32, 48\]")


def test_names_without_the_model_prefix_are_read(tiny_model: Path, tmp_path: Path) -> None:
    weights = {name.removeprefix("model."): tensor for name, tensor in make_weights(CONFIG).items()}
    bare = gptcli.load(make_model(tmp_path, weights=weights))
    assert bare.logits([3, 4, 5]).equal(gptcli.load(tiny_model).logits([3, 4, 5]))


def test_a_head_beside_tied_embeddings_is_used(tiny_model: Path, tmp_path: Path) -> None:
    weights = make_weights(CONFIG)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    doubled = gptcli.load(make_model(tmp_path, weights=weights)).logits([3, 4])
    assert doubled.allclose(gptcli.load(tiny_model).logits([3, 4]) * 2, rtol=1e-5)


@pytest.mark.parametrize("field", [{"bos_token_id": 1}, {"initializer_range": 0.02}, {"foo": None}])
def test_harmless_fields_are_let_be(tmp_path: Path, field: dict[str, Any]) -> None:
    gptcli.load(make_model(tmp_path, **field))


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"logit_scale": 2.0}, "logit_scale = 2.0"),
        ({"some_new_thing": False}, "some_new_thing = False"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 1}}, "surprise"),
        ({"model_type": "mamba2"}, "`mamba2` models are not supported"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quantization 'hqq'"),
    ],
)
def test_a_field_that_may_change_the_numbers_is_refused_by_name(
    tmp_path: Path, field: dict[str, Any], complaint: str
) -> None:
    refuses(make_model(tmp_path, **field), complaint, UnsupportedArchitecture)


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": -3}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "true or false"),
        ({"vocab_size": None}, "vocab_size"),
        ({"model_type": None}, "model_type must be a string"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"rope_scaling": [1]}, "must be an object"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, field: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BrokenCheckpoint, match=complaint):
        _ = gptcli.load(make_model(tmp_path, weights=make_weights(CONFIG), **field)).stop_ids


def test_a_directory_with_pickle_only_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(BrokenCheckpoint, match="pickle") as caught:
        ModelFolder.open(path)
    assert "save_pretrained" in str(caught.value.hint)


def test_a_gguf_file_given_as_a_model_hints_at_import(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound) as caught:
        ModelFolder.open(tmp_path / "x.gguf")
    assert "models import" in str(caught.value.hint)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    refuses(make_model(tmp_path, vocab_size=300), "the tokenizer has 30. tokens, the model only 300", BrokenTokenizer)


def test_weights_are_owned_so_a_file_truncated_later_does_no_harm(tmp_path: Path) -> None:
    lm = gptcli.load(make_model(tmp_path))
    before = lm.logits([3, 4, 5])
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert lm.logits([3, 4, 5]).equal(before)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = make_model(tmp_path)
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())
    assert ModelFolder.open(path).config["model_type"] == "llama"


@pytest.mark.parametrize("text", ['{"a": NaN}', "[" * 10**5, '{"a": 1, "a": 2}', "1" * 5000, "", '{"a": 1e'])
def test_a_config_that_is_no_plain_json_is_refused(tmp_path: Path, text: str) -> None:
    path = make_model(tmp_path)
    (path / "config.json").write_text(text)
    with pytest.raises(BrokenCheckpoint, match=r"cannot read: .*config\.json"):
        ModelFolder.open(path)
