"""Captured steps: on the CPU with our recorder, on a GPU also with CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gptcli.model.cache.kv_cache
from gptcli.checkpoint.folder import ModelFolder
from gptcli.cuda.graph import Capture, cuda_graph
from gptcli.cuda.static_step import Outputs, StaticStep
from gptcli.errors import NonFiniteLogits
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.position import AppendPosition
from gptcli.runtime.torch_engine import TorchEngine
from tests.cuda.fake_cuda import OnTheDevice, fake_cuda, fake_model
from tests.cuda.recorder import Recorder, capture
from tests.parity import test_families
from tests.tiny import make_model

DEVICES: list[tuple[str, Capture]] = [("cpu", capture)] + [("cuda", cuda_graph)] * torch.cuda.is_available()
TEXT = torch.randint(3, 300, (60,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mistral, because it has a window."""
    return make_model(tmp_path_factory.mktemp("windowed"), model_type="mistral", sliding_window=24)


@pytest.fixture(autouse=True)
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a text of 60 tokens move its cache several times."""
    monkeypatch.setattr(gptcli.model.cache.kv_cache, "CACHE_STEP", 16)


def engine_of(
    model: Path, capture: Capture | None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> TorchEngine:
    return test_families.engine_of(model, dtype, capture=capture, device=device)


def logits_of(engine: TorchEngine, text: list[int] = TEXT, prompt: int = 5) -> Tensor:
    """The logits of every step after a prompt."""
    cache = engine.new_cache()
    engine.prefill(text[:prompt], cache)
    logits = torch.stack([engine.decode(token, cache) for token in text[prompt:]])
    assert cache.tokens == text
    return logits.cpu()


@pytest.mark.parametrize(("device", "capture"), DEVICES)
def test_a_text_that_outgrows_its_room_has_the_logits_of_plain_steps(
    device: str, capture: Capture, model: Path
) -> None:
    made: list[Callable[[], Outputs]] = []

    def counted(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
        made.append(run)
        return capture(run, device)

    engine = engine_of(model, counted, device)
    torch.testing.assert_close(logits_of(engine), logits_of(engine_of(model, None, device)), rtol=1e-4, atol=1e-4)
    assert engine.failures == () and engine.kernels == "torch, CUDA graphs"
    assert 3 <= len(made) <= 6  # of 55 steps


@pytest.mark.parametrize(("device", "capture"), DEVICES)
def test_rounding_in_bf16_is_no_fault_of_a_capture(device: str, capture: Capture, model: Path) -> None:
    engine = engine_of(model, capture, device, torch.bfloat16)
    logits_of(engine)
    assert engine.failures == ()


@pytest.mark.parametrize(("device", "capture"), DEVICES)
def test_logits_stay_when_the_next_step_is_run(device: str, capture: Capture, model: Path) -> None:
    engine = engine_of(model, capture, device)
    cache = engine.new_cache()
    for token in TEXT[:6]:
        logits = engine.decode(token, cache)
    before = logits.clone()
    engine.decode(9, cache)
    assert logits.equal(before)


def nothing_again(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A capture that replays nothing: its outputs stay those of the captured step."""
    outputs = run()
    return lambda: outputs


