"""Writes tiny checkpoints of transformers as GGUF files, with the gguf package's names for tensors.

The changes of llama.cpp's converter to tensors are written here independently of the code that undoes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from safetensors.numpy import load_file

from tests.gguf.tiny_gguf import add_field, finish

ARCHITECTURES = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
# Fields of every file by their names in config.json.
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
# Architectures with reordered rows of q and k.
PAIRS = """llama olmo granite smollm3 mistral3 internlm2 xverse minicpm granitehybrid arcee granitemoe""".split()
# Names that the converter changes before it looks them up.
RENAMED = (
    (r"e_score_correction_bias", "e_score_correction.bias"),
    (r"\.expert_bias", ".expert_bias.bias"),
    (r"\.dt_bias", ".dt_proj.bias"),
    (r"backbone(.*)mixer\.experts\.", r"model\1mlp.experts."),
    (r"feed_forward\.experts\.(w\d)", r"block_sparse_moe.experts.\1"),
    (r"(correct_output_scale|layer_scalar)$", r"\1.weight"),
)
SCALES = {"router.scale": "ffn_gate_inp.scale", "router.per_expert_scale": "ffn_down_exps.scale"}
NAMED_AS = {"qwen25vl": "qwen2vl"}  # what the gguf package does not know
DELTA_NETS = ("qwen3next", "qwen35", "qwen35moe")
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
    for name in ("alpha_p", "alpha_n", "beta", "eps") if architecture == "apertus" else ():
        values = load_file(checkpoint / "model.safetensors")
        stem = "model.layers.{}.mlp.act_fn." + name
        each = [float(values[stem.format(layer)].item()) for layer in range(config["num_hidden_layers"])]
        add_field(writer, f"xielu.{name}", each)
    for name, values in (tensors_of(checkpoint, architecture, config) | more).items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    finish(writer)


def tensors_of(checkpoint: Path, architecture: str, config: dict[str, Any]) -> Arrays:
    """A checkpoint's tensors with the names and changes of llama.cpp's converter."""
    names = get_tensor_name_map(ARCHITECTURES[NAMED_AS.get(architecture, architecture)], 8)  # layers, more than any has
    result: Arrays = {}
    tensors = {name: values for name, values in load_file(checkpoint / "model.safetensors").items()
               if ".act_fn." not in name}  # fmt: skip
    for name, values in _in_one(_split(_scaled(tensors, config), architecture, config), architecture):
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if architecture == "bloom":
            name = name.removeprefix("transformer.")
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if scale := re.fullmatch(r".*layers\.(\d+)\.(router\.\w*scale)", name):
            mapped = f"blk.{scale[1]}.{SCALES[scale[2]]}"
        assert mapped is not None, name
        result[mapped] = _changed(mapped, values, architecture, config)
    return result


def _split(tensors: Arrays, architecture: str, config: dict[str, Any]) -> Arrays:
    """The tensors with deepseek2's layout of `kv_b_proj`: one matrix for keys, transposed, and one for values."""
    result: Arrays = {}
    for name, values in tensors.items():
        if architecture == "deepseek2" and name.endswith("kv_b_proj.weight"):
            heads = values.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            result[name.replace("kv_b", "k_b")] = heads[:, : config["qk_nope_head_dim"]].swapaxes(1, 2)
            result[name.replace("kv_b", "v_b")] = heads[:, config["qk_nope_head_dim"] :]
        elif architecture.startswith("granite") and "input_linear" in name:
            for kind, part in zip(("gate", "up"), np.split(values, 2, -2), strict=True):
                result[_granite_name(name, f"{kind}_proj", config)] = part
        elif architecture.startswith("granite") and "shared_mlp.output_linear" in name:
            result[_granite_name(name, "down_proj", config)] = values
        elif "in_proj_qkvz" in name:
            key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
            shared = config["linear_num_value_heads"] // config["linear_num_key_heads"] * value
            groups = values.reshape(config["linear_num_key_heads"], -1, values.shape[-1])
            parts = np.split(groups, [key, 2 * key, 2 * key + shared], 1)
            *qkv, z = (part.reshape(-1, values.shape[-1]) for part in parts)
            result[name.replace("qkvz", "qkv")] = np.concatenate(qkv)
            result[name.replace("qkvz", "z")] = z
        else:
            result[name] = values
    return result


def _granite_name(name: str, kind: str, config: dict[str, Any]) -> str:
    """Splits transformers' joined gate and up into the converter's two tensors."""
    layer = name.split(".")[2]
    if "block_sparse_moe" in name:
        return f"model.layers.{layer}.mlp.experts.{kind}.weight"
    shared = "mlp.shared_experts" if config["num_local_experts"] else "mlp"
    return f"model.layers.{layer}.{shared}.{kind}.weight"


