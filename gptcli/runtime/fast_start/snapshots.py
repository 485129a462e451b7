"""Keeps snapshots of loaded models in the cache directory, so that short texts need not wait for torch. No torch.

A snapshot is for one model, one way of running it and one machine. It is valid while everything that it was made from
is unchanged: see `slot_for`. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.header_snapshots import HEADERS
from gptcli.errors import GptcliError, InputError, OutputError
from gptcli.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, UNFINISHED, identity, program_identity
from gptcli.kernels.bindings import Functions, built_file, functions
from gptcli.runtime.fast_start import snapshot_file
from gptcli.runtime.fast_start.snapshot_engine import SnapshotEngine
from gptcli.runtime.fast_start.snapshot_file import WEIGHTS, DamagedSnapshot, Snapshot
from gptcli.runtime.resource_limits import cpu_limit, free_memory
from gptcli.settings import RuntimeConfig
from gptcli.snapshot_format import fast_start_is_off, hash_of, hash_of_model, models_with_snapshots, snapshot_directory
from gptcli.text.fast_start.tokenizer_snapshots import TOKENIZERS
from gptcli.version import VERSION

_MOST_BYTES = 1 << 30  # of weights: larger models take long to read from any file
_MOST_WEIGHTS = 4  # files of weights
_MOST_POSITIONS = 32_768  # of the rotary tables
_SUFFIX = ".snapshot"


@dataclass(frozen=True)
class Slot:
    """The path of a snapshot's header, for a model and a way of running it, and the key that makes it valid now."""

    path: Path
    key: dict[str, Any]


@dataclass(frozen=True)
class OpenedSnapshot:
    """A snapshot whose weights are being read. started: when reading began, on time.perf_counter's clock."""

    slot: Slot
    snapshot: Snapshot
    library: Functions
    runtime: RuntimeConfig
    started: float

    def engine(self, ctx_size: int, room: int) -> SnapshotEngine | None:
        """Waits for the weights; an engine for texts of up to `room` tokens, or None if these are too long.

        Raises DamagedSnapshot.
        """
        if room > self.snapshot.positions:
            return None
        self.snapshot.wait()
        try:
            engine = SnapshotEngine(self.snapshot, self.library, ctx_size, room, partial(drop_snapshot, self.slot))
        except MemoryError:  # loading with torch may need less, or tells what is wrong
            return None
        self.library.set_threads(self.runtime.threads or self.snapshot.threads)
        engine.load_s = time.perf_counter() - self.started
        return engine


