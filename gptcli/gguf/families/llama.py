"""GGUF's architectures of Llama and its relatives: their names and fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.gguf.families.architecture import (
    ATTENTION,
    LAST_NORMS,
    LLAMA,
    MLP,
    NORMS,
    QK_NORMS,
    Fields,
    GgufArchitecture,
    experts_of,
    granite_scales,
    original_context,
    stacked_experts,
)


def _llama(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    biases = {"attention_bias": fields.qkv_bias, "mlp_bias": fields.has(".ffn_up.bias")}
    if not fields.integer("expert_count", 0):
        return biases
    if any(biases.values()):
        raise fields.file.unsupported("a mixture of experts with biases is not read")
    return {"model_type": "mixtral"} | experts_of(fields, "num_local_experts")


def _ministral3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    scaling, beta = config["rope_scaling"], fields.number("attention.temperature_scale")
    if beta and (not scaling or "original_max_position_embeddings" not in scaling):
        raise fields.file.broken("attention.temperature_scale without an original context")
    if scaling and beta:
        scaling["llama_4_scaling_beta"] = beta
    if scaling and (scale := fields.number("rope.scaling.yarn_log_multiplier")):
        scaling |= {"mscale": scale, "mscale_all_dim": scale}
    return {}


def _phi3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 0)
    return {"sliding_window": window or None, "original_max_position_embeddings": original_context(fields, config)}


def _stablelm(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.flag("use_parallel_residual", True)  # which files get wrong: the norm of the MLP tells
    return {
        "use_parallel_residual": not fields.has(".ffn_norm.weight"),
        "use_qkv_bias": fields.qkv_bias,
        "qk_layernorm": fields.has(".attn_q_norm.weight"),
    }


def _olmo(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    if config.pop("layer_norm_eps") != 1e-5:
        raise fields.file.unsupported("an epsilon of norms that is not 1e-5")
    return {"clip_qkv": fields.number("attention.clamp_kqv")}


def _olmo2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 0)
    if not window:
        return {}
    types = fields.sliding(config["num_hidden_layers"], 4)
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling") or {"rope_type": "default"}
    ropes = {
        "full_attention": scaling | {"rope_theta": theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": fields.number("rope.freq_base_swa", theta)},
    }
    return {"model_type": "olmo3", "sliding_window": window, "layer_types": types, "rope_parameters": ropes}


def _granite(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.expect("rope.scaling.finetuned", True)  # false is a model without RoPE
    return _llama(fields, config) | granite_scales(fields, config)


def _minicpm(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Granite's multipliers; old files lack them and are refused."""
    for name in ("embedding_scale", "residual_scale", "logit_scale"):
        if fields.number(name) is None:
            raise fields.file.unsupported(f"minicpm.{name} is missing", "convert the model with a newer llama.cpp")
    return _granite(fields, config)


