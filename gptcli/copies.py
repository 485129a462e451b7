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

from gptcli import __version__
from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import InputError
from gptcli.files import open_regular
from gptcli.kernels.functions import Functions, built_file, functions
from gptcli.runtime import prepared
from gptcli.runtime.machine import cpu_limit, free_memory
from gptcli.runtime.prepared import Prepared
from gptcli.runtime.prepared_engine import PreparedEngine
from gptcli.settings import RuntimeConfig

if TYPE_CHECKING:
    from gptcli.runtime.engine import Engine

_VARIABLE = "GPTCLI_PREPARED"
_MOST_BYTES = 1 << 30  # of weights: larger models take long to read whatever they are read from
_MOST_COPIES = 4
_MOST_POSITIONS = 8192  # that rotary tables are kept for
_SUFFIX = ".prepared"


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


def open_copy(folder: ModelFolder, runtime: RuntimeConfig) -> Copy | None:
    """Begins to read the prepared copy of a model; None where there is none for it as it is now."""
    started = time.perf_counter()
    library = functions()
    if library is None or not _may_be_prepared(runtime):
        return None
    path = _path(folder, runtime)
    try:
        if not path.is_file() or not _is_ours(path):
            return None
        os.utime(path)  # the oldest go first
        content = prepared.read(open_regular(path), _key(folder, runtime, library), library, free_memory())
    except (OSError, MemoryError, InputError):  # torch's way may go on, or says what is wrong
        return None
    return None if content is None else Copy(content, library, runtime, started)


def keep_copy(folder: ModelFolder, runtime: RuntimeConfig, engine: Engine) -> None:
    """Keeps a prepared copy of a loaded model, if it can have one. Where it cannot be written there will be none."""
    library = engine.plan.library
    if library is None or not _may_be_prepared(runtime) or runtime.threads is not None:
        return
    path, key = _path(folder, runtime), _key(folder, runtime, library)
    with contextlib.suppress(OSError, InputError), open_regular(path) as file:
        if prepared.key_of(file) == key:
            return
    copy = engine.prepared(_MOST_POSITIONS)
    if copy is None or sum({matrix.address: matrix.size for _, matrix in copy.program.matrices}.values()) > _MOST_BYTES:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                prepared.write(copy, key, library, file)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        _forget_old(path.parent)


def _may_be_prepared(runtime: RuntimeConfig) -> bool:
    """Whether a run is on the CPU, as far as can be told without torch, and nobody has switched copies off."""
    if os.environ.get(_VARIABLE) == "off" or runtime.device not in ("auto", "cpu"):
        return False
    return runtime.device == "cpu" or not _may_have_cuda()


def _may_have_cuda() -> bool:
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return True
    built_for_it = any((Path(torch.origin).parent / "lib").glob("*torch_cuda*"))
    return built_for_it and (os.name != "posix" or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))))


def _path(folder: ModelFolder, runtime: RuntimeConfig) -> Path:
    """Where the copy of a model belongs that is run so."""
    name = f"{os.path.realpath(folder.path)}\0{runtime.dtype}\0{runtime.quantize}"
    directory = platformdirs.user_cache_path("gptcli", appauthor=False) / "prepared"
    return directory / (hashlib.sha256(name.encode()).hexdigest()[:32] + _SUFFIX)


def _key(folder: ModelFolder, runtime: RuntimeConfig, library: Functions) -> dict[str, Any]:
    """What a copy depends on, in JSON's types: the model's files, this program, the processor, and what was asked."""
    kernels = built_file()
    package = Path(__file__).parent
    assert kernels is not None
    sources = [kernels, *sorted(package.glob("*/**/*.py")), *sorted(package.glob("*.py"))]
    weights = sorted({info.file for info in folder.tensors.values()})
    return {
        "version": __version__,
        "sources": hashlib.sha256(repr([_identity(path) for path in sources]).encode()).hexdigest(),
        "level": library.level,
        "model": {str(path): _identity(path) for path in [folder.path / "config.json", *weights]},
        "dtype": runtime.dtype,
        "quantize": runtime.quantize,
        # Which cores there are, and what tells OpenMP how many to use: torch's number of threads comes from them.
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_limit": cpu_limit(),
        "variables": [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")],
    }


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