def _scaled(tensors: Arrays, config: dict[str, Any]) -> Arrays:
    """Falcon H1's weights times its multipliers."""
    if config["model_type"] != "falcon_h1":
        return tensors
    gate, down = config["mlp_multipliers"]
    width, shared = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
    sizes = width, width, shared, shared, config["mamba_n_heads"]
    into = np.repeat(config["ssm_multipliers"], sizes).astype(np.float32)[:, None] * config["ssm_in_multiplier"]
    attention = config["attention_in_multiplier"]
    scales = {
        "gate_proj": gate, "down_proj": down, "q_proj": attention, "k_proj": attention * config["key_multiplier"],
        "v_proj": attention, "o_proj": config["attention_out_multiplier"], "out_proj": config["ssm_out_multiplier"],
        "in_proj": into, "lm_head": config["lm_head_multiplier"], "embed_tokens": config["embedding_multiplier"],
    }  # fmt: skip
    return {name: (values * scales.get(name.split(".")[-2], 1)).astype(np.float32) for name, values in tensors.items()}


def _in_one(tensors: Arrays, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Stacks transformers' experts and norms of heads; splits gate and up of gpt-oss and Llama 4."""
    numbered: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        match = re.fullmatch(r"(.*\.(?:experts|norms|altup_\w+))\.(\d+)\.(.*)", name)
        if match and match[1].endswith("norms"):
            numbered.setdefault(f"{match[1].removesuffix('.norms')}.weight", {})[int(match[2])] = values
        elif match:
            numbered.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = values
        elif architecture == "gemma4" and ".experts." in name:
            yield f"{name}.weight", values
        elif "gate_up_proj" in name and ".experts." in name:
            by_turns = (values[..., ::2], values[..., 1::2])
            gate, up = np.split(values, 2, -1) if architecture == "llama4" else by_turns
            for kind, part in (("gate", gate), ("up", up)):
                leaf = "bias" if name.endswith("_bias") else "weight"
                stem = name.removesuffix("_bias").replace("gate_up_proj", f"{kind}_proj")
                yield f"{stem}.{leaf}", part if leaf == "bias" else part.swapaxes(1, 2)
        elif name.endswith(("experts.down_proj", "experts.down_proj_bias")):
            leaf = "bias" if name.endswith("_bias") else "weight"
            yield f"{name.removesuffix('_bias')}.{leaf}", values if leaf == "bias" else values.swapaxes(1, 2)
        else:
            yield (f"{name}.weight" if name.endswith("sinks") else name), values
    for name, parts in numbered.items():
        yield name, np.stack([parts[number] for number in sorted(parts)])


def _changed(name: str, values: np.ndarray, architecture: str, config: dict[str, Any]) -> np.ndarray:
    stem = name.split(".")[-2]
    if name.endswith("ssm_a"):
        values = -np.exp(values)
    if name.endswith(("ssm_a", "ssm_d")) and not architecture.startswith("qwen"):
        return values[:, None]
    if stem in ("ssm_conv1d", "conv") and values.ndim == 3:
        values = values[:, 0]
    if stem == "ssm_norm" and not architecture.startswith("qwen"):
        return values.reshape(config.get("n_groups") or config["mamba_n_groups"], -1)
    if architecture.startswith("qwen35"):
        values = _tiled(name, values, config)
    norms_plus_one = architecture in ("gemma", "gemma2", "gemma3", *DELTA_NETS, "nemotron")
    if norms_plus_one and name.endswith("norm.weight") and stem != "ssm_norm":
        return values + np.float32(1)
    if architecture in PAIRS and stem in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
        half = len(values) // heads // 2
        rows = [head * 2 * half + part * half + row for head in range(heads) for row in range(half) for part in (0, 1)]
        return values[rows]
    if architecture in ("gptneox", "bloom", "falcon") and stem == "attn_qkv":
        heads = config.get("n_head") or config["num_attention_heads"]
        groups = config["num_kv_heads"] if config.get("new_decoder_architecture") else heads
        if architecture == "falcon" and not config["new_decoder_architecture"]:
            return values
        of_groups = [np.split(group, len(group) * groups // (len(values) // (heads + 2 * groups)) // groups)
                     for group in np.split(values, groups)]  # fmt: skip
        queries = heads // groups
        parts = (slice(queries), slice(queries, queries + 1), slice(queries + 1, None))
        return np.concatenate([head for part in parts for group in of_groups for head in group[part]])
    if architecture == "gpt2" and stem in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and name.endswith("weight"):
        return values.T
    return values.reshape(-1) if stem == "ffn_gate_inp_shexp" else values


def _tiled(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """The tensor with reordered value heads: the first of each key head, then the second of each."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    order = [key * (heads // keys) + value for value in range(heads // keys) for key in range(keys)]
    stem = re.sub(r"^blk\.\d+\.|\.(weight|bias)$", "", name)
    if stem in ("ssm_out", "attn_gate", "ssm_a", "ssm_dt", "ssm_alpha", "ssm_beta"):
        axis = 1 if stem == "ssm_out" else 0
        return np.concatenate([np.split(values, heads, axis)[head] for head in order], axis)
    if stem in ("attn_qkv", "ssm_conv1d"):
        first = 2 * keys * config["linear_key_head_dim"]
        return np.concatenate([values[:first], *(np.split(values[first:], heads)[head] for head in order)])
    return values
