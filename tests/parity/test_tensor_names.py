"""Tensors named, left over or indexed as in real checkpoints: what transformers loads gives equal logits here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import gptcli
from gptcli.checkpoint.folder import ModelFolder
from tests.parity.reference import Reference, write_reference
from tests.parity.test_families import DEEPSEEK, DELTA, GPT, GROUPS, QWEN_MOE, engine_of, relative_error

Weights = dict[str, Tensor]
IDS = torch.randint(3, 96, (24,), generator=torch.Generator().manual_seed(3)).tolist()
TYPES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "tie_word_embeddings": True},
    "gemma3_text": {"num_hidden_layers": 2, "head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": QWEN_MOE | {"num_hidden_layers": 2, "head_dim": 16},
    "deepseek_v3": DEEPSEEK | GROUPS | {"num_hidden_layers": 2},
    "gpt2": GPT,
    "gpt_neox": {"num_hidden_layers": 2},
    "phi": {"num_hidden_layers": 2},
}
BASES = ("model.", "transformer.", "gpt_neox.")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


def bare(name: str) -> str:
    return next((name.removeprefix(base) for base in BASES if name.startswith(base)), name)


def head_alone(weights: Weights) -> Weights:
    return {"lm_head.weight" if name.endswith(EMBEDDINGS) else name: tensor for name, tensor in weights.items()}


def with_more(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.ones(3) for name in names}


CHANGES: dict[str, Callable[[Weights], Weights]] = {
    "as saved": lambda weights: weights,
    "bare names": lambda weights: {bare(name): tensor for name, tensor in weights.items()},
    "a model in a model": lambda weights: {
        f"model.{name}" if name.startswith("model.") else name: tensor for name, tensor in weights.items()
    },
    "a model in a model, head too": lambda weights: {f"model.{name}": tensor for name, tensor in weights.items()},
    "the head alone": head_alone,
    "a value head": with_more("v_head.summary.weight", "v_head.summary.bias"),
    "a classifier": with_more("score.weight"),
    "scales of a cache": with_more("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale"),
    "rotary caches": with_more("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.cos_cached"),
    "without its final norm": lambda weights: {
        name: tensor for name, tensor in weights.items() if bare(name) not in ("norm.weight", "ln_f.weight")
    },
}


@pytest.fixture(scope="module", params=TYPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    write_reference(path, request.param, **TYPES[request.param])
    return path


def reference_logits(path: Path) -> Tensor | None:
    """None if transformers leaves weights of the model out."""
    model, info = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
    return None if info["missing_keys"] else Reference(path, model.eval()).logits(IDS)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_transformers_loads_has_its_logits(
    written: Path, tmp_path: Path, change: Callable[[Weights], Weights]
) -> None:
    (tmp_path / "config.json").write_bytes((written / "config.json").read_bytes())
    weights = change(load_file(written / "model.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    wanted = reference_logits(tmp_path)
    try:
        found = engine_of(tmp_path).logits(IDS)
    except gptcli.errors.InvalidModel:
        assert wanted is None
        return
    assert wanted is not None
    assert relative_error(found, wanted) < 1e-5


def test_shards_with_an_index_that_is_wrong_have_the_logits_of_the_reference(written: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((written / "config.json").read_bytes())
    weights = load_file(written / "model.safetensors")
    names = sorted(weights)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, half in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: weights[name] for name in half}, tmp_path / file, {"format": "pt"})
    listed = {name: files[index % 2] for index, name in enumerate(names[:-2])} | {"nowhere.weight": files[0]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    wanted = reference_logits(tmp_path)
    found = engine_of(tmp_path).logits(IDS)
    assert wanted is not None
    assert relative_error(found, wanted) < 1e-5
    assert [note.names for note in ModelFolder.open(tmp_path).notes] == [("nowhere.weight",)]


def test_layers_that_predict_ahead_are_left_over_and_noted(tmp_path: Path) -> None:
    reference = write_reference(tmp_path, "qwen3_5_text", **DELTA)
    weights = load_file(tmp_path / "model.safetensors")
    ahead = {f"mtp.{name.removeprefix('model.')}": tensor for name, tensor in weights.items() if ".layers.1." in name}
    save_file({name: tensor.clone() for name, tensor in (weights | ahead).items()}, tmp_path / "model.safetensors")
    assert [set(note.names) for note in ModelFolder.open(tmp_path).notes] == [set(ahead)]
    assert relative_error(engine_of(tmp_path).logits(IDS), reference.logits(IDS)) < 1e-5


@pytest.mark.parametrize(("model_type", "moved"), [("qwen3_moe", ".experts.0."), ("llama", ".layers.0.")])
def test_an_expert_or_a_layer_more_than_the_config_says_is_refused(tmp_path: Path, model_type: str, moved: str) -> None:
    write_reference(tmp_path, model_type, **TYPES[model_type])
    weights = load_file(tmp_path / "model.safetensors")
    more = {name.replace(moved, moved.replace("0", "6")): tensor.clone() for name, tensor in weights.items()}
    save_file(more | weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(gptcli.errors.BrokenCheckpoint, match="tensors that the architecture does not use"):
        _ = ModelFolder.open(tmp_path).architecture


def test_layers_that_predict_further_ahead_are_one_note(tmp_path: Path) -> None:
    reference = write_reference(tmp_path, "deepseek_v3", **DEEPSEEK | GROUPS)
    weights = load_file(tmp_path / "model.safetensors")
    ahead = {name.replace(".layers.3.", ".layers.4."): 2 * weights[name] for name in weights if ".layers.3." in name}
    more = {"model.layers.4.eh_proj.weight": torch.ones(64, 128)}
    save_file(weights | ahead | more, tmp_path / "model.safetensors", {"format": "pt"})
    assert relative_error(engine_of(tmp_path).logits(IDS), reference.logits(IDS)) < 1e-5
    assert [note.names for note in ModelFolder.open(tmp_path).notes] == [("model.layers.4",)]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(gptcli.errors.BrokenCheckpoint, match="tensors that the architecture does not use"):
        _ = ModelFolder.open(tmp_path).architecture
