"""Converts a GGUF file to a safetensors model directory. Q4_0, Q4_1, Q8_0 and floats keep their exact values.

Other types of blocks become fp16. Only the llama architecture is read; an unknown pre-tokenizer, RoPE scaling, field or
tensor is refused by name.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import OutputError
from gptcli.gguf.reader import GgufFile, GgufTensor
from gptcli.gguf.tokenizer import tokenizer_files

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]  # by the name to store them under

_GROUP = 32  # columns that share a scale in Q4_0, Q4_1 and Q8_0
_SHARD_BYTES = 2 << 30
# numpy has no bf16, so its bits are uint16.
_DTYPES = {"uint32": "U32", "float32": "F32", "float16": "F16", "uint16": "BF16"}

_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1's and 3.2's RoPE scaling is stored as the resulting factors only; these are all known settings.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Fields that llama.cpp does not read for this architecture, or that repeat a tensor's shape.
_HARMLESS = ("llama.vocab_size", "llama.tensor_data_layout", "llama.expert_used_count", "llama.rope.scaling.finetuned",
             "llama.rope.scaling.original_context_length")  # fmt: skip


def convert(source: Path, target: Path, on_progress: Callable[[int, int], None]) -> None:
    """Writes a GGUF file's model to an existing directory, in the layout of transformers and MLX.

    Raises InputError, InvalidModel or OutputError. on_progress gets tensors' bytes done and in all.
    """
    file = GgufFile(source)
    if file.get("split.count", int, 1) > 1:
        raise file.unsupported("one part of a split file", "join the parts with `llama-gguf-split --merge`")
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise file.unsupported(f"architecture {architecture!r}, only llama is read")
    config = _config(file)
    files = {"config.json": config, **tokenizer_files(file)}
    try:
        config |= _quantization(_write_tensors(file, config, target, on_progress))
        for name, content in files.items():
            _write_json(target / name, content)
    except OSError as error:
        raise OutputError(f"cannot write: {target}: {error.strerror or error}") from None


def _config(file: GgufFile) -> dict[str, Any]:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise file.broken("tensor 'token_embd.weight' is missing")
    if file.get("llama.expert_count", int, 0):
        raise file.unsupported("mixtures of experts are not read")
    width, heads = file.get("llama.embedding_length", int), file.get("llama.attention.head_count", int)
    kv_heads = file.get("llama.attention.head_count_kv", int, heads)
    if heads < 1 or kv_heads < 1:
        raise file.broken(f"{heads} attention heads with {kv_heads} for keys and values")
    head_dim = file.get("llama.attention.key_length", int, width // heads)
    if file.get("llama.attention.value_length", int, head_dim) != head_dim:
        raise file.unsupported("values of another size than keys are not read")
    if file.get("llama.rope.dimension_count", int, head_dim) != head_dim:
        raise file.unsupported("partial rotary embeddings are not read")
    theta = _shortest(file.get("llama.rope.freq_base", float, 10_000.0))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": file.get("llama.feed_forward_length", int),
        "num_hidden_layers": file.get("llama.block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.get("llama.context_length", int),
        "rms_norm_eps": _shortest(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, theta, head_dim),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.optional("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": file.optional("tokenizer.ggml.eos_token_id", int),
        "dtype": "float16",
    }
    unread = [name for name in file.unread("llama.") if name not in _HARMLESS]
    if unread:
        raise file.unsupported(f"not known: {', '.join(unread[:5])}")
    return config


def _shortest(value: float) -> float:
    """The shortest number for a stored float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    kind = file.get("llama.rope.scaling.type", str, "none")
    factor = file.optional("llama.rope.scaling.factor", float)
    if _ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, theta, head_dim)
    if kind == "none":
        return None
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": _shortest(factor)}
    raise file.unsupported(f"RoPE scaling {kind!r} with factor {factor} is not read")


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    import numpy as np

    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    stored = file.data(file.tensors[_ROPE_FACTORS]).view(np.float32)
    for factor in _LLAMA3_FACTORS:
        expected = 1 / (keep + (1 - keep) / factor)
        if stored.shape == expected.shape and np.allclose(expected, stored, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise file.unsupported(f"{_ROPE_FACTORS} holds factors of no known RoPE scaling")


def _quantization(packed: Mapping[str, int]) -> dict[str, Any]:
    """config.json's `quantization` for packed modules' bits: the commonest for all, exceptions by name."""
    if not packed:
        return {}
    bits = Counter(packed.values()).most_common(1)[0][0]
    others = {module: {"group_size": _GROUP, "bits": own} for module, own in packed.items() if own != bits}
    return {"quantization": {"group_size": _GROUP, "bits": bits, **others}}


def _write_tensors(
    file: GgufFile, config: dict[str, Any], target: Path, on_progress: Callable[[int, int], None]
) -> dict[str, int]:
    """Writes model.safetensors, or shards and their index; returns the bits of each packed module."""
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    tensors = [tensor for name, tensor in file.tensors.items() if name != _ROPE_FACTORS]
    names = {tensor.name: _hf_name(file, tensor.name) for tensor in tensors}
    total = sum(tensor.size for tensor in tensors)
    packed: dict[str, int] = {}
    shards: list[list[str]] = []  # the names in each
    shard: Arrays = {}
    done = 0
    for tensor in tensors:
        module, leaf = names[tensor.name].rsplit(".", 1)
        arrays, bits = _arrays(file, tensor)
        if bits:
            packed[module] = bits
        for projection, count in heads.items():
            if module.endswith(projection):
                if tensor.shape[0] % (2 * count):
                    raise file.broken(f"tensor {tensor.name!r} has {tensor.shape[0]} rows for {count} heads")
                arrays = {name: _unpermuted(rows, count) for name, rows in arrays.items()}
        shard |= {f"{module}.{name or leaf}": array for name, array in arrays.items()}
        done += tensor.size
        on_progress(done, total)
        if tensor is tensors[-1] or sum(array.nbytes for array in shard.values()) > _SHARD_BYTES:
            _write_shard(shard, target / f"shard-{len(shards)}")
            shards.append(list(shard))
            shard = {}
    if len(shards) == 1:
        (target / "shard-0").rename(target / "model.safetensors")
        return packed
    weight_map: dict[str, str] = {}
    for index, members in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        (target / f"shard-{index}").rename(target / name)
        weight_map |= dict.fromkeys(members, name)
    _write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return packed


def _write_shard(tensors: Arrays, path: Path) -> None:
    # Widest dtype first, and a header padded to 8 bytes: so every tensor is aligned, as the format recommends.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in ordered:
            file.write(array.data)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _hf_name(file: GgufFile, name: str) -> str:
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    match name.split("."):
        case ["blk", layer, module, ("weight" | "bias") as leaf] if module in _IN_BLOCK and layer.isdecimal():
            return f"model.layers.{layer}.{_IN_BLOCK[module]}.{leaf}"
    raise file.unsupported(f"tensor {name[:80]!r} belongs to no part of a llama model")


def _arrays(file: GgufFile, tensor: GgufTensor) -> tuple[Arrays, int | None]:
    """A tensor as arrays by the last part of their names, "" for its own, and its bits if it stays packed."""
    import numpy as np
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import dequantize

    data, kind = file.data(tensor), tensor.kind
    plain = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: np.uint16}
    if kind in plain:
        return {"": data.view(plain[kind])}, None
    if kind in (Type.Q4_0, Type.Q4_1, Type.Q8_0) and len(tensor.shape) == 2 and (affine := _affine(data, kind)):
        q, scales, biases, bits = affine
        return {"weight": q.view(np.uint32), "scales": scales, "biases": biases}, bits
    try:
        with np.errstate(all="ignore"):  # NaN and infinity stay: `models verify` finds them
            values = dequantize(data, kind)
            halves = values.astype(np.float16)
    except NotImplementedError:
        raise file.unsupported(f"tensor {tensor.name!r} is of type {kind.name}, which is not read") from None
    return {"": halves if np.isfinite(halves).all() else values}, None


