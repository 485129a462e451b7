"""A GGUF file opened as a model: logits, notes, split files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli import snapshot_format
from gptcli.checkpoint import load
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.rank_shard import RankShard
from gptcli.errors import BrokenCheckpoint, GptcliError, OutOfMemory, UnsupportedArchitecture
from gptcli.kernels.layers import JoinedLinear
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import LocalModel, fingerprint
from gptcli.quant.dense import DenseWeight
from gptcli.runtime import device_plan
from gptcli.runtime.device_plan import plan_for
from gptcli.runtime.fast_start.snapshots import forget_snapshots, stored_snapshots
from gptcli.settings import RuntimeConfig
from gptcli.snapshot_format import snapshot_directory
from gptcli.text.tokenizer import Tokenizer
from tests.gguf.raw_gguf import RawGguf
from tests.gguf.tiny_gguf import BOS, EOS, HEAD_DIM, KV_HEADS, LAYERS, MLP, WIDTH, Kind, imported, shapes, write_gguf
from tests.parity.test_families import needed_library, relative_error

FP32 = RuntimeConfig(device="cpu", dtype="fp32", quantize="none")
IDS = [5, 17, 200, 3, 99, 2, 150, 260]


def logits(path: Path) -> torch.Tensor:
    return LanguageModel.open(str(path), FP32).logits(IDS)


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda k: k.name)
def test_a_file_has_the_logits_of_what_it_converts_to(kind: Kind, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", kind)
    converted = imported(file, tmp_path / "converted")
    assert torch.equal(logits(file), logits(converted))
    assert Tokenizer.open(file).encode("the 12 <|im_end|>") == Tokenizer.open(converted).encode("the 12 <|im_end|>")


def test_the_ends_of_a_text_are_those_of_the_file(tmp_path: Path) -> None:
    lm = LanguageModel.open(str(write_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__eot_token_id=1)), FP32)
    assert lm.stop_ids == {0, 1, 2}  # 0 is <|endoftext|>, which ends every text
    assert (lm.tokenizer.named_tokens["bos_token"], lm.tokenizer.named_tokens["eos_token"]) == (BOS, EOS)


def test_sampling_defaults_are_those_of_the_file(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"general__sampling__temp": 0.5, "general__sampling__top_k": 7}
    lm = LanguageModel.open(str(write_gguf(tmp_path / "tiny.gguf", **changes)), FP32)
    assert lm.sampling_defaults == {"temperature": 0.5, "top_k": 7}


def test_blocks_that_nothing_multiplies_with_are_named(tmp_path: Path) -> None:
    kinds = {"ffn_down.weight": Kind.F32, "weight": Kind.TQ2_0}
    folder = ModelFolder.open(write_gguf(tmp_path / "tiny.gguf", kinds, width=256))
    assert ["blocks of type: TQ2_0" in str(note) for note in folder.notes] == [True]


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0)
    before = fingerprint(file)
    assert LocalModel("tiny", file).size == file.stat().st_size
    write_gguf(file, Kind.Q8_0, llama__rope__freq_base=5e5)
    assert fingerprint(file) != before


@pytest.mark.parametrize(
    "change",
    ["the file", "the program", "what is kept", "its layout", "who may write", "switched off", "removed"],
)
def test_what_is_kept_of_a_file_is_used_only_while_nothing_has_changed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0)
    LanguageModel.open(str(file), FP32).close()
    [kept] = snapshot_directory().glob("*.header")
    assert [(each.path, each.model, each.content) for each in stored_snapshots()] == [(kept, str(file), "header")]
    assert ModelFolder.open(file).gguf is None
    match change:
        case "the file":
            write_gguf(file, Kind.Q8_0, llama__rope__freq_base=5e5)
        case "the program":
            monkeypatch.setattr(snapshot_format, "program_identity", lambda: "another")
        case "what is kept":
            data = kept.read_bytes()
            kept.write_bytes(data.replace(b'"rope_theta":10000.0', b'"rope_theta":90000.0'))
        case "its layout":
            json_alone = b'{"key":{}}'
            kept.write_bytes(hashlib.sha256(json_alone).digest() + json_alone)
            assert [each.content for each in stored_snapshots()] == ["left over"]
        case "who may write":
            kept.chmod(0o622)
        case "switched off":
            monkeypatch.setenv("GPTCLI_PREPARED", "off")
        case "removed":
            forget_snapshots(file)
    folder = ModelFolder.open(file)
    assert folder.gguf is not None
    assert folder.config["rope_theta"] == (5e5 if change == "the file" else 1e4)


def test_nothing_is_kept_of_a_file_that_was_replaced_while_it_was_read(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0)
    folder = ModelFolder.open(file)
    write_gguf(file, Kind.Q8_0, llama__rope__freq_base=5e5)
    folder.keep()
    assert not [*snapshot_directory().glob("*.header")]


def test_nothing_is_kept_of_several_parts(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", Kind.Q8_0)
    ModelFolder.open(in_parts(whole, tmp_path / "parts", (3, 100))[0]).keep()
    assert not [*snapshot_directory().glob("*.header")]


def in_parts(whole: Path, directory: Path, counts: tuple[int, ...]) -> list[Path]:
    """A file's tensors in several files; the first has the fields."""
    directory.mkdir(exist_ok=True)
    raw = RawGguf.of(whole)
    tensors, paths = iter(raw.tensors.items()), []
    for number, count in enumerate(counts):
        split = {
            "split.no": (2, struct.pack("<H", number)),
            "split.count": (2, struct.pack("<H", len(counts))),
            "split.tensors.count": (5, struct.pack("<i", len(raw.tensors))),
        }
        part = RawGguf((raw.fields if number == 0 else {}) | split, dict(islice(tensors, count)))
        path = directory / f"tiny-{number + 1:05}-of-{len(counts):05}.gguf"
        path.write_bytes(part.written())
        paths.append(path)
    return paths


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    whole = write_gguf(tmp_path / "whole.gguf", Kind.Q8_0)
    return in_parts(whole, tmp_path / "parts", (5, 9, len(shapes()) - 14))


