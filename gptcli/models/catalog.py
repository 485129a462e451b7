"""Finds the models on this machine by name or path. Knows nothing of their contents."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs

from gptcli.errors import ModelNotFound
from gptcli.files import ADAPTER_CONFIG, MANIFEST, called_gguf, open_regular, open_within, read_json
from gptcli.models.hub_cache import holds_only_ggufs, hub_cache, hub_snapshot, hub_snapshots
from gptcli.models.stores import HUB, find_stored, only_stored, stored_models

DEFAULT_MODEL = "smollm2-135m-instruct"
SEE_MODELS = "run `gptcli models` to see which are"  # a hint

SCRATCH = ".fetch-"  # begins the names of directories that models are written to
_SMALL = 16 << 20  # bytes
_FIRST_PART = re.compile(r"(.*)-00001(-of-\d{5}\.gguf)", re.DOTALL | re.IGNORECASE)

FetchProgress = Callable[[str, int, int], None]  # the current action, bytes done, bytes in all (0: unknown)


@dataclass(frozen=True)
class LocalModel:
    """A model's name and directory."""

    name: str
    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the installation; empty without one, as for a file added to an installed model."""
        file = self.directory / MANIFEST
        manifest = read_json(file) if file.exists() else {}
        checksums = manifest.get("sha256")
        beside = self.path.is_file() and not (isinstance(checksums, dict) and self.path.name in checksums)
        return {} if beside else manifest

    @property
    def directory(self) -> Path:
        """The directory of its files."""
        return self.path.parent if self.path.is_file() else self.path

    @property
    def store(self) -> str:
        """The name of the program that keeps it; empty for a directory."""
        if hub_cache() in self.path.parents:
            return HUB
        return self.name.partition(":")[0] if ":" in self.name and self.path.is_file() else ""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in files_of(self.path) if file.is_file())


def files_of(path: Path) -> list[Path]:
    """The files of a model: all in its directory, or all parts of its GGUF file."""
    if path.is_dir():
        return sorted(path.iterdir())
    first = _FIRST_PART.fullmatch(path.name)
    return sorted(path.parent.glob(f"{glob.escape(first[1])}-?????{first[2]}")) if first else [path]


def install_root() -> Path:
    """The directory for new models: the first of GPTCLI_WEIGHTS, else a checkout's `weights/`, else the user's."""
    if chosen := _chosen_roots():
        return chosen[0]
    checkout = Path(__file__).parents[2]
    if (checkout / "weights").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "weights"
    return _user_root()


def missing_root_notes(name: str = "") -> list[str]:
    """Notes of missing directories of GPTCLI_WEIGHTS; none if `name` is a path."""
    missing = [] if os.path.exists(name) else [root for root in _chosen_roots() if not root.is_dir()]
    return [f"GPTCLI_WEIGHTS: there is no directory {root}" for root in missing]


def _chosen_roots() -> list[Path]:
    """The directories of GPTCLI_WEIGHTS, separated as in PATH."""
    return [_at_home(path) for path in os.environ.get("GPTCLI_WEIGHTS", "").split(os.pathsep) if path]


def roots() -> list[Path]:
    """The directories that are searched by name, each once."""
    return list(dict.fromkeys([install_root(), *_chosen_roots(), _user_root()]))


def _user_root() -> Path:
    return Path(platformdirs.user_data_dir("gptcli", appauthor=False)) / "models"


def local_models() -> list[LocalModel]:
    """Every model in the install root, the user's data directory, the Hugging Face cache and other stores, by name."""
    found: dict[str, LocalModel] = {}
    for root in roots():
        manifests = [*root.glob(f"*/{MANIFEST}"), *root.glob(f"*/*/{MANIFEST}")]
        for config in [*root.glob("*/config.json"), *root.glob("*/*/config.json"), *manifests]:
            directory = config.parent
            name = directory.relative_to(root).as_posix()
            within_another = directory.parent != root and (directory.parent / "config.json").exists()
            if not within_another and not any(part.startswith(".") for part in name.split("/")):
                path = directory if (directory / "config.json").is_file() else first_gguf(directory)
                if path is not None:
                    found.setdefault(name, LocalModel(name, path))
    for name, folder in hub_snapshots(hub_cache(), partial(_is_folder, file="config.json")):
        found.setdefault(name, LocalModel(name, folder))
    for name, file in stored_models():
        found.setdefault(name, LocalModel(name, file))
    return sorted(found.values(), key=lambda model: model.name)


