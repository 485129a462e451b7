"""Faulty and hostile weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import shutil
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gptcli
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import BrokenCheckpoint, InputError
from gptcli.export.gguf_file import write_model
from gptcli.files import MANIFEST, may_link_out
from gptcli.models.catalog import fingerprint
from gptcli.models.install import changed_files
from gptcli.text.tokenizer import Tokenizer
from tests.cli.conftest import Cli
from tests.faults.conftest import Refuses, edit_tensor, read_weights, write_weights
from tests.tiny import CONFIG, edit, make_tokenizer, make_weights

Q = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def shard(model: Path) -> dict[str, str]:
    """Splits a model's weights into two files; returns the index's weight map."""
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: weights[name] for name in half}, model / file)
    (model / "model.safetensors").unlink()
    weight_map = {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 1 << 30])
def test_a_header_longer_than_the_file_is_refused_unread(refuses: Refuses, model: Path, length: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "truncated or damaged" in refuses(3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes are no safetensors file"),
        (b"1234567", "7 bytes are no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "`git lfs pull`"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(refuses: Refuses, model: Path, content: bytes, said: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert said in refuses(3)


@pytest.mark.parametrize(
    "move",
    [
        lambda begin, end, other: [begin - 4, end - 4],
        lambda begin, end, other: other,
        lambda begin, end, other: [begin + 4, end + 4],
        lambda begin, end, other: [end, begin],
    ],
    ids=["overlapping", "aliased", "holed", "reversed"],
)
def test_faulty_offsets_name_the_tensor(refuses: Refuses, model: Path, move: Callable[..., list[int]]) -> None:
    own, other = (read_weights(model)[0][name]["data_offsets"] for name in (Q, Q.replace("q_proj", "o_proj")))
    edit_tensor(model, Q, data_offsets=move(*own, other))
    assert "tensor 'model." in refuses(3)


def test_bytes_of_no_tensor_are_refused(refuses: Refuses, model: Path) -> None:
    header, data = read_weights(model)
    write_weights(model, header, data + bytes(4))
    assert "4 bytes belong to no tensor" in refuses(3)


def test_a_truncated_download_says_how_much_is_there(refuses: Refuses, model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    assert f"the file is {len(whole) - 7} of {len(whole)} bytes" in refuses(3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        *(
            ({"shape": shape}, f"tensor '{Q}'")
            for shape in ([-32, 32], [32.0, 32], [True, 1024], [2**63, 32], [31, 32], "32", None, [[32, 32]])
        ),
        ({"shape": [2**47] * 300}, "it has 300 dimensions"),
        ({"shape": [2**47] * 500_000}, "it has 500000 dimensions"),
        ({"dtype": "F33"}, "dtype 'F33' is not known"),
        ({"dtype": "I32"}, f"{Q}: its dtype must be one of F64, F32, F16, BF16, not I32"),
        ({"dtype": "U32"}, "the weights are quantized, but `quantization` is missing"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_shape_or_dtype_is_refused(refuses: Refuses, model: Path, fields: dict[str, Any], said: str) -> None:
    edit_tensor(model, Q, **fields)
    assert said in refuses(3)


def test_duplicate_tensor_keys_are_refused(refuses: Refuses, model: Path) -> None:
    header, data = read_weights(model)
    text = json.dumps(header)
    write_weights(model, f"{text[:-1]}, {json.dumps(Q)}: {json.dumps(header[Q])}}}".encode(), data)
    assert "duplicate key 'model.layers.0" in refuses(3)


def test_the_same_tensor_in_two_shards_is_refused_by_name(refuses: Refuses, model: Path) -> None:
    name = next(name for name, file in shard(model).items() if file == SHARDS[0])
    save_file({**load_file(model / SHARDS[1]), name: np.ones(1, np.float32)}, model / SHARDS[1])
    assert name in refuses(3)


def test_a_tensor_that_is_in_no_shard_is_refused_by_name(refuses: Refuses, model: Path) -> None:
    shard(model)
    for file in SHARDS:
        save_file({name: tensor for name, tensor in load_file(model / file).items() if name != Q}, model / file)
    assert f"1 tensors are missing from the weights: {Q}" in refuses(3)


def test_a_missing_shard_is_refused_by_name(refuses: Refuses, model: Path) -> None:
    shard(model)
    (model / SHARDS[1]).unlink()
    assert SHARDS[1] in refuses(3)


@pytest.mark.parametrize("file", [None, 7, "", "../../x.safetensors", "/etc/x.safetensors", "s/x.safetensors", "x.bin"])
def test_a_weight_map_names_files_beside_it_or_is_refused(refuses: Refuses, model: Path, file: Any) -> None:
    edit(model / INDEX, weight_map=shard(model) | {"model.norm.weight": file})
    assert "is no file name beside it" in refuses(3)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "fetched by gptcli": lambda model: (model / MANIFEST).write_text("{}"),
    "cloned": lambda model: (model / ".git").mkdir(),
    "writable by all": lambda model: model.chmod(0o777),
    "a link of another user": lambda model: os.chown(model / "model.safetensors", 4321, 0, follow_symlinks=False),
    "a directory of another user": lambda model: os.chown(model, 4321, 0),
}


@pytest.mark.parametrize("whose", FOREIGN)
def test_a_link_out_of_a_foreign_model_is_refused(whose: str, refuses: Refuses, model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.symlink_to(weights.rename(tmp_path / "elsewhere.safetensors"))
    try:
        FOREIGN[whose](model)
    except PermissionError:
        pytest.skip("only root can give files away")
    assert "a link out of the model's directory" in refuses(3)


@pytest.mark.parametrize(
    ("mode", "gid", "followed"),
    [(0o755, 4321, True), (0o700, 7, True), (0o775, 1234, True), (0o775, 4321, False), (0o777, 1234, False)],
)
def test_a_link_is_the_users_own_where_nobody_else_can_write(
    mode: int, gid: int, followed: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group whose number is the user's is the user's own."""
    (model / "link").symlink_to(model)
    status = os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, 1234, gid, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setattr(Path, "stat", lambda path: status)
    monkeypatch.setattr(Path, "lstat", lambda path: status)
    assert may_link_out(model, "link") == followed