def another_position(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A capture with its position as a constant."""
    inputs = run.__self__._inputs  # type: ignore[attr-defined]
    position = inputs[:1].clone()

    def replay() -> Outputs:
        inputs[:1] = position
        return run()

    return replay


def no_keys_written(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A capture whose keys and values are not written."""
    step = run.__self__  # type: ignore[attr-defined]

    def replay() -> Outputs:
        kept = [(keys.clone(), values.clone()) for keys, values in step._storage]
        outputs = run()
        for pair, old in zip(step._storage, kept, strict=True):
            for tensor, before in zip(pair, old, strict=True):
                tensor.copy_(before)
        return outputs

    return replay


def refused(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """Fails as torch does for an operation that cannot be part of a graph."""
    run()
    raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


@pytest.mark.parametrize(
    ("faulty", "why"),
    [
        (nothing_again, "the recorded decode step differs from the plain one by"),
        (another_position, "the recorded decode step differs from the plain one by"),
        (no_keys_written, "the recorded decode step differs from the plain one by 1 of its size"),
        (refused, "the decode step could not be recorded: operation not permitted when stream is capturing"),
    ],
)
def test_a_capture_that_is_wrong_is_found_out_and_no_logits_come_of_it(faulty: Capture, why: str, model: Path) -> None:
    engine = engine_of(model, faulty)
    assert logits_of(engine).equal(logits_of(engine_of(model, None)))
    (failure,) = engine.failures
    assert failure.startswith(f"slower than it could be: {why}") and "\n" not in failure
    assert engine.kernels == "torch"


def test_missing_keys_are_noticed_even_if_equal_ones_were_written_before(model: Path) -> None:
    made: list[Capture] = [capture, no_keys_written]
    engine = engine_of(model, lambda run, device: made.pop(0)(run, device))
    cache = engine.new_cache()
    engine.prefill(TEXT[:20], cache)
    engine.decode(7, cache)
    cache.truncate(20)
    cache.moves += 1  # forces another capture, of the same step in the same memory
    engine.decode(7, cache)
    assert made == [] and len(engine.failures) == 1


def test_a_capture_that_turns_wrong_later_is_found_out_when_the_next_is_made(model: Path) -> None:
    made: list[Capture] = [capture, nothing_again]
    engine = engine_of(model, lambda run, device: made.pop(0)(run, device))
    torch.testing.assert_close(logits_of(engine), logits_of(engine_of(model, None)), rtol=1e-4, atol=1e-4)
    assert made == [] and len(engine.failures) == 1


def test_a_step_has_the_same_operations_wherever_it_is(model: Path) -> None:
    engine = engine_of(model, None)
    cache = KVCache(engine.decoder.config, 256, torch.device("cpu"), torch.float32, zeroed=True)
    engine.prefill(TEXT[:17], cache)
    described = []
    for steps in (1, 5):
        for token in TEXT[:steps]:
            engine.decode(token, cache)
        step = StaticStep(engine.decoder, cache)
        step.feed([steps], cache)
        with torch.inference_mode(), Recorder() as recorder:
            step.run()
        described.append(recorder.described())
    assert described[0] == described[1] and len(described[0]) > 50


def test_the_room_that_is_masked_may_hold_anything_finite(model: Path) -> None:
    engine = engine_of(model, capture)
    cache = engine.new_cache()
    engine.prefill(TEXT[:20], cache)
    engine.decode(7, cache)
    cache.truncate(20)
    expected = engine.decode(7, cache)
    cache.truncate(20)
    with torch.inference_mode():
        for block in range(2):
            for kept in cache.storage(block):
                kept[:, :, 20:] = 1000.0
    assert engine.decode(7, cache).equal(expected)


@pytest.mark.parametrize(("device", "capture"), DEVICES)
def test_nan_is_an_error_at_its_token_and_leaves_nothing_in_the_cache(
    device: str, capture: Capture, model: Path
) -> None:
    engine = engine_of(model, capture, device)
    cache = engine.new_cache()
    engine.prefill(TEXT[:20], cache)
    expected = engine.decode(7, cache)
    embeddings = engine.decoder.embed.weight.data
    embeddings[9], kept = float("nan"), embeddings[9].clone()
    with pytest.raises(NonFiniteLogits, match="NaN or infinity at token 22"):
        engine.decode(9, cache)
    embeddings[9] = kept
    assert cache.length == 0 and engine.failures == ()
    engine.prefill(TEXT[:20], cache)
    torch.testing.assert_close(engine.decode(7, cache), expected)


def test_nan_where_a_step_is_first_captured_is_no_fault_of_the_capture(model: Path) -> None:
    engine = engine_of(model, capture)
    engine.decoder.embed.weight.data[9] = float("nan")
    with pytest.raises(NonFiniteLogits):
        engine.decode(9, engine.new_cache())
    assert engine.failures == ()


def test_a_prompt_on_cuda_waits_for_nothing_and_no_mask_meets_fewer_heads_of_keys(model: Path) -> None:
    config = ModelFolder.open(model).architecture.config
    for window, cached in ((None, 0), (None, 20), (24, 0), (24, 20)):
        attention = replace(config.blocks[0].attention, window=window)
        blocks = tuple(replace(block, attention=attention) for block in config.blocks)
        with fake_cuda(), torch.inference_mode():
            decoder, cache = fake_model(replace(config, blocks=blocks))
            cache.advance([0] * cached)
            cache.reserve(30)
            tokens = torch.zeros(1, 30, dtype=torch.int64, device="cuda")
            with OnTheDevice() as seen, Recorder() as recorder:
                decoder.run(tokens, AppendPosition(decoder.tables, cache, 30))
        attended = [args for function, args, _, _ in recorder.calls if "scaled_dot_product" in str(function)]
        assert len(attended) == 2 and len(seen.operations) > 50
        for q, k, v, *_ in attended:
            assert q.shape[1] == k.shape[1] == v.shape[1] == 4
