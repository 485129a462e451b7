"""GGUF's architectures in which layers keep a state: their names and fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.gguf.families.architecture import (
    ATTENTION,
    MLP,
    NORMS,
    QK_NORMS,
    TOP,
    Fields,
    GgufArchitecture,
    experts_of,
    granite_scales,
    shared_expert,
    stacked_experts,
)
from gptcli.gguf.families.tiled_heads import TILED


def _mamba(module: str) -> dict[str, str]:
    parts = {"in": "in_proj", "conv1d": "conv1d", "dt": "dt_bias", "a": "A_log", "d": "D", "norm": "norm"}
    return {f"ssm_{theirs}": f"{module}.{name}" for theirs, name in (parts | {"out": "out_proj"}).items()}


def _without(config: dict[str, Any], *names: str) -> None:
    """Removes fields that the family does not read."""
    for name in names:
        config.pop(name, None)


def _mamba_fields(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """The fields of Mamba 2, by their names in hybrids."""
    heads, width = fields.integer("ssm.time_step_rank"), fields.integer("ssm.inner_size")
    if heads < 1 or width % heads:
        raise fields.file.broken(f"{width} channels of Mamba 2 cannot be in {heads} heads")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": width // heads,
        "mamba_expand": width / config["hidden_size"],
        "mamba_d_conv": fields.integer("ssm.conv_kernel"),
        "mamba_d_state": fields.integer("ssm.state_size"),
        "mamba_n_groups": fields.integer("ssm.group_count"),
        "mamba_conv_bias": fields.has_anywhere(".ssm_conv1d.bias"),
        "mamba_proj_bias": fields.has_anywhere(".ssm_in.bias"),
    }


def _attends(fields: Fields, config: dict[str, Any]) -> list[bool]:
    """Whether each layer has attention: other layers have 0 key-value heads."""
    return [heads > 0 for heads in fields.per_layer("attention.head_count_kv", config["num_hidden_layers"])]


def _mamba2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _without(config, "num_attention_heads", "num_key_value_heads", "intermediate_size", "rope_theta")
    mamba = _mamba_fields(fields, config)
    return {
        "num_heads": mamba["mamba_n_heads"],
        "head_dim": mamba["mamba_d_head"],
        "expand": mamba["mamba_expand"],
        "conv_kernel": mamba["mamba_d_conv"],
        "state_size": mamba["mamba_d_state"],
        "n_groups": mamba["mamba_n_groups"],
        "use_conv_bias": mamba["mamba_conv_bias"],
        "use_bias": mamba["mamba_proj_bias"],
    }


def _bamba(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    attends = _attends(fields, config)
    return _mamba_fields(fields, config) | {
        "attn_layer_indices": [layer for layer, attention in enumerate(attends) if attention],
        "attention_bias": fields.has_anywhere(".attn_q.bias"),
        "mlp_bias": fields.has(".ffn_up.bias"),
    }


def _granite_hybrid(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    experts = fields.integer("expert_count", 0)
    dense, shared = config["intermediate_size"], fields.integer("expert_shared_feed_forward_length", 0)
    attends = _attends(fields, config)
    return (
        _mamba_fields(fields, config)
        | {
            "num_local_experts": experts,
            "num_experts_per_tok": fields.integer("expert_used_count", 0),
            "shared_intermediate_size": shared or dense,
            "layer_types": ["attention" if attention else "mamba" for attention in attends],
            "position_embedding_type": "rope" if fields.flag("rope.scaling.finetuned", True) else "nope",
            "attention_bias": fields.has_anywhere(".attn_q.bias"),
        }
        | granite_scales(fields, config)
    )


def _falcon_h1(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Every multiplier is in the weights."""
    return _mamba_fields(fields, config) | {
        "mamba_d_ssm": fields.integer("ssm.inner_size"),
        "mamba_rms_norm": fields.has(".ssm_norm.weight"),
        "mamba_norm_before_gate": False,
        "attention_bias": fields.has(".attn_q.bias"),
        "projectors_bias": fields.has(".ssm_out.bias"),
        "mlp_bias": fields.has(".ffn_up.bias"),
    }


