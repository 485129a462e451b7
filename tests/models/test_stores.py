"""Models that other programs keep: listed, found by name, run in place, never touched."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.options import model_names
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture, UsageError
from gptcli.generation.events import TextDelta
from gptcli.language_model import LanguageModel
from gptcli.models.catalog import find, fingerprint, local_models, missing
from gptcli.models.stores import StoreSettings, store_settings
from gptcli.settings import RuntimeConfig, StopConfig
from tests.cli.conftest import GPTCLI, Cli
from tests.gguf.tiny_gguf import BOS, CONTROL, TOKENS, Kind, write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model in each store, and files that are no models."""
    monkeypatch.delenv("GPTCLI_STORES")
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.delenv("LLAMA_CACHE", raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    data = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{digest}"},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    outside = [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../x"}]
    manifests = home / ".ollama/models/manifests"
    files = {
        home / f".ollama/models/blobs/sha256-{digest}": data,
        manifests / "registry.ollama.ai/library/tiny/latest": json.dumps({"layers": layers}).encode(),
        manifests / "registry.ollama.ai/somebody/tiny/1b": json.dumps({"layers": layers}).encode(),
        manifests / "hf.co/somebody/tiny-GGUF/Q8_0": json.dumps({"layers": layers}).encode(),
        manifests / "registry.ollama.ai/library/bad/outside": json.dumps({"layers": outside}).encode(),
        manifests / "registry.ollama.ai/library/bad/broken": b"{",
        manifests / "registry.ollama.ai/library/bad/odd": b'{"layers": [7, {"mediaType": 1}]}',
        home / ".lmstudio/models/owner/Tiny-GGUF/Tiny-Q8_0.gguf": data,
        home / ".lmstudio/models/owner/Tiny-GGUF/mmproj-Tiny.gguf": data,
        tmp_path / "cache/llama.cpp/owner_tiny.gguf": data,
        tmp_path / "cache/llama.cpp/big-00001-of-00002.gguf": data,
        tmp_path / "cache/llama.cpp/big-00002-of-00002.gguf": data,
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    hub_gguf(tmp_path, "owner/One-GGUF", ["One-Q8_0.gguf"], data)
    hub_gguf(tmp_path, "owner/Two-GGUF", ["Two-Q8_0.gguf", "BF16/Two-00001-of-00002.gguf", "mmproj-F16.gguf"], data)
    (tmp_path / "huggingface/hub/models--owner--Two-GGUF/snapshots/abc/Two-Q4_0.gguf").symlink_to("../../blobs/gone")
    return home


def hub_gguf(tmp_path: Path, name: str, files: list[str], data: bytes) -> None:
    """A repository of GGUF files as the hub's client keeps it: links to blobs."""
    directory = tmp_path / "huggingface/hub" / f"models--{name.replace('/', '--')}"
    for file in files:
        link = directory / "snapshots/abc" / file
        link.parent.mkdir(parents=True, exist_ok=True)
        (directory / "blobs").mkdir(exist_ok=True)
        (directory / "blobs/whole").write_bytes(data)
        link.symlink_to(directory / "blobs/whole")


NAMES = [
    "huggingface:owner/One-GGUF/One-Q8_0",
    "huggingface:owner/Two-GGUF/BF16/Two-00001-of-00002",
    "huggingface:owner/Two-GGUF/Two-Q8_0",
    "llama.cpp:big-00001-of-00002",
    "llama.cpp:owner_tiny",
    "lmstudio:owner/Tiny-GGUF/Tiny-Q8_0",
    "ollama:hf.co/somebody/tiny-GGUF:Q8_0",
    "ollama:somebody/tiny:1b",
    "ollama:tiny:latest",
]


def test_every_model_is_listed_by_the_name_of_its_store() -> None:
    assert [model.name for model in local_models()] == NAMES
    assert [model.store for model in local_models()] == [name.partition(":")[0] for name in NAMES]


def test_files_in_capitals_are_models_by_the_same_names(home: Path, tmp_path: Path) -> None:
    for root in (home, tmp_path / "cache", tmp_path / "huggingface"):
        for file in root.rglob("*.gguf"):
            file.rename(file.with_suffix(".GGUF"))
    assert [model.name for model in local_models()] == NAMES == model_names()
    lm = LanguageModel.open("lmstudio:owner/Tiny-GGUF/Tiny-Q8_0", RuntimeConfig(device="cpu"))
    assert lm.logits([5, 3]).shape[0] == 2
    assert find("owner/One-GGUF").path.name == "One-Q8_0.GGUF"


def test_a_model_is_found_by_its_name() -> None:
    assert all(find(name).path.read_bytes()[:4] == b"GGUF" for name in NAMES)
    for name in ("ollama:none", "ollama:bad:outside", "ollama:bad:broken", "lmstudio:../x", "ollama:"):
        assert find(name) is None


@pytest.mark.parametrize("name", ["tiny", "Tiny", "library/tiny", "registry.ollama.ai/library/tiny:latest"])
def test_ollamas_names_may_be_whole_or_short_in_any_case(name: str) -> None:
    name = f"ollama:{name}"
    assert find(name).path == find("ollama:tiny:latest").path
    assert store_settings(name) == store_settings("ollama:tiny:latest") != StoreSettings()


def test_a_cached_repository_is_its_file_if_it_holds_one(tmp_path: Path) -> None:
    found = find("owner/One-GGUF")
    assert (found.path.name, found.store) == ("One-Q8_0.gguf", "huggingface")
    (tmp_path / "huggingface/hub/models--owner--One-GGUF/snapshots/abc/config.json").write_text("{}")
    assert find("owner/One-GGUF") == found and [model.name for model in local_models()] == NAMES
    assert find("owner/Two-GGUF") is None
    several = "huggingface:owner/Two-GGUF/BF16/Two-00001-of-00002, huggingface:owner/Two-GGUF/Two-Q8_0"
    assert missing("owner/Two-GGUF").hint == f"one of them: {several}"


def test_a_store_that_cannot_be_read_is_noted(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def kept(path: Any = ".") -> Any:
        if str(path).startswith(str(home / ".ollama")):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", kept)
    listed = cli("models")
    assert listed.code == 0 and b"owner_tiny" in listed.out and b"ollama:" not in listed.out
    assert f"note: cannot read {home / '.ollama/models'}: Permission denied" in listed.err
    assert find("ollama:tiny") is None


@pytest.mark.parametrize("typed", ["ollama:ti", "ollama:", "ollama:tiny:la", "oll", "lla"])
def test_bash_completes_names_with_colons(typed: str) -> None:
    words = ["gptcli", "generate", "-m", *re.findall(":|[^:]+", typed)]
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1), "_GPTCLI_COMPLETE": "complete_bash"}
    done = subprocess.run(GPTCLI, env=os.environ | asked, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    before = typed[: typed.rfind(":") + 1]
    assert [before + rest for rest in done.stdout.splitlines()] == [name for name in NAMES if name.startswith(typed)]


def test_stores_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_STORES", "no")
    with pytest.raises(UsageError, match="GPTCLI_STORES is on or off, not no"):
        local_models()
    monkeypatch.setenv("GPTCLI_STORES", "off")
    assert local_models() == [] and find("ollama:tiny") is None


def test_variables_say_where_stores_are(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".ollama/models").rename(tmp_path / "elsewhere")
    assert find("ollama:tiny") is None
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "none"))
    assert find("ollama:tiny") is not None and find("llama.cpp:owner_tiny") is None


