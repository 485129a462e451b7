"""Snapshots give what the model gives, and serve only the model that they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gptcli.errors import NonFiniteLogits
from gptcli.generation.events import Finished
from gptcli.kernels.bindings import functions
from gptcli.language_model import LanguageModel
from gptcli.runtime.engine import Workload
from gptcli.runtime.fast_start import snapshot_file, snapshots
from gptcli.runtime.fast_start.snapshot_engine import SnapshotEngine
from gptcli.settings import ChatSettings, RuntimeConfig, SamplingConfig, StopConfig
from tests.cli.conftest import Cli
from tests.cli.terminal.pty_terminal import on_terminal
from tests.tiny import edit, make_model

PROMPT = [7, 30, 41, 30, 41, 30]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if functions() is None:
        pytest.skip("the kernels are not built")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny llama with a snapshot for the CPU."""
    path = make_model(tmp_path / "tiny")
    keep(path)
    return path


def opened(path: Path, tokens: int = 0, device: str = "cpu", **runtime: Any) -> LanguageModel:
    return LanguageModel.open(str(path), RuntimeConfig(device=device, **runtime), workload=Workload(tokens=tokens))


def loaded(path: Path, tokens: int, **runtime: Any) -> LanguageModel:
    """A model that is loaded for texts of so many tokens, from a snapshot if there is one."""
    lm = opened(path, **runtime)
    lm.load(workload=Workload(tokens=tokens))
    return lm


def in_torch(path: Path, **runtime: Any) -> LanguageModel:
    """A model loaded with torch. Its snapshot is written when it is closed."""
    lm = opened(path, **runtime)
    lm.full_engine()
    return lm


def keep(path: Path, **runtime: Any) -> None:
    in_torch(path, **runtime).close()


def is_fast(lm: LanguageModel) -> bool:
    return isinstance(lm.engine, SnapshotEngine)


def has_snapshot(path: Path, room: int = 60, **runtime: Any) -> bool:
    return is_fast(loaded(path, room, **runtime))


def snapshot_path(pattern: str = "*.snapshot") -> Path:
    [path] = (Path(os.environ["XDG_CACHE_HOME"]) / "gptcli" / "prepared").glob(pattern)
    return path


def weights_path() -> Path:
    return snapshot_path("*.weights")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def outcome(lm: LanguageModel, sampling: SamplingConfig, stop: StopConfig) -> tuple[bytes, Any]:
    *deltas, finished = lm.stream(PROMPT, sampling, stop)
    facts = finished.reason, finished.ids, finished.stop, finished.seed
    return b"".join(delta.data for delta in deltas), facts


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.3},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 0.9, "repeat_penalty": 1.3, "presence_penalty": 0.4, "logit_bias": ((30, 3.0), (41, -9.0))},
        {"temperature": 0.9, "suppress_tokens": (30, 41), "bad_words_ids": ((50,), (9, 8)), "no_repeat_ngram_size": 2},
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
def test_a_snapshot_generates_what_the_model_generates(
    model: Path, sampling: dict[str, Any], stop: StopConfig, speculate: int
) -> None:
    config = SamplingConfig(**sampling, seed=3)
    whole = in_torch(model, ctx_size=64, speculate=speculate)
    snapshot = loaded(model, len(PROMPT) + stop.max_tokens, ctx_size=64, speculate=speculate)
    assert outcome(snapshot, config, stop) == outcome(whole, config, stop)
    assert is_fast(snapshot)


def test_an_existing_snapshot_is_not_written_again(model: Path) -> None:
    before = snapshot_path().stat().st_ino  # of the file that a new one would replace
    keep(model)
    assert snapshot_path().stat().st_ino == before


def test_the_model_does_what_a_snapshot_cannot(model: Path) -> None:
    lm = loaded(model, 20)
    assert is_fast(lm)
    *_, finished = lm.stream(PROMPT, SamplingConfig(seed=1), StopConfig(max_tokens=3), explain=True)
    assert finished.logprobs is not None and not is_fast(lm)
    lm = loaded(model, 20)
    list(lm.stream(PROMPT, SamplingConfig(seed=1), StopConfig(max_tokens=100)))  # more than it has room for
    assert not is_fast(lm)


