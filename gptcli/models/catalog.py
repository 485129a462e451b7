"""Which models are on this machine, and where. Knows nothing of their contents."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from gptcli.errors import ModelNotFound
from gptcli.files import ADAPTER_CONFIG, RECORD, open_regular, open_within, read_json
from gptcli.models.stores import find_stored, stored_models

DEFAULT_MODEL = "smollm2-135m-instruct"

SCRATCH = ".fetch-"  # begins the names of directories that models are written to
_SMALL = 16 << 20  # bytes

FetchProgress = Callable[[str, int, int], None]  # the current action, bytes done, bytes in all (0: unknown)


@dataclass(frozen=True)
class LocalModel:
    """A model's name and directory."""

    name: str
    path: Path

    @property
    def record(self) -> dict[str, Any]:
        """What was recorded at installation; empty for what was not installed, such as a file put beside what was."""
        file = self.directory / RECORD
        record = read_json(file) if file.exists() else {}
        checksums = record.get("sha256")
        beside = self.path.is_file() and not (isinstance(checksums, dict) and self.path.name in checksums)
        return {} if beside else record

    @property
    def directory(self) -> Path:
        """What its files are in."""
        return self.path.parent if self.path.is_file() else self.path

    @property
    def store(self) -> str:
        """What keeps it: another program's name, or nothing for a directory."""
        return self.name.partition(":")[0] if ":" in self.name and self.path.is_file() else ""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def install_root() -> Path:
    """The directory for new models: GPTCLI_WEIGHTS's first, a checkout's `weights/`, or the user's data directory."""
    if chosen := _chosen_roots():
        return chosen[0]
    checkout = Path(__file__).parents[2]
    if (checkout / "weights").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "weights"
    return _user_root()


def missing_root_notes(name: str = "") -> list[str]:
    """Notes of the directories of GPTCLI_WEIGHTS that there are not; none if `name` is a path."""
    missing = [] if os.path.exists(name) else [root for root in _chosen_roots() if not root.is_dir()]
    return [f"GPTCLI_WEIGHTS: there is no directory {root}" for root in missing]


def _chosen_roots() -> list[Path]:
    """The directories of GPTCLI_WEIGHTS, separated as those of PATH are."""
    return [_at_home(path) for path in os.environ.get("GPTCLI_WEIGHTS", "").split(os.pathsep) if path]


def roots() -> list[Path]:
    """Where models are looked for by name, each directory once."""
    return list(dict.fromkeys([install_root(), *_chosen_roots(), _user_root()]))


def _user_root() -> Path:
    return Path(platformdirs.user_data_dir("gptcli", appauthor=False)) / "models"


def local_models() -> list[LocalModel]:
    """Every model in the install root, the user's data directory, the Hugging Face cache and other stores, by name."""
    found: dict[str, LocalModel] = {}
    for root in roots():
        records = [*root.glob(f"*/{RECORD}"), *root.glob(f"*/*/{RECORD}")]
        for config in [*root.glob("*/config.json"), *root.glob("*/*/config.json"), *records]:
            directory = config.parent
            name = directory.relative_to(root).as_posix()
            within_another = directory.parent != root and (directory.parent / "config.json").exists()
            if not within_another and not any(part.startswith(".") for part in name.split("/")):
                path = directory if (directory / "config.json").is_file() else first_gguf(directory)
                if path is not None:
                    found.setdefault(name, LocalModel(name, path))
    for directory in sorted(_hub_cache().glob("models--*")):
        name = directory.name.removeprefix("models--").replace("--", "/")
        if snapshot := _hub_snapshot(name):
            found.setdefault(name, LocalModel(name, snapshot))
    for name, file in stored_models():
        found.setdefault(name, LocalModel(name, file))
    return sorted(found.values(), key=lambda model: model.name)


def find(name: str) -> LocalModel | None:
    """The model with this path or name, or None if it is not on this machine.

    A file of weights stands for its directory. An adapter of that name counts: opening it says what it is.
    """
    path = _at_home(name)
    if os.path.exists(path):
        return LocalModel(name, path.parent if path.suffix == ".safetensors" and path.is_file() else path)
    if (file := find_stored(name)) is not None:
        return LocalModel(name, file)
    return find_named(name) or _named(name, ADAPTER_CONFIG)


def fingerprint(path: Path) -> str:
    """A hash of a model's files, in hexadecimal: of their recorded checksums if gptcli installed it.

    Otherwise of small files' contents, and of large files' names, sizes and times.
    """
    record = LocalModel(path.name, path).record
    if checksums := record.get("sha256"):
        return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    whole = path.is_file()  # a GGUF file
    for file in [path] if whole else sorted(path.iterdir()):
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
    """The model with this name, never a path; None if there is no such model."""
    return _named(name, "config.json")


def _named(name: str, file: str) -> LocalModel | None:
    """What has this name and such a file."""
    if not is_name(name):
        return None
    for root in roots():
        if os.path.isfile(root / name / file):
            return LocalModel(name, root / name)
        if (gguf := first_gguf(root / name)) is not None:
            return LocalModel(name, gguf)
    snapshot = _hub_snapshot(name, file)
    return LocalModel(name, snapshot) if snapshot else None


def first_gguf(directory: Path) -> Path | None:
    """The GGUF file that was fetched into a directory, or the first part of one; None if there is none."""
    files = sorted(directory.glob("*.gguf")) if (directory / RECORD).exists() or _being_fetched(directory) else []
    return files[0] if files else None


def _being_fetched(directory: Path) -> bool:
    return directory.name.startswith(SCRATCH)


def missing(name: str, *, wanted: bool = True) -> ModelNotFound:
    """The error for a missing model, with a way to get it if it is `wanted`."""
    if wanted and (name == DEFAULT_MODEL or (name.count("/") == 1 and is_name(name))):
        return ModelNotFound(f"no such model: {name}", hint=f"run `gptcli models pull {name}`")
    names = [model.name for model in local_models()]
    near = difflib.get_close_matches(name, names, 1) or [each for each in names if name.lower() in each.lower()]
    hint = f"did you mean {near[0]}? " if near else ""
    return ModelNotFound(f"no such model: {name}", hint=f"{hint}run `gptcli models` to see which are")


def _hub_cache() -> Path:
    """Where huggingface_hub keeps its cache, by the same variables in the same order."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _at_home(os.path.expandvars(chosen or os.path.join(home, "hub")))


def _at_home(path: str | Path) -> Path:
    """A path with `~` expanded. Unlike Path.expanduser, it does not fail without a home."""
    return Path(os.path.expanduser(path))


def _hub_snapshot(name: str, file: str = "config.json") -> Path | None:
    """A model in the Hugging Face cache that has such a file: the main revision, or the newest if that is not there.

    Fetching a revision by another name, or by its commit, leaves no `refs/main`; pruning may leave it to no snapshot.
    """
    directory = _hub_cache() / f"models--{name.replace('/', '--')}"
    snapshots, reference = directory / "snapshots", directory / "refs" / "main"
    if os.path.isfile(reference):
        revision = reference.read_text(errors="replace").strip()
        if revision and os.path.isdir(main := snapshots / revision):
            return main if os.path.isfile(main / file) else None
    candidates = (snapshot for snapshot in snapshots.glob("*/") if os.path.isfile(snapshot / file))
    return max(candidates, key=lambda snapshot: (_modified(snapshot), snapshot.name), default=None)


def _modified(path: Path) -> int:
    """When a directory was last changed, in nanoseconds; 0 if another process has removed it by now."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