def slot_for(folder: ModelFolder, runtime: RuntimeConfig) -> Slot | None:
    """The slot of a model's snapshot.

    None without snapshots: switched off, no kernels, or perhaps a GPU, which only torch could tell.
    """
    if fast_start_is_off() or runtime.device not in ("auto", "cpu"):
        return None
    if runtime.device == "auto" and _may_have_gpu():
        return None
    library = functions()
    if library is None:
        return None
    way_of_running = [
        runtime.device,
        runtime.dtype,
        runtime.quantize,
        library.level,
        runtime.adapters,
        # torch's number of threads follows from the cores and from OpenMP's variables.
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        cpu_limit(),
        [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
    ]
    weights = sorted({info.file for info in folder.tensors.values()})
    config = [] if folder.is_gguf else [folder.path / "config.json"]
    try:
        key = {
            "version": VERSION,
            "sources": _sources(),
            "model": {str(path): identity(path) for path in [*config, *weights, *_adapter_files(runtime)]},
            "way": way_of_running,
        }
    except OSError:  # a file is being replaced, or gone
        return None
    return Slot(snapshot_directory() / f"{hash_of_model(folder.path)}-{hash_of(repr(way_of_running))}{_SUFFIX}", key)


def _adapter_files(runtime: RuntimeConfig) -> list[Path]:
    return [Path(path) / name for path, _ in runtime.adapters for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]


def open_snapshot(slot: Slot, runtime: RuntimeConfig, room: int) -> OpenedSnapshot | None:
    """Begins to read the snapshot in a slot; None if none can run texts of `room` tokens.

    Raises DamagedSnapshot.
    """
    started = time.perf_counter()
    library = functions()
    assert library is not None
    with contextlib.suppress(OSError):  # it may be read-only, or just removed
        os.utime(slot.path)  # the least recently used are removed first
    try:
        snapshot = snapshot_file.read(
            slot.path, slot.key, library, runtime.cache_kind, free=free_memory(), positions=room
        )
    except (OSError, MemoryError, InputError):  # loading with torch may succeed, or tells what is wrong
        return None
    return None if snapshot is None else OpenedSnapshot(slot, snapshot, library, runtime, started)


class _Lowered(Protocol):
    """The side of a loaded engine that snapshots are made from."""

    @property
    def library(self) -> Functions | None:
        """See `Engine.library`."""

    def snapshot(self, most_positions: int) -> Snapshot | None:
        """What runs one text of up to `most_positions` tokens without torch; None where torch is needed."""


def keep_snapshot(slot: Slot, folder: ModelFolder, runtime: RuntimeConfig, engine: _Lowered) -> None:
    """Writes a snapshot of a loaded model, if it can have one. slot: from before the weights were read.

    Keeps nothing if files have been replaced since, or if it cannot be written.
    """
    library = engine.library
    if library is None or runtime.threads is not None:
        return
    with contextlib.suppress(OSError, MemoryError, GptcliError):
        if slot_for(folder, runtime) != slot or ModelFolder.open(folder.path) != folder or _is_kept(slot):
            return
        snapshot = engine.snapshot(_MOST_POSITIONS)
        sizes = {} if snapshot is None else {matrix.address: matrix.size for _, matrix in snapshot.program.matrices}
        if snapshot is None or sum(sizes.values()) > _MOST_BYTES:
            return
        slot.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        snapshot_file.write(snapshot, slot.key, library, slot.path)
        _remove_old(slot.path.parent)


def drop_snapshot(slot: Slot) -> None:
    """Removes a failed snapshot and its weights."""
    with contextlib.suppress(OSError, InputError, DamagedSnapshot):
        snapshot_file.weights_of(slot.path, snapshot_file.read_header(slot.path)).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        slot.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class StoredSnapshot:
    """A file of weights, of a tokenizer or of a header in the cache, or one left over. used: seconds since 1970.

    model: the directory or GGUF file that it was made from; "" if unknown. content: a description, of weights with
    their dtypes. size: in bytes, of weights with the files that say how to run them.
    """

    path: Path
    model: str
    content: str
    size: int
    used: float


def stored_snapshots() -> list[StoredSnapshot]:
    """Every file of the cache, those of one set of weights together, the last used first."""
    files = {}
    for path in snapshot_directory().glob("*"):
        with contextlib.suppress(OSError):  # another process may remove it
            files[path] = path.stat()
    headers: dict[Path, list[tuple[Path, snapshot_file.Header]]] = {}
    for path in files:
        with contextlib.suppress(OSError, InputError, DamagedSnapshot):
            if path.suffix == _SUFFIX:
                header = snapshot_file.read_header(path)
                if snapshot_file.has_weights(path, header):
                    headers.setdefault(snapshot_file.weights_of(path, header), []).append((path, header))
    found = []
    for weights, entries in headers.items():
        entries.sort(key=lambda entry: -files[entry[0]].st_mtime)
        used = files[entries[0][0]].st_mtime
        size = sum(files.pop(path).st_size for path in [weights, *(path for path, _ in entries)] if path in files)
        source = Path(next(iter(entries[0][1]["key"]["model"])))
        model = str(source.parent if source.name == "config.json" else source)
        dtypes = dict.fromkeys(header["dtype"] for _, header in entries)
        found.append(StoredSnapshot(weights, model, f"weights in {', '.join(dtypes)}", size, used))
    models = {path: ("tokenizer", str(model)) for path, model in models_with_snapshots(TOKENIZERS).items()}
    models |= {path: ("header", str(model)) for path, model in models_with_snapshots(HEADERS).items()}
    for path, status in files.items():
        content, model = models.get(path, ("left over", ""))
        found.append(StoredSnapshot(path, model, content, status.st_size, status.st_mtime))
    return sorted(found, key=lambda snapshot: -snapshot.used)


def delete_snapshots() -> int:
    """Deletes all snapshots, unfinished ones too; returns their bytes. Raises OutputError, when all others are gone."""
    size, failed = 0, None
    for path in snapshot_directory().glob("*"):
        try:
            status = path.lstat()
            path.unlink()
            size += status.st_size
        except FileNotFoundError:  # another process deleted it first
            continue
        except OSError as error:
            failed = OutputError(f"cannot remove: {path}: {error.strerror}")
    if failed:
        raise failed
    return size


def forget_snapshots(model: Path) -> None:
    """Removes the snapshots of the model in this directory, its tokenizer's included."""
    for path in snapshot_directory().glob(f"{hash_of_model(model)}*"):
        with contextlib.suppress(OSError):  # what cannot be removed is never used
            path.unlink()


def _is_kept(slot: Slot) -> bool:
    """Whether the slot holds a whole snapshot with its key."""
    try:
        header = snapshot_file.read_header(slot.path)
        return header["key"] == slot.key and snapshot_file.has_weights(slot.path, header)
    except (OSError, InputError, DamagedSnapshot):
        return False


def _may_have_gpu() -> bool:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return True
    libraries = Path(torch.origin).parent / "lib"
    if not any(libraries.glob("*torch_cuda*")) and not any(libraries.glob("*torch_hip*")):
        return False
    devices = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/dxg", "/dev/kfd")
    return os.name != "posix" or any(map(os.path.exists, devices))


def _sources() -> str:
    """Changes whenever the program does."""
    kernels = built_file()
    assert kernels is not None
    return hash_of(repr([identity(kernels), program_identity()]))


def _remove_old(directory: Path) -> None:
    """Keeps the last used weights and their headers; removes unfinished files after a day."""
    kept = set[Path]()
    for path in sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: -path.stat().st_mtime):
        with contextlib.suppress(InputError, DamagedSnapshot):
            weights = snapshot_file.weights_of(path, snapshot_file.read_header(path))
            if weights in kept or sum(path.suffix == WEIGHTS for path in kept) < _MOST_WEIGHTS:
                kept |= {path, weights}
    abandoned = [path for path in directory.glob(f"*{UNFINISHED}") if path.stat().st_mtime < time.time() - 86_400]
    old = [path for suffix in (_SUFFIX, WEIGHTS) for path in directory.glob(f"*{suffix}")]
    for path in [*abandoned, *old]:
        if path not in kept:
            path.unlink(missing_ok=True)
