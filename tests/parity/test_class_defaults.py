"""Configs on the hub leave out the defaults of their class in transformers: we know them, or ask for them by name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.vision import WRAPPERS
from gptcli.checkpoint.recipes import Architecture
from gptcli.checkpoint.registry import FAMILIES, SAME_AS, architecture_of
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from tests.parity.reference import NO_DEFAULT

WINDOW = {"use_sliding_window": True, "max_window_layers": 3}
# Its class describes tens of thousands of experts' matrices.
LARGE = ("deepseek_v3", "glm4_moe", "minimax_m2", "qwen3_5_moe_text", "qwen3_next")
FEWER = {"num_hidden_layers": 8}
CASES = [
    (model_type, FEWER if model_type in LARGE else NO_DEFAULT.get(model_type, {}))
    for model_type in sorted(FAMILIES.keys() - SAME_AS.keys() - WRAPPERS.keys())
]
CASES += [(model_type, WINDOW) for model_type in ("qwen2", "qwen2_moe", "qwen3")]
# Fields that no real config leaves out, so we may refuse a config without them.
NEVER_LEFT_OUT = set(
    """
    attention_layers d_model ffn_dim hidden_size intermediate_size n_embd n_head n_heads
    n_layer n_layers
    num_attention_heads num_heads num_hidden_layers num_layers use_sliding_window vocab_size
    """.split()
)


def understood(fields: dict[str, Any]) -> Architecture:
    return architecture_of(HfConfig(fields), ())


@pytest.fixture(params=CASES, ids=[f"{name}, window" if switches is WINDOW else name for name, switches in CASES])
def fields(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A config written by transformers."""
    model_type, switches = request.param
    AutoConfig.for_model(model_type, **switches).save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def test_a_default_left_out_changes_nothing(fields: dict[str, Any]) -> None:
    whole = understood(fields)
    for name in set(fields) - {"model_type"}:
        without = {field: value for field, value in fields.items() if field != name}
        if name in NEVER_LEFT_OUT or name in NO_DEFAULT.get(fields["model_type"], ()):
            with contextlib.suppress(BrokenCheckpoint):
                assert understood(without) == whole, name
        else:
            assert understood(without) == whole, name


def test_the_older_dialect_means_the_same(fields: dict[str, Any]) -> None:
    rope = fields.get("rope_parameters")
    if rope is None or "sliding_attention" in rope:
        return
    whole = understood(fields)
    del fields["rope_parameters"]
    theta, fraction = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
    fields["rope_theta"] = theta
    if fraction is not None:
        fields["partial_rotary_factor"] = fraction
    if fields["model_type"] == "gpt_neox":
        fields |= {"rotary_pct": fraction, "rotary_emb_base": int(theta)}
        del fields["rope_theta"]
    if rope.get("rope_type") != "default":
        fields["rope_scaling"] = rope | {"type": rope["rope_type"]}
    assert understood(fields) == whole


def test_a_state_is_refused_with_another_activation_than_the_one_it_is_computed_with(fields: dict[str, Any]) -> None:
    name = "mamba_hidden_act" if "mamba_hidden_act" in fields else "hidden_act"
    if name in fields and any(block.state for block in understood(fields).config.blocks):
        with pytest.raises(UnsupportedArchitecture, match=name):
            understood(fields | {name: "gelu"})
