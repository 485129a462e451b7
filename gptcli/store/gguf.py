"""Turns a GGUF file into a safetensors model directory, keeping quantized values exactly.

Only llama-architecture files, and only what is certain: an unknown pre-tokenizer, RoPE scaling or tensor is refused by
name. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import BrokenCheckpoint, OutputError, UnsupportedArchitecture
from gptcli.files import open_regular
from gptcli.store.gguf_tokenizer import GgufTokenizer

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader, ReaderTensor

_GROUP = 32  # columns that share a scale in Q4_0, Q4_1 and Q8_0
_SHARD_BYTES = 2 << 30

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
# Llama 3.1's and 3.2's RoPE scaling is stored only as the factors it comes to; these are the settings there are.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def convert(source: Path, target: Path, on_progress: Callable[[int, int], None]) -> None:
    """Writes the model in a GGUF file to an existing directory, as transformers and MLX would lay it out.

    Raises BrokenCheckpoint, UnsupportedArchitecture or OutputError; on_progress gets tensors' bytes done and in all.
    """
    from gguf import GGUFReader

    open_regular(source).close()
    try:
        reader = GGUFReader(source)
    except Exception as error:  # the library lets through whatever a damaged file provokes
        raise BrokenCheckpoint(f"cannot read: {source}: {error or type(error).__name__}") from None
    meta = {name: field.contents() for name, field in reader.fields.items()}
    architecture = meta.get("general.architecture")
    if architecture != "llama":
        raise UnsupportedArchitecture(f"cannot import: {source}: architecture {architecture!r}, only llama is read")
    files = {"config.json": _config(meta, reader), **GgufTokenizer(meta).files()}
    packed: dict[str, int] = {}
    try:
        _write_tensors(reader, files["config.json"], target, packed, on_progress)
        files["config.json"] |= _quantization(packed)
        for name, content in files.items():
            (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write: {target}: {error.strerror or error}") from None


def _config(meta: dict[str, Any], reader: GGUFReader) -> dict[str, Any]:
    def need(name: str) -> Any:
        if f"llama.{name}" not in meta:
            raise BrokenCheckpoint(f"cannot import: llama.{name} is missing")
        return meta[f"llama.{name}"]

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise BrokenCheckpoint("cannot import: token_embd.weight is missing")
    if meta.get("llama.expert_count"):
        raise UnsupportedArchitecture("cannot import: mixtures of experts in GGUF are not read")
    heads = need("attention.head_count")
    head_dim = meta.get("llama.attention.key_length", need("embedding_length") // heads)
    if meta.get("llama.rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedArchitecture("cannot import: partial rotary embeddings in GGUF are not read")
    theta = _shortest(meta.get("llama.rope.freq_base", 10_000.0))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": need("embedding_length"),
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": _shortest(need("attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(meta, tensors.get("rope_freqs.weight"), theta, head_dim),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float16",
    }


def _shortest(value: float) -> float:
    """The number that was meant, from the float32 that was stored: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _rope_scaling(
    meta: dict[str, Any], factors: ReaderTensor | None, theta: float, head_dim: int
) -> dict[str, Any] | None:
    kind = meta.get("llama.rope.scaling.type", "none")
    if factors is not None:
        return _llama3_scaling(factors, theta, head_dim)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": meta["llama.rope.scaling.factor"]}
    raise UnsupportedArchitecture(f"cannot import: RoPE scaling {kind!r} in GGUF is not read")


