"""GGUF's architectures of Gemma: their names and fields."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

from gptcli.gguf.families.architecture import (
    ATTENTION,
    FOUR_NORMS,
    MLP,
    QK_NORMS,
    TOP,
    Fields,
    GgufArchitecture,
    fraction_of,
    stacked_experts,
)


def _gemma2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "layer_types": fields.sliding(config["num_hidden_layers"], 2),
        "sliding_window": fields.integer("attention.sliding_window", 4096),
        "query_pre_attn_scalar": _gemma_scale(config, layers_of_27b=46),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
    }


def _gemma3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    layers, window = config["num_hidden_layers"], fields.integer("attention.sliding_window", 0)
    softcap, local = fields.number("final_logit_softcapping"), fields.number("rope.local.freq_base")
    if local is not None or fields.file.any(f"{fields.prefix}vision.block_count") is not None:
        # Ollama's first files: the 1B has Gemma 2's softcap, and the others lack what stretches RoPE.
        softcap = None if layers == 26 else softcap
        if layers in (34, 48, 62) and config["rope_scaling"] is None:
            config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    return {
        "layer_types": fields.sliding(layers, 6) if window else ["full_attention"] * layers,
        "sliding_window": window or None,
        "query_pre_attn_scalar": _gemma_scale(config, layers_of_27b=62),
        "final_logit_softcapping": softcap,
        "rope_local_base_freq": fields.number("rope.freq_base_swa", local or 10_000.0),
    }


def _gemma_scale(config: dict[str, Any], layers_of_27b: int) -> float:
    """`query_pre_attn_scalar`, which files lack: llama.cpp knows it by the number of layers."""
    if config["num_hidden_layers"] == layers_of_27b:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config["head_dim"])


def _gemma3n(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    deviations = fields.file.values(f"{fields.prefix}activation_sparsity_scale", float)
    return _inputs_and_sharing(fields) | {
        "activation_sparsity_pattern": [round(NormalDist().cdf(each), 6) for each in deviations[:layers]],
        "altup_active_idx": fields.integer("altup.active_idx", 0),
        "altup_num_inputs": fields.integer("altup.num_inputs", 4),
        "attention_bias": fields.qkv_bias,
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
        "intermediate_size": fields.per_layer("feed_forward_length", layers),
        "laurel_rank": _rows(fields, "blk.0.laurel_l.weight"),
        "layer_types": fields.sliding(layers, 5),
        "rope_local_base_freq": fields.number("rope.freq_base_swa", 10_000.0),
        "sliding_window": fields.integer("attention.sliding_window"),
    }


def _gemma4(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    layers, types = config["num_hidden_layers"], fields.sliding(config["num_hidden_layers"], 6)
    shared = _inputs_and_sharing(fields)
    own = layers - shared["num_kv_shared_layers"]
    full = [layer for layer in range(layers)[:own] if types[layer] == "full_attention"]
    values = (".attn_v.weight", ".attn_qkv.weight")
    keys_are_values = not all(any(fields.has(name, layer) for name in values) for layer in full)
    heads, full_heads = _heads(fields, types)
    if heads != full_heads and not keys_are_values:
        raise fields.file.unsupported("full layers with another number of heads for keys, and with values of their own")
    head_dim = fields.integer("attention.key_length_swa")
    fields.expect("attention.value_length_swa", head_dim)
    fields.expect("rope.dimension_count_swa", head_dim)
    widths = fields.per_layer("feed_forward_length", layers)
    if {*widths[:own]} != {widths[0]} or {*widths[own:]} - {widths[0]} and {*widths[own:]} != {2 * widths[0]}:
        raise fields.file.unsupported(f"layers of widths {widths} are not read")
    return (
        shared
        | _experts(fields)
        | {
            "attention_bias": fields.qkv_bias,
            "attention_k_eq_v": keys_are_values,
            "final_logit_softcapping": fields.number("final_logit_softcapping"),
            "global_head_dim": config["head_dim"],
            "head_dim": head_dim,
            "intermediate_size": widths[0],
            "layer_types": types,
            "num_global_key_value_heads": full_heads,
            "num_key_value_heads": heads,
            "rope_parameters": _ropes(fields, config),
            "sliding_window": fields.integer("attention.sliding_window"),
            "use_double_wide_mlp": widths[-1] != widths[0],
        }
    )


def _inputs_and_sharing(fields: Fields) -> dict[str, Any]:
    """Embeddings of tokens for layers, and how many layers share keys and values."""
    width = fields.integer("embedding_length_per_layer_input")
    return {
        "hidden_size_per_layer_input": width,
        "vocab_size_per_layer_input": _rows(fields, "per_layer_token_embd.weight") if width else None,
        "num_kv_shared_layers": fields.integer("attention.shared_kv_layers", 0),
    }


def _rows(fields: Fields, tensor: str) -> int:
    if not fields.has(tensor):
        raise fields.file.broken(f"tensor {tensor!r} is missing")
    return fields.file.tensors[tensor].shape[0]


def _heads(fields: Fields, types: list[str]) -> tuple[int, int]:
    """The number of key-value heads in sliding layers, and in full ones."""
    found: list[int] = []
    each = fields.per_layer("attention.head_count_kv", len(types))
    for wanted in ("sliding_attention", "full_attention"):
        heads = {count for count, kind in zip(each, types, strict=True) if kind == wanted} or {each[0]}
        if len(heads) > 1:
            raise fields.file.unsupported(f"layers of {sorted(heads)} heads for keys are not read")
        found += heads
    return found[0], found[1]


def _experts(fields: Fields) -> dict[str, Any]:
    """The mixture beside each dense MLP, if there is one."""
    width = fields.integer("expert_feed_forward_length", 0)
    if not fields.has(".ffn_gate_inp.weight"):
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "moe_intermediate_size": width,
        "num_experts": fields.integer("expert_count"),
        "top_k_experts": fields.integer("expert_used_count"),
    }


def _ropes(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """RoPE by type of layer. Full layers rotate the first pairs of channels; a tensor of factors says how many."""
    factors = (config.pop("rope_scaling") or {}).get("short_factor", [])
    turned = factors.count(1.0)
    if not turned or factors != [1.0] * turned + [_UNTURNED] * (config["head_dim"] // 2 - turned):
        raise fields.file.unsupported("RoPE of full layers without rope_freqs.weight of 1, then 1e30, is not read")
    full = {"rope_type": "proportional", "partial_rotary_factor": fraction_of(2 * turned, config["head_dim"])}
    return {
        "full_attention": full | {"rope_theta": config.pop("rope_theta")},
        "sliding_attention": {"rope_type": "default", "rope_theta": fields.number("rope.freq_base_swa", 10_000.0)},
    }


_UNTURNED = 1e30
_PER_LAYER_TOP = TOP | {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_BLOCK = (
    ATTENTION
    | QK_NORMS
    | MLP
    | FOUR_NORMS
    | {
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
    }
)

_GEMMA = {"hidden_act": "gelu_pytorch_tanh"}
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "gemma": GgufArchitecture(model_type="gemma", plus_one=True, constants=_GEMMA),
    "gemma2": GgufArchitecture(model_type="gemma2", block=ATTENTION | MLP | FOUR_NORMS, plus_one=True, extra=_gemma2),
    "gemma3": GgufArchitecture(
        model_type="gemma3_text",
        others=("gemma3",),
        block=ATTENTION | QK_NORMS | MLP | FOUR_NORMS,
        theta=1e6,
        plus_one=True,
        extra=_gemma3,
    ),
    "gemma3n": GgufArchitecture(
        model_type="gemma3n_text",
        read_only=True,
        images=True,
        per_layer=True,
        theta=1e6,
        block=_BLOCK
        | {
            "altup_correct_coef": "altup.correction_coefs",
            "altup_correct_scale": "altup.correct_output_scale",
            "altup_predict_coef": "altup.prediction_coefs",
            "altup_router": "altup.modality_router",
            "altup_router_norm": "altup.router_norm",
            "laurel_l": "laurel.linear_left",
            "laurel_r": "laurel.linear_right",
            "laurel_post_norm": "laurel.post_laurel_norm",
        },
        top=_PER_LAYER_TOP
        | {"altup_proj": "model.altup_projections", "altup_unembd_proj": "model.altup_unembed_projections"},
        extra=_gemma3n,
    ),
    "gemma4": GgufArchitecture(
        model_type="gemma4_text",
        read_only=True,
        images=True,
        per_layer=True,
        theta=1e6,
        block=_BLOCK
        | stacked_experts("experts", fused=True)
        | {
            "layer_output_scale": "layer_scalar",
            "ffn_gate_inp": "router.proj",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "post_ffw_norm_1": "post_feedforward_layernorm_1",
            "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
            "post_ffw_norm_2": "post_feedforward_layernorm_2",
        },
        top=_PER_LAYER_TOP,
        extra=_gemma4,
    ),
}
