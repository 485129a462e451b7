"""Prepared copies: they give what the model gives, and are used for nothing else than they were made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gptcli.errors import NonFiniteLogits
from gptcli.generation.events import Finished
from gptcli.kernels.bindings import functions
from gptcli.language_model import LanguageModel
from gptcli.runtime.fast_start import snapshot_file as prepared
from gptcli.runtime.fast_start import snapshots as copies
from gptcli.settings import ChatSettings, RuntimeConfig, SamplingConfig, StopConfig
from tests.cli.conftest import Cli
from tests.tiny import make_model

PROMPT = [7, 30, 41, 30, 41, 30]
ROOM = 60


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if functions() is None:
        pytest.skip("the kernels are not built")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny llama that a copy was kept of, for the CPU."""
    path = make_model(tmp_path / "tiny")
    keep(path)
    return path


def keep(path: Path) -> None:
    lm = opened(path, device="cpu")
    lm.load()
    lm.keep_copy()


def opened(path: Path, **runtime: Any) -> LanguageModel:
    return LanguageModel.open(str(path), RuntimeConfig(**runtime), one_text=0)


def is_prepared(path: Path, room: int = ROOM, **runtime: Any) -> bool:
    lm = opened(path, **runtime)
    lm.load_for_one(room)
    return lm.running is not lm._engine


def copy_of() -> Path:
    [path] = (Path(os.environ["XDG_CACHE_HOME"]) / "gptcli" / "prepared").iterdir()
    return path


def outcome(lm: LanguageModel, sampling: SamplingConfig, stop: StopConfig) -> tuple[bytes, Any]:
    *deltas, finished = lm.stream(PROMPT, sampling, stop)
    assert isinstance(finished, Finished)
    facts = finished.reason, finished.ids, finished.stop, finished.seed
    return b"".join(delta.data for delta in deltas), facts  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.3},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.9, "repeat_penalty": 1.3, "presence_penalty": 0.4, "logit_bias": ((30, 3.0), (41, -9.0))},
    ],
)
@pytest.mark.parametrize("speculate", [0, 4])
@pytest.mark.parametrize(
    "stop",
    [
        StopConfig(max_tokens=40, ignore_eos=True),
        StopConfig(max_tokens=40, strings=("e", "xyz")),
        StopConfig(max_tokens=0),
        StopConfig(max_tokens=80, ignore_eos=True, overflow="shift"),
    ],
)
def test_a_prepared_copy_says_what_the_model_says(
    model: Path, sampling: dict[str, Any], stop: StopConfig, speculate: int
) -> None:
    config = SamplingConfig(**sampling, seed=3)
    whole = opened(model, device="cpu", ctx_size=64, speculate=speculate)
    whole.load()
    prepared = opened(model, device="cpu", ctx_size=64, speculate=speculate)
    prepared.load_for_one(len(PROMPT) + stop.max_tokens)
    assert outcome(prepared, config, stop) == outcome(whole, config, stop)
    assert prepared._engine is None


def test_a_copy_that_is_there_is_not_written_again(model: Path) -> None:
    before = copy_of().stat()
    keep(model)
    assert copy_of().stat() == before


def test_what_a_copy_cannot_do_the_model_does(model: Path) -> None:
    lm = opened(model, device="cpu")
    lm.load_for_one(20)
    assert lm._engine is None
    *_, finished = lm.stream(PROMPT, SamplingConfig(seed=1), StopConfig(max_tokens=3), logprobs=2)
    assert isinstance(finished, Finished) and finished.logprobs is not None
    assert lm._engine is not None
    lm = opened(model, device="cpu")
    lm.load_for_one(20)
    list(lm.stream(PROMPT, SamplingConfig(seed=1), StopConfig(max_tokens=100)))  # more than it has room for
    assert lm._engine is not None


