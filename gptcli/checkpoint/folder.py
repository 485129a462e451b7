"""A model's directory or GGUF file: its config, tensors and weights by name, and architecture. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.formats import Dense, Gptq, Shape, Stored, check_floats, is_expanded, stored_weights
from gptcli.checkpoint.generation_config import GENERATION_FIELDS, GGUF_METADATA, generation_source
from gptcli.checkpoint.not_a_model import refuse_adapter, refuse_pickle
from gptcli.checkpoint.recipes import Architecture, Recipe, shape
from gptcli.checkpoint.registry import architecture_of
from gptcli.checkpoint.safetensors_header import TensorInfo, read_header
from gptcli.errors import BrokenCheckpoint, ModelNotFound
from gptcli.files import NotJson, is_gguf, is_there, read_json
from gptcli.model_notes import Note

if TYPE_CHECKING:
    from gptcli.gguf.model import GgufModel
    from gptcli.snapshot_format import SnapshotFile

Stamp: TypeAlias = tuple[int, ...]

_AHEAD = "layers that predict tokens further ahead, and that nothing uses"
_TEXT_ALONE = Note("text alone goes in, though the model reads images too")


@dataclass(frozen=True)
class ModelFolder:
    """An opened model directory, or a GGUF file read as one.

    generation_config: None if it is missing or no JSON, as in transformers. gguf: the opened file; None if a
    snapshot of its header was read instead. unwritten: the slot that `keep` fills. stamps: of files of weights, from
    before they were read.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any] | None
    tensors: dict[str, TensorInfo]
    not_in_shards: tuple[str, ...] = ()  # tensors that the index names and no file has
    reading_notes: list[Note] = field(default_factory=list)
    is_gguf: bool = False
    gguf: GgufModel | None = field(default=None, compare=False)
    unwritten: SnapshotFile | None = field(default=None, compare=False)
    stamps: Mapping[Path, Stamp] = field(default_factory=dict, compare=False)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads every header and JSON file, but no weights.

        Raises ModelNotFound if there is no model, and BrokenCheckpoint if its files contradict each other.
        """
        if is_gguf(path):
            return cls._open_gguf(path)
        if not path.is_dir():
            raise ModelNotFound(f"neither a model directory nor a GGUF file: {path}")
        if not is_there(path / "config.json"):
            refuse_adapter(path)
            raise ModelNotFound(f"not a model directory: {path}: it has no config.json")
        notes, stamps = list[Note](), stamps_of(path.glob("*.safetensors"))
        config = read_json(path / "config.json", notes=notes, contradictions=True)
        return cls(path, config, _read_generation_config(path, notes), *_read_tensors(path), notes, stamps=stamps)

    @classmethod
    def _open_gguf(cls, path: Path) -> Self:
        from gptcli.checkpoint.header_snapshots import header_slot, read_header_snapshot  # most models need none of it

        stamps = stamps_of([Path(os.path.realpath(path))])
        slot = header_slot(path)
        if slot is not None and (kept := read_header_snapshot(slot)) is not None:
            return cls(
                path, kept.config, kept.generation_config, kept.tensors, (), kept.notes, is_gguf=True, stamps=stamps
            )
        from gptcli.gguf.model import read_model

        model = read_model(path)
        tensors = {
            name: TensorInfo(each.kind, each.shape, each.file, each.offset, each.size, each.edit)
            for name, each in model.tensors.items()
        }
        notes = [Note("fields that nothing reads", model.left_over)] if model.left_over else []
        if model.reads_images:
            notes.append(_TEXT_ALONE)
        if model.ahead:
            notes.append(Note(_AHEAD, tuple(f"blk.{layer}" for layer in model.ahead)))
        stamps = stamps_of({each.file for each in tensors.values()}) | stamps  # other parts only now
        folder = cls(path, model.config, model.generation_config, tensors, (), notes, True, model, slot, stamps)
        if kinds := sorted({stored.about for stored in folder.weights.values() if is_expanded(stored)}):
            what = "expanded in memory, for nothing multiplies with them as stored: blocks of type"
            notes.append(Note(what, tuple(kinds)))
        return folder

    def keep(self) -> None:
        """Writes a snapshot of a GGUF file's header, for a faster next start."""
        if self.unwritten is not None:
            from gptcli.checkpoint.header_snapshots import ReadFile, write_header_snapshot

            generation_config = self.generation_config or {}
            write_header_snapshot(
                self.unwritten, ReadFile(self.config, generation_config, self.tensors, self.reading_notes)
            )

    @cached_property
    def notes(self) -> list[Note]:
        """Notes on what in the files has no effect on the decoder. Raises as `architecture` does."""
        read_there = GENERATION_FIELDS if generation_source(self)[0] == "config.json" else ()
        fields = tuple(name for name in self.architecture.left_over if name not in read_there)
        size = self.architecture.config.vocab_size
        outside = {id for ids in self.stop_ids.values() for id in ids if id >= size}
        left_over = {
            "config.json: fields that nothing reads": fields,
            "tensors that nothing uses": tuple(self._unused(self.architecture)),
            _AHEAD: tuple(
                prefix.rstrip("._")
                for prefix in self.architecture.ahead
                if any(name.startswith(prefix) for name in self.weights)
            ),
            "tensors that only the index names": self.not_in_shards,
            "eos_token_id outside the vocabulary": tuple(map(str, sorted(outside))),
        }
        about_images = [_TEXT_ALONE] if self.architecture.reads_images else []
        return [*self.reading_notes, *about_images, *(Note(what, names) for what, names in left_over.items() if names)]

    @cached_property
    def architecture(self) -> Architecture:
        """The decoder that the config describes, checked against the tensors: none is missing or of another decoder.

        Raises UnsupportedArchitecture or BrokenCheckpoint.
        """
        where = str(self.path) if self.is_gguf else "config.json"
        architecture = architecture_of(HfConfig(self.config, where), self.weights)
        self._check_complete(architecture)
        _ = self.stop_ids  # raises for invalid ids
        return architecture

    @cached_property
    def weights(self) -> dict[str, Stored]:
        """How each weight is stored, by its name in transformers. Raises as `stored_weights` does."""
        return stored_weights(self.config, self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Size of all tensors as stored, in bytes."""
        return sum(tensor.size for tensor in self.tensors.values())

    def bytes_for_kernels(self, expanded_bytes: int) -> int:
        """Bytes of the weights in memory where kernels multiply with them as stored.

        expanded_bytes: bytes per number of the weights that must be expanded.
        """
        expanded = (stored for stored in self.weights.values() if is_expanded(stored))
        return self.weight_bytes + sum(
            expanded_bytes * math.prod(stored.shape) - self.tensors[stored.tensors[0]].size for stored in expanded
        )

    @property
    def parameter_count(self) -> int:
        """The decoder's number of parameters; packed ones count fully."""
        return sum(math.prod(self.parameter_shape(recipe)) for recipe in self.architecture.parameters.values())

    @property
    def stop_ids(self) -> dict[str, tuple[int, ...]]:
        """Ids that end a generation, by the name of the file that lists them."""
        sources = {"config.json": self.config, "generation_config.json": self.generation_config or {}}
        if self.is_gguf:
            sources = {GGUF_METADATA: self.generation_config or {}}
        return {name: ids for name, fields in sources.items() if (ids := _eos_ids(fields, name))}

    @property
    def surplus_biases(self) -> list[str]:
        """Biases of GPTQ's modules that the decoder does not have: some converters write zeros there."""
        used = self.architecture.tensors
        modules = (name.removesuffix("weight") for name, stored in self.weights.items() if isinstance(stored, Gptq))
        return [bias for module in modules if (bias := f"{module}bias") in self.weights and bias not in used]

    def kept_bytes(self, element_bytes: int) -> int:
        """Bytes of the weights in memory, if packed ones stay so and a number of dense ones takes `element_bytes`."""
        return sum(
            math.prod(stored.shape) * element_bytes
            if isinstance(stored, Dense) or is_expanded(stored)
            else sum(self.tensors[name].size for name in stored.tensors)
            for stored in self.weights.values()
        )

    def _check_complete(self, architecture: Architecture) -> None:
        wanted = architecture.tensors
        missing = [name for name in wanted if name not in self.weights]
        if missing:
            raise BrokenCheckpoint(_listed("tensors are missing from the weights", missing))
        for name in wanted:
            if isinstance(self.weights[name], Dense):
                check_floats(name, self.tensors)
        unused = self._unused(architecture)
        used = {_without_numbers(name) for name in wanted}
        other = [name for name in unused if self.is_gguf or _is_bias_of(name, wanted) or _without_numbers(name) in used]
        if other:
            raise BrokenCheckpoint(_listed("tensors that the architecture does not use", other))

    def _unused(self, architecture: Architecture) -> list[str]:
        """Tensors that nothing uses, except those that the family or a packed format always leaves unused."""
        suffixes, prefixes = architecture.unused_suffixes, (*architecture.unused_prefixes, *architecture.ahead)
        return [
            name
            for name in self.weights
            if name not in architecture.tensors
            and not name.endswith(suffixes)
            and not name.startswith(prefixes)
            and not isinstance(self.weights.get(name.removesuffix("bias") + "weight"), Gptq)
        ]

    def parameter_shape(self, recipe: Recipe) -> Shape:
        """The shape of what a recipe makes."""
        return shape(recipe, self.weights.__getitem__)


def stamp(status: os.stat_result) -> Stamp:
    """Differs once a file was replaced or written to; unlike `files.identity`, not for another name or other rights."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def stamps_of(files: Iterable[Path]) -> dict[Path, Stamp]:
    """The stamps of those files that are there."""
    found = dict[Path, Stamp]()
    for file in files:
        with suppress(OSError):
            found[file] = stamp(file.stat())
    return found


def _read_generation_config(path: Path, notes: list[Note]) -> dict[str, Any] | None:
    """Raises BrokenCheckpoint as `read_json` does, except for what is not JSON: transformers goes on without it."""
    file = path / "generation_config.json"
    if not is_there(file):
        return None
    try:
        return read_json(file, notes=notes)
    except NotJson as error:
        notes.append(Note(f"{error.message}; so config.json says how to generate"))
        return None


def _is_bias_of(name: str, wanted: Container[str]) -> bool:
    """Whether this is the bias of a weight in use, which shows that the config describes another model."""
    return name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in wanted


def _without_numbers(name: str) -> str:
    """The name without the number of its layer, expert or head."""
    return ".".join("#" if part.isdecimal() else part for part in name.split("."))


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _eos_ids(fields: dict[str, Any], where: str) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or token < 0 for token in ids):
        raise BrokenCheckpoint(f"{where}: eos_token_id must be one or more token ids")
    return tuple(ids)


def _read_tensors(path: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """All tensors, and the names of those that an index names and no file has."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if is_there(single):
        return read_header(single), ()
    if is_there(index):
        return _read_shards(path, index)
    refuse_adapter(path)
    refuse_pickle(path)
    raise ModelNotFound(f"no weights: {path}: neither model.safetensors nor its index is there")


def _read_shards(path: Path, index: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    weight_map = read_json(index, limit=32 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenCheckpoint(f"cannot read: {index}: weight_map must be an object")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BrokenCheckpoint(f"cannot read: {index}: {str(file)[:80]!r} is no file name beside it")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        if not is_there(path / file):
            raise BrokenCheckpoint(f"a shard is missing: {path / file}", hint="fetch the model again")
        for name, tensor in read_header(path / file).items():
            if name in tensors:
                raise BrokenCheckpoint(f"{name!r} is in more than one file: {path}: {tensors[name].file.name}, {file}")
            tensors[name] = tensor
    return tensors, tuple(name for name in weight_map if name not in tensors)
