"""Finds and reads the Hugging Face cache as its own client does. Never writes it.

A model there is `models--OWNER--NAME`; its snapshots, one for each commit, hold links to blobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gptcli.files import called_gguf


def hub_cache() -> Path:
    """The path of huggingface_hub's cache, by the same variables in the same order."""
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
    """A model's snapshot that `has` accepts: the main revision, or the newest if the main one is not there.

    Fetching another revision makes no `refs/main`; pruning may leave it without a snapshot.
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
    """The GGUF files in and below a directory; links count if they lead to a file."""
    found = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names if called_gguf(name))
    return sorted(file for file in found if os.path.isfile(file))


def holds_only_ggufs(snapshot: Path) -> bool:
    """Whether a snapshot has GGUF files, and no safetensors to read it as a folder."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return not any(os.path.isfile(snapshot / name) for name in weights) and bool(gguf_files(snapshot))


def _modified(path: Path) -> int:
    """A directory's time of modification in nanoseconds; 0 if another process has removed it."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
