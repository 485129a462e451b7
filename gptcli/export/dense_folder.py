"""Writes a model folder from a decoder's parameters, with its checkpoint's tensor names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gptcli.checkpoint.adapters import Adapter, updates_of
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import Dense
from gptcli.checkpoint.recipes import sources
from gptcli.checkpoint.weights.evaluate_recipe import dense, evaluate, fp32
from gptcli.checkpoint.weights.invert_recipe import is_reversible, tensors_of
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import UsageError
from gptcli.export.quantized_folder import array_of, copy_texts, taken_tensors, written_weights
from gptcli.gguf.safetensors_writer import SafetensorsWriter, write_json

_OF_PACKED = ("quantization", "quantization_config", "torch_dtype")


def refuse_gguf(folder: ModelFolder) -> None:
    """Raises UsageError for a GGUF file, which has no config.json and tokenizer.json to write beside weights."""
    if folder.is_gguf:
        raise UsageError("a GGUF file has no config.json to keep", "run `gptcli models import` first")


def write_dense(
    folder: ModelFolder,
    target: Path,
    value_of: Callable[[str], Tensor | None],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes a model with new values, in fp32, into an existing directory.

    value_of: a parameter's new value by its name, None if it stays; asked for parameters with reversible recipes. Other
    tensors of `written_weights` are copied, packed ones expanded. Raises OSError, and BrokenCheckpoint where one cannot
    be read.
    """
    parameters = folder.architecture.parameters
    with TensorSource(folder) as source:
        writer, written = SafetensorsWriter(target), set[str]()
        for index, (name, recipe) in enumerate(parameters.items()):
            known = is_reversible(recipe) and not written.issuperset(sources(recipe))
            if known and (new := value_of(name)) is not None:
                tensors = tensors_of(recipe, new, source.stored, source.read)
                writer.add({each: value.float().contiguous().numpy() for each, value in tensors.items()})
                written |= tensors.keys()
            on_progress(index, len(parameters))
        transposed = dict(each for recipe in parameters.values() for each in taken_tensors(recipe))
        for name in sorted({*written_weights(folder)} - written):
            value = dense(source.weight(name))
            if transposed.get(name) and not isinstance(source.stored(name), Dense):
                value = value.mT  # packed weights are stored (out, in) all the same
            writer.add({name: array_of(value, "BF16" if value.dtype == torch.bfloat16 else "")})
        writer.close()
    copy_texts(folder, target)
    config = {name: value for name, value in folder.config.items() if name not in _OF_PACKED}
    write_json(target / "config.json", config | {"dtype": "float32"})


def write_merged(
    folder: ModelFolder, adapters: Sequence[Adapter], target: Path, on_progress: Callable[[int, int], None]
) -> None:
    """Writes a model with adapters added to its weights. Raises as `write_dense` and `updates_of` do."""
    updates = updates_of(folder, adapters)
    with TensorSource(folder) as source:

        def merged(name: str) -> Tensor | None:
            path, _, leaf = name.rpartition(".")
            if leaf != "weight" or path not in updates:
                return None
            down, up = updates[path]
            return fp32(evaluate(folder.architecture.parameters[name], source)) + up @ down

        write_dense(folder, target, merged, on_progress)
