"""Fixtures: a tiny checkpoint made on the spot, and the real default model, fetched once into a cache directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import platformdirs
import pytest
from hypothesis import settings

import gptcli
from gptcli import LanguageModel
from gptcli.kernels.bindings import Level
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.models.locate import locate
from tests.tiny import make_model

if TYPE_CHECKING:
    from gptcli.kernels.tensors import Library

# torch's idle threads must not keep cores from what tests start. The program sets this as well, but too late here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.pop("PYTHONUNBUFFERED", None)  # hides what happens to output that is still in a buffer
settings.register_profile("gptcli", deadline=None)  # an example may take as long as the machine needs
settings.load_profile("gptcli")


@pytest.fixture(autouse=True)
def _a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the models, caches, settings or terminal of the user."""
    (weights := tmp_path / "weights").mkdir()
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(weights))
    for kind in ("config", "data", "state", "cache"):
        monkeypatch.setenv(f"XDG_{kind.upper()}_HOME", str(tmp_path / kind))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("GPTCLI_STORES", "off")
    caches = ("GPTCLI_PREPARED", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    for name in ("GPTCLI_MODEL", "GPTCLI_DEBUG", "NO_COLOR", "COLUMNS", "LINES", *caches):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=get_args(Level))
def kernels(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The kernels at each level that this processor has, with two threads."""
    from gptcli.kernels.tensors import Library

    library = Library.built()
    if library is None or request.param not in library.levels():
        pytest.skip(f"there are no {request.param} kernels")
    before, threads = library.level, library.threads
    library.set_level(request.param)
    library.set_threads(2)
    yield library
    library.set_level(before)
    library.set_threads(threads)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny llama."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> LanguageModel:
    """The tiny llama, loaded in fp32 on the CPU."""
    return gptcli.load(tiny_model, device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def real_weights() -> Iterator[Path]:
    """GPTCLI_WEIGHTS with the default model in it; fetched the first time, then kept between runs."""
    root = Path(os.environ.get("GPTCLI_TEST_WEIGHTS") or platformdirs.user_cache_path("gptcli") / "test-weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTCLI_WEIGHTS", str(root))
        locate(DEFAULT_MODEL)
    yield root


@pytest.fixture(scope="session")
def real(real_weights: Path) -> LanguageModel:
    """The default model, dense in fp32 on the CPU."""
    return gptcli.load(real_weights / DEFAULT_MODEL, device="cpu", dtype="fp32", quantize="none")
