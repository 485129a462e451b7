"""Models that other programs keep: listed, found by name, run in place, never touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from gptcli.errors import UsageError
from gptcli.models.catalog import find, local_models
from tests.cli.conftest import Cli
from tests.gguf.tiny_gguf import Kind, write_gguf


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model in each store, and what is no model beside."""
    monkeypatch.delenv("GPTCLI_STORES")
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.delenv("LLAMA_CACHE", raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    data = write_gguf(tmp_path / "tiny.gguf", Kind.Q8_0).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
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
    return home


NAMES = [
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


def test_a_model_is_found_by_its_name() -> None:
    for name in NAMES:
        model = find(name)
        assert model is not None and model.path.read_bytes()[:4] == b"GGUF"
    short, whole = find("ollama:tiny"), find("ollama:tiny:latest")
    assert short is not None and whole is not None and short.path == whole.path
    for name in ("ollama:none", "ollama:bad:outside", "ollama:bad:broken", "lmstudio:../x", "ollama:"):
        assert find(name) is None


def test_they_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_STORES", "no")
    with pytest.raises(UsageError, match="GPTCLI_STORES is on or off, not no"):
        local_models()
    monkeypatch.setenv("GPTCLI_STORES", "off")
    assert local_models() == [] and find("ollama:tiny") is None


def test_the_programs_own_variables_say_where_they_are(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ollama/models").rename(tmp_path / "elsewhere")
    assert find("ollama:tiny") is None
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "none"))
    assert find("ollama:tiny") is not None and find("llama.cpp:owner_tiny") is None


def test_they_run_where_they_are_and_stay_as_they_are(cli: Cli, home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert cli("generate", "-m", "ollama:tiny", "the", "-t", "0", "-n", "3").code == 0
    records = [json.loads(line) for line in cli("models", "--json").out.splitlines()]
    assert {record["name"]: record["store"] for record in records}["ollama:tiny:latest"] == "ollama"
    refused = cli("models", "rm", "ollama:tiny")
    assert refused.code == 2 and "rm removes what gptcli installed" in refused.err
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
