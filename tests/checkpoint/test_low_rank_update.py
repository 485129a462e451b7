"""A LoRA adapter among the recipes: `weight + scale * (up @ down)` from two further tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gptcli
from gptcli.checkpoint import folder as folder_module
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.checkpoint.recipes import Architecture, Concat, LowRankUpdate, Take, sources
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import BrokenCheckpoint
from tests.tiny import CONFIG, make_model, make_weights

ATTENTION = "model.layers.0.self_attn"
Q, UP, DOWN = f"{ATTENTION}.q_proj.weight", f"{ATTENTION}.q_proj.lora_B", f"{ATTENTION}.q_proj.lora_A"
QKV = "blocks.0.attention.qkv.weight"
SCALE, RANK = 0.7, 3


@pytest.fixture(autouse=True)
def adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with a tensor for it gets an update of its first q_proj."""

    def with_update(hf: HfConfig, tensors: Collection[str]) -> Architecture:
        architecture = architecture_of(hf, tensors)
        if UP not in tensors:
            return architecture
        qkv = architecture.parameters[QKV]
        assert isinstance(qkv, Concat) and qkv.operands[0] == Take(Q)
        update = LowRankUpdate(Take(Q), Take(UP), Take(DOWN), SCALE)
        changed = replace(qkv, operands=(update, *qkv.operands[1:]))
        return replace(architecture, parameters={**architecture.parameters, QKV: changed})

    monkeypatch.setattr(folder_module, "architecture_of", with_update)


def weights_with(up: tuple[int, ...] = (32, RANK), down: tuple[int, ...] = (RANK, 32)) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    update = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in ((UP, up), (DOWN, down))}
    return make_weights(CONFIG) | update


def merged(weights: dict[str, np.ndarray]) -> torch.Tensor:
    weight, up, down = (torch.from_numpy(weights[name]) for name in (Q, UP, DOWN))
    return weight + SCALE * (up @ down)


def test_the_weight_is_exactly_what_torch_computes(tmp_path: Path) -> None:
    weights = weights_with()
    plan = WeightPlan(torch.device("cpu"), torch.float32, "expand")
    decoder = load_decoder(ModelFolder.open(make_model(tmp_path, weights=weights)), plan)
    assert decoder.get_parameter(QKV)[:32].equal(merged(weights))


def test_a_model_with_an_update_answers_as_one_with_merged_weights(tmp_path: Path) -> None:
    weights = weights_with()
    ids = list(range(3, 40))
    updated = gptcli.load(make_model(tmp_path / "updated", weights=weights)).logits(ids)
    plain = make_weights(CONFIG)
    merge = make_model(tmp_path / "merged", weights=plain | {Q: merged(weights).numpy()})
    assert updated.equal(gptcli.load(merge).logits(ids))
    assert not updated.allclose(gptcli.load(make_model(tmp_path / "plain", weights=plain)).logits(ids), rtol=0.1)


def test_an_update_needs_its_three_tensors(tmp_path: Path) -> None:
    assert sources(LowRankUpdate(Take(Q), Take(UP), Take(DOWN), SCALE)) == (Q, UP, DOWN)
    weights = weights_with()
    del weights[DOWN]
    with pytest.raises(BrokenCheckpoint, match="1 tensors are missing from the weights: .*lora_A"):
        _ = ModelFolder.open(make_model(tmp_path, weights=weights)).architecture


@pytest.mark.parametrize(
    "shapes", [{"up": (32, 2)}, {"up": (31, RANK)}, {"down": (RANK, 33)}, {"up": (32,)}, {"down": (3, 1, 32)}]
)
def test_shapes_that_do_not_fit_are_refused_before_anything_is_read(
    shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    with pytest.raises(BrokenCheckpoint, match=r"q_proj\.weight do not go together"):
        gptcli.load(make_model(tmp_path, weights=weights_with(**shapes)))
