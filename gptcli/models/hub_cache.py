"""The Hugging Face cache, found and read as its own client does. Never written.

A model there is `models--OWNER--NAME`, whose snapshots, one a commit, hold links to blobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gptcli.files import called_gguf


def hub_cache() -> Path:
    """Where huggingface_hub keeps its cache, by the same variables in the same order."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(chosen or os.path.join(home, "hub"))))


def hub_snapshots(cache: Path, has: Callable[[Path], object]) -> Iterator[tuple[str, Path]]:
    """The name and snapshot of each model in a cache, as `hub_snapshot` finds it."""
    for directory in sorted(cache.glob("models--*")):
        name = directory.name.removeprefix("models--").replace("--", "/")
        if snapshot := hub_snapshot(cache, name, has):
            yield name, snapshot


def hub_snapshot(cache: Path, name: str, has: Callable[[Path], object]) -> Path | None:
    """A model's snapshot that has what is wanted: the main revision, or the newest if that is not there.

    Fetching another revision leaves no `refs/main`; pruning may leave it without a snapshot.
    """
    directory = cache / f"models--{name.replace('/', '--')}"
    snapshots, reference = directory / "snapshots", directory / "refs" / "main"
    if os.path.isfile(reference):
        revision = reference.read_text(errors="replace").strip()
        if revision and os.path.isdir(main := snapshots / revision):
            return main if has(main) else None
    candidates = (snapshot for snapshot in snapshots.glob("*/") if has(snapshot))
    return max(candidates, key=lambda snapshot: (_modified(snapshot), snapshot.name), default=None)


def gguf_files(directory: Path) -> list[Path]:
    """The GGUF files in a directory and those below it; links count if they lead to a file."""
    found = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names if called_gguf(name))
    return sorted(file for file in found if os.path.isfile(file))


def holds_only_ggufs(snapshot: Path) -> bool:
    """Whether there are GGUF files and no others of weights that a folder could be read from."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return not any(os.path.isfile(snapshot / name) for name in weights) and bool(gguf_files(snapshot))


def _modified(path: Path) -> int:
    """When a directory was last changed, in nanoseconds; 0 if another process has removed it by now."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
