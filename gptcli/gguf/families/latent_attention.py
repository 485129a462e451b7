"""GGUF's architectures with latent attention: their names and fields."""

from __future__ import annotations

from typing import Any

from gptcli.gguf.families.architecture import (
    MLP,
    NORMS,
    Fields,
    GgufArchitecture,
    routed_experts,
    shared_expert,
    stacked_experts,
)


def _latent(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of latent attention, for files with lengths of heads and for files with those of the latent."""
    config.pop("partial_rotary_factor", None)
    config["num_key_value_heads"] = config["num_attention_heads"]
    rope_dim, length = fields.integer("rope.dimension_count"), config.pop("head_dim")
    value_length = fields.integer("attention.value_length", config["hidden_size"] // config["num_attention_heads"])
    return {
        "kv_lora_rank": fields.integer("attention.kv_lora_rank"),
        "q_lora_rank": fields.integer("attention.q_lora_rank", 0) or None,
        "qk_nope_head_dim": fields.integer("attention.key_length_mla", length) - rope_dim,
        "qk_rope_head_dim": rope_dim,
        "v_head_dim": fields.integer("attention.value_length_mla", value_length),
    }


def _deepseek2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    scaling, weight = config["rope_scaling"], fields.number("rope.scaling.yarn_log_multiplier")
    if scaling:
        if scaling["rope_type"] != "yarn" or not weight:
            raise fields.file.unsupported("RoPE scaling that is not yarn with a yarn_log_multiplier is not read")
        scaling |= {"mscale": 10 * weight, "mscale_all_dim": 10 * weight}
    experts = fields.integer("expert_count", 0)
    if not experts:
        raise fields.file.unsupported("latent attention without experts is not read")
    groups, used = _GROUPS.get((config["num_hidden_layers"], experts), (1, 1))
    groups = fields.integer("expert_group_count", groups)
    corrected = fields.has_anywhere(".exp_probs_b.bias")
    fields.expect("expert_gating_func", *((0, 2) if corrected else (0, 1)))
    if not corrected:
        config |= {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy" if groups > 1 else "greedy"}
    return _latent(fields, config) | {
        **routed_experts(fields),
        "model_type": config["model_type"],
        "n_group": groups,
        "num_nextn_predict_layers": 0,  # those of the file are left out
        "topk_group": fields.integer("expert_group_used_count", used),
    }


# Groups of experts and how many are used, by layers and experts: old files of DeepSeek V2 and V3 lack them.
_GROUPS = {(60, 160): (8, 3), (61, 256): (8, 4)}
_LATENT_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.embed_q",  # MLX's names of its two parts
    "attn_v_b": "self_attn.unembed_out",
    "attn_output": "self_attn.o_proj",
}

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "minicpm3": GgufArchitecture(
        model_type="minicpm3",
        read_only=True,
        block=_LATENT_ATTENTION | MLP | NORMS,
        constants={"dim_model_base": 256, "scale_depth": 1.4, "scale_emb": 12},  # which llama.cpp knows
        extra=_latent,
    ),
    "deepseek2": GgufArchitecture(
        model_type="deepseek_v3",  # or deepseek_v2
        read_only=True,
        block=_LATENT_ATTENTION
        | MLP
        | NORMS
        | stacked_experts("mlp.switch_mlp")
        | {"ffn_gate_inp": "mlp.gate", "exp_probs_b": "mlp.gate.e_score_correction_bias"}
        | shared_expert("mlp.shared_experts"),
        extra=_deepseek2,
    ),
}