@pytest.mark.parametrize("overflow", ["stop", "shift"])
def test_samples_of_a_snapshot_are_the_models(model: Path, overflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.runtime.fast_start.snapshot_engine.MOST_ROWS", 4)
    sampling = SamplingConfig(temperature=1.2, seed=5)
    strings = ("e", "1") if overflow == "stop" else ()  # by which some end before others
    stop = StopConfig(max_tokens=90 if overflow == "shift" else 30, overflow=overflow, strings=strings)

    def samples(lm: LanguageModel) -> list[tuple[int, ...]]:
        return [list(stream)[-1].ids for stream in lm.streams(PROMPT, sampling.for_samples(7), stop)]

    whole = in_torch(model, ctx_size=64)
    snapshot = loaded(model, len(PROMPT) + stop.max_tokens, ctx_size=64)
    found = samples(snapshot)
    assert found == samples(whole)
    assert len(set(map(len, found))) > 1 or overflow == "shift"
    assert is_fast(snapshot)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_snapshot_records_the_probabilities_that_torch_records(model: Path, temperature: float) -> None:
    def recorded(explain: bool) -> list[Any]:
        lm = loaded(model, 40)
        config = SamplingConfig(temperature=temperature, seed=3, logit_bias=((30, 3.0),))
        stop = StopConfig(max_tokens=12, ignore_eos=True)
        *_, finished = lm.stream(PROMPT, config, stop, logprobs=5, explain=explain)
        assert is_fast(lm) != explain
        return [each for step in finished.logprobs for each in (step.chosen, *step.top)]

    fast, torch = recorded(explain=False), recorded(explain=True)
    assert [(each.id, each.data) for each in fast] == [(each.id, each.data) for each in torch]
    assert [each.logprob for each in fast] == pytest.approx([each.logprob for each in torch], abs=1e-6)


def test_scores_are_those_of_torch(model: Path) -> None:
    text = "In a small town, people were ringing the bells"

    def scored(workload: Workload | None) -> list[float]:
        lm = LanguageModel.open(str(model), RuntimeConfig(device="cpu"), workload=workload)
        found = lm.score(text, top=3)
        [likeliest, *_] = lm.choose("In a", [" small", " town"])
        assert is_fast(lm) == (workload is not None)
        tops = [each.logprob for tokens in found.top for each in tokens]
        return [*(each or 0.0 for each in found.logprobs), *tops, likeliest.probability]

    outcome(opened(model, tokens=20), SamplingConfig(seed=1), StopConfig(max_tokens=3))
    assert scored(Workload()) == pytest.approx(scored(None), abs=1e-5)


def test_a_setting_that_compiled_code_does_not_know_is_sampled_in_torch(model: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class LargerConfig(SamplingConfig):
        unheard_of: float = 0.0

    lm = opened(model, tokens=20)
    outcome(lm, LargerConfig(seed=1), StopConfig(max_tokens=3))
    assert is_fast(lm)
    outcome(lm, LargerConfig(unheard_of=1.0, seed=1), StopConfig(max_tokens=3))
    assert not is_fast(lm)


def test_the_second_run_needs_neither_torch_nor_pydantic(tmp_path: Path) -> None:
    given = ["-m", str(make_model(tmp_path / "tiny")), "-t", "0", "--device", "cpu", "In a small", "-n", "20"]
    code = (
        "import sys\nfrom gptcli.cli.app import run\n"
        f"print(run([*sys.argv[1:], *{given!r}]), *{{'torch', 'pydantic'}} & set(sys.modules), file=sys.stderr)"
    )
    commands = (["generate", "--chat"], ["generate", "--chat"], ["chat"])
    runs = [subprocess.run([sys.executable, "-c", code, *command], capture_output=True) for command in commands]
    assert [run.stderr.splitlines()[-1] for run in runs] == [b"0 torch", b"0", b"0"]
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout != b""


def test_the_second_run_with_a_draft_model_needs_no_torch(tmp_path: Path) -> None:
    models = [make_model(tmp_path / name, seed=seed) for seed, name in enumerate(("model", "draft"))]
    given = ["generate", "-m", models[0], "--draft-model", models[1], "-t", "0", "--device", "cpu", "-n", "30", "In a"]
    code = (
        "import sys\nfrom gptcli.cli.app import run\n"
        f"print(run({[*map(str, given)]!r}), 'torch' in sys.modules, file=sys.stderr)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True) for _ in range(2)]
    assert [run.stderr.splitlines()[-1] for run in runs] == [b"0 True", b"0 False"]
    assert runs[0].stdout == runs[1].stdout != b""


def test_the_record_of_a_run_is_the_same(cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = []
    for switch in ("off", "on"):
        monkeypatch.setenv("GPTCLI_PREPARED", switch)
        record = cli("generate", "-m", model, "--device", "cpu", "--json", "--seed", "4", "-n", "9", "In a").json
        assert record.pop("timings")["load_s"] > 0
        records.append(record)
    assert records[0] == records[1]


@pytest.mark.parametrize("runtime", [{"dtype": "bf16"}, {"dtype": "fp32"}, {"quantize": "int8"}, {"quantize": "none"}])
def test_a_snapshot_serves_only_the_settings_it_was_made_with(model: Path, runtime: dict[str, Any]) -> None:
    assert has_snapshot(model)
    assert not has_snapshot(model, **runtime)


def test_snapshots_can_be_switched_off(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_PREPARED", "off")
    assert not has_snapshot(model)
    shutil.rmtree(snapshot_path().parent)
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
    edit(model / "config.json", rms_norm_eps=0.1)


def damage_many_weights(model: Path) -> None:
    data = bytearray(weights_path().read_bytes())
    data[4096:8192] = bytes(4096)
    weights_path().write_bytes(data)


def replace_snapshot(make: Callable[[Path], object]) -> None:
    path = snapshot_path()
    path.unlink()
    make(path)


def write_another_layout(path: Path, text: bytes = b'{"key":{}}') -> None:
    path.write_bytes(hashlib.sha256(text).digest() + text)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit of the header": lambda model: flip(snapshot_path(), 200),
    "the first weight": lambda model: flip(weights_path(), 0),
    "the last weight": lambda model: flip(weights_path(), -1),
    "many weights": damage_many_weights,
    "weights cut short": lambda model: os.truncate(weights_path(), weights_path().stat().st_size - 1),
    "a header cut short": lambda model: os.truncate(snapshot_path(), snapshot_path().stat().st_size - 1),
    "a header cut to nothing": lambda model: os.truncate(snapshot_path(), 5),
}
CHANGES = DAMAGE | {
    "the model's weights": touch_weights,
    "the model's config": touch_config,
    "no weights": lambda model: weights_path().unlink(),
    "another layout": lambda model: replace_snapshot(write_another_layout),
    "others may write": lambda model: snapshot_path().chmod(0o666),
    "others may write weights": lambda model: weights_path().chmod(0o666),
    "a pipe": lambda model: replace_snapshot(os.mkfifo),
    "a directory": lambda model: replace_snapshot(Path.mkdir),
    "other cores": lambda model: os.environ.update(OMP_NUM_THREADS="7"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_snapshot_is_not_used_after_a_change(model: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(snapshot_path().parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    keep(model)
    assert has_snapshot(model)
    CHANGES[change](model)
    assert not has_snapshot(model)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_snapshot_is_dropped_with_a_note_and_made_again(cli: Cli, model: Path, damage: str) -> None:
    given = ("generate", "-m", model, "--device", "cpu", "-t", "0", "-n", "9", "In a")
    whole = cli(*given)
    assert whole.err == ""
    DAMAGE[damage](model)
    first, second = cli(*given), cli(*given)
    assert first.out == second.out == whole.out
    assert (first.err.count("note:"), second.err) == (1, "")
    assert "was damaged" in first.err
    assert has_snapshot(model)


def test_ways_of_running_share_the_weights_that_are_the_same(model: Path, cli: Cli) -> None:
    for dtype in ("fp32", "bf16"):
        keep(model, dtype=dtype)
        assert has_snapshot(model, dtype=dtype)
    records = cli("cache", "--json").records
    # Dense weights are rounded to bf16. The first of three snapshots was made with --dtype auto.
    assert [record["content"] for record in records] == ["weights in bf16", "weights in fp32"]
    assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "gptcli" / "prepared").glob("*.snapshot"))) == 3


def test_a_snapshot_is_not_used_after_sources_or_memory_change(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "VERSION", "0.0.0")
        assert not has_snapshot(model)
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "free_memory", lambda: 1000)
        assert not has_snapshot(model)
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_may_have_gpu", lambda: True)
        keep(model, device="auto")
        assert snapshot_path()  # the one for the CPU alone
        assert has_snapshot(model)


def test_only_the_most_recently_used_snapshots_stay(tmp_path: Path) -> None:
    for number in range(6):
        keep(make_model(tmp_path / f"tiny{number}"))
        if number > 0:
            assert has_snapshot(tmp_path / "tiny0")
    kept = [has_snapshot(tmp_path / f"tiny{number}") for number in range(6)]
    assert kept == [True, False, False, True, True, True]


def test_a_snapshot_that_cannot_be_written_is_no_error(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    result = cli("generate", "-m", model, "-n", "3", "In a")
    assert (result.code, result.err) == (0, "")


def test_a_conversation_goes_on_when_its_engine_changes(model: Path) -> None:
    def replies(lm: LanguageModel) -> list[tuple[int, ...]]:
        session = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=9, ignore_eos=True))
        for turn in range(4):
            session.records_probabilities = turn == 1
            if turn == 2:
                lm.full_engine()
            list(session.send("In a"))
        return [finished.ids for finished in session.finished]

    whole, snapshot = in_torch(model), loaded(model, 256)
    session = snapshot.session(settings=ChatSettings(temperature=0.0, max_tokens=9))
    list(session.send("In a"))
    assert is_fast(snapshot)
    assert replies(snapshot) == replies(whole)
    assert not is_fast(snapshot)


def test_a_conversation_on_a_snapshot_reuses_its_cache(model: Path) -> None:
    def prefilled(lm: LanguageModel) -> list[int]:
        session = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=9, ignore_eos=True))
        run: list[int] = []
        for _ in range(3):
            list(session.send("In a", on_prefill=lambda done, total: run.append(total)))
        assert run[-1] < session.finished[-1].usage.prompt_tokens
        return run

    whole, snapshot = in_torch(model), loaded(model, 256)
    assert prefilled(snapshot) == prefilled(whole)
    assert is_fast(snapshot)


def test_nan_ends_a_text_from_a_snapshot_as_it_ends_any(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][99] = float("nan")
    # Tied to the embedding, the head would make every logit of this token NaN.
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].nan_to_num()
    save_file(tensors, path / "model.safetensors")
    edit(path / "config.json", tie_word_embeddings=False)
    whole = in_torch(path)
    whole.close()
    snapshot, messages = loaded(path, 20), []
    for lm in (whole, snapshot):
        assert isinstance(list(lm.stream([5, 6], SamplingConfig(seed=1), StopConfig(max_tokens=2)))[-1], Finished)
        with pytest.raises(NonFiniteLogits) as error:
            list(lm.stream([5, 99, 6], SamplingConfig(seed=1), StopConfig(max_tokens=2)))
        messages.append(error.value.message)
    assert messages[0] == messages[1]
    assert is_fast(snapshot)
    assert not has_snapshot(path)


