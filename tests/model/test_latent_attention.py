"""Latent attention: both formulas agree; a cache of latents supports samples, undone turns and drafts."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptcli
from gptcli import ChatSettings, Finished, LanguageModel
from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import OutOfMemory
from gptcli.model.config import LatentAttentionConfig, NormConfig, RopeConfig
from gptcli.runtime import device_plan
from gptcli.settings import RuntimeConfig, SamplingConfig, StopConfig
from tests.chat.test_session import counted_prefills, finish
from tests.parity.reference import write_reference
from tests.parity.test_families import DEEPSEEK, GROUPS, IDS, SCORED_YARN, engine_of, needed_library, relative_error
from tests.tiny import make_model

REPEATED = "In a small town there lived a clockmaker. In a small town there lived a clockmaker. In a"
ROPE, NORM = RopeConfig(theta=10_000.0, dim=64), NormConfig(kind="rms", eps=1e-6)
V3 = LatentAttentionConfig(heads=128, latent_dim=512, plain_dim=128, value_dim=128, rope=ROPE, scale=0.1, norm=NORM)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek V3 with a tokenizer."""
    path = make_model(tmp_path_factory.mktemp("latent"), weights={})
    config = DEEPSEEK | GROUPS | {"rope_parameters": SCORED_YARN, "vocab_size": 320, "max_position_embeddings": 256}
    write_reference(path, "deepseek_v3", **config)
    return path


@pytest.fixture
def lm(path: Path) -> LanguageModel:
    return gptcli.load(path, device="cpu", dtype="fp32")


def test_queries_are_projected_where_that_costs_less() -> None:
    assert V3.expands_from == 512 * 256 / 768
    assert replace(V3, latent_dim=128).expands_from == math.inf


def test_both_ways_of_attending_have_the_same_logits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = []
    for limit in (0.0, math.inf):
        monkeypatch.setattr(LatentAttentionConfig, "expands_from", limit)
        engine = engine_of(path)
        cache = engine.new_cache()
        engine.prefill(IDS[:20], cache)
        logits.append(torch.stack(list(engine.step(IDS[20:], cache))))
    assert relative_error(*logits) < 1e-5
    assert not torch.equal(*logits)


def test_only_latents_are_cached(path: Path) -> None:
    engine = engine_of(path)
    cache = engine._new_kv_cache()
    engine.prefill(IDS, cache)
    for block in range(4):
        keys, values = cache.storage(block)
        assert keys.shape == (1, 1, cache.capacity, 24 + 8)
        assert values.shape == (1, 1, cache.capacity, 0)
    assert engine.cache_bytes(10) == 4 * 10 * (24 + 8) * 4


def test_a_program_caches_only_latents(path: Path) -> None:
    program = engine_of(path, library=needed_library())._program
    assert program is not None
    [layout] = program.program.layouts
    assert layout.planes == [4 * (24 + 8)] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plan_counts_all_that_a_program_holds_for_heads(
    path: Path, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    library, folder = needed_library(), ModelFolder.open(tmp_path)
    engine = engine_of(tmp_path, library=library)
    assert engine._program is not None
    program, codes = engine._program.program, [library.code("BY_HEAD"), library.code("EXPAND")]
    held = {each.address: each.size for index, each in program.matrices if program.ops[index].code in codes}
    parameters = [block.attention.kv.weight for block in engine.decoder.blocks]
    stored = sum(folder.tensors[name].size for name in folder.tensors if "kv_b_proj" in name)
    wanted = folder.weight_bytes + sum(held.values()) + sum(each.nbytes for each in parameters) - stored
    monkeypatch.setattr(device_plan, "_kernels", lambda runtime: library)
    for free in (wanted, wanted - 1):
        monkeypatch.setattr(device_plan, "free_bytes", lambda device, free=free: free)
        with pytest.raises(OutOfMemory) if free < wanted else contextlib.nullcontext():
            device_plan.plan_for(folder, RuntimeConfig(device="cpu", dtype="fp32"))


def test_samples_are_what_each_would_be_alone(lm: LanguageModel) -> None:
    samplings = SamplingConfig(temperature=1.5, seed=1).for_samples(3)
    prompt, stop = [5, 60, 200, 31], StopConfig(max_tokens=12)
    together = [finish(events).ids for events in lm.streams(prompt, samplings, stop)]
    assert together == [finish(lm.stream(prompt, each, stop)).ids for each in samplings]
    assert len(set(map(tuple, together))) == 3


def test_a_turn_taken_back_runs_little_again(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prefilled = counted_prefills(lm, monkeypatch)
    session = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=8))
    first = finish(session.send("In a small town there lived a clockmaker"))
    finish(session.send("second"))
    session.undo()
    prefilled.clear()
    again = finish(session.send("another"))
    assert sum(prefilled) < first.usage.prompt_tokens
    fresh = gptcli.load(lm.folder.path, device="cpu", dtype="fp32")
    *_, wanted = fresh.generate(
        fresh.template.render(session.messages[:-1], fresh.tokenizer), temperature=0.0, max_tokens=8
    )
    assert isinstance(wanted, Finished) and again.ids == wanted.ids


def test_drafted_tokens_change_nothing(path: Path) -> None:
    def generated(speculate: int) -> Finished:
        model = gptcli.load(path, device="cpu", dtype="fp32", speculate=speculate)
        return finish(model.generate(REPEATED, max_tokens=60, temperature=0.0, ignore_eos=True))

    plain, speculative = generated(0), generated(7)
    assert speculative.ids == plain.ids
    assert plain.usage.drafted_tokens == 0 < speculative.usage.drafted_tokens