def test_a_setting_that_compiled_code_does_not_know_is_sampled_in_torch(model: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class LargerConfig(SamplingConfig):
        unheard_of: float = 0.0

    lm = opened(model, device="cpu")
    lm.load_for_one(20)
    list(lm.stream(PROMPT, LargerConfig(seed=1), StopConfig(max_tokens=3)))
    assert lm._engine is None
    cache = lm.fitting_cache(None, LargerConfig(unheard_of=1.0, seed=1), recorded=False)
    list(lm.stream(PROMPT, LargerConfig(unheard_of=1.0, seed=1), StopConfig(max_tokens=3), cache=cache))
    assert lm._engine is not None


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_second_run_has_no_need_of_torch(command: str, tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    code = (
        "import sys\nfrom gptcli.cli.app import run\n"
        f"code = run([{command!r}, '-m', {str(path)!r}, '-t', '0', '--device', 'cpu', 'In a small', '-n', '20'])\n"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(2)]
    assert [run.stderr.splitlines()[-1] for run in runs] == [b"0 True", b"0 False"]
    assert runs[0].stdout == runs[1].stdout != b""


def test_the_record_of_a_run_is_the_same(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for switch in ("off", "on"):
        monkeypatch.setenv("GPTCLI_PREPARED", switch)
        result = cli("generate", "-m", model, "--device", "cpu", "--json", "--seed", "4", "-n", "9", "In a", stdin=None)
        record = json.loads(result.out)
        assert record.pop("timings")["load_s"] > 0
        records.append(record)
    assert records[0] == records[1]


@pytest.mark.parametrize(
    "runtime",
    [{"dtype": "bf16"}, {"dtype": "fp32"}, {"quantize": "int8"}, {"quantize": "none"}],
)
def test_a_copy_serves_only_the_settings_it_was_made_with(model: Path, runtime: dict[str, Any]) -> None:
    assert is_prepared(model, device="cpu")
    assert not is_prepared(model, device="cpu", **runtime)


def test_copies_can_be_switched_off(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_PREPARED", "off")
    assert not is_prepared(model, device="cpu")
    shutil.rmtree(copy_of().parent)
    keep(model)
    assert not any((Path(os.environ["XDG_CACHE_HOME"]) / "gptcli").iterdir())


def touch_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time as they were


def touch_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))


def damage_header(model: Path) -> None:
    data = bytearray(copy_of().read_bytes())
    data[200] ^= 1
    copy_of().write_bytes(data)


def cut_short(model: Path) -> None:
    os.truncate(copy_of(), copy_of().stat().st_size - 1)


def cut_to_nothing(model: Path) -> None:
    os.truncate(copy_of(), 5)


def make_writable_for_all(model: Path) -> None:
    copy_of().chmod(0o666)


def put_a_pipe_there(model: Path) -> None:
    path = copy_of()
    path.unlink()
    os.mkfifo(path)


def put_a_directory_there(model: Path) -> None:
    path = copy_of()
    path.unlink()
    path.mkdir()


def use_other_cores(model: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "7"


@pytest.mark.parametrize(
    "change",
    [
        touch_weights,
        touch_config,
        damage_header,
        cut_short,
        cut_to_nothing,
        make_writable_for_all,
        put_a_pipe_there,
        put_a_directory_there,
        use_other_cores,
    ],
)
def test_a_copy_is_not_used_where_anything_has_changed(
    model: Path, change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copy_of().parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    keep(model)
    assert is_prepared(model, device="cpu")
    change(model)
    assert not is_prepared(model, device="cpu")


def test_a_copy_is_not_used_where_sources_or_memory_have_changed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(copies, "__version__", "0.0.0")
        assert not is_prepared(model, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(copies, "free_memory", lambda: 1000)
        assert not is_prepared(model, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(copies, "_may_have_gpu", lambda: True)
        lm = opened(model)
        lm.load()
        lm.keep_copy()
        assert copy_of()  # the one for the CPU alone
        assert is_prepared(model, device="cpu")


def test_only_the_copies_that_were_used_last_stay(tmp_path: Path) -> None:
    for number in range(6):
        keep(make_model(tmp_path / f"tiny{number}"))
        if number > 0:
            assert is_prepared(tmp_path / "tiny0", device="cpu")
    kept = [is_prepared(tmp_path / f"tiny{number}", device="cpu") for number in range(6)]
    assert kept == [True, False, False, True, True, True]


def test_where_no_copy_can_be_written_there_is_none_and_no_error(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    result = cli("generate", "-m", model, "-n", "3", "In a", stdin=None)
    assert (result.code, result.err) == (0, "")


def test_a_conversation_goes_on_where_its_cache_must_be_of_another_kind(model: Path) -> None:
    def replies(lm: LanguageModel) -> list[tuple[int, ...]]:
        session = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=9, ignore_eos=True))
        for turn in range(4):
            session.records_probabilities = turn == 2
            list(session.send("In a"))
        return [finished.ids for finished in session.finished]

    whole, prepared = opened(model, device="cpu"), opened(model, device="cpu")
    whole.load()
    prepared.load_for_one(prepared.ctx_size)
    session = prepared.session(settings=ChatSettings(temperature=0.0, max_tokens=9))
    list(session.send("In a"))
    assert prepared._engine is None
    assert replies(prepared) == replies(whole)
    assert prepared._engine is not None


def test_a_conversation_on_a_copy_runs_again_no_more_than_one_without(model: Path) -> None:
    def prefilled(lm: LanguageModel) -> list[int]:
        session = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=9, ignore_eos=True))
        run: list[int] = []
        for _ in range(3):
            list(session.send("In a", on_prefill=lambda done, total: run.append(total)))
        assert run[-1] < session.finished[-1].usage.prompt_tokens
        return run

    whole, prepared = opened(model, device="cpu"), opened(model, device="cpu")
    whole.load()
    prepared.load_for_one(prepared.ctx_size)
    assert prefilled(prepared) == prefilled(whole)
    assert prepared._engine is None


def test_nan_ends_a_text_from_a_copy_as_it_ends_any(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][99] = float("nan")
    # Tied to the embedding, the head would make every logit of this token NaN.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].nan_to_num()
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    whole = opened(path, device="cpu")
    whole.load()
    whole.keep_copy()
    prepared = opened(path, device="cpu")
    prepared.load_for_one(20)
    messages = []
    for lm in (whole, prepared):
        assert isinstance(list(lm.stream([5, 6], SamplingConfig(seed=1), StopConfig(max_tokens=2)))[-1], Finished)
        with pytest.raises(NonFiniteLogits) as error:
            list(lm.stream([5, 99, 6], SamplingConfig(seed=1), StopConfig(max_tokens=2)))
        messages.append(error.value.message)
    assert messages[0] == messages[1]
    assert prepared._engine is None


def test_a_copy_that_was_cut_short_is_written_again(model: Path) -> None:
    cut_short(model)
    keep(model)
    assert is_prepared(model, device="cpu")


@pytest.mark.parametrize("change", [touch_weights, touch_config])
def test_no_copy_is_kept_of_files_that_were_exchanged_after_they_were_read(tmp_path: Path, change: Any) -> None:
    path = make_model(tmp_path / "tiny")
    lm = opened(path, device="cpu")
    lm.load()
    change(path)
    lm.keep_copy()
    assert not is_prepared(path, device="cpu")


def test_a_model_that_is_gone_by_then_is_no_error(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    lm = opened(path, device="cpu")
    lm.load()
    shutil.rmtree(path)
    lm.keep_copy()


def test_ways_of_running_have_copies_of_their_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keep(model)
    assert is_prepared(model, device="cpu")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert is_prepared(model, device="cpu")


def test_a_copy_for_shorter_texts_is_not_even_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy_of().parent)
    monkeypatch.setattr(copies, "_MOST_POSITIONS", 50)
    keep(model)
    assert is_prepared(model, room=50, device="cpu")
    assert not is_prepared(model, room=51, device="cpu")
    assert LanguageModel.open(str(model), RuntimeConfig(device="cpu"), one_text=51)._copy is None


def test_a_model_that_is_removed_takes_its_copies_along(model: Path) -> None:
    keep(make_model(model.parent / "another"))
    copies.forget_copies(model)
    assert not is_prepared(model, device="cpu")
    assert is_prepared(model.parent / "another", device="cpu")


def test_without_a_thread_to_read_with_a_copy_is_read_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(prepared._Arrival, "start", start)
    assert is_prepared(model, device="cpu")
