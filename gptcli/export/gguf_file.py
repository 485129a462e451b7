"""Writes a model as a GGUF file: with its weights as they are, or rounded to a type of ggml's blocks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import Dense, Ggml
from gptcli.checkpoint.recipes import sources
from gptcli.checkpoint.weights.evaluate_recipe import evaluate, fp32, rows_of
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import OutputError
from gptcli.export.ggml_encoding import exact_blocks, float_blocks, rounded_blocks
from gptcli.export.ggml_rounding import block_columns
from gptcli.export.gguf_fields import gguf_config
from gptcli.export.gguf_tensors import Target, architecture_name, targets_of
from gptcli.export.gguf_tokenizer import tokenizer_fields, tokenizer_notes
from gptcli.files import called_gguf, output_file, written_whole
from gptcli.gguf.blocks import BLOCKS
from gptcli.gguf.families.registry import ARCHITECTURES
from gptcli.gguf.model_tensor import Edit
from gptcli.gguf.reader import GgufFile
from gptcli.gguf.writer import Blocks, write_gguf
from gptcli.model_notes import Note
from gptcli.quant.ggml import GgmlWeight
from gptcli.quant.packed import PackedWeight
from gptcli.text.tokenizer import Tokenizer

# By `--to`: the type of matrices, and that of embeddings and heads, which 4 bits would hurt most.
ROUNDINGS = {"q8_0": ("Q8_0", "Q8_0"), "q6_k": ("Q6_K", "Q6_K"), "q4_k": ("Q4_K", "Q6_K"), "q4_0": ("Q4_0", "Q8_0")}
_NARROW = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where rows are no multiple of 256 columns, as in llama.cpp
_SPARE = 64 << 20  # bytes for header and tokenizer
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
Progress = Callable[[int, int], None]  # bytes read, and in all


@dataclass(frozen=True)
class _Plan:
    """A file's fields and tensors, before any weight is read."""

    fields: Mapping[str, Any]
    targets: list[Target]
    factors: Mapping[str, np.ndarray[Any, Any]]
    edits: Mapping[str, Edit]
    notes: list[Note]


