"""A model's directory: its JSON files, its tensors by name, and what the files say of stored precision. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gptcli.checkpoint.hf import HfConfig
from gptcli.checkpoint.recipes import Architecture, Recipe, Shape, shape, sources
from gptcli.checkpoint.registry import architecture_of
from gptcli.checkpoint.safetensors_header import TensorInfo, read_header
from gptcli.errors import BrokenCheckpoint, ModelNotFound, UnsupportedArchitecture
from gptcli.files import read_json

# quant_method and format of those who store FP8 weights with scales as we read them.
_FP8_METHODS = {
    ("fp8", "float-quantized"),
    ("fbgemm_fp8", "float-quantized"),
    ("compressed-tensors", "float-quantized"),
}
_FP8_SCALES = ("_scale_inv", "_scale")  # behind the weight's name; despite the name, both multiply


@dataclass(frozen=True)
class AffineSpec:
    """MLX's affine quantization: groups of `group_size` columns share a scale and a bias, w = scale * q + bias."""

    group_size: int
    bits: int


@dataclass(frozen=True)
class ModelFolder:
    """An opened model directory."""

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads every header and JSON file, and no weights.

        Raises ModelNotFound where there is no model, and BrokenCheckpoint where its files contradict themselves.
        """
        if not path.is_dir():
            hint = f"run `gptcli models import {path}`" if path.suffix == ".gguf" else None
            raise ModelNotFound(f"not a model directory: {path}", hint)
        if not (path / "config.json").exists():
            raise ModelNotFound(f"not a model directory: {path}: it has no config.json")
        generation = path / "generation_config.json"
        return cls(
            path,
            read_json(path / "config.json"),
            read_json(generation) if generation.exists() else {},
            _read_tensors(path),
        )

    @cached_property
    def architecture(self) -> Architecture:
        """The decoder described here; every tensor it needs is present, fits in shape, and none is left over.

        Raises UnsupportedArchitecture or BrokenCheckpoint.
        """
        architecture = architecture_of(HfConfig(self.config), self.tensors)
        self._check_complete(architecture)
        return architecture

    @cached_property
    def affine(self) -> dict[str, AffineSpec]:
        """The modules stored in MLX's affine form, by the name their tensors begin with."""
        _refuse_other_quantization(self.config)
        modules = [name.removesuffix(".scales") for name in self.tensors if name.endswith(".scales")]
        settings = self.config.get("quantization")
        if settings is None:
            if modules:
                raise BrokenCheckpoint("config.json: the weights are quantized, but `quantization` is missing")
            return {}
        return {module: _affine_spec(settings, module) for module in modules}

    @cached_property
    def fp8_block(self) -> tuple[int, int]:
        """Rows and columns that share a scale in FP8 weights stored with block scales."""
        settings = self.config.get("quantization_config")
        given = settings.get("weight_block_size") if isinstance(settings, dict) else None
        match given:
            case None:
                return 128, 128
            case [int(rows), int(columns)] if rows > 0 and columns > 0:
                return rows, columns
        raise BrokenCheckpoint("config.json: weight_block_size must be two sizes")

    def fp8_scale(self, name: str) -> str | None:
        """The tensor that holds the scales of an FP8 weight; None for weights of other dtypes.

        Raises BrokenCheckpoint where it is missing or of no shape that scales have.
        """
        info = self.tensors[name]
        if info.dtype != "F8_E4M3":
            return None
        scale = next((found for end in _FP8_SCALES if (found := name + end) in self.tensors), None)
        if scale is None or len(info.shape) != 2:
            raise BrokenCheckpoint(f"{name}: an FP8 matrix without its scales")
        (rows, columns), (block_rows, block_columns) = info.shape, self.fp8_block
        blocks = (-(-rows // block_rows), -(-columns // block_columns))
        if self.tensors[scale].shape not in ((), (1,), (1, 1), (rows,), (rows, 1), blocks):
            raise BrokenCheckpoint(f"{scale}: no scales of {name} have shape {list(self.tensors[scale].shape)}")
        return scale

    def shape(self, name: str) -> Shape:
        """A tensor's logical shape: a packed weight counts its columns, not its words."""
        stored = self.tensors[name].shape
        spec = self.affine.get(name.removesuffix(".weight"))
        if spec is None or not name.endswith(".weight"):
            return stored
        if len(stored) != 2 or stored[1] * 32 % spec.bits:
            raise BrokenCheckpoint(f"{name}: no packed matrix of {spec.bits} bits has shape {list(stored)}")
        columns = stored[1] * 32 // spec.bits
        for leaf in ("scales", "biases"):
            companion = self.tensors.get(name.removesuffix("weight") + leaf)
            if companion is None or companion.shape != (stored[0], columns // spec.group_size):
                raise BrokenCheckpoint(f"{name}: its {leaf} are missing or of another shape")
        return (stored[0], columns)

    @property
    def weight_bytes(self) -> int:
        """Size of all tensors as stored, in bytes."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def parameter_count(self) -> int:
        """How many weights the decoder has, packed ones counted one by one."""
        return sum(math.prod(self.parameter_shape(recipe)) for recipe in self.architecture.parameters.values())

    @property
    def stop_ids(self) -> dict[str, tuple[int, ...]]:
        """Ids that end a generation, by the file that names them."""
        sources = {"config.json": self.config, "generation_config.json": self.generation_config}
        return {name: ids for name, fields in sources.items() if (ids := _eos_ids(fields, name))}

    def _check_complete(self, architecture: Architecture) -> None:
        used = set()
        missing = []
        for recipe in architecture.parameters.values():
            for name in sources(recipe):
                used.add(name)
                if name not in self.tensors:
                    missing.append(name)
                elif (module := name.removesuffix(".weight")) in self.affine:
                    used |= {f"{module}.scales", f"{module}.biases"}
                elif scale := self.fp8_scale(name):
                    # Scales of activations, which we leave as they are, lie beside them.
                    used |= {scale, name.removesuffix("weight") + "input_scale"}
        if missing:
            raise BrokenCheckpoint(_listed("tensors are missing from the weights", missing))
        aside = architecture.ignorable, architecture.unused_parts
        unused = [
            name
            for name in self.tensors
            if name not in used and not name.endswith(aside[0]) and not name.startswith(aside[1])
        ]
        if unused:
            raise BrokenCheckpoint(_listed("tensors that the architecture does not use", unused))

    def parameter_shape(self, recipe: Recipe) -> Shape:
        """The shape of what a recipe makes."""
        return shape(recipe, self.shape)


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _eos_ids(fields: dict[str, Any], where: str) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(token) is not int or token < 0 for token in ids):
        raise BrokenCheckpoint(f"{where}: eos_token_id must be one or more token ids")
    return tuple(ids)


def _refuse_other_quantization(config: dict[str, Any]) -> None:
    other = config.get("quantization_config")
    # MLX writes its settings under both names; a method belongs to another library's format.
    if isinstance(other, dict) and other.get("quant_method") not in (None, "mlx"):
        if (other["quant_method"], other.get("format", "float-quantized")) in _FP8_METHODS:
            return
        raise UnsupportedArchitecture(f"config.json: quantization {other['quant_method']!r} is not supported")
    if other is not None and config.get("quantization") is None:
        raise UnsupportedArchitecture("config.json: quantization_config without a known method is not supported")


def _affine_spec(settings: Any, module: str) -> AffineSpec:
    if not isinstance(settings, dict):
        raise BrokenCheckpoint("config.json: quantization must be an object")
    chosen = settings.get(module, settings)
    if not isinstance(chosen, dict):
        raise BrokenCheckpoint(f"config.json: quantization of {module} must be an object")
    mode = chosen.get("mode", settings.get("mode", "affine"))
    if mode != "affine":
        raise UnsupportedArchitecture(f"config.json: quantization mode {mode!r} is not supported")
    group_size, bits = chosen.get("group_size"), chosen.get("bits")
    if group_size not in (32, 64, 128) or bits not in (2, 3, 4, 5, 6, 8):
        raise UnsupportedArchitecture(
            f"config.json: quantization with {bits} bits in groups of {group_size} is not supported"
        )
    return AffineSpec(group_size, bits)


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists():
        return read_header(single)
    if index.exists():
        return _read_shards(path, index)
    if any(path.glob("*.bin")):
        raise BrokenCheckpoint(
            f"no safetensors weights: {path}: pickle (.bin) is not supported, for it can run code",
            hint="convert it with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)",
        )
    raise ModelNotFound(f"no weights: {path}: neither model.safetensors nor its index is there")


def _read_shards(path: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index, limit=64 << 20).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenCheckpoint(f"cannot read: {index}: weight_map must be an object")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise BrokenCheckpoint(f"cannot read: {index}: {str(file)[:80]!r} is no file name beside it")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(set(weight_map.values())):
        if not (path / file).exists():
            raise BrokenCheckpoint(f"a shard is missing: {path / file}", hint="fetch the model again")
        for name, tensor in read_header(path / file).items():
            if weight_map.get(name) != file:
                raise BrokenCheckpoint(f"cannot read: {index}: it does not say that {name!r} is in {file}")
            tensors[name] = tensor
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise BrokenCheckpoint(_listed(f"tensors named in {index.name} are in no shard", absent))
    return tensors