@pytest.mark.parametrize("change", [touch_weights, touch_config])
def test_no_snapshot_is_kept_of_files_replaced_after_they_were_read(tmp_path: Path, change: Any) -> None:
    path = make_model(tmp_path / "tiny")
    lm = in_torch(path)
    change(path)
    lm.close()
    assert not has_snapshot(path)


def test_a_model_that_is_gone_by_then_is_no_error(tmp_path: Path) -> None:
    path = make_model(tmp_path / "tiny")
    lm = in_torch(path)
    shutil.rmtree(path)
    lm.close()


def test_each_way_of_running_has_its_snapshot(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keep(model)
    assert has_snapshot(model)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert has_snapshot(model)


def test_a_snapshot_for_shorter_texts_is_not_even_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(snapshot_path().parent)
    monkeypatch.setattr(snapshots, "_MOST_POSITIONS", 50)
    keep(model)
    assert has_snapshot(model, room=50)
    assert not has_snapshot(model, room=51)
    assert opened(model, 51)._loader._opened is None


def test_removing_a_model_removes_its_snapshots(model: Path) -> None:
    keep(make_model(model.parent / "another"))
    snapshots.forget_snapshots(model)
    assert not has_snapshot(model)
    assert has_snapshot(model.parent / "another")


def test_a_snapshot_is_read_at_once_if_no_thread_can_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(snapshot_file._BackgroundRead, "start", start)
    assert has_snapshot(model)


LAYOUT: dict[str, object] = {"key": {"model": {"m": []}}, "dtype": "fp32", "size": 1, "checksum": "a"}
CHANGED: list[dict[str, object]] = [{"key": {}}, {"dtype": [1]}, {"size": "1"}, {"checksum": "../x"}]


@pytest.mark.parametrize(
    "text", [b"", b"null", b"\xff", b"[" * 100_000, *(json.dumps(LAYOUT | each).encode() for each in CHANGED)], ids=len
)
def test_what_has_another_layout_is_left_over(model: Path, cli: Cli, text: bytes) -> None:
    own = snapshot_path()
    folder = own.parent
    write_another_layout(folder / "old.snapshot", text)
    for name in ("old.header", "old.tokenizer"):
        write_another_layout(folder / name, len(text).to_bytes(8, "little") + text)
    records = cli("cache", "--json").records
    assert sorted(each["content"] for each in records) == ["left over"] * 3 + ["weights in fp32"]
    write_another_layout(own, text)
    assert not has_snapshot(model)
    keep(model)
    assert has_snapshot(model)


def test_what_cannot_be_deleted_is_said_when_the_rest_is_gone(model: Path, cli: Cli) -> None:
    folder = snapshot_path().parent
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("nothing")
    result = cli("cache", "--clear")
    assert result.code == 8
    assert f"cannot remove: {folder / 'directory'}" in result.err
    assert [path.name for path in folder.iterdir()] == ["directory"]


def test_what_is_kept_is_listed_and_deleted(model: Path, cli: Cli) -> None:
    [record] = cli("cache", "--json").records
    assert record["model"] == str(model)
    assert record["size"] == weights_path().stat().st_size + snapshot_path().stat().st_size
    assert record["content"] == "weights in fp32"
    folder = snapshot_path().parent
    for name in ("old.snapshot", "old.tokenizer", "old.header"):
        write_another_layout(folder / name)
    (folder / "damaged.snapshot").write_bytes(b"abc")
    *left_over, record = sorted(cli("cache", "--json").records, key=lambda record: record["size"])
    assert [(each["content"], each["model"], each["size"]) for each in left_over] == [
        ("left over", "", size) for size in (3, 42, 42, 42)
    ]
    assert cli("cache", "--clear", "--json").json == {"deleted_bytes": record["size"] + 3 + 3 * 42}
    assert cli("cache", "--json").out == b""
    assert not has_snapshot(model)


@pytest.mark.parametrize(("width", "header"), [(40, "size  content"), (80, "size  used"), (200, "size  used")])
def test_what_is_kept_has_no_dates_where_there_is_no_room(model: Path, width: int, header: str) -> None:
    assert on_terminal("cache", width=width).lines[0].lstrip().startswith(header)