def test_lm_studio_may_have_been_moved_and_its_models_too(home: Path, tmp_path: Path) -> None:
    models = home / ".lmstudio/models"
    elsewhere = tmp_path / "more/owner/Other-GGUF"
    elsewhere.parent.mkdir(parents=True)
    (models / "owner/Tiny-GGUF").rename(elsewhere)
    (home / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(tmp_path / "more")}))
    assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is not None
    (home / ".lmstudio").rename(tmp_path / "studio")
    assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is None
    (home / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'studio'}\n")
    assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is not None
    impossible = [json.dumps({"downloadsFolder": path}) for path in ("a\0b", "é" * 300)]
    for broken in ("{", '{"downloadsFolder": 3}', "[]", *impossible):
        (tmp_path / "studio/settings.json").write_text(broken)
        assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is None
    elsewhere.rename(tmp_path / "studio/models/owner/Other-GGUF")
    assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is not None
    for broken in ("a\0b", "x" * 5000):
        (home / ".lmstudio-home-pointer").write_text(broken)
        assert find("lmstudio:owner/Other-GGUF/Tiny-Q8_0") is None


def test_llama_cpps_cache_may_be_of_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "huggingface/hub"))
    assert find("llama.cpp:owner/Two-GGUF/Two-Q8_0") is not None and find("owner/One-GGUF") is None


def test_a_split_file_is_all_of_its_parts(home: Path) -> None:
    split = find("llama.cpp:big-00001-of-00002")
    first, second = (split.path.with_name(f"big-0000{part}-of-00002.gguf") for part in (1, 2))
    assert split.size == first.stat().st_size + second.stat().st_size > first.stat().st_size > 0
    before = fingerprint(first)
    second.write_bytes(second.read_bytes() + b"0")
    assert fingerprint(first) != before