def _nemotron_h(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _without(config, "rope_theta", "rope_scaling")
    mamba = _mamba_fields(fields, config)
    types = [
        "attention"
        if attention
        else next((kind for tensor, kind in _KINDS.items() if fields.has(tensor, layer)), "mamba")
        for layer, attention in enumerate(_attends(fields, config))
    ]
    extra: dict[str, Any] = {}
    if "moe" in types:
        fields.expect("expert_gating_func", 0, 2)
        width = fields.most("expert_feed_forward_length")
        extra = {
            **experts_of(fields, "n_routed_experts"),
            "moe_intermediate_size": width,
            "moe_shared_expert_intermediate_size": fields.integer("expert_shared_feed_forward_length"),
            "n_shared_experts": 1,
            "n_group": fields.integer("expert_group_count", 1),
            "topk_group": fields.integer("expert_group_used_count", 1),
            "norm_topk_prob": fields.flag("expert_weights_norm", False),
            "routed_scaling_factor": fields.number("expert_weights_scale", 1.0),
        }
        fields.expect("expert_shared_count", 1)
    return extra | {
        "layers_block_type": types,
        "mamba_num_heads": mamba["mamba_n_heads"],
        "mamba_head_dim": mamba["mamba_d_head"],
        "conv_kernel": mamba["mamba_d_conv"],
        "ssm_state_size": mamba["mamba_d_state"],
        "n_groups": mamba["mamba_n_groups"],
        "use_conv_bias": mamba["mamba_conv_bias"],
        "use_bias": mamba["mamba_proj_bias"],
        "mlp_bias": fields.has_anywhere(".ffn_up.bias"),
    }


_KINDS = {".ssm_in.weight": "mamba", ".ffn_gate_inp.weight": "moe", ".ffn_up.weight": "mlp"}


def _lfm2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    attends = _attends(fields, config)
    return {
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": fields.integer("shortconv.l_cache"),
        "conv_bias": fields.has_anywhere(".shortconv.conv.bias"),
        "layer_types": ["full_attention" if attention else "conv" for attention in attends],
    }


def _lfm2_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.expect("expert_gating_func", 2)
    extra = _lfm2(fields, config)
    _without(extra, "block_auto_adjust_ff_dim")
    return extra | {
        **experts_of(fields),
        "moe_intermediate_size": fields.most("expert_feed_forward_length"),
        "num_dense_layers": fields.integer("leading_dense_block_count", 0),
        "norm_topk_prob": True,
        "use_expert_bias": True,
        "routed_scaling_factor": fields.number("expert_weights_scale", 1.0),
    }


def _delta_net(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    heads, layers = fields.integer("ssm.time_step_rank"), config["num_hidden_layers"]
    if heads < 1:
        raise fields.file.broken(f"{heads} heads of values")
    interval = fields.integer("full_attention_interval", 4)
    keeps = [(layer + 1) % max(1, interval) != 0 for layer in range(layers)]
    if fields.file.any(f"{fields.prefix}attention.recurrent_layers") is not None:
        keeps = [bool(each) for each in fields.per_layer("attention.recurrent_layers", layers)]
    return {
        "linear_num_value_heads": heads,
        "linear_num_key_heads": fields.integer("ssm.group_count"),
        "linear_key_head_dim": fields.integer("ssm.state_size"),
        "linear_value_head_dim": fields.integer("ssm.inner_size") // heads,
        "linear_conv_kernel_dim": fields.integer("ssm.conv_kernel"),
        "layer_types": ["linear_attention" if state else "full_attention" for state in keeps],
    }


def _qwen_experts(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return _delta_net(fields, config) | {
        **experts_of(fields),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "shared_expert_intermediate_size": fields.integer("expert_shared_feed_forward_length"),
    }


def _qwen3_next(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return _qwen_experts(fields, config) | {"norm_topk_prob": True}


def _qwen35(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return _delta_net(fields, config) | {TILED: True}


def _qwen35_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _without(config, "intermediate_size")
    return _qwen_experts(fields, config) | {TILED: True}


_MAMBA2 = GgufArchitecture(
    model_type="mamba2",
    read_only=True,
    states=True,
    block=_mamba("mixer") | {"attn_norm": "norm"},
    top={"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"},
    layers="backbone.layers.",
    renamed={"rms_norm_eps": "layer_norm_epsilon"},
    extra=_mamba2,
)
_BAMBA = GgufArchitecture(
    model_type="bamba",
    read_only=True,
    states=True,
    partial=True,
    pairs=True,
    block=ATTENTION
    | _mamba("mamba")
    | {
        "attn_norm": "input_layernorm",
        "ffn_norm": "pre_ff_layernorm",
        "ffn_gate": "feed_forward.gate_proj",
        "ffn_up": "feed_forward.up_proj",
        "ffn_down": "feed_forward.down_proj",
    },
    top=TOP | {"output_norm": "model.final_layernorm"},
    extra=_bamba,
)


def _granite_or_bamba(fields: Fields) -> GgufArchitecture | None:
    """Bamba is stored under Granite's name, without its multipliers."""
    scales = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
    return _BAMBA if all(fields.number(name) is None for name in scales) else None


_LFM2 = GgufArchitecture(
    model_type="lfm2",
    states=True,
    block=ATTENTION
    | {
        "attn_output": "self_attn.out_proj",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "shortconv.in_proj": "conv.in_proj",
        "shortconv.conv": "conv.conv",
        "shortconv.out_proj": "conv.out_proj",
        "attn_norm": "operator_norm",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
    },
    top={
        "token_embd": "model.embed_tokens",
        "token_embd_norm": "model.embedding_norm",  # the last norm, though the name says otherwise
        "output_norm": "model.embedding_norm",
        "output": "lm_head",
    },
    renamed={"rms_norm_eps": "norm_eps"},
    extra=_lfm2,
)
_QWEN35 = GgufArchitecture(
    model_type="qwen3_5_text",
    read_only=True,
    states=True,
    partial=True,
    plus_one=True,
    images=True,
    block=ATTENTION
    | QK_NORMS
    | MLP
    | {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_in": "linear_attn.in_proj_qkvz",  # in older files
        "ssm_ba": "linear_attn.in_proj_ba",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_beta": "linear_attn.in_proj_b",
        "ssm_conv1d": "linear_attn.conv1d",
        "ssm_dt": "linear_attn.dt_bias",
        "ssm_a": "linear_attn.A_log",
        "ssm_norm": "linear_attn.norm",
        "ssm_out": "linear_attn.out_proj",
    },
    extra=_qwen35,
)
_QWEN_EXPERTS = (
    stacked_experts("mlp.switch_mlp", fused=True)
    | shared_expert("mlp.shared_expert")
    | {"ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
)
_NEMOTRON_H = GgufArchitecture(
    model_type="nemotron_h",
    read_only=True,
    states=True,
    block=_mamba("mixer")
    | {name: module.replace("self_attn", "mixer") for name, module in ATTENTION.items()}
    | {
        "attn_norm": "norm",
        "ffn_up": "mixer.up_proj",
        "ffn_down": "mixer.down_proj",
        "ffn_gate_inp": "mixer.gate",
        "exp_probs_b": "mixer.gate.e_score_correction_bias",
    }
    | stacked_experts("mixer.switch_mlp")
    | shared_expert("mixer.shared_experts"),
    top=_MAMBA2.top,
    layers="backbone.layers.",
    renamed={"rms_norm_eps": "layer_norm_epsilon"},
    extra=_nemotron_h,
)

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "mamba2": _MAMBA2,
    "granitehybrid": GgufArchitecture(
        model_type="granitemoehybrid",
        read_only=True,
        states=True,
        pairs=True,
        block=ATTENTION
        | MLP
        | NORMS
        | _mamba("mamba")
        | stacked_experts("block_sparse_moe.switch_mlp")
        | shared_expert("shared_mlp")
        | {"ffn_gate_inp": "block_sparse_moe.router.layer"},
        extra=_granite_hybrid,
        variant=_granite_or_bamba,
    ),
    "falcon-h1": replace(_BAMBA, model_type="falcon_h1", partial=False, pairs=False, extra=_falcon_h1),
    "nemotron_h": _NEMOTRON_H,
    "nemotron_h_moe": _NEMOTRON_H,
    "lfm2": _LFM2,
    "lfm2moe": replace(
        _LFM2,
        model_type="lfm2_moe",
        block={
            **_LFM2.block,
            **stacked_experts("feed_forward.switch_mlp"),
            "ffn_gate_inp": "feed_forward.gate",
            "exp_probs_b": "feed_forward.expert_bias",
        },
        extra=_lfm2_moe,
    ),
    "qwen3next": replace(
        _QWEN35, model_type="qwen3_next", images=False, block={**_QWEN35.block, **_QWEN_EXPERTS}, extra=_qwen3_next
    ),
    "qwen35": _QWEN35,
    "qwen35moe": replace(
        _QWEN35, model_type="qwen3_5_moe_text", block={**_QWEN35.block, **_QWEN_EXPERTS}, extra=_qwen35_moe
    ),
}
