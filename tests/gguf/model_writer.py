"""Writes tiny checkpoints of transformers as GGUF files, with the gguf package's names for tensors.

What llama.cpp's converter does to tensors of some architectures is done here by other means than its undoing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from safetensors.numpy import load_file

from tests.gguf.tiny_gguf import add_field

ARCHITECTURES = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
# config.json's names of what every file says.
COMMON = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
}
PAIRS = ("llama", "olmo", "granite", "smollm3", "mistral3", "internlm2", "xverse", "minicpm")  # q and k are reordered
Arrays = dict[str, np.ndarray]


def write_model(
    checkpoint: Path,
    file: Path,
    architecture: str,
    config: dict[str, Any],
    fields: dict[str, Any],
    more: Arrays,
    also: Callable[[GGUFWriter], object] = lambda writer: None,
) -> None:
    """Writes a checkpoint's weights.

    fields: by their names without the architecture's. more: tensors to add. also: adds other fields.
    """
    writer = GGUFWriter(file, architecture)
    common = {name: next((config[key] for key in keys if config.get(key) is not None), None)
              for name, keys in COMMON.items()}  # fmt: skip
    for name, value in (common | fields).items():
        if value is not None:
            add_field(writer, f"{architecture}.{name}", value)
    also(writer)
    for name, values in (tensors_of(checkpoint, architecture, config) | more).items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(checkpoint: Path, architecture: str, config: dict[str, Any]) -> Arrays:
    """A checkpoint's tensors as llama.cpp's converter would name and change them."""
    names = get_tensor_name_map(ARCHITECTURES[architecture], config.get("num_hidden_layers", config.get("n_layer", 0)))
    result: Arrays = {}
    for name, values in _in_one(_split(load_file(checkpoint / "model.safetensors"), architecture, config)):
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        result[mapped] = _changed(mapped, values, architecture, config)
    return result


def _split(tensors: Arrays, architecture: str, config: dict[str, Any]) -> Arrays:
    """The tensors, with what makes keys and values of latents as deepseek2 has it: one for each, keys' transposed."""
    result: Arrays = {}
    for name, values in tensors.items():
        if architecture == "deepseek2" and name.endswith("kv_b_proj.weight"):
            heads = values.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            result[name.replace("kv_b", "k_b")] = heads[:, : config["qk_nope_head_dim"]].swapaxes(1, 2)
            result[name.replace("kv_b", "v_b")] = heads[:, config["qk_nope_head_dim"] :]
        else:
            result[name] = values
    return result


def _in_one(tensors: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """Experts and norms of heads, one each in transformers, stacked; gpt-oss's gate and up apart."""
    numbered: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        match = re.fullmatch(r"(.*\.(?:experts|norms))\.(\d+)\.(.*)", name)
        if match and match[1].endswith("norms"):
            numbered.setdefault(f"{match[1].removesuffix('.norms')}.weight", {})[int(match[2])] = values
        elif match:
            numbered.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = values
        elif "gate_up_proj" in name and ".experts." in name:
            gate, up = values[..., ::2], values[..., 1::2]
            for kind, part in (("gate", gate), ("up", up)):
                leaf = "bias" if name.endswith("_bias") else "weight"
                stem = name.removesuffix("_bias").replace("gate_up_proj", f"{kind}_proj")
                yield f"{stem}.{leaf}", part if leaf == "bias" else part.swapaxes(1, 2)
        elif name.endswith(("experts.down_proj", "experts.down_proj_bias")):
            bias = name.endswith("_bias")
            yield (
                f"{name.removesuffix('_bias')}.{'bias' if bias else 'weight'}",
                values if bias else values.swapaxes(1, 2),
            )
        else:
            yield (f"{name}.weight" if name.endswith("sinks") else name), values
    for name, parts in numbered.items():
        yield name, np.stack([parts[number] for number in sorted(parts)])


def _changed(name: str, values: np.ndarray, architecture: str, config: dict[str, Any]) -> np.ndarray:
    stem = name.split(".")[-2]
    if architecture.startswith("gemma") and stem.endswith("norm"):
        return values + np.float32(1)
    if architecture in PAIRS and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
        half = len(values) // heads // 2
        rows = [head * 2 * half + part * half + row for head in range(heads) for row in range(half) for part in (0, 1)]
        return values[rows]
    if architecture == "gptneox" and stem == "attn_qkv":
        dim = len(values) // config["num_attention_heads"] // 3
        heads = range(config["num_attention_heads"])
        return np.concatenate([values[(3 * head + part) * dim :][:dim] for part in range(3) for head in heads])
    if architecture == "gpt2" and stem in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and name.endswith("weight"):
        return values.T
    return values.reshape(-1) if stem == "ffn_gate_inp_shexp" else values
