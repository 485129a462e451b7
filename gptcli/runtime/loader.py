"""Loads a model's engine in the quickest way that serves the workload. Imports torch only if needed."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import UsageError
from gptcli.runtime.engine import Engine, FullEngine, Progress, Workload, no_progress
from gptcli.runtime.fast_start.snapshot_file import DamagedSnapshot
from gptcli.runtime.fast_start.snapshots import (
    OpenedSnapshot,
    Slot,
    drop_snapshot,
    keep_snapshot,
    open_snapshot,
    slot_for,
)
from gptcli.runtime.ranks import ranks_here
from gptcli.runtime.resource_limits import check_room_for_torch
from gptcli.settings import RuntimeConfig

if TYPE_CHECKING:
    from gptcli.runtime.fast_start.snapshot_engine import SnapshotEngine
    from gptcli.runtime.torch_engine import TorchEngine


class Loader:
    """One model's engine: a snapshot's, without torch, if that serves the workload; else the full one.

    Any thread may call it; they take turns.
    """

    def __init__(self, folder: ModelFolder, runtime: RuntimeConfig, ctx_size: int, announced: Workload | None) -> None:
        """announced: the expected workload; a snapshot that may serve it is read from now on."""
        self._folder, self._runtime, self._ctx_size = folder, runtime, ctx_size
        self._full_engine: TorchEngine | None = None
        self._snapshot_engine: SnapshotEngine | None = None
        self._slot: Slot | None = None  # for a snapshot of the weights that were read
        self._opened: OpenedSnapshot | None = None
        self._lock = threading.RLock()
        self.failures: list[str] = []  # notes on why loading is slower than it could be
        self._ranks = ranks_here()
        if self._ranks is not None or announced is None or announced.probabilities:
            return
        if (slot := slot_for(folder, runtime)) is not None:
            with self._dropping(slot):
                self._opened = open_snapshot(slot, runtime, self._room(announced))

    @property
    def engine(self) -> Engine | None:
        """What is loaded."""
        return self._full_engine or self._snapshot_engine

    def load(self, workload: Workload | None, on_progress: Progress = no_progress) -> Engine:
        """An engine that serves a workload; None: any workload. on_progress: bytes read, and in all.

        Raises OutOfMemory or NoSuchDevice.
        """
        with self._lock:
            if self._full_engine is None and workload is not None:
                if self._opened is not None and self._snapshot_engine is None:
                    with self._dropping(self._opened.slot):
                        self._snapshot_engine = self._opened.engine(self._ctx_size, self._room(workload))
                if self._snapshot_engine is not None and self._snapshot_engine.serves(workload):
                    return self._snapshot_engine
            return self.load_full(on_progress)

    def load_full(self, on_progress: Progress = no_progress) -> FullEngine:
        """The engine that serves every workload. Raises as `load` does, and UsageError."""
        with self._lock:
            if self._full_engine is None:
                self._opened = self._snapshot_engine = None  # frees memory that the weights may need
                self._full_engine = self._read_weights(on_progress)
            return self._full_engine

    def keep_snapshot(self) -> None:
        """Keeps a snapshot for the next start, if the weights were read and can have one."""
        if self._full_engine is not None and self._slot is not None:
            keep_snapshot(self._slot, self._folder, self._runtime, self._full_engine)

    @contextlib.contextmanager
    def _dropping(self, slot: Slot) -> Iterator[None]:
        """Drops the slot's snapshot if the block finds it damaged, and goes on without one."""
        try:
            yield
        except DamagedSnapshot:
            drop_snapshot(slot)
            self.failures.append("what was kept for a fast start was damaged: the model was read instead")

    def _room(self, workload: Workload) -> int:
        return self._ctx_size if workload.tokens is None else min(workload.tokens, self._ctx_size)

    def _read_weights(self, on_progress: Progress) -> TorchEngine:
        started = time.perf_counter()
        # How long OpenMP's threads spin before they sleep; read when torch is first imported. By default they starve
        # each other if another process keeps a core busy (docs/benchmarks.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        check_room_for_torch()
        # Before reading: if the files change meanwhile, no snapshot is kept.
        self._slot = None if self._ranks else slot_for(self._folder, self._runtime)
        from gptcli.checkpoint.adapters import Adapter, apply_adapters
        from gptcli.checkpoint.load import load_decoder
        from gptcli.runtime.device_plan import plan_for
        from gptcli.runtime.memory_errors import memory_errors
        from gptcli.runtime.torch_engine import TorchEngine

        plan = plan_for(self._folder, self._runtime, self._ranks)
        if plan.library is None or self._ranks:
            self._check_kv(plan.dtype_name)  # no kernels will run it
        adapters = [Adapter.open(Path(path), weight) for path, weight in self._runtime.adapters]
        with memory_errors(plan.device, "loading the weights"):
            if self._ranks is None:
                decoder = load_decoder(self._folder, plan.weights, on_progress)
                apply_adapters(decoder, self._folder, adapters, plan.weights)
            elif adapters:
                raise UsageError("adapters are not split among processes", "put it into a model: `gptcli models merge`")
            else:
                from gptcli.runtime.tensor_parallel import lead

                decoder, plan = lead(self._folder, self._runtime, self._ctx_size, plan, on_progress, self._ranks)
        engine = TorchEngine(decoder, plan, self._ctx_size, load_s=time.perf_counter() - started)
        self._check_kv(engine.kv)
        return engine

    def _check_kv(self, kept: str) -> None:
        if self._runtime.kv not in ("auto", kept):
            raise UsageError(f"--kv {self._runtime.kv} is for the CPU kernels: here keys and values are kept in {kept}")
