"""Writes a folder of safetensors whose matrices are packed as `--quantize int8` or `int4` packs them in memory.

The layout is MLX's affine form, which gptcli and mlx-lm read; transformers does not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import FLOATS, Affine, Dense
from gptcli.checkpoint.load import empty_decoder, quantized_bits
from gptcli.checkpoint.recipes import Recipe, Take, Transposed, operands_of
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import OutputError, UnsupportedArchitecture, UsageError
from gptcli.files import MANIFEST, open_within
from gptcli.gguf.safetensors_writer import SafetensorsWriter, write_json
from gptcli.quant.affine import quantize_affine

_GROUP = 32  # columns, the same as in memory
_COPIED = (".json", ".jinja", ".model", ".txt", "LICENSE", "LICENSE.md")
_WRITTEN = ("config.json", "model.safetensors.index.json", MANIFEST)
Packing = Literal["int8", "int4"]


def quantized_size(folder: ModelFolder, packing: Packing) -> int:
    """Bytes of the tensors that `write_quantized` will write; what it copies beside them is not counted."""
    packed = _packed_in(folder, packing)
    return sum(
        _packed_bytes(folder.weights[name].shape, packed[name][0])
        if name in packed
        else sum(folder.tensors[each].size for each in folder.weights[name].tensors)
        for name in written_weights(folder)
    )


def write_quantized(
    folder: ModelFolder, target: Path, packing: Packing, on_progress: Callable[[int, int], None]
) -> None:
    """Writes a model to an existing directory. Weights that are packed already stay as they are.

    Raises UsageError if there is nothing to pack, UnsupportedArchitecture for what the layout cannot have,
    BrokenCheckpoint and OutputError. on_progress gets bytes read and in all.
    """
    packed = _packed_in(folder, packing)
    settings = _settings(folder, {name: bits for name, (bits, _) in packed.items()}, packing)
    try:
        with TensorSource(folder) as source:
            writer = SafetensorsWriter(target)
            for name in written_weights(folder):
                tensors = folder.weights[name].tensors
                if name in packed:
                    writer.add(_quantized(name, source.read(tensors[0]), *packed[name]))
                else:
                    writer.add({each: array_of(source.read(each), folder.tensors[each].dtype) for each in tensors})
                on_progress(source.bytes_read, folder.weight_bytes)
            writer.close()
        copy_texts(folder, target)
        write_json(target / "config.json", {**folder.config, "quantization": settings})
    except OSError as error:
        raise OutputError(f"cannot write: {target}: {error.strerror or error}") from None


def written_weights(folder: ModelFolder) -> list[str]:
    """The names of a folder's weights without dense ones that are no floats: causal masks, which nothing reads."""
    return [
        name
        for name, stored in folder.weights.items()
        if not isinstance(stored, Dense) or folder.tensors[stored.tensors[0]].dtype in FLOATS
    ]


def copy_texts(folder: ModelFolder, target: Path) -> None:
    """Copies the other files of a model: tokenizer, templates, licence. Raises OSError."""
    for file in folder.path.iterdir():
        if file.is_file() and file.name.endswith(_COPIED) and file.name not in _WRITTEN:
            with open_within(file) as source_file, (target / file.name).open("wb") as copy:
                shutil.copyfileobj(source_file, copy)


def _packed_in(folder: ModelFolder, packing: Packing) -> dict[str, tuple[int, bool]]:
    """The bits of each dense matrix that becomes packed, and whether it is stored (in, out)."""
    if folder.is_gguf:
        raise UsageError("a GGUF file has no config.json to keep", "run `gptcli models import` first, or --to q8_0")
    decoder = empty_decoder(folder)
    found: dict[str, tuple[int, bool]] = {}
    for name, recipe in folder.architecture.parameters.items():
        bits = quantized_bits(decoder, name, folder.parameter_shape(recipe)[-1], packing)
        if bits is None:
            continue
        for taken, transposed in taken_tensors(recipe):
            if isinstance(folder.weights[taken], Dense):
                if not taken.endswith(".weight"):
                    raise UnsupportedArchitecture(f"{taken}: the layout has no name for it", "try --to q8_0")
                found[taken] = bits, transposed
    if not found:
        forms = sorted({stored.about for stored in folder.weights.values() if stored.about})
        raise UsageError(f"nothing to quantize: the weights are packed already: {', '.join(forms)}")
    return found


def taken_tensors(recipe: Recipe, transposed: bool = False) -> Iterator[tuple[str, bool]]:
    """The tensors that a recipe takes, and whether each is transposed; their order does not matter here."""
    if isinstance(recipe, Take):
        yield recipe.name, transposed
    for operand in operands_of(recipe):
        yield from taken_tensors(operand, transposed != isinstance(recipe, Transposed))


def _settings(folder: ModelFolder, bits: dict[str, int], packing: Packing) -> dict[str, Any]:
    """config.json's `quantization`: the usual bits, exceptions by name; settings that it has already stay."""
    if any(not isinstance(stored, Dense | Affine) for stored in folder.weights.values()):
        raise UnsupportedArchitecture("its packed weights cannot be in one folder with those of MLX's form")
    settings = dict(folder.config.get("quantization") or {"group_size": _GROUP, "bits": int(packing[3:])})
    usual = settings["group_size"], settings["bits"]
    for name, each in bits.items():
        if (_GROUP, each) != usual:
            settings[name.removesuffix(".weight")] = {"group_size": _GROUP, "bits": each}
    return settings


def _quantized(name: str, value: Tensor, bits: int, transposed: bool) -> dict[str, Any]:
    weight = quantize_affine(value.mT.contiguous() if transposed else value, bits, _GROUP)
    module = name.removesuffix(".weight")
    words = weight.packed.contiguous().numpy().view("uint32")
    return {name: words, f"{module}.scales": weight.scales.numpy(), f"{module}.biases": weight.biases.numpy()}


def array_of(value: Tensor, dtype: str) -> Any:
    """A stored tensor as an array. dtype: the file's; BF16, which numpy lacks, becomes uint16, and U32 stays one."""
    if dtype == "U32":
        return value.contiguous().numpy().view("uint32")
    return (value.view(torch.uint16) if dtype == "BF16" else value).contiguous().numpy()


def _packed_bytes(shape: tuple[int, ...], bits: int) -> int:
    count = math.prod(shape)
    return count * bits // 8 + count // _GROUP * 4
