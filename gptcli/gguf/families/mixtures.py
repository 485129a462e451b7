"""GGUF's architectures with mixtures of experts: their names and fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.gguf.families.architecture import (
    ATTENTION,
    LLAMA,
    MLP,
    NORMS,
    QK_NORMS,
    Fields,
    GgufArchitecture,
    experts_of,
    granite_scales,
    original_context,
    routed_experts,
    shared_expert,
    stacked_experts,
)

_PHI_MAGNITUDE = 1.243163121016122  # of LongRoPE in every Phi 3.5 MoE; files lack it


def _qwen_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    top_k = fields.integer("expert_used_count")
    if top_k < 1:
        raise fields.file.broken(f"{top_k} experts are used")
    width = fields.integer("expert_feed_forward_length", config["intermediate_size"] // top_k)
    extra = experts_of(fields) | {"moe_intermediate_size": width}
    if config["model_type"] == "qwen2_moe":
        shared = fields.integer("expert_shared_feed_forward_length", config["intermediate_size"])
        extra["shared_expert_intermediate_size"] = shared
    return extra


def _gpt_oss(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    config["intermediate_size"] = fields.integer("expert_feed_forward_length", config["intermediate_size"])
    if config["rope_scaling"]:
        config["rope_scaling"] |= {"truncate": False}  # llama.cpp rounds, the model does not
    return {
        "attention_bias": fields.qkv_bias,
        **experts_of(fields, "num_local_experts"),
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": fields.sliding(config["num_hidden_layers"], 2),
    }


def _granite_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    shared = fields.integer("expert_shared_feed_forward_length", 0)
    return granite_scales(fields, config) | {
        "model_type": "granitemoeshared" if shared else "granitemoe",
        "attention_bias": fields.qkv_bias,
        **experts_of(fields, "num_local_experts"),
        "shared_intermediate_size": shared or None,
    }


def _olmoe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    config["intermediate_size"] = fields.integer("expert_feed_forward_length", config["intermediate_size"])
    return {"attention_bias": fields.qkv_bias, **experts_of(fields), "norm_topk_prob": False}


def _dots1(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.expect("expert_gating_func", 0, 2)
    return routed_experts(fields) | {"attention_bias": fields.qkv_bias}


def _glm4_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return _dots1(fields, config) | {
        "use_qk_norm": fields.has(".attn_q_norm.weight"),
        "num_nextn_predict_layers": 0,  # those of the file are left out
    }


def _ernie_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    shared = fields.integer("expert_shared_count", 0)
    if shared:
        fields.integer("expert_shared_feed_forward_length", 0)  # which files get wrong
    return {
        "moe_num_experts": fields.integer("expert_count"),
        "moe_k": fields.integer("expert_used_count"),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": fields.integer("leading_dense_block_count", 0),
        "moe_layer_interval": fields.integer("interleave_moe_layer_step", 1),
        "use_bias": fields.qkv_bias,
    }


def _minimax_m2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.expect("expert_gating_func", 0, 2)
    config["intermediate_size"] = fields.integer("expert_feed_forward_length")
    return experts_of(fields, "num_local_experts")


def _hunyuan_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    width = fields.integer("expert_feed_forward_length")
    fields.expect("expert_shared_feed_forward_length", width)
    fields.expect("expert_shared_count", 1)
    return {
        "attention_bias": fields.qkv_bias,
        "intermediate_size": width,
        "num_experts": fields.integer("expert_count"),
        "moe_topk": fields.integer("expert_used_count"),
    }


def _phimoe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    if scaling := config["rope_scaling"]:
        if scaling["rope_type"] != "longrope":
            raise fields.file.unsupported(f"RoPE scaling {scaling['rope_type']!r} is not read")
        scaling.pop("attention_factor")
        scaling |= {"short_mscale": _PHI_MAGNITUDE, "long_mscale": _PHI_MAGNITUDE}
    original = original_context(fields, config)
    return {
        "attention_bias": fields.qkv_bias,
        "lm_head_bias": fields.has("output.bias"),
        **experts_of(fields, "num_local_experts"),
        "original_max_position_embeddings": original if scaling else None,
        "sliding_window": fields.integer("attention.sliding_window", 0) or None,
    }


def _llama4(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Files lack the chunks, the layers with RoPE and the scale of far positions, which are these."""
    layers, experts = config["num_hidden_layers"], fields.integer("expert_count")
    fields.expect("attention.sliding_window", _LLAMA4_CHUNK)  # llama.cpp takes any other for this one; 0 is unclear
    fields.expect("expert_gating_func", 0, 2)
    step = fields.integer("interleave_moe_layer_step")
    kinds = {"sliding_attention": "chunked_attention"}
    return {
        "attention_chunk_size": _LLAMA4_CHUNK,
        "attention_bias": fields.qkv_bias,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": _LLAMA4_CHUNK,
        "intermediate_size": fields.integer("expert_feed_forward_length"),
        "intermediate_size_mlp": config["intermediate_size"],
        "layer_types": [kinds.get(kind, kind) for kind in fields.sliding(layers, 4)],
        "moe_layers": [*range(step - 1, layers, step)] if step else [],
        "no_rope_layer_interval": 4,
        "num_local_experts": experts,
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "use_qk_norm": experts != 128,  # Maverick has none
    }


