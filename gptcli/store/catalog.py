"""Where models live on this machine, and which there are. Knows nothing of what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from gptcli.errors import ModelNotFound, UsageError
from gptcli.files import read_json

DEFAULT_MODEL = "smollm2-135m-instruct"
RECORD = "gptcli.json"  # beside a model's files: where it came from and their checksums

FetchProgress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0: unknown)


@dataclass(frozen=True)
class LocalModel:
    """A model directory and the name it goes by."""

    name: str
    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """Where the model came from, as written when it was installed; empty for a directory made by hand."""
        file = self.path / RECORD
        return read_json(file) if file.exists() else {}

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def install_root() -> Path:
    """Where new models go: GPTCLI_WEIGHTS, a checkout's `weights/`, or the user's data directory."""
    if chosen := os.environ.get("GPTCLI_WEIGHTS"):
        return Path(chosen)
    checkout = Path(__file__).parents[2]
    if (checkout / "weights").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "weights"
    return _user_root()


def _user_root() -> Path:
    return Path(platformdirs.user_data_dir("gptcli", appauthor=False)) / "models"


def check_name(name: str) -> None:
    """Raises UsageError for what cannot name a model: `NAME` or `OWNER/NAME`, and no way out of the directory."""
    parts = name.split("/")
    if len(parts) > 2 or any(not part or part.startswith((".", "-")) or "\\" in part for part in parts):
        raise UsageError(f"a model's name is NAME or OWNER/NAME, not {name!r}")


def local_models() -> list[LocalModel]:
    """Every model in the install root, the user's data directory and the Hugging Face cache, by name."""
    found: dict[str, LocalModel] = {}
    for root in dict.fromkeys([install_root(), _user_root()]):
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            name = config.parent.relative_to(root).as_posix()
            if not any(part.startswith(".") for part in name.split("/")):
                found.setdefault(name, LocalModel(name, config.parent))
    for directory in sorted(_hub_cache().glob("models--*")):
        name = directory.name.removeprefix("models--").replace("--", "/")
        if snapshot := _hub_snapshot(name):
            found.setdefault(name, LocalModel(name, snapshot))
    return sorted(found.values(), key=lambda model: model.name)


def find(name: str) -> LocalModel | None:
    """The model that a path or name stands for, or None where it is not on this machine."""
    path = Path(name)
    if path.exists():
        return LocalModel(name, path)
    for root in (install_root(), _user_root()):
        if (root / name / "config.json").is_file():
            return LocalModel(name, root / name)
    snapshot = _hub_snapshot(name)
    return LocalModel(name, snapshot) if snapshot else None


def locate(name: str, *, offline: bool = False, on_progress: FetchProgress | None = None) -> Path:
    """The directory of a model; the default model is fetched where it is missing, unless `offline`.

    Raises ModelNotFound, with a way to get the model.
    """
    if model := find(name):
        return model.path
    if name != DEFAULT_MODEL:
        hint = f"run `gptcli models pull {name}`" if name.count("/") == 1 else "run `gptcli models` to see which are"
        raise ModelNotFound(f"no such model: {name}", hint)
    if offline:
        raise ModelNotFound(f"no such model: {name}: it is not here yet, and --offline forbids to fetch it")
    from gptcli.store.pull import pull_default

    return pull_default(on_progress or (lambda what, done, total: None))


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _hub_snapshot(name: str) -> Path | None:
    """The main revision of a model in the Hugging Face cache, if it is whole enough to have a config."""
    directory = _hub_cache() / f"models--{name.replace('/', '--')}"
    reference = directory / "refs" / "main"
    if not reference.is_file():
        return None
    snapshot = directory / "snapshots" / reference.read_text().strip()
    return snapshot if (snapshot / "config.json").is_file() else None