def test_links_of_a_users_own_folder_are_followed(cli: Cli, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    given = ["-t", "0", "-n", "4", "hi"]
    assert cli("generate", "-m", folder, *given) == cli("generate", "-m", model, *given)
    assert fingerprint(folder) != ""


@pytest.mark.parametrize("within", [True, False], ids=["a repository", "a folder of a repository"])
def test_links_into_objects_of_git_annex_are_followed(within: bool, cli: Cli, refuses: Refuses, model: Path) -> None:
    """As `git annex add` leaves them: read-only files below .git/annex/objects, named by their content."""
    repository = model if within else model.parent
    objects = repository / ".git" / "annex" / "objects" / "Qz" / "9k"
    for file in sorted(model.glob("*.*")):
        key = f"SHA256E-s{file.stat().st_size}--{hashlib.sha256(file.read_bytes()).hexdigest()}{file.suffix}"
        (objects / key).mkdir(parents=True)
        file.rename(objects / key / key)
        file.symlink_to(os.path.relpath(objects / key / key, model))
    assert cli("generate", "-m", model, "-n", "1", "hi").code == 0
    (model / "model.safetensors").resolve().unlink()
    assert "its link leads to nothing\nhint: run `git annex get model.safetensors`" in refuses(4)


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/proc/self/mem", "/proc/self/environ", "/sys/fs"])
def test_no_link_leads_to_a_device_or_a_file_of_the_system(target: str, refuses: Refuses, model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(target)
    assert "a link out of the model's directory" in refuses(3)


def test_a_record_of_a_model_leads_no_link_out_of_it(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (model / "secret").symlink_to(tmp_path / "secret")
    record = {"sha256": {"secret": "0" * 64}}
    (model / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(BrokenCheckpoint, match="a link out of the model's directory"):
        changed_files(model, record)


def test_a_fingerprint_follows_no_link_out_of_the_model(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (model / ".git").mkdir()
    (model / "notes.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokenCheckpoint, match="notes.json: a link out of the model's directory"):
        fingerprint(model)


def test_a_link_to_the_blobs_of_a_hugging_face_cache_is_followed(cli: Cli, model: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for index, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(index))
        (snapshot / file.name).symlink_to(f"../../blobs/{index}")
    snapshot.chmod(0o777)  # not as a folder of the user's own
    assert cli("generate", "-m", snapshot, "-n", "1", "hi").code == 0


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "directory"])
def test_a_pipe_or_directory_instead_of_a_file_is_no_hang(refuses: Refuses, model: Path, name: str, make: Any) -> None:
    (model / name).unlink()
    make(model / name)
    assert "not a regular file" in refuses(4)


def test_a_file_that_is_truncated_after_loading_changes_nothing(model: Path) -> None:
    lm = gptcli.load(model, device="cpu", dtype="fp32")
    before = lm.logits([5, 6, 7])
    (model / "model.safetensors").write_bytes(b"")
    assert lm.logits([5, 6, 7]).equal(before)


@pytest.mark.parametrize("gguf", [False, True])
@pytest.mark.parametrize("amid", [False, True])
def test_weights_that_are_replaced_while_they_are_read_are_refused(model: Path, gguf: bool, amid: bool) -> None:
    path, file = model, model / "model.safetensors"
    if gguf:
        path = file = model.with_suffix(".gguf")
        write_model(ModelFolder.open(model), Tokenizer.open(model), "m", path)
    os.utime(file, (0, 0))  # the clock of files may be coarse
    data = file.read_bytes()
    other = data[:-4] + bytes(4)
    folder = ModelFolder.open(path)
    first, last = min(folder.tensors), max(folder.tensors, key=lambda name: folder.tensors[name].offset)
    with pytest.raises(InputError, match="another process has changed it meanwhile"), TensorSource(folder) as source:
        if amid:
            source.read(first)
            file.write_bytes(other)
        else:
            file.with_name("new").write_bytes(other)
            file.with_name("new").replace(file)
        source.read(last)


def test_pickled_weights_are_refused_with_a_way_to_convert_them(refuses: Refuses, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    message = refuses(3)
    assert "pickle (.bin) is not supported" in message and "docker run" in message


@pytest.mark.parametrize(
    ("fields", "complaint", "named"),
    [
        ({"num_hidden_layers": 3}, "9 tensors are missing", 5),
        ({"num_hidden_layers": 1}, "9 tensors that the architecture does not use", 5),
        ({"intermediate_size": 40}, "4 tensors have another shape", 6),  # gate and up are one parameter here
    ],
)
def test_wrong_tensors_are_counted_and_the_first_five_named(
    refuses: Refuses, model: Path, fields: dict[str, int], complaint: str, named: int
) -> None:
    edit(model / "config.json", **fields)
    message = refuses(3)
    assert complaint in message
    assert message.count("model.layers.") == named


def test_a_model_larger_than_memory_is_refused_unread(refuses: Refuses, model: Path) -> None:
    """A well-formed, sparse file of more than a terabyte."""
    width = 1 << 24
    edit(model / "config.json", hidden_size=4096, head_dim=1024, intermediate_size=width)
    enlarged = {16: 2048, 32: 4096, 48: width}
    header, end = read_weights(model)[0], 0
    for tensor in header.values():
        tensor["shape"] = [enlarged.get(size, size) for size in tensor["shape"]]
        begin, end = end, end + 4 * math.prod(tensor["shape"])
        tensor["data_offsets"] = [begin, end]
    write_weights(model, header, b"")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(8 + len(json.dumps(header)) + end)
    assert end > 1 << 40
    message = refuses(5)
    assert f"({end} bytes)" in message and "GB are free (" in message


def test_nan_in_the_weights_is_found_by_verify_and_at_run_time(cli: Cli, refuses: Refuses, model: Path) -> None:
    weights = make_weights(CONFIG)
    weights[Q][3, 4] = np.nan
    save_file(weights, model / "model.safetensors")
    verified = cli("models", "verify", model)
    assert verified.code == 3 and f"NaN or infinity: {model}: {Q}" in verified.err
    message = refuses(7)
    assert "at token" in message and "in fp32" in message and "--dtype fp32" not in message


@pytest.mark.parametrize("dtype", ["I32", "U32"])
@pytest.mark.parametrize("leaf", ["scales", "biases"])
def test_integers_are_no_scales_of_packed_weights(refuses: Refuses, model: Path, leaf: str, dtype: str) -> None:
    weights = load_file(model / "model.safetensors")
    rows, columns = weights.pop(Q).shape
    module = Q.removesuffix("weight")
    weights[Q] = np.zeros((rows, columns // 8), np.uint32)
    weights |= {f"{module}{name}": np.ones((rows, columns // 32), np.float32) for name in ("scales", "biases")}
    save_file(weights, model / "model.safetensors")
    edit(model / "config.json", quantization={"bits": 4, "group_size": 32})
    edit_tensor(model, f"{module}{leaf}", dtype=dtype)
    assert f"{module}{leaf}: its dtype must be one of" in refuses(3)


def test_a_token_without_a_row_is_an_error_only_in_a_text(cli: Cli, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    edit(model / "config.json", vocab_size=300)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300]
    save_file(weights, model / "model.safetensors")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<pad>"])
    tokenizer.save(str(model / "tokenizer.json"))
    id = tokenizer.token_to_id("<pad>")
    cli("generate", "-m", model, "hi <pad>").fails(3, f"it makes token {id}, of 300 in use")
    assert cli("score", "-m", model, stdin=b"hi <pad>").code == 3
    flat = ("-t", "50", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-s", "1", "--ignore-eos")
    result = cli("generate", "-m", model, "-n", "100", *flat, "--json", "hi")
    assert max(result.json["ids"]) < 300
    assert "note: tokens without a row in the model: " in result.err
    assert "<pad>" in cli("models", "verify", model).text  # whole, where the note is short
    assert cli("score", "-m", model, "--top", "400", "--json", stdin=b"hi you").code == 0


def test_a_tensor_name_cannot_drive_the_terminal(cli: Cli, model: Path) -> None:
    weights = make_weights(CONFIG) | {"\x1b[2J\x1b]0;owned\x07\u202e": np.ones(1, np.float32)}
    save_file(weights, model / "model.safetensors")
    result = cli("generate", "-m", model, "-n", "1", "hi")
    assert "owned" in result.err and all(char.isprintable() or char == "\n" for char in result.err)


def test_the_same_weights_in_shards_give_the_same_text(cli: Cli, model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    shard(copy)
    results = [cli("generate", "-m", path, "-n", "3", "-t", "0", "hi") for path in (model, copy)]
    assert results[0] == results[1] and results[0].code == 0
