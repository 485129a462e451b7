from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import gptcli
from gptcli import LanguageModel
from gptcli.checkpoint import load
from gptcli.checkpoint.folder import ModelFolder
from gptcli.cuda.graph import cuda_graph
from gptcli.errors import NonFiniteLogits, NoSuchDevice, OutOfMemory, UsageError
from gptcli.kernels import bindings
from gptcli.runtime import device_plan as device
from gptcli.runtime import resource_limits
from gptcli.runtime.device_plan import plan_for
from gptcli.runtime.engine import Engine, Extension, keep_common
from gptcli.runtime.fast_start.snapshot_engine import SnapshotEngine
from gptcli.runtime.program_cache import ProgramCache
from gptcli.settings import RuntimeConfig
from tests.tiny import CONFIG, make_model, make_weights


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A tiny model with a context of several chunks."""
    return gptcli.load(make_model(tmp_path_factory.mktemp("long"), max_position_embeddings=2048), dtype="fp32")


def test_a_prompt_of_several_chunks_gives_what_one_token_at_a_time_does(long: LanguageModel) -> None:
    tokens = torch.randint(3, 300, (1100,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = long.engine.prefill(tokens, long.engine.new_cache())
    cache = long.engine.new_cache()
    long.engine.prefill(tokens[:1000], cache)
    for token in tokens[1000:]:
        logits = long.engine.decode(token, cache)
    assert whole is not None
    torch.testing.assert_close(whole, logits, rtol=1e-4, atol=1e-4)


@settings(max_examples=30)
@given(st.lists(st.integers(3, 303), min_size=2, max_size=40), st.lists(st.integers(1, 39), max_size=5), st.data())
def test_logits_are_the_same_however_a_text_is_cut_and_whatever_the_cache_held_before(
    tiny: LanguageModel, tokens: list[int], cuts: list[int], data: st.DataObject
) -> None:
    uncached = tiny.logits(tokens)
    cache = tiny.engine.new_cache()
    other = tokens[: data.draw(st.integers(0, len(tokens)))] + data.draw(st.lists(st.integers(3, 303), max_size=9))
    if other:
        tiny.engine.prefill(other, cache)
    keep_common(cache, tokens[:-1])
    ends = sorted({cut for cut in cuts if cache.length < cut < len(tokens)} | {len(tokens)})
    for end in ends:
        logits = tiny.engine.prefill(tokens[cache.length : end], cache)
        assert logits is not None
        torch.testing.assert_close(logits, uncached[end - 1], rtol=1e-4, atol=1e-4)
    assert cache.tokens == tokens


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(3, 303), min_size=1, max_size=30), min_size=1, max_size=5), st.data())
def test_texts_of_any_lengths_that_share_steps_are_what_each_is_alone(
    tiny: LanguageModel, texts: list[list[int]], data: st.DataObject
) -> None:
    engine = tiny.full_engine()
    running = list[tuple[ProgramCache, list[int]]]()
    for _ in range(6):
        if texts and (not running or data.draw(st.booleans())):  # one more text joins, perhaps with a common beginning
            cache, text = engine.new_cache(), texts.pop()
            if running and data.draw(st.booleans()):
                other, before = data.draw(st.sampled_from(running))
                length = data.draw(st.integers(0, len(before)))
                cache, text = engine.copy_of(other, length), before[:length] + text
            assert isinstance(cache, ProgramCache)
            running.append((cache, text))
        if len(running) > 1 and data.draw(st.booleans()):  # one leaves
            running.pop(data.draw(st.integers(0, len(running) - 1)))
        step = list[Extension]()
        for cache, text in running:
            text += data.draw(st.lists(st.integers(3, 303), min_size=cache.length == len(text), max_size=20))
            tokens = text[cache.length :]
            step.append(Extension(cache, tokens, data.draw(st.integers(1, len(tokens)))))
        for (_, text), (_, _, wanted), logits in zip(running, step, engine.extend(step), strict=True):
            assert isinstance(logits, Sequence)
            torch.testing.assert_close(torch.stack(list(logits)), engine.logits(text)[-wanted:], rtol=1e-4, atol=1e-4)


def test_a_text_of_nan_in_a_step_is_that_texts_alone(tmp_path: Path) -> None:
    weights = make_weights(CONFIG | {"tie_word_embeddings": False})
    weights["model.embed_tokens.weight"][7] = np.nan
    lm = gptcli.load(make_model(tmp_path, weights=weights, tie_word_embeddings=False), dtype="fp32")
    good, bad = lm.engine.new_cache(), lm.engine.new_cache()
    [logits], failure = lm.engine.extend([Extension(good, [3, 4]), Extension(bad, [5, 7, 9])])
    assert isinstance(failure, NonFiniteLogits) and "token 3" in failure.message
    torch.testing.assert_close(logits, lm.logits([3, 4])[-1], rtol=1e-4, atol=1e-4)


def test_a_step_of_as_many_tokens_as_may_be_has_logits_after_each(long: LanguageModel) -> None:
    most = 1 + long.engine.most_ahead(long.engine.new_cache())
    tokens = torch.randint(3, 300, (most,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = long.engine.step(tokens, long.engine.new_cache())
    torch.testing.assert_close(torch.stack(list(logits)), long.logits(tokens), rtol=1e-4, atol=1e-4)


def test_progress_is_told_after_every_chunk(long: LanguageModel) -> None:
    told: list[tuple[int, int]] = []
    long.engine.prefill([5] * 1100, long.engine.new_cache(), lambda done, total: told.append((done, total)))
    assert told == [(512, 1100), (1024, 1100), (1100, 1100)]


def test_a_cancelled_prefill_stops_within_a_chunk(long: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "PAUSE_NANOSECONDS", 10**15)
    answers = iter([False, True])
    cache = long.engine.new_cache()
    assert long.engine.prefill([5] * 1100, cache, cancelled=lambda: next(answers)) is None
    assert cache.length == 512


@pytest.mark.parametrize("fast_start", [False, True])
def test_a_prefill_is_cancelled_in_the_middle_of_a_step(
    long: LanguageModel, monkeypatch: pytest.MonkeyPatch, fast_start: bool
) -> None:
    engine: Engine = long.full_engine()
    snapshot, library = long.full_engine().snapshot(2048), engine.library
    if snapshot is None or library is None:
        pytest.skip("torch runs the steps")
    if fast_start:
        engine = SnapshotEngine(snapshot, library, 2048, 2048, lambda: None)
    monkeypatch.setattr(bindings, "PAUSE_NANOSECONDS", 0)
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    cache = engine.new_cache()
    assert engine.prefill([5] * 30, cache, cancelled=cancelled) is None
    assert (asked, cache.length) == (5, 0)
    paused = engine.step([5] * 30, cache)[-1]
    monkeypatch.setattr(bindings, "PAUSE_NANOSECONDS", 10**15)
    whole = engine.step([5] * 30, engine.new_cache())[-1]
    assert ctypes.string_at(paused.data_ptr(), 4 * 320) == ctypes.string_at(whole.data_ptr(), 4 * 320)


def test_a_cuda_device_that_is_not_there_is_an_error_and_auto_falls_back(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = ModelFolder.open(tiny_model)
    assert plan_for(folder, RuntimeConfig()).device.type == "cpu"
    for name in ("cuda", "cuda:99"):
        with pytest.raises(NoSuchDevice, match=f"no such device: {name}"):
            plan_for(folder, RuntimeConfig(device=name))


def test_a_model_that_fits_once_it_is_quantized_computes_in_fp32(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda device: 60_000)  # of 25,760 weights
    plan = plan_for(ModelFolder.open(tiny_model), RuntimeConfig(device="cpu", quantize="int8"))
    assert (plan.dtype_name, plan.weights.packing) == ("fp32", "int8")
    with pytest.raises(OutOfMemory):
        plan_for(ModelFolder.open(tiny_model), RuntimeConfig(device="cpu", quantize="none"))


@pytest.mark.parametrize(("free", "dtype"), [(10**9, "fp32"), (100_000, "bf16")])
def test_auto_computes_in_fp32_only_where_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, dtype: str
) -> None:
    path = make_model(tmp_path)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(halves, path / "model.safetensors")
    monkeypatch.setattr(device, "free_bytes", lambda device: free)
    monkeypatch.setattr(device, "kernels", lambda: None)
    assert plan_for(ModelFolder.open(path), RuntimeConfig(device="cpu")).dtype_name == dtype


@pytest.mark.parametrize(("limit", "threads"), [("100000 100000", 1), ("150000 100000", 2), ("max 100000", 2)])
def test_threads_are_no_more_than_the_control_group_allows(
    limit: str, threads: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(resource_limits, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    plan_for(ModelFolder.open(tiny_model), RuntimeConfig())
    assert chosen == [threads]


@pytest.mark.parametrize("text", [None, "", "MemTotal: 5 kB", "MemAvailable: x"])
def test_memory_is_what_psutil_says_where_linux_does_not(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abs(resource_limits.available_memory() / psutil.virtual_memory().available - 1) < 0.3
    monkeypatch.setattr(resource_limits, "_MEMORY", tmp_path / "meminfo")
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    assert resource_limits.available_memory() == 12345


def test_threads_are_what_was_asked_for(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    try:
        plan_for(ModelFolder.open(tiny_model), RuntimeConfig(threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers a plan's questions as an A100 with 40 GB would."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 << 30, 40 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.delenv("GPTCLI_KERNELS", raising=False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_gpu_has_recorded_steps_and_its_kernel_for_packed_weights_in_bf16(tiny_model: Path, quantize: str) -> None:
    folder = ModelFolder.open(tiny_model)
    plan = plan_for(folder, RuntimeConfig(quantize=quantize))
    assert (plan.device.type, plan.dtype_name, plan.library) == ("cuda", "bf16", None)
    assert plan.record is cuda_graph and plan.weights.tinygemm is not None
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    named = plan_for(folder, RuntimeConfig(quantize=quantize, dtype="fp16"))
    assert (named.dtype_name, named.weights.tinygemm) == ("fp16", None) and named.record is cuda_graph


@pytest.mark.usefixtures("a_gpu")
def test_dense_weights_keep_their_precision_on_a_gpu(tiny_model: Path) -> None:
    assert plan_for(ModelFolder.open(tiny_model), RuntimeConfig()).dtype_name == "fp32"  # as they are stored


@pytest.mark.usefixtures("a_gpu")
def test_an_older_gpu_or_torch_alone_has_no_such_kernel(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ModelFolder.open(tiny_model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    older = plan_for(folder, RuntimeConfig(quantize="int4"))
    assert (older.dtype_name, older.weights.tinygemm) == ("fp32", None) and older.record is cuda_graph
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("GPTCLI_KERNELS", "off")
    alone = plan_for(folder, RuntimeConfig(quantize="int4", dtype="bf16"))
    assert (alone.record, alone.weights.tinygemm) == (None, None)


def test_keys_and_values_that_only_kernels_keep_are_refused_without(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_kernels", lambda runtime: None)
    gptcli.load(tiny_model, device="cpu", kv="fp32")
    monkeypatch.setattr(load, "load_decoder", lambda *given: pytest.fail("weights are read before the refusal"))
    with pytest.raises(UsageError, match="kept in fp32"):
        gptcli.load(tiny_model, device="cpu", kv="int8")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"needs .* GB on cpu"):
        plan_for(ModelFolder.open(tiny_model), RuntimeConfig())
