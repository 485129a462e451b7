"""Logits of every family against transformers: whole, in chunks, token by token; and that each row can fail."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gptcli.runtime.engine
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import load_decoder
from gptcli.runtime.device import DevicePlan
from gptcli.runtime.engine import Engine
from tests.parity.reference import Reference, write_reference

TOLERANCE = 1e-5
IDS = torch.randint(3, 96, (48,), generator=torch.Generator().manual_seed(1)).tolist()

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Row:
    """A case, and one change to its config.json without which the numbers must not agree."""

    title: str
    model_type: str
    breaks: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)


ROWS = [
    Row("llama", "llama", {"rms_norm_eps": 0.1}),
    Row("llama, one kv head", "llama", {"rope_parameters": {"rope_theta": 5e5}}, {"num_key_value_heads": 1}),
    Row("llama, wide heads", "llama", {"rms_norm_eps": 0.1}, {"head_dim": 32}),
    Row(
        "llama3 rope",
        "llama",
        {"rope_parameters": LLAMA3 | {"factor": 2.0, "original_max_position_embeddings": 16}},
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}},
    ),
    Row(
        "linear rope",
        "llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    Row("yarn rope", "llama", {"rope_parameters": YARN | {"attention_factor": 1.0}}, {"rope_parameters": YARN}),
    Row(
        "yarn rope, every field",
        "llama",
        {"rope_parameters": YARN | {"beta_fast": 32.0}},
        {"rope_parameters": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3}},
    ),
    Row(
        "yarn rope, mscale",
        "llama",
        {"rope_parameters": YARN},
        {"rope_parameters": YARN | {"mscale": 4.0, "mscale_all_dim": 0.1}},
    ),
    Row("mistral, window", "mistral", {"sliding_window": 9}, {"sliding_window": 8}),
    Row("mistral, no window", "mistral", {"sliding_window": 8}, {"sliding_window": None}),
    Row("qwen2", "qwen2", {"rms_norm_eps": 0.1}),
    Row(
        "qwen2, window",
        "qwen2",
        {"layer_types": ["full_attention"] * 4},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    Row("qwen3", "qwen3", {"rms_norm_eps": 0.1}, {"head_dim": 32}),
    Row("smollm3", "smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
]


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def engine_of(path: Path) -> Engine:
    folder = ModelFolder.open(path)
    decoder = load_decoder(folder, torch.device("cpu"), torch.float32, "expand")
    plan = DevicePlan(torch.device("cpu"), torch.float32, "expand")
    return Engine(decoder, plan, decoder.config.max_context, load_s=0.0)


@pytest.fixture(scope="module", params=ROWS, ids=[row.title for row in ROWS])
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def reference(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return write_reference(tmp_path_factory.mktemp("reference"), row.model_type, **row.config)


@pytest.fixture(scope="module")
def engine(reference: Reference) -> Engine:
    return engine_of(reference.path)


def test_all_logits_agree_at_prefill(reference: Reference, engine: Engine) -> None:
    assert relative_error(engine.logits(IDS), reference.logits(IDS)) < TOLERANCE


def test_all_logits_agree_in_chunks(reference: Reference, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptcli.runtime.engine, "_CHUNK", 7)
    assert relative_error(engine.logits(IDS), reference.logits(IDS)) < TOLERANCE


def test_all_logits_agree_token_by_token(reference: Reference, engine: Engine) -> None:
    cache = engine.new_cache()
    logits = torch.stack([engine.decode(token, cache) for token in IDS])
    assert relative_error(logits, reference.logits(IDS)) < TOLERANCE


def test_greedy_ids_agree_over_32_steps(reference: Reference, engine: Engine) -> None:
    cache = engine.new_cache()
    logits = engine.prefill(IDS, cache)
    ids: list[int] = []
    while len(ids) < 32:
        assert logits is not None
        ids.append(int(logits.argmax()))
        logits = engine.decode(ids[-1], cache)
    assert ids == reference.greedy(IDS, 32)


def test_the_numbers_depend_on_what_the_row_is_about(row: Row, reference: Reference, tmp_path: Path) -> None:
    for file in reference.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | row.breaks))
    assert relative_error(engine_of(tmp_path).logits(IDS), reference.logits(IDS)) > 100 * TOLERANCE