def _llama3_scaling(factors: ReaderTensor, theta: float, head_dim: int) -> dict[str, Any]:
    import numpy as np

    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = _LLAMA3["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    for factor in _LLAMA3_FACTORS:
        if np.allclose(1 / (keep + (1 - keep) / factor), factors.data, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise UnsupportedArchitecture("cannot import: rope_freqs.weight holds factors of no known RoPE scaling")


def _quantization(packed: dict[str, int]) -> dict[str, Any]:
    """config.json's `quantization` for modules packed in so many bits: the commonest for all, the others by name."""
    if not packed:
        return {}
    bits = Counter(packed.values()).most_common(1)[0][0]
    others = {module: {"group_size": _GROUP, "bits": own} for module, own in packed.items() if own != bits}
    return {"quantization": {"group_size": _GROUP, "bits": bits, **others}}


def _write_tensors(
    reader: GGUFReader,
    config: dict[str, Any],
    target: Path,
    packed: dict[str, int],
    on_progress: Callable[[int, int], None],
) -> None:
    """Writes model.safetensors, or shards and their index; notes in `packed` the bits of each packed module."""
    shards: list[dict[str, np.ndarray[Any, Any]]] = [{}]
    names: list[list[str]] = []
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    done = size = 0
    written = [tensor for tensor in reader.tensors if tensor.name != "rope_freqs.weight"]
    single = total <= _SHARD_BYTES
    for tensor in written:
        name = _hf_name(tensor.name)
        parts, bits = _parts(tensor, name)
        if bits:
            packed[name.removesuffix(".weight")] = bits
        heads = {".self_attn.q_proj.": "num_attention_heads", ".self_attn.k_proj.": "num_key_value_heads"}
        for projection, field in heads.items():
            if projection in name:
                parts = {part: _unpermuted(rows, config[field]) for part, rows in parts.items()}
        shards[-1] |= parts
        size += sum(part.nbytes for part in parts.values())
        done += int(tensor.n_bytes)
        on_progress(done, total)
        if size > _SHARD_BYTES and not single:
            names.append(_write_shard(shards.pop(), target / f"shard-{len(names)}"))
            shards.append({})
            size = 0
    if single:
        _write_shard(shards[0], target / "model.safetensors")
        return
    if shards[-1]:
        names.append(_write_shard(shards[-1], target / f"shard-{len(names)}"))
    weight_map: dict[str, str] = {}
    for index, members in enumerate(names):
        file = f"model-{index + 1:05}-of-{len(names):05}.safetensors"
        (target / f"shard-{index}").rename(target / file)
        weight_map |= dict.fromkeys(members, file)
    index_file = target / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2) + "\n")


def _write_shard(tensors: dict[str, np.ndarray[Any, Any]], file: Path) -> list[str]:
    from safetensors.numpy import save_file

    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library writes it for the owner alone
    return list(tensors)


def _hf_name(name: str) -> str:
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    match name.split("."):
        case ["blk", layer, part, ("weight" | "bias") as leaf] if part in _IN_BLOCK and layer.isdecimal():
            return f"model.layers.{layer}.{_IN_BLOCK[part]}.{leaf}"
    raise UnsupportedArchitecture(f"cannot import: tensor {name!r} belongs to no part of a llama model")


def _parts(tensor: ReaderTensor, name: str) -> tuple[dict[str, np.ndarray[Any, Any]], int | None]:
    """A tensor as arrays to store by name, and its bits where it is stored packed."""
    import numpy as np
    from gguf import GGMLQuantizationType as Type
    from gguf.quants import dequantize

    kind = tensor.tensor_type
    if kind in (Type.Q4_0, Type.Q4_1, Type.Q8_0) and (affine := _affine(tensor.data, kind)):
        q, scales, biases, bits = affine
        module = name.removesuffix(".weight")
        return {
            f"{module}.weight": q.view(np.uint32),
            f"{module}.scales": scales,
            f"{module}.biases": biases,
        }, bits
    if kind in (Type.F32, Type.F16):
        return {name: np.ascontiguousarray(tensor.data)}, None
    try:
        values = dequantize(tensor.data, kind)
    except NotImplementedError:
        raise UnsupportedArchitecture(f"cannot import: tensor {tensor.name!r} is of type {kind.name}") from None
    halves = values.astype(np.float16)
    return {name: halves if np.isfinite(halves).all() else values}, None


def _affine(data: np.ndarray[Any, Any], kind: Any) -> tuple[Any, Any, Any, int] | None:
    """Blocks of 32 columns as (q, scales, biases, bits), w = scale * q + bias; None where fp16 cannot hold a bias.

    data: (rows, bytes). A block is d (fp16), in Q4_1 also m (fp16), then q: w = d * (q - 8), d * q + m, or d * q.
    """
    import numpy as np
    from gguf import GGMLQuantizationType as Type

    rows = len(data)
    header, body = (4, 16) if kind == Type.Q4_1 else (2, 16) if kind == Type.Q4_0 else (2, 32)
    blocks = np.ascontiguousarray(data).reshape(rows, -1, header + body)
    d = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    q = np.ascontiguousarray(blocks[..., header:])
    if kind == Type.Q8_0:
        bits = 8
        q = q ^ 0x80  # signed to offset by 128
        with np.errstate(over="ignore"):
            biases = d * np.float16(-128)
    else:
        bits = 4
        # A block keeps columns 0 to 15 in the low nibbles and 16 to 31 in the high ones; MLX wants neighbours paired.
        nibbles = np.concatenate([q & 15, q >> 4], axis=-1)
        q = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
        with np.errstate(over="ignore"):
            minimum = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0]
            biases = minimum if kind == Type.Q4_1 else d * np.float16(-8)
    if not (np.isfinite(biases).all() and np.isfinite(d).all()):
        return None
    return q.reshape(rows, -1), d, np.ascontiguousarray(biases), bits


def _unpermuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k in transformers' order: llama.cpp interleaves the two halves of every head."""
    import numpy as np

    halves = rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(halves.reshape(rows.shape))