def test_models_of_stores_run_in_place_and_stay_as_they_are(cli: Cli, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert cli("generate", "-m", "ollama:tiny", "the", "-t", "0", "-n", "3").code == 0
    records = [json.loads(line) for line in cli("models", "--json").out.splitlines()]
    assert {record["name"]: record["store"] for record in records}["ollama:tiny:latest"] == "ollama"
    cli("models", "rm", "ollama:tiny").fails(2, "rm removes what gptcli installed")
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.fixture
def ollama(home: Path) -> Callable[..., None]:
    """Writes a model's other layers, by their kinds, as JSON or text."""

    def write(**layers: Any) -> None:
        manifest = home / ".ollama/models/manifests/registry.ollama.ai/library/tiny/latest"
        listed = [layer for layer in json.loads(manifest.read_text())["layers"] if layer["mediaType"].endswith("model")]
        for kind, content in layers.items():
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            digest = hashlib.sha256(data).hexdigest()
            (home / f".ollama/models/blobs/sha256-{digest}").write_bytes(data)
            listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"})
        manifest.write_text(json.dumps({"layers": listed}))

    return write


def opened() -> LanguageModel:
    return LanguageModel.open("ollama:tiny", RuntimeConfig(device="cpu", dtype="fp32", quantize="none"))


def test_ollamas_parameters_are_defaults_that_flags_override(ollama: Callable[..., None], cli: Cli) -> None:
    ollama(params={"temperature": 0.25, "top_k": 7, "repeat_last_n": 32, "num_ctx": 16, "num_gpu": 1})
    lm = opened()
    assert lm.sampling_defaults == {"temperature": 0.25, "top_k": 7, "repeat_last_n": 32}
    assert lm.ctx_size == 16 and lm.notes == []
    assert LanguageModel.open("ollama:tiny", RuntimeConfig(ctx_size=48)).ctx_size == 48
    shown = cli("models", "show", "ollama:tiny", "--json").json["sampling"]
    assert shown["temperature"] == {"value": 0.25, "from": "Ollama"} and shown["top_p"]["from"] == "gptcli"
    settings = cli("generate", "a", "-m", "ollama:tiny", "-n", "1", "-t", "0.5", "--json").json["settings"]
    assert (settings["temperature"], settings["top_k"]) == (0.5, 7)


def test_ollamas_stop_texts_and_control_tokens_end_a_text(ollama: Callable[..., None]) -> None:
    ollama(params={"stop": ["<|im_start|>", "e", ""]})
    lm = opened()
    assert CONTROL.index(BOS) in lm.stop_ids and lm.stopping(StopConfig()).strings == ("e",)

    def text(*stop: str) -> str:
        bias = {TOKENS.index("e"): 3.0}
        events = lm.generate("a", max_tokens=40, stop=stop, seed=1, ignore_eos=True, logit_bias=bias)
        return "".join(event.text for event in events if isinstance(event, TextDelta))

    assert "e" not in text() and "e" in text("never")


def test_ollamas_system_message_is_the_first_unless_another_is_given(ollama: Callable[..., None], cli: Cli) -> None:
    ollama(system="Be terse.\n")
    assert opened().session().system == "Be terse.\n"
    report = ("--prompt-report", "--json", "-m", "ollama:tiny")
    assert b"Be terse." in cli("generate", "Hello", "--chat", *report).out
    assert b"Be terse." in cli("chat", "Hello", *report).out
    for command in (("generate", "--chat"), ("chat",)):
        out = cli(*command, "Hello", "--system", "Sing.", *report).out
        assert b"Sing." in out and b"terse" not in out
    assert b"terse" not in cli("generate", "Hello", *report).out


def test_layers_of_ollama_that_are_not_read_are_noted_or_refused(ollama: Callable[..., None]) -> None:
    ollama(params={"mirostat": 2}, template="{{ .Prompt }}")
    assert [str(note) for note in opened().notes] == ["not done, though Ollama's parameters ask for it: mirostat"]
    ollama(adapter="x")
    with pytest.raises(UnsupportedArchitecture, match="an adapter, which is not applied"):
        opened()
    for params in ({"temperature": "hot"}, {"stop": "a"}, {"top_p": 7}, {"num_ctx": 0}):
        ollama(params=params)
        with pytest.raises(BrokenCheckpoint, match="ollama:tiny"):
            _ = opened().sampling_defaults
    ollama(system="x" * ((1 << 20) + 1))
    with pytest.raises(BrokenCheckpoint, match="a system message of more than"):
        opened()


def test_a_template_of_go_is_noted_where_the_file_has_none_of_jinja(ollama: Callable[..., None]) -> None:
    ollama(template="{{ .Prompt }}")
    assert opened().notes == []
    write_gguf(find("ollama:tiny").path, Kind.Q8_0, tokenizer__chat_template=None)
    assert ["Ollama's chat template is Go's" in str(note) for note in opened().notes] == [True]
