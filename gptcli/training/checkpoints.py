"""The directory of a run, and its checkpoints: each is whole or absent, and the last two are kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptcli.errors import OutputError
from gptcli.files import UNFINISHED, locked_directory, made_directory, read_json, written_whole
from gptcli.training.parallel.data_parallel import Processes

_KEPT = 2
_RECORD, _STATE = "run.json", "state.json"
INITIAL, DATA = "initial", "data"


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns what the system refuses to write into OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write: {path}: {getattr(error, 'strerror', None) or error}") from None


class RunDirectory:
    """The directory of a run. Raises OutputError for what cannot be written.

    Results are in the directory itself, with log.jsonl, a line per event. What the run needs is in `training`: run.json
    with its settings, the first model of a run from nothing, the encoded data, and checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inside = path / "training"
        self.initial, self.data = self._inside / INITIAL, self._inside / DATA
        self.checkpoints, self.log = self._inside / "checkpoints", path / "log.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory, which stays unless it is empty; no other process trains there within the block."""
        with made_directory(self.path), locked_directory(self.path, "another process trains there"):
            yield

    @property
    def record(self) -> dict[str, Any] | None:
        """The contents of run.json; None if no run began here."""
        file = self._inside / _RECORD
        return read_json(file) if file.exists() else None

    @contextmanager
    def begun(self, record: Mapping[str, Any]) -> Iterator[Path]:
        """A directory for what the run needs. It appears, with run.json, once the block ends, or not at all."""
        with written_directory(self._inside) as draft:
            yield draft
            (draft / _RECORD).write_text(_json(record), encoding="utf-8")

    def is_foreign(self) -> bool:
        """Whether there are files here that belong to no run."""
        own = {self._inside.name, self._inside.name + UNFINISHED}
        return self.record is None and any(each.name not in own for each in self.path.iterdir())

    def steps(self) -> list[int]:
        """The steps with a checkpoint, in order."""
        names = (each.name for each in self.checkpoints.glob("step-*") if each.name.removeprefix("step-").isdecimal())
        return sorted(int(name.removeprefix("step-")) for name in names)

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], processes: Processes
    ) -> None:
        """Writes a checkpoint, files of tensors by name and a state; drops all but the last two.

        Every process calls it and writes its files. The first makes the directory, and renames it once all have.
        """
        target = self.checkpoints / f"step-{step:08}"
        with ExitStack() as stack:
            if processes.leads:
                draft = processes.agreed(lambda: stack.enter_context(written_directory(target)))
            else:
                draft = processes.agreed(lambda: _draft(target))

            def write() -> None:
                with output_errors(target):
                    for name, named in tensors.items():
                        values = {each: value.detach().cpu().contiguous() for each, value in named.items()}
                        save_file(values, draft / name)
                        _flush(draft / name)
                    if processes.leads:
                        (draft / _STATE).write_text(_json(state), encoding="utf-8")

            processes.agreed(write)
            processes.agreed(stack.close)
        if processes.leads:
            for old in self.steps()[:-_KEPT]:
                _remove(self.checkpoints / f"step-{old:08}")
            for left in self.checkpoints.glob(f"*{UNFINISHED}"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)

    def load(self, step: int) -> tuple[Callable[[str], dict[str, Tensor]], dict[str, Any]]:
        """A function that reads a checkpoint's tensors by the name of their file; and its state."""
        source = self.checkpoints / f"step-{step:08}"
        return lambda name: load_file(source / name), read_json(source / _STATE)

    def finish(self) -> None:
        """Records that the run is finished, and removes what only resuming needs."""
        with written_whole(self._inside / _RECORD) as draft:
            draft.write_text(_json({**(self.record or {}), "finished": True}), encoding="utf-8")
        for each in (self.checkpoints, self.data, self.initial):
            _remove(each)


@contextmanager
def written_directory(target: Path) -> Iterator[Path]:
    """A directory to write; renamed to `target` once its bytes are on disk, removed if that fails.

    Raises OutputError for what the system refuses.
    """
    draft = _draft(target)
    with output_errors(target):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            yield draft
            for file in (*draft.rglob("*"), draft):
                _flush(file)
            os.replace(draft, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Renames a directory to a draft, then removes it: a killed process leaves it whole, or as a draft."""
    draft = _draft(directory)
    shutil.rmtree(draft, ignore_errors=True)
    with suppress(OSError):  # it is gone, or stays
        os.replace(directory, draft)
    shutil.rmtree(draft, ignore_errors=True)


def _draft(target: Path) -> Path:
    return target.with_name(target.name + UNFINISHED)


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2) + "\n"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