def test_parts_in_capitals_are_found(parts: list[Path], tmp_path: Path) -> None:
    first, *_ = capitals = [part.rename(part.with_suffix(".GGUF")) for part in parts]
    assert torch.equal(logits(first), logits(tmp_path / "whole.gguf"))
    assert LocalModel("tiny", first).size == sum(part.stat().st_size for part in capitals)


def test_a_file_called_gguf_in_any_case_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "empty.GGUF").write_bytes(b"")
    with pytest.raises(BrokenCheckpoint, match="ends too early"):
        ModelFolder.open(tmp_path / "empty.GGUF")


def test_a_split_file_is_one_model(parts: list[Path], tmp_path: Path) -> None:
    assert torch.equal(logits(parts[0]), logits(tmp_path / "whole.gguf"))


def test_parts_that_are_missing_wrong_or_not_the_first_are_refused(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="not the first") as raised:
        ModelFolder.open(parts[1])
    assert str(parts[0]) in str(raised.value.hint)
    with pytest.raises(UnsupportedArchitecture, match="whose name does not end in"):
        ModelFolder.open(parts[0].rename(tmp_path / "parts" / "other.gguf"))
    (tmp_path / "parts" / "other.gguf").rename(parts[0])
    third = parts[2].read_bytes()
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(BrokenCheckpoint, match="not part 3 of 3"):
        ModelFolder.open(parts[0])
    parts[2].unlink()
    with pytest.raises(GptcliError, match="cannot open"):
        ModelFolder.open(parts[0])
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(third)
    parts[2].symlink_to(outside)
    os.chmod(tmp_path / "parts", 0o777)
    with pytest.raises(BrokenCheckpoint, match="a link out of the model's directory"):
        ModelFolder.open(parts[0])


MIXED = {"attn_v.weight": Kind.Q8_0, "attn_k.weight": Kind.F32, "weight": Kind.Q4_0}  # q, k and v are one matrix here


def test_types_that_are_joined_and_not_alike_stay_as_they_are_stored(tmp_path: Path) -> None:
    plan = load.WeightPlan(torch.device("cpu"), torch.float32, "expand", needed_library())
    decoder = load.load_decoder(ModelFolder.open(write_gguf(tmp_path / "tiny.gguf", MIXED)), plan)
    joined = [module for module in decoder.modules() if isinstance(module, JoinedLinear)]
    keys, values = (KV_HEADS * HEAD_DIM * columns for columns in (WIDTH, WIDTH + 2 * WIDTH // 32))
    assert len(joined) == LAYERS
    for module in joined:
        q, k, v = (part.matrix.size for part in module.parts)
        assert q < WIDTH * WIDTH and keys * 3 < k <= keys * 4 and v == values


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_has_its_rows_of_each_type(rank: int, tmp_path: Path) -> None:
    folder = ModelFolder.open(write_gguf(tmp_path / "tiny.gguf", MIXED))
    plan = load.WeightPlan(torch.device("cpu"), torch.float32, "expand", needed_library())
    shard = RankShard(folder.architecture.config, rank, 2)
    x = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    whole, own = (load.load_decoder(folder, plan, shard=each).blocks[0].attention.qkv for each in (None, shard))
    assert isinstance(own, JoinedLinear)
    sizes = [WIDTH, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
    wanted = [part.chunk(2, -1)[rank] for part in whole(x).split(sizes, -1)]
    assert torch.equal(own(x), torch.cat(wanted, -1))


@pytest.mark.parametrize("kinds", [MIXED, MIXED | {"attn_q.weight": Kind.TQ2_0, "ffn_up.weight": Kind.TQ1_0}])
def test_fp32_rounds_nothing_that_a_file_has(kinds: dict[str, Kind], tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", kinds, width=256)
    as_stored = replace(FP32, quantize="auto", kv="fp32")
    assert plan_for(ModelFolder.open(file), as_stored).weights.exact
    found = LanguageModel.open(str(file), as_stored).logits(IDS)
    wanted = LanguageModel.open(str(file), FP32).logits(IDS)
    assert relative_error(found, wanted) < 1e-5


@pytest.mark.parametrize("exact", [False, True])
def test_blocks_that_nothing_multiplies_with_take_half_the_memory_unless_fp32_is_asked_for(
    exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = needed_library()
    dense: list[DenseWeight] = []
    monkeypatch.setattr(load, "DenseWeight", lambda values: dense.append(DenseWeight(values)) or dense[-1])
    kinds = {"ffn_up.weight": Kind.TQ2_0, "ffn_gate.weight": Kind.TQ2_0}
    folder = ModelFolder.open(write_gguf(tmp_path / "tiny.gguf", kinds, width=256))
    load.load_decoder(folder, load.WeightPlan(torch.device("cpu"), torch.float32, "expand", library, exact=exact))
    assert {each.values.dtype for each in dense if each.shape == (2 * MLP, 256)} == {
        torch.float32 if exact else torch.float16
    }
    needed = [folder.bytes_for_kernels(size) for size in (4, 2)]
    assert needed[0] - needed[1] == 2 * LAYERS * 2 * MLP * 256
    runtime = replace(FP32, quantize="auto", dtype="fp32" if exact else "fp16")
    for free in needed:
        monkeypatch.setattr(device_plan, "free_memory", lambda free=free: free)
        with pytest.raises(OutOfMemory) if exact and free < needed[0] else contextlib.nullcontext():
            plan_for(folder, runtime)