def _affine(data: np.ndarray[Any, Any], kind: Any) -> tuple[Any, Any, Any, int] | None:
    """Blocks of 32 columns as (q, scales, biases, bits), w = scale * q + bias; None if a bias overflows fp16.

    data: (rows, bytes). A block is d (fp16), in Q4_1 also m (fp16), then q. w is d * (q - 8) in Q4_0, d * q + m in Q4_1
    and d * q in Q8_0.
    """
    import numpy as np
    from gguf import GGMLQuantizationType as Type

    rows = len(data)
    header, body = (4, 16) if kind == Type.Q4_1 else (2, 16) if kind == Type.Q4_0 else (2, 32)
    blocks = data.reshape(rows, -1, header + body)
    halves = np.ascontiguousarray(blocks[..., :header]).view(np.float16)
    q = blocks[..., header:]
    scales = np.ascontiguousarray(halves[..., 0])
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == Type.Q8_0:
            bits = 8
            q = q ^ 0x80  # from signed to an offset of 128
            biases = scales * np.float16(-128)
        else:
            bits = 4
            # A block has columns 0 to 15 in its low nibbles, 16 to 31 in its high ones. MLX pairs neighbours.
            nibbles = np.concatenate([q & 15, q >> 4], axis=-1)
            q = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
            biases = np.ascontiguousarray(halves[..., 1]) if kind == Type.Q4_1 else scales * np.float16(-8)
    if not (np.isfinite(biases).all() and np.isfinite(scales).all()):
        return None
    return q.reshape(rows, -1), scales, biases, bits


def _unpermuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k in transformers' order: llama.cpp interleaves the two halves of every head."""
    import numpy as np

    halves = rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows.shape))
