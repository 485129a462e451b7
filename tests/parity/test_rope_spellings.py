"""Every spelling of RoPE's settings that has been in use means what transformers makes of it, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import gptcli
from tests.parity.reference import Reference, write_reference
from tests.parity.test_families import engine_of, relative_error

IDS = torch.randint(3, 96, (40,), generator=torch.Generator().manual_seed(2)).tolist()
FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [1.0 + i for i in range(8)]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
TYPES = ["llama", "phi3", "gpt_neox", "gemma2"]
SPELLINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "null": {"rope_scaling": None},
    "empty": {"rope_scaling": {}},
    "linear, the old way": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear, the new way": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "linear, both": {"rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 4.0}},
    "both, and they differ": {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 4.0}},
    "a whole number": {"rope_scaling": {"type": "linear", "factor": 4}},
    "a factor alone": {"rope_scaling": {"factor": 4.0}},
    "linear without a factor": {"rope_scaling": {"type": "linear"}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "dynamic, with an original length": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0,
         "original_max_position_embeddings": 16}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
    "yarn, without an original length": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn, fine-tuned": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
         "finetuned": True}},
    "llama3": {"rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
    "llama3, the old way": {"rope_scaling": LLAMA3 | {"type": "llama3"}},
    "su": {"rope_scaling": FACTORS | {"type": "su"}, "original_max_position_embeddings": 64},
    "longrope": {"rope_scaling": FACTORS | {"type": "longrope"}, "original_max_position_embeddings": 16},
    "yarn that means longrope": {"rope_scaling": FACTORS | {"type": "yarn"}, "original_max_position_embeddings": 16},
    "mrope": {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    "sections alone": {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
    "theta inside": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    "theta on both sides": {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 900.0},
    "both dialects": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 3.0},
         "rope_scaling": {"type": "linear", "factor": 2.0}},
    "by layer type": {"rope_parameters": {"full_attention": {"rope_theta": 500.0, "rope_type": "default"}}},
    "an unknown type": {"rope_scaling": {"type": "spiral", "factor": 2.0}},
}  # fmt: skip


@pytest.fixture(scope="module", params=TYPES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"head_dim": 16} if request.param == "gemma2" else {}
    path = tmp_path_factory.mktemp("reference")
    write_reference(path, request.param, num_hidden_layers=2, **sizes)
    return path


def reference_logits(path: Path) -> Tensor | None:
    """None if transformers cannot run it."""
    try:
        config = AutoConfig.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, config=config, attn_implementation="eager").eval()
        return Reference(path, model).logits(IDS)
    except Exception:
        return None


@pytest.mark.parametrize("fields", SPELLINGS.values(), ids=SPELLINGS)
def test_a_spelling_means_what_transformers_makes_of_it(written: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    config = json.loads((written / "config.json").read_text())
    theta = config.pop("rope_parameters")
    old = {"rope_theta": theta["rope_theta"], "partial_rotary_factor": theta.get("partial_rotary_factor")}
    config |= {name: value for name, value in old.items() if value is not None} | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").hardlink_to(written / "model.safetensors")
    wanted = reference_logits(tmp_path)
    try:
        found = engine_of(tmp_path).logits(IDS)
    except gptcli.errors.InvalidModel:
        assert wanted is None or fields == SPELLINGS["by layer type"]  # which it ignores in silence
        return
    if wanted is None:
        return  # we may read more than it does
    assert relative_error(found, wanted) < 1e-5