def find(name: str) -> LocalModel | None:
    """The model with this path or name, or None if it is not on this machine.

    A file of weights stands for its directory. An adapter of that name is found, too, and refused when it is opened.
    """
    path = _at_home(name)
    if os.path.exists(path):
        return LocalModel(name, path.parent if path.suffix == ".safetensors" and path.is_file() else path)
    if (file := find_stored(name)) is not None:
        return LocalModel(name, file)
    return find_named(name) or _named(name, ADAPTER_CONFIG)


def fingerprint(path: Path) -> str:
    """A hash of a model, in hexadecimal: of recorded checksums if gptcli installed it.

    Otherwise of its files' names and sizes, with contents of small files and times of large ones.
    """
    manifest = LocalModel(path.name, path).manifest
    if checksums := manifest.get("sha256"):
        return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    whole = path.is_file()  # a GGUF file
    for file in files_of(path):
        if whole or (file.suffix in (".json", ".jinja", ".safetensors") and file.is_file()):
            with open_regular(file) if whole else open_within(file) as stream:
                status = os.fstat(stream.fileno())
                digest.update(f"{file.name}\0{status.st_size}\0".encode())
                digest.update(stream.read(_SMALL) if status.st_size < _SMALL else str(status.st_mtime_ns).encode())
    return digest.hexdigest()


def is_name(name: str) -> bool:
    """Whether this is a valid name of a model: NAME or OWNER/NAME, which cannot lead out of a directory."""
    parts = name.split("/")
    return len(parts) <= 2 and all(
        part and part[0] not in ".-~" and part.isprintable() and "\\" not in part and len(part.encode()) <= 96
        for part in parts
    )


def find_named(name: str) -> LocalModel | None:
    """The model with this name, never a path; None without one."""
    return _named(name, "config.json")


def _named(name: str, file: str) -> LocalModel | None:
    """The model with this name whose directory has `file`, or a GGUF file."""
    if not is_name(name):
        return None
    for root in roots():
        if os.path.isfile(root / name / file):
            return LocalModel(name, root / name)
        if (gguf := first_gguf(root / name)) is not None:
            return LocalModel(name, gguf)
    cached = hub_snapshot(hub_cache(), name, partial(_is_folder, file=file)) or only_stored(name)
    return LocalModel(name, cached) if cached else None


def first_gguf(directory: Path) -> Path | None:
    """The GGUF file that was fetched into a directory, or its first part; None without one."""
    if not (directory / MANIFEST).exists() and not _being_fetched(directory):
        return None
    return min((file for file in directory.glob("*") if called_gguf(file.name)), default=None)


def _being_fetched(directory: Path) -> bool:
    return directory.name.startswith(SCRATCH)


def missing(name: str, *, wanted: bool = True) -> ModelNotFound:
    """The error for a missing model. wanted: whether the hint says how to get it."""
    names = [model.name for model in local_models()]
    if files := [each for each in names if each.startswith(f"{HUB}:{name}/")]:
        return ModelNotFound(f"several models: {name}", hint=f"one of them: {', '.join(files)}")
    if wanted and (name == DEFAULT_MODEL or (name.count("/") == 1 and is_name(name) and ":" not in name)):
        return ModelNotFound(f"no such model: {name}", hint=f"run `gptcli models pull {name}`")
    near = difflib.get_close_matches(name, names, 1) or [each for each in names if name.lower() in each.lower()]
    hint = f"did you mean {near[0]}? " if near else ""
    return ModelNotFound(f"no such model: {name}", hint=f"{hint}{SEE_MODELS}")


def _at_home(path: str | Path) -> Path:
    """A path with `~` expanded. Unlike Path.expanduser, it does not fail without a home."""
    return Path(os.path.expanduser(path))


def _is_folder(snapshot: Path, file: str) -> bool:
    """Whether a snapshot in the Hugging Face cache has `file`, and is read as a folder."""
    return os.path.isfile(snapshot / file) and not holds_only_ggufs(snapshot)
