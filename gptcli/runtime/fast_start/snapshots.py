"""Keeps prepared copies of models in the cache directory, so that a short text need not wait for torch. No torch.

A copy is of one model, in one way of running it, on one machine; it is used only while everything that it was made of
is as it was. All of them may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import GptcliError, InputError
from gptcli.files import open_regular
from gptcli.kernels.bindings import Functions, built_file, functions
from gptcli.runtime.fast_start import snapshot_file as prepared
from gptcli.runtime.fast_start.snapshot_engine import PreparedEngine
from gptcli.runtime.fast_start.snapshot_file import Prepared
from gptcli.runtime.machine import cpu_limit, free_memory
from gptcli.settings import RuntimeConfig
from gptcli.version import VERSION

if TYPE_CHECKING:
    from gptcli.runtime.engine import Engine

_VARIABLE = "GPTCLI_PREPARED"
_MOST_BYTES = 1 << 30  # of weights: larger models take long to read whatever they are read from
_MOST_COPIES = 4
_MOST_POSITIONS = 32_768  # that rotary tables are kept for
_SUFFIX = ".prepared"


@dataclass(frozen=True)
class Slot:
    """Where the copy of a model belongs that is run so, and the key that it must have, at the time of asking."""

    path: Path
    key: dict[str, Any]


@dataclass(frozen=True)
class Copy:
    """A prepared copy that is being read, and the second on time.perf_counter's clock when that began."""

    content: Prepared
    library: Functions
    runtime: RuntimeConfig
    started: float

    def engine(self, ctx_size: int, room: int) -> PreparedEngine | None:
        """What runs one text of up to `room` tokens, when all is read; None where it cannot."""
        try:
            if room > self.content.positions or not self.content.wait():
                return None
            engine = PreparedEngine(self.content, self.library, ctx_size, room)
        except MemoryError:  # torch's way may need less, or says what is wrong
            return None
        self.library.set_threads(self.runtime.threads or self.content.threads)
        engine.load_s = time.perf_counter() - self.started
        return engine


def slot_of(folder: ModelFolder, runtime: RuntimeConfig) -> Slot | None:
    """The slot for a model's copy; None where there can be none: not on the CPU, as far as can be told without torch,
    without kernels, or switched off."""
    if os.environ.get(_VARIABLE) == "off" or runtime.device not in ("auto", "cpu"):
        return None
    if runtime.device == "auto" and _may_have_gpu():
        return None
    library = functions()
    if library is None:
        return None
    way = [
        runtime.device,
        runtime.dtype,
        runtime.quantize,
        library.level,
        # Which cores there are, and what tells OpenMP how many to use: torch's number of threads comes from them.
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        cpu_limit(),
        [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
    ]
    weights = sorted({info.file for info in folder.tensors.values()})
    try:
        key = {
            "version": VERSION,
            "sources": _sources(),
            "model": {str(path): _identity(path) for path in [folder.path / "config.json", *weights]},
            "way": way,
        }
    except OSError:  # a file is being exchanged, or gone
        return None
    return Slot(_directory() / f"{_of_model(folder.path)}-{_hash(repr(way))}{_SUFFIX}", key)


def open_copy(slot: Slot, runtime: RuntimeConfig, room: int) -> Copy | None:
    """Begins to read the prepared copy in a slot; None where there is none, or none for texts of `room` tokens."""
    started = time.perf_counter()
    library = functions()
    assert library is not None
    try:
        if not slot.path.is_file() or not _is_ours(slot.path):
            return None
        os.utime(slot.path)  # the oldest go first
        content = prepared.read(open_regular(slot.path), slot.key, library, free=free_memory(), positions=room)
    except (OSError, MemoryError, InputError):  # torch's way may go on, or says what is wrong
        return None
    return None if content is None else Copy(content, library, runtime, started)


def keep_copy(slot: Slot, folder: ModelFolder, runtime: RuntimeConfig, engine: Engine) -> None:
    """Keeps a prepared copy of a loaded model, whose slot was this before its weights were read, if it can have one.

    None is kept of files that were exchanged since, and where it cannot be written there will be none.
    """
    library = engine.library
    if library is None or runtime.threads is not None:
        return
    with contextlib.suppress(OSError, MemoryError, GptcliError):
        if slot_of(folder, runtime) != slot or ModelFolder.open(folder.path) != folder or _is_kept(slot):
            return
        copy = engine.prepared(_MOST_POSITIONS)
        sizes = {} if copy is None else {matrix.address: matrix.size for _, matrix in copy.program.matrices}
        if copy is None or sum(sizes.values()) > _MOST_BYTES:
            return
        directory = slot.path.parent
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".part", delete=False) as file:
            try:
                prepared.write(copy, slot.key, library, file)
                os.replace(file.name, slot.path)
            except BaseException:  # whatever it is, Ctrl-C too: half a copy is of no use
                os.unlink(file.name)
                raise
        _forget_old(directory)


def forget_copies(model: Path) -> None:
    """Removes what is kept of a model in this directory."""
    for path in _directory().glob(f"{_of_model(model)}-*"):
        path.unlink(missing_ok=True)


def _is_kept(slot: Slot) -> bool:
    """Whether there is a copy already, for this key and whole."""
    try:
        if not slot.path.is_file() or not _is_ours(slot.path):
            return False
        with open_regular(slot.path) as file:
            return prepared.key_if_whole(file) == slot.key
    except (OSError, InputError):
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


def _directory() -> Path:
    return platformdirs.user_cache_path("gptcli", appauthor=False) / "prepared"


def _of_model(path: Path) -> str:
    return _hash(os.path.realpath(path))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _sources() -> str:
    """What changes whenever the program does."""
    kernels, package = built_file(), Path(__file__).parents[2]
    assert kernels is not None
    return _hash(repr([_identity(path) for path in [kernels, *sorted(package.glob("**/*.py"))]]))


def _identity(path: Path) -> list[int]:
    """What changes whenever a file does: nobody can set the last of these times."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_ours(path: Path) -> bool:
    status = path.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022)


def _forget_old(directory: Path) -> None:
    """Leaves the copies that were used last; one that another process was killed over is a day old at least."""
    copies = sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    abandoned = [path for path in directory.glob("*.part") if path.stat().st_mtime < time.time() - 86_400]
    for path in [*copies[:-_MOST_COPIES], *abandoned]:
        path.unlink(missing_ok=True)
