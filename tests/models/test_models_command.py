"""`gptcli models` as a script and a person meet it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptcli.files import MANIFEST
from gptcli.models.catalog import DEFAULT_MODEL, install_root
from gptcli.text import decode_check
from tests.cli.conftest import Cli, Result
from tests.cli.terminal.pty_terminal import on_terminal
from tests.gguf.tiny_gguf import Kind, write_gguf
from tests.models.fake_hub import FakeHub
from tests.tiny import edit, make_model


@pytest.fixture
def imported(models: Cli, tmp_path: Path) -> Path:
    """A model installed with `models import`."""
    result = models("import", write_gguf(tmp_path / "tiny.gguf"), "--name", "mine")
    assert result.code == 0, result.err
    return Path(result.text.removesuffix("\n"))


def test_without_models_the_list_is_empty_and_says_how_to_get_one(models: Cli) -> None:
    result = models()
    assert (result.code, result.out) == (0, b"") and f"gptcli models pull {DEFAULT_MODEL}" in result.err


def test_the_list_is_a_record_a_line_in_a_pipe(models: Cli) -> None:
    path = make_model(install_root() / "owner" / "tiny")
    size = sum(file.stat().st_size for file in path.iterdir())
    assert models() == Result(0, f"owner/tiny\tllama\t25760\t{size}\t{path}\t\t\n".encode(), "")


def test_a_broken_model_is_listed_and_not_fatal(models: Cli) -> None:
    make_model(install_root() / "good")
    (make_model(install_root() / "bad") / "model.safetensors").write_bytes(b"xx")
    make_model(install_root() / "odd", model_type="mamba")
    (make_model(install_root() / "worse") / "config.json").write_text("[1")
    result = models("--json")
    entries = {entry["name"]: entry for entry in result.records}
    assert result.code == 0
    assert [entries[name]["type"] for name in ("good", "bad", "odd", "worse")] == ["llama", "", "mamba", ""]
    assert "2 bytes are no safetensors file" in entries["bad"]["error"]
    assert "`mamba` models are not supported" in entries["odd"]["error"]


def test_show_says_as_json_what_a_model_is(models: Cli, tiny_model: Path) -> None:
    facts = models("show", tiny_model, "--json").json
    assert (facts["type"], facts["layers"], facts["heads"], facts["kv_heads"]) == ("llama", 2, 4, 2)
    assert facts["sampling"]["temperature"] == {"value": 0.8, "from": "gptcli"}
    assert facts["bytes"]["weights_as_stored"] == 103_040


def test_show_says_where_a_sampling_default_comes_from(models: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config={"temperature": 0.3, "eos_token_id": [2, 0]})
    facts = models("show", model, "--json").json
    assert facts["sampling"]["temperature"] == {"value": 0.3, "from": "generation_config.json"}
    assert facts["stop_ids"] == {"config.json": [2], "generation_config.json": [2, 0], "tokenizer_config.json": [2]}
    assert b"sampling.temperature\t" in models("show", model).out


@pytest.mark.parametrize(
    ("command", "way"), [("show", " pull owner/none`"), ("verify", " pull owner/none`"), ("rm", "` to see which are")]
)
def test_a_missing_model_is_exit_code_4_with_a_way_out(command: str, way: str, models: Cli) -> None:
    error = f"gptcli: error: no such model: owner/none\nhint: run `gptcli models{way}\n"
    assert models(command, "owner/none") == Result(4, b"", error)


def test_import_prints_the_directory_and_nothing_else(imported: Path) -> None:
    assert imported == install_root() / "mine" and (imported / MANIFEST).is_file()


def test_an_import_ignores_a_directory_here(models: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert models("import", write_gguf(tmp_path / "tiny.gguf")).text == f"{install_root() / 'tiny'}\n"


def test_import_replaces_a_model_only_by_force(models: Cli, imported: Path, tmp_path: Path) -> None:
    other = write_gguf(tmp_path / "other.gguf", tied=False)
    again = models("import", other, "--name", "mine")
    assert (again.code, again.text) == (0, f"{imported}\n")
    assert "mine is already here; --force replaces it" in again.err
    assert json.loads((imported / MANIFEST).read_text())["source"]["file"] == "tiny.gguf"
    assert models("import", other, "--name", "mine", "--force").code == 0
    assert json.loads((imported / MANIFEST).read_text())["source"]["file"] == "other.gguf"


@pytest.mark.parametrize(
    ("changes", "name", "code", "message"),
    [
        ({"general__architecture": "mamba"}, "x", 3, "architecture 'mamba'"),
        ({"llama__block_count": 3}, "x", 3, "tensors are missing"),
        ({}, "../x", 2, "a model's name is NAME"),
    ],
    ids=["another architecture", "shapes that do not fit", "an odd name"],
)
def test_an_import_that_fails_has_its_exit_code_and_leaves_nothing(
    models: Cli, tmp_path: Path, changes: dict[str, Any], name: str, code: int, message: str
) -> None:
    models("import", write_gguf(tmp_path / "tiny.gguf", **changes), "--name", name).fails(code, message)
    assert not install_root().exists() or list(install_root().iterdir()) == []


def test_pull_prints_the_directory_and_nothing_else(models: Cli, hub: FakeHub) -> None:
    assert models("pull", "owner/tiny") == Result(0, f"{install_root() / 'owner/tiny'}\n".encode(), "")
    assert models("verify", "owner/tiny").code == 0


def test_verify_passes_what_was_installed(models: Cli, imported: Path) -> None:
    result = models("verify", "mine")
    assert (result.code, result.err) == (0, "")
    first, *checks, numbers, verdict = result.text.splitlines()
    assert first == "ok  5 files are as installed"
    assert all(line.startswith("ok  ") for line in checks if line != "--  chat template: none")
    assert numbers == "--  logits were not compared: transformers is no part of gptcli"
    assert verdict == "verdict: no fault found; logits were not compared"
    assert models("verify", "mine", "--quiet").out == b""


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_verify_finds_a_flipped_bit(file: str, models: Cli, imported: Path) -> None:
    data = bytearray((imported / file).read_bytes())
    data[-100] ^= 1
    (imported / file).write_bytes(data)
    result = models("verify", "mine")
    assert (result.code, result.out) == (3, b"verdict: cannot be used: changed since it was installed\n")
    assert f"changed since it was installed: {imported}: {file}" in result.err


def test_verify_lists_what_is_left_over_and_what_it_comes_to(models: Cli, tmp_path: Path) -> None:
    asked = {"num_beams": 4, "epsilon_cutoff": 0.9, "max_new_tokens": 9, "top_h": 0.5, "guidance_scale": 2, "top_k": 3}
    model = make_model(tmp_path / "model", generation_config=asked | {"do_sample": True})
    result = models("verify", model)
    lines, names = result.text.splitlines(), "max_new_tokens, num_beams, top_h, epsilon_cutoff, guidance_scale"
    assert (result.code, result.err) == (0, "")
    assert f"note  not done, though generation_config.json asks for it: {names}" in lines
    assert lines[-1].endswith(f"; texts may differ from transformers by {names}")
    assert "ok  sampling defaults: 1 of generation_config.json" in lines
    record = models("verify", model, "--json").json
    assert list(record) == ["model", "checks", "notes", "verdict"]
    assert [check["name"] for check in record["checks"]] == (
        "files,config,weights,tokenizer,decoding,chat template,sampling,numbers".split(",")
    )
    assert [check["ok"] for check in record["checks"]] == [None, True, True, True, True, True, True, None]
    [note] = models("show", model, "--json").json["notes"]
    assert record["notes"] == [note] and note.endswith(names)
    assert f"notes\t{note}" in models("show", model).text


@pytest.mark.parametrize(
    ("asked", "said", "differs"),
    [
        ({}, "none of the model; greedy in transformers, and drawn here", ""),
        ({"do_sample": True, "temperature": 0.7}, "1 of generation_config.json", ""),
        ({"do_sample": False, "top_p": 0.5}, "2 of generation_config.json", ""),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.5},
            "2 of generation_config.json; the order of filters is gptcli's, which has temperature last",
            "; texts may differ from transformers by the order of filters",
        ),
    ],
)
def test_verify_says_how_sampling_differs(
    models: Cli, tmp_path: Path, asked: dict[str, Any], said: str, differs: str
) -> None:
    lines = models("verify", make_model(tmp_path / "model", generation_config=asked)).text.splitlines()
    assert f"ok  sampling defaults: {said}" in lines
    assert lines[-1].endswith(f"logits were not compared{differs}")


def test_verify_says_which_components_a_class_replaces(models: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    edit(model / "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    lines = models("verify", model).text.splitlines()
    assert any(line.endswith("tokens, with its class's own normalizer, pre_tokenizer") for line in lines)


def test_verify_says_which_check_failed_as_json_too(models: Cli, tmp_path: Path) -> None:
    result = models("verify", "--json", make_model(tmp_path / "model", template="{{ nothing.at.all }}"))
    record = result.json
    assert result.code == 3 and result.err.startswith("gptcli: error: chat template: ")
    assert record["checks"][-1]["name"] == "chat template" and not record["checks"][-1]["ok"]
    assert record["verdict"].startswith("cannot be used: chat template")


def test_verify_finds_a_wrongly_decoded_token(models: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_check, "decode_differences", lambda tokenizer: ["ids 5 are 'a', not 'b'"])
    result = models("verify", tiny_model)
    assert result.code == 3 and "ids 5 are 'a', not 'b'" in result.err
    verdict = "verdict: not the same texts as transformers: tokens decode to other texts"
    assert result.text.splitlines()[-1].startswith(verdict)


def test_rm_removes_what_was_installed(models: Cli, imported: Path) -> None:
    assert models("rm", "mine") == Result(0, b"", f"gptcli: note: removed {imported}\n")
    assert not imported.exists()
    assert models("rm", "mine").code == 4


def test_a_terminal_shows_a_table_that_fits(tiny_model: Path) -> None:
    shutil.copytree(tiny_model, install_root() / "tiny")
    (make_model(install_root() / "broken") / "model.safetensors").write_bytes(b"xx")
    wide = on_terminal("models").lines
    assert re.fullmatch(r"name +type +weights +size", wide[0])
    assert re.fullmatch(r"tiny +llama +25,760 +114 kB", wide[2])
    assert wide[3].startswith("gptcli: note: broken cannot be used: cannot read:")
    narrow = on_terminal("models", width=40).lines
    assert [line.split()[0] for line in narrow[:3]] == ["name", "broken", "tiny"]


def test_a_terminal_shows_which_store_a_model_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_STORES", "on")
    for name in ("HOME", "LLAMA_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "LLAMA_CACHE").mkdir()
    write_gguf(tmp_path / "LLAMA_CACHE" / "tiny.gguf", Kind.Q8_0)
    shown = on_terminal("models").lines
    assert shown[0].split() == ["name", "type", "weights", "size", "store"]
    assert (shown[1].split()[0], shown[1].split()[-1]) == ("llama.cpp:tiny", "llama.cpp")


def test_a_terminal_shows_facts_in_units_a_person_reads(tiny_model: Path) -> None:
    lines = on_terminal("models", "show", tiny_model).lines
    shown = dict(line.split(maxsplit=1) for line in lines if "bytes." in line)
    assert shown["bytes.weights_as_stored"] == "103 kB"


def test_pull_of_an_unknown_type_stops_before_the_weights(models: Cli, hub: FakeHub) -> None:
    hub.files["config.json"] = b'{"model_type": "mamba"}'
    models("pull", "owner/tiny").fails(3, "`mamba` models are not supported", "models --supported")
    assert "model.safetensors" not in hub.fetched()