_LLAMA4_CHUNK = 8192
_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_CORRECTION = {"exp_probs_b": "mlp.gate.e_score_correction_bias"}
_DOTS1 = GgufArchitecture(
    model_type="dots1",
    block=LLAMA
    | QK_NORMS
    | stacked_experts("mlp.switch_mlp")
    | shared_expert("mlp.shared_experts")
    | _ROUTER
    | _CORRECTION,
    extra=_dots1,
)

_QWEN3_MOE = GgufArchitecture(
    model_type="qwen3_moe",
    block=ATTENTION | QK_NORMS | NORMS | stacked_experts("mlp.switch_mlp") | _ROUTER,
    constants={"norm_topk_prob": True},
    extra=_qwen_moe,
)
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "qwen2moe": GgufArchitecture(
        model_type="qwen2_moe",
        block=ATTENTION
        | NORMS
        | stacked_experts("mlp.switch_mlp")
        | _ROUTER
        | {"ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
        | shared_expert("mlp.shared_expert"),
        constants={"norm_topk_prob": False},
        extra=_qwen_moe,
    ),
    "qwen3moe": _QWEN3_MOE,
    "qwen3vlmoe": replace(_QWEN3_MOE, images=True),
    "gpt-oss": GgufArchitecture(
        model_type="gpt_oss",
        block=ATTENTION
        | {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_sinks": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
        }
        | stacked_experts("mlp.experts"),
        extra=_gpt_oss,
    ),
    "llama4": GgufArchitecture(
        model_type="llama4_text",
        read_only=True,
        images=True,
        block=ATTENTION
        | NORMS
        | {name: module.replace("mlp", "feed_forward") for name, module in MLP.items()}
        | stacked_experts("feed_forward.experts")
        | shared_expert("feed_forward.shared_expert")
        | {"ffn_gate_inp": "feed_forward.router"},
        extra=_llama4,
    ),
    "granitemoe": GgufArchitecture(
        model_type="granitemoe",
        others=("granitemoeshared",),
        pairs=True,
        block=ATTENTION
        | NORMS
        | stacked_experts("block_sparse_moe.switch_mlp")
        | shared_expert("shared_mlp")
        | {"ffn_gate_inp": "block_sparse_moe.router.layer"},
        extra=_granite_moe,
    ),
    "olmoe": GgufArchitecture(
        model_type="olmoe",
        block=ATTENTION | QK_NORMS | NORMS | stacked_experts("mlp.switch_mlp") | _ROUTER,
        extra=_olmoe,
    ),
    "dots1": _DOTS1,
    "glm4moe": replace(
        _DOTS1,
        model_type="glm4_moe",
        partial=True,
        block={"post_attention_norm": "post_attention_layernorm", **_DOTS1.block},
        extra=_glm4_moe,
    ),
    "ernie4_5-moe": GgufArchitecture(
        model_type="ernie4_5_moe",
        block=LLAMA
        | stacked_experts("mlp.switch_mlp")
        | shared_expert("mlp.shared_experts")
        | _ROUTER
        | {"exp_probs_b": "mlp.moe_statics.e_score_correction_bias"},
        extra=_ernie_moe,
    ),
    "minimax-m2": GgufArchitecture(
        model_type="minimax_m2",
        partial=True,
        block=ATTENTION
        | QK_NORMS
        | NORMS
        | stacked_experts("block_sparse_moe.switch_mlp")
        | {"ffn_gate_inp": "block_sparse_moe.gate", "exp_probs_b": "block_sparse_moe.e_score_correction_bias"},
        extra=_minimax_m2,
    ),
    "hunyuan-moe": GgufArchitecture(
        model_type="hunyuan_v1_moe",
        block=ATTENTION
        | NORMS
        | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
        | stacked_experts("mlp.switch_mlp")
        | shared_expert("mlp.shared_mlp")
        | {"ffn_gate_inp": "mlp.gate.wg"},
        extra=_hunyuan_moe,
    ),
    "phimoe": GgufArchitecture(
        model_type="phimoe",
        read_only=True,  # llama.cpp chooses experts otherwise
        block=ATTENTION
        | NORMS
        | stacked_experts("block_sparse_moe.switch_mlp")
        | {"ffn_gate_inp": "block_sparse_moe.gate"},
        extra=_phimoe,
    ),
}