def write_model(
    folder: ModelFolder,
    tokenizer: Tokenizer,
    name: str,
    file: Path,
    *,
    to: str | None = None,
    new: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> list[Note]:
    """Writes a GGUF file, whole or not at all. to: a key of ROUNDINGS; None keeps every value.
    new: a file that another process made meanwhile is not replaced.

    Returns notes for those who read the file. Raises UnsupportedArchitecture or BrokenTokenizer for what files cannot
    have, BrokenCheckpoint, OutputError, and UsageError for a file of the model.
    """
    inputs = {tensor.file for tensor in folder.tensors.values()}
    if not folder.is_gguf:
        inputs.update(each for each in folder.path.iterdir() if not called_gguf(each.name))
    output_file(file, inputs)
    plan = _planned(folder, tokenizer, name)
    notes = list(plan.notes)
    shapes = {target.name: target.shape for target in plan.targets}
    _need_space(file, plan, folder, to)
    expanded: set[str] = set()
    with _RawSource(folder) as source, written_whole(file, new=new) as draft:
        blocks = _blocks(plan, folder, source, to, expanded, on_progress)
        write_gguf(draft, plan.fields, {**shapes, **{name: each.shape for name, each in plan.factors.items()}}, blocks)
    if expanded:
        notes.append(Note("expanded, for ggml has no blocks of the form", tuple(sorted(expanded))))
    return notes + ([] if to is None else _rounding_notes(plan, folder, to))


def _planned(folder: ModelFolder, tokenizer: Tokenizer, name: str) -> _Plan:
    architecture = architecture_name(str(folder.config.get("model_type")))
    targets, taken = targets_of(folder, ARCHITECTURES[architecture])
    config = gguf_config(architecture, folder, {each.name: each.shape for each in targets.values()}, taken)
    if folder.is_gguf:
        told: list[Note] = []
        words = {
            field: value for field, value in GgufFile(folder.path).fields.items() if field.startswith("tokenizer.")
        }
    else:
        stops = [id for where in ("generation_config.json", "config.json") for id in folder.stop_ids.get(where, ())]
        words = tokenizer_fields(folder.path, tokenizer, stops, folder.architecture.config.vocab_size)
        told = tokenizer_notes(tokenizer, words, stops)
    fields = {**config.fields, "general.type": "model", "general.name": name, **_sampling(folder), **words}
    return _Plan(fields, list(targets.values()), config.factors, config.edits, [*config.notes, *told])


def _sampling(folder: ModelFolder) -> dict[str, Any]:
    given = folder.generation_config or {}
    return {
        f"general.sampling.{theirs}": given[ours] if ours == "top_k" else float(given[ours])
        for ours, theirs in _SAMPLING.items()
        if type(given.get(ours)) in (int, float)
    }


class _RawSource(TensorSource):
    """Gives blocks of GGUF files as they are."""

    def weight(self, name: str) -> Tensor | PackedWeight:
        stored = self.stored(name)
        if isinstance(stored, Ggml) and len(stored.shape) > 1:
            return GgmlWeight(self.read(name), stored.kind)
        return super().weight(name)


def _blocks(
    plan: _Plan,
    folder: ModelFolder,
    source: TensorSource,
    to: str | None,
    expanded: set[str],
    on_progress: Progress,
) -> Iterator[Blocks]:
    """Every tensor's blocks. expanded: gets the forms of weights that become floats."""
    for target in plan.targets:
        value = _value(target, source, plan.edits.get(target.name))
        if not target.is_matrix:
            yield float_blocks(fp32(value))
        elif to is not None and (kind := _kind(target, to)) != "F32":
            yield rounded_blocks(fp32(value), kind)
        else:
            blocks = exact_blocks(value)
            if isinstance(value, PackedWeight) and blocks.kind in ("F32", "F16", "BF16"):
                expanded |= {folder.weights[name].about for name in sources(target.recipe)}
            yield blocks
        on_progress(source.bytes_read, folder.weight_bytes)
    for values in plan.factors.values():
        yield Blocks("F32", values)


def _value(target: Target, source: TensorSource, edit: Edit | None) -> Tensor | PackedWeight:
    """A tensor's values, with its rows in the file's order."""
    value = evaluate(target.recipe, source)
    if target.part is not None:
        axis, which = target.part
        rows = value.shape[axis] // 2
        part = slice(which * rows, (which + 1) * rows)
        value = value.rows(part) if isinstance(value, PackedWeight) else value.narrow(axis, part.start, rows)
    if edit is not None:
        order = torch.from_numpy(edit.order(value.shape[0])).argsort()
        value = rows_of(value, order)
    return value


def _kind(target: Target, to: str) -> str:
    kind = ROUNDINGS[to][target.is_vocabulary]
    columns = target.shape[-1]
    if columns % block_columns(kind):
        kind = _NARROW.get(kind, kind)
    return kind if columns % block_columns(kind) == 0 else "F32"


def _rounding_notes(plan: _Plan, folder: ModelFolder, to: str) -> list[Note]:
    narrow = tuple(each.name for each in plan.targets if each.is_matrix and _kind(each, to) not in ROUNDINGS[to])
    packed = tuple(sorted({stored.about for stored in folder.weights.values() if not isinstance(stored, Dense)}))
    notes = [
        Note("of another type, for their rows are no multiple of 256 or 32", narrow),
        Note("rounded a second time, which adds up: weights in", packed),
    ]
    return [note for note in notes if note.names]


def _need_space(file: Path, plan: _Plan, folder: ModelFolder, to: str | None) -> None:
    """Raises OutputError unless the file will fit. Unrounded weights count as stored; they may take twice that."""
    if to is None:
        size = folder.weight_bytes
    else:
        size = sum(_bytes(target, to) for target in plan.targets)
    free = shutil.disk_usage(file.parent).free
    if free < size + _SPARE:
        raise OutputError(f"no space: {file}: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def _bytes(target: Target, to: str) -> int:
    block = BLOCKS[_kind(target, to) if target.is_matrix else "F32"]
    return math.prod(target.shape) // block.columns * block.size