def _cohere(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    scale = fields.number("logit_scale")
    if scale is None:
        raise fields.file.broken("logit_scale is missing")
    if config["model_type"] == "cohere":
        return {"logit_scale": scale, "use_qk_norm": fields.has(".attn_q_norm.weight")}
    window = fields.integer("attention.sliding_window")
    types = fields.sliding(config["num_hidden_layers"], 4)
    return {"logit_scale": scale, "sliding_window": window, "layer_types": types}


def _exaone4(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    layers, window = config["num_hidden_layers"], fields.integer("attention.sliding_window", 0)
    return {
        "sliding_window": window or None,
        "layer_types": fields.sliding(layers, 4) if window else ["full_attention"] * layers,
    }


def _attention_bias(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": fields.qkv_bias}


_QWEN2_VL = GgufArchitecture(model_type="qwen2", images=True)
_QWEN3 = GgufArchitecture(model_type="qwen3", block=LLAMA | QK_NORMS)
_MIXTRAL_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}  # in files of before experts were stacked
_PLAIN_MLP = {name: module for name, module in LLAMA.items() if name != "ffn_gate"}

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture(
        model_type="llama",
        others=("mistral", "mixtral"),
        block=LLAMA
        | {"ffn_gate_inp": "block_sparse_moe.gate"}
        | stacked_experts("block_sparse_moe.switch_mlp")
        | {f"ffn_{kind}.#": f"block_sparse_moe.experts.#.{name}" for kind, name in _MIXTRAL_EXPERT.items()},
        pairs=True,
        extra=_llama,
    ),
    "mistral3": GgufArchitecture(model_type="ministral3", pairs=True, extra=_ministral3),
    "qwen2": GgufArchitecture(model_type="qwen2"),
    "qwen2vl": _QWEN2_VL,
    "qwen25vl": _QWEN2_VL,  # of Ollama
    "qwen3": _QWEN3,
    "qwen3vl": replace(_QWEN3, images=True),
    "internlm2": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "xverse": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "ernie4_5": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "exaone": GgufArchitecture(model_type="llama", extra=_llama),
    "seed_oss": GgufArchitecture(
        model_type="qwen2", block=ATTENTION | MLP | NORMS | {"post_attention_norm": "post_attention_layernorm"}
    ),
    "phi3": GgufArchitecture(
        model_type="phi3",
        block=NORMS
        | {
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        extra=_phi3,
    ),
    "stablelm": GgufArchitecture(
        model_type="stablelm",
        partial=True,
        block=LLAMA | {"attn_q_norm": "self_attn.q_layernorm.norms", "attn_k_norm": "self_attn.k_layernorm.norms"},
        eps="layer_norm_eps",
        extra=_stablelm,
    ),
    "olmo": GgufArchitecture(model_type="olmo", eps="layer_norm_eps", pairs=True, extra=_olmo),
    "olmo2": GgufArchitecture(
        model_type="olmo2",
        others=("olmo3",),
        block=ATTENTION | QK_NORMS | MLP | LAST_NORMS,
        extra=_olmo2,
    ),
    "granite": GgufArchitecture(model_type="granite", pairs=True, extra=_granite),
    "minicpm": GgufArchitecture(model_type="granite", pairs=True, extra=_minicpm),
    "command-r": GgufArchitecture(model_type="cohere", block=LLAMA | QK_NORMS, eps="layer_norm_eps", extra=_cohere),
    "cohere2": GgufArchitecture(model_type="cohere2", eps="layer_norm_eps", extra=_cohere),
    "glm4": GgufArchitecture(
        model_type="glm4",
        partial=True,
        block=ATTENTION
        | {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        extra=_attention_bias,
    ),
    "smollm3": GgufArchitecture(
        model_type="smollm3", pairs=True, constants={"no_rope_layer_interval": 4}, extra=_llama
    ),
    "arcee": GgufArchitecture(model_type="arcee", block=_PLAIN_MLP, pairs=True, extra=_llama),
    "nemotron": GgufArchitecture(
        model_type="nemotron",
        block=_PLAIN_MLP,
        eps="norm_eps",
        plus_one=True,
        partial=True,
        extra=_llama,
    ),
    "apertus": GgufArchitecture(
        model_type="apertus",
        read_only=True,
        block=_PLAIN_MLP | QK_NORMS | {"attn_norm": "attention_layernorm", "ffn_norm": "feedforward_layernorm"},
        extra=_attention_bias,
    ),
    "exaone4": GgufArchitecture(model_type="exaone4", block=ATTENTION | QK_NORMS | MLP | LAST_NORMS, extra=_exaone4),
    "hunyuan-dense": GgufArchitecture(
        model_type="hunyuan_v1_dense",
        block=LLAMA | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        extra=_attention_bias,
    ),
    "chatglm": GgufArchitecture(
        model_type="glm",
        partial=True,
        block=ATTENTION | NORMS | {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
        extra=_attention_bias,
    ),
}
