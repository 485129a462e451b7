"""`models pull` of repositories with several files of weights, and files that are not what the hub lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptcli.errors import ModelNotFound, UsageError
from gptcli.files import MANIFEST
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import find, install_root, local_models
from gptcli.models.hub_files import chosen_files
from gptcli.models.install import remove
from gptcli.models.pull import pull_hub
from gptcli.settings import RuntimeConfig
from tests.cli.conftest import Cli
from tests.gguf.tiny_gguf import Kind, write_gguf
from tests.models.conftest import interrupt, silent
from tests.models.fake_hub import FakeHub

IDS = [5, 17, 200, 3]


@pytest.fixture
def ggufs(hub: FakeHub, tmp_path: Path) -> dict[str, Path]:
    """A repository of nothing but GGUF files."""
    kinds = {f"tiny-{kind.name}.gguf": kind for kind in (Kind.Q8_0, Kind.Q4_0)}
    files = {name: write_gguf(tmp_path / name, kind) for name, kind in kinds.items()}
    hub.files = {name: file.read_bytes() for name, file in files.items()} | {"README.md": b"# tiny"}
    return files


def test_several_gguf_files_are_listed_with_their_sizes(ggufs: dict[str, Path], hub: FakeHub) -> None:
    with pytest.raises(UsageError) as raised:
        pull_hub("owner/tiny", None, silent)
    listed = "tiny-Q4_0.gguf (0.1 MB), tiny-Q8_0.gguf (0.1 MB)"
    assert raised.value.message == f"which weights of owner/tiny? several are there: {listed}"
    assert "--file" in raised.value.hint
    assert hub.fetched() == []


def test_a_pattern_chooses_a_gguf_file_which_runs_as_it_is(ggufs: dict[str, Path], models: Cli) -> None:
    result = models("pull", "owner/tiny", "--file", "*Q8_0*")
    assert (result.code, result.text) == (0, f"{install_root() / 'owner' / 'tiny'}\n"), result.err
    file = install_root() / "owner" / "tiny" / "tiny-Q8_0.gguf"
    assert file.read_bytes() == ggufs["tiny-Q8_0.gguf"].read_bytes()
    lm = LanguageModel.open("owner/tiny", RuntimeConfig(device="cpu"))
    assert torch.equal(lm.logits(IDS), LanguageModel.open(str(file), lm.runtime).logits(IDS))
    assert [(model.name, model.path, model.store) for model in local_models()] == [("owner/tiny", file, "")]
    assert models("verify", "owner/tiny").code == 0
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "changed since it was installed" in models("verify", "owner/tiny").err
    assert remove("owner/tiny") == file.parent and find("owner/tiny") is None


@pytest.mark.parametrize("pattern, found", [("*Q*", "2 match '*Q*'"), ("*Q2*", "none matches '*Q2*'")])
def test_a_pattern_must_choose_one(pattern: str, found: str, ggufs: dict[str, Path], hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="tiny-Q4_0.gguf .*, tiny-Q8_0.gguf") as raised:
        pull_hub("owner/tiny", None, silent, pattern=pattern)
    assert found in raised.value.message and hub.fetched() == []


def test_a_file_in_a_folder_is_a_choice_and_a_vision_module_is_none(ggufs: dict[str, Path], hub: FakeHub) -> None:
    data = hub.files.pop("tiny-Q8_0.gguf")
    hub.files |= {"Q8/tiny-Q8_0.gguf": data, "mmproj-tiny-Q8_0.gguf": b"", "../outside-Q2.gguf": b"", "/Q2.gguf": b""}
    with pytest.raises(UsageError, match=r"none matches '\*Q2\*': Q8/tiny-Q8_0.gguf \(0.1 MB\), tiny-Q4_0.gguf"):
        pull_hub("owner/tiny", None, silent, pattern="*Q2*")
    directory = pull_hub("owner/tiny", None, silent, pattern="*Q8_0*")
    assert sorted(file.name for file in directory.iterdir()) == [MANIFEST, "tiny-Q8_0.gguf"]
    assert find("owner/tiny").path.read_bytes() == data and hub.fetched() == ["tiny-Q8_0.gguf"]


def test_the_parts_of_a_split_file_are_one_choice_taken_whole() -> None:
    parts = {f"big-Q8_0-0000{part}-of-00002.gguf": 700_000_000 for part in (1, 2)}
    others = {"big-Q4_0.gguf": 5, "config.json": 2, "big-imatrix/x.gguf": 9}
    assert chosen_files("owner/big", parts | others, "*Q8_0*") == parts
    assert chosen_files("owner/big", parts | others, "*-00001-of-00002.gguf") == parts
    with pytest.raises(UsageError, match=r"big-Q8_0.gguf \(1.4 GB\)"):
        chosen_files("owner/big", parts | others, None)


def test_names_of_files_may_be_in_capitals(ggufs: dict[str, Path], hub: FakeHub, models: Cli) -> None:
    hub.files = {name.replace(".gguf", ".GGUF"): data for name, data in hub.files.items()}
    assert models("pull", "owner/tiny", "--file", "*Q8_0*").code == 0
    assert [model.path.name for model in local_models()] == ["tiny-Q8_0.GGUF"]
    sizes = {f"BF16/big-{part:05}-of-00002.GGUF": part for part in (1, 2)}
    assert chosen_files("owner/big", sizes, "*BF16*") == sizes


def test_a_whole_file_is_another_choice_than_parts_called_like_it() -> None:
    parts = {f"model-0000{part}-of-00002.safetensors": 7 for part in (1, 2)}
    files = parts | {"model.safetensors": 14, "config.json": 2}
    assert chosen_files("owner/both", files, "model.*") == {"model.safetensors": 14, "config.json": 2}
    assert chosen_files("owner/both", files, "model-*") == parts | {"config.json": 2}
    with pytest.raises(UsageError, match=r"2 match .* model-\*.safetensors \(0.0 MB\), model.safetensors"):
        chosen_files("owner/both", files, "model*")


def test_a_variant_of_safetensors_is_installed_in_the_usual_place(hub: FakeHub) -> None:
    hub.files["model.other.safetensors"] = hub.files["model.safetensors"][:-4] + b"\0\0\0\0"
    path = pull_hub("owner/tiny", None, silent, pattern="*other*", name="mine")
    assert "model.safetensors" not in hub.fetched()
    assert (path / "model.safetensors").read_bytes() == hub.files["model.other.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_file_of_another_hash_is_not_installed(file: str, hub: FakeHub) -> None:
    data = hub.files[file]
    hub.sent[file] = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]
    with pytest.raises(ModelNotFound, match=f"wrong checksum: {file}"):
        pull_hub("owner/tiny", None, silent)
    assert find("owner/tiny") is None
    hub.sent.clear()
    hub.requests.clear()
    pull_hub("owner/tiny", None, silent)
    assert file in hub.fetched() and "config.json" not in hub.fetched()


def test_an_interrupted_pull_of_a_gguf_file_is_resumed(ggufs: dict[str, Path], hub: FakeHub) -> None:
    interrupt(hub, "tiny-Q4_0.gguf", pattern="*Q4_0*")
    path = pull_hub("owner/tiny", None, silent, pattern="*Q4_0*")
    assert json.loads((path / MANIFEST).read_text())["source"]["hub"] == "owner/tiny"
