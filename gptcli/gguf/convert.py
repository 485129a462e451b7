"""Converts a GGUF file to a safetensors model directory. Q4_0, Q4_1, Q8_0 and floats keep their exact values.

Other types of blocks, and blocks whose columns are reordered, become fp16, or fp32 where fp16 overflows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from gptcli.errors import OutputError
from gptcli.gguf.blocks import decoded
from gptcli.gguf.families.tiled_heads import TILED, grouped_order
from gptcli.gguf.model import GgufModel, read_model
from gptcli.gguf.model_tensor import ModelTensor
from gptcli.gguf.safetensors_writer import SafetensorsWriter, write_json
from gptcli.gguf.tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    import numpy as np

    from gptcli.gguf.safetensors_writer import Arrays

_GROUP = 32  # columns that share a scale in Q4_0, Q4_1 and Q8_0


def convert(source: Path, target: Path, on_progress: Callable[[int, int], None]) -> None:
    """Writes a GGUF file's model to an existing directory, in the layout of transformers and MLX.

    on_progress: gets tensors' bytes done, and in all. Raises InputError, InvalidModel or OutputError.
    """
    model = read_model(source)
    config = {name: value for name, value in model.config.items() if name != TILED}
    tokenizer, settings = gguf_tokenizer(model.file)
    files = {
        "config.json": config,
        "tokenizer.json": json.loads(Tokenizer.from_str(json.dumps(tokenizer)).to_str()),
        "tokenizer_config.json": {
            **settings,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.config.get("max_position_embeddings"),
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config.json": model.generation_config,
    }
    try:
        files["config.json"] = config | _quantization(_write_tensors(model, target, on_progress))
        for name, content in files.items():
            write_json(target / name, content)
    except OSError as error:
        raise OutputError(f"cannot write: {target}: {error.strerror or error}") from None


def _quantization(packed: Mapping[str, int]) -> dict[str, Any]:
    """config.json's `quantization` for packed modules' bits: the commonest for all, exceptions by name."""
    if not packed:
        return {}
    bits = Counter(packed.values()).most_common(1)[0][0]
    others = {module: {"group_size": _GROUP, "bits": own} for module, own in packed.items() if own != bits}
    return {"quantization": {"group_size": _GROUP, "bits": bits, **others}}


def _write_tensors(model: GgufModel, target: Path, on_progress: Callable[[int, int], None]) -> dict[str, int]:
    """Writes model.safetensors, or shards and their index; returns the bits of each packed module."""
    total = sum(tensor.size for tensor in model.tensors.values())
    packed: dict[str, int] = {}
    writer = SafetensorsWriter(target)
    done = 0
    for name, tensor in model.tensors.items():
        module = name.removesuffix(".weight")
        arrays, bits = _arrays(tensor, grouped_order(model.config, name), may_pack=module != name)
        if bits:
            packed[module] = bits
        writer.add({f"{module}.{part}" if part else name: array for part, array in arrays.items()})
        done += tensor.size
        on_progress(done, total)
    writer.close()
    return packed


def _arrays(
    tensor: ModelTensor, order: tuple[int, np.ndarray[Any, Any]] | None, *, may_pack: bool
) -> tuple[Arrays, int | None]:
    """A tensor as arrays, by the last part of their names ("" is its own name), and its bits if it stays packed.

    order: an axis, 0 or 1, and the indices to take along it.
    """
    import numpy as np

    data, kind = tensor.data(), tensor.kind
    plain = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    if kind in plain:
        floats = data.view(plain[kind]).reshape(tensor.shape)
        return {"": floats if order is None else floats.take(order[1], order[0])}, None
    rows = data.reshape(*tensor.shape[:-1], -1)
    if order is not None and order[0] == 0:
        rows, order = rows[order[1]], None
    may_pack = may_pack and order is None
    if may_pack and kind in ("Q4_0", "Q4_1", "Q8_0") and len(tensor.shape) > 1 and (affine := _affine(rows, kind)):
        q, scales, biases, bits = affine
        return {"weight": q.view(np.uint32), "scales": scales, "biases": biases}, bits
    values = decoded(kind, rows)
    if order is not None:
        values = values.take(order[1], order[0])
    with np.errstate(all="ignore"):  # NaN and infinity stay: `models verify` finds them
        halves = values.astype(np.float16)
    return {"": halves if np.isfinite(halves).all() else values}, None


def _affine(data: np.ndarray[Any, Any], kind: str) -> tuple[Any, Any, Any, int] | None:
    """Blocks of 32 columns as (q, scales, biases, bits), w = scale * q + bias; None if a bias overflows fp16.

    data: (..., bytes of a row). A block is d (fp16), in Q4_1 also m (fp16), then q. w is d * (q - 8) in Q4_0,
    d * q + m in Q4_1 and d * q in Q8_0.
    """
    import numpy as np

    header, body = {"Q4_0": (2, 16), "Q4_1": (4, 16), "Q8_0": (2, 32)}[kind]
    outer = data.shape[:-1]
    blocks = data.reshape(*outer, -1, header + body)
    halves = np.ascontiguousarray(blocks[..., :header]).view(np.float16)
    q = blocks[..., header:]
    scales = np.ascontiguousarray(halves[..., 0])
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "Q8_0":
            bits = 8
            q = q ^ 0x80  # from signed to an offset of 128
            biases = scales * np.float16(-128)
        else:
            bits = 4
            # A block has columns 0 to 15 in its low nibbles, 16 to 31 in its high ones. MLX pairs neighbours.
            nibbles = np.concatenate([q & 15, q >> 4], axis=-1)
            q = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
            biases = np.ascontiguousarray(halves[..., 1]) if kind == "Q4_1" else scales * np.float16(-8)
    if not (np.isfinite(biases).all() and np.isfinite(scales).all()):
        return None
    return q.reshape(*outer, -1), scales, biases, bits
