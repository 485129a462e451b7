"""GGUF's architectures of GPT-2 and its relatives, whose MLPs have no gate: their names and fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.gguf.families.architecture import ATTENTION, NORMS, TOP, Fields, GgufArchitecture


def _no_groups(fields: Fields, config: dict[str, Any]) -> None:
    """Removes the number of key-value heads, which must be that of all heads."""
    if config.pop("num_key_value_heads") != config["num_attention_heads"]:
        raise fields.file.unsupported("heads that share keys and values are not read in this architecture")


def _gpt_neox(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _no_groups(fields, config)
    return {
        "use_parallel_residual": fields.flag("use_parallel_residual", True),
        "rotary_pct": config.pop("partial_rotary_factor"),
        "attention_bias": fields.qkv_bias,
    }


def _gpt2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _no_groups(fields, config)
    for name in ("head_dim", "rope_theta", "rope_scaling"):
        config.pop(name)
    return {"activation_function": "gelu_new"}


def _starcoder2(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {"use_bias": fields.qkv_bias, "sliding_window": None}


def _without_positions(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """BLOOM, MPT and StarCoder: no RoPE, and widths that follow from others."""
    for name in ("head_dim", "rope_theta", "rope_scaling", "intermediate_size"):
        config.pop(name)
    return {}


def _bloom(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    _no_groups(fields, config)
    return _without_positions(fields, config)


def _mpt(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    if fields.number("attention.max_alibi_bias") != 8:
        raise fields.file.unsupported("attention.max_alibi_bias is not 8")
    return _bloom(fields, config) | {"attn_config": {"clip_qkv": fields.number("attention.clamp_kqv")}}


def _starcoder(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    inner = config["intermediate_size"]
    if config["num_key_value_heads"] != 1:
        raise fields.file.unsupported("more than one head for keys and values")
    return _without_positions(fields, config) | {"multi_query": True, "n_inner": inner}


def _falcon(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    config.pop("head_dim")
    kv_heads, two_norms = config.pop("num_key_value_heads"), fields.has(".attn_norm_2.weight")
    return {
        "bias": fields.qkv_bias,
        "new_decoder_architecture": two_norms or kv_heads > 1,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": 1 + two_norms,
        "ffn_hidden_size": config.pop("intermediate_size"),
    }


def _falcon_of_two_norms(fields: Fields) -> GgufArchitecture | None:
    if not fields.has(".attn_norm_2.weight"):
        return None
    return replace(_FALCON, block={**_FALCON.block, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"})


_PHI_BLOCK = {
    **ATTENTION,
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_GPT2_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
}
_GPT = GgufArchitecture(
    model_type="bloom",
    block={
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attention.query_key_value",
        "attn_output": "self_attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    },
    top={
        "token_embd": "transformer.word_embeddings",
        "token_embd_norm": "transformer.word_embeddings_layernorm",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    layers="transformer.h.",
    eps="layer_norm_epsilon",
    regrouped=True,
)
_FALCON = replace(_GPT, model_type="falcon", extra=_falcon, variant=_falcon_of_two_norms)

ARCHITECTURES: dict[str, GgufArchitecture] = {
    "phi2": GgufArchitecture(
        model_type="phi",
        partial=True,
        block=_PHI_BLOCK,
        top=TOP | {"output_norm": "model.final_layernorm"},
        eps="layer_norm_eps",
    ),
    "gptneox": GgufArchitecture(
        model_type="gpt_neox",
        partial=True,
        block=NORMS
        | {
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        top={"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
        layers="gpt_neox.layers.",
        eps="layer_norm_eps",
        regrouped=True,
        extra=_gpt_neox,
    ),
    "gpt2": GgufArchitecture(
        model_type="gpt2",  # with MLX's names, whose matrices are (out, in) as here
        block=_GPT2_BLOCK,
        top={
            "token_embd": "model.wte",
            "position_embd": "model.wpe",
            "output_norm": "model.ln_f",
            "output": "model.lm_head",
        },
        layers="model.h.",
        eps="layer_norm_epsilon",
        renamed=_GPT2_NAMES,
        extra=_gpt2,
    ),
    "starcoder2": GgufArchitecture(
        model_type="starcoder2",
        block=ATTENTION | NORMS | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        eps="norm_epsilon",
        extra=_starcoder2,
    ),
    "bloom": replace(
        _GPT,
        renamed={
            "max_position_embeddings": "seq_length",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        extra=_bloom,
    ),
    "falcon": _FALCON,
    "mpt": replace(
        _GPT,
        model_type="mpt",
        block={
            "attn_norm": "norm_1",
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "ffn_norm": "norm_2",
            "ffn_up": "ffn.up_proj",
            "ffn_down": "ffn.down_proj",
        },
        top={"token_embd": "transformer.wte", "output_norm": "transformer.norm_f", "output": "lm_head"},
        layers="transformer.blocks.",
        regrouped=False,
        renamed={
            "hidden_size": "d_model",
            "max_position_embeddings": "max_seq_len",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
        extra=_mpt,
    ),
    "starcoder": replace(
        _GPT,
        model_type="gpt_bigcode",
        block=_GPT2_BLOCK,
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        regrouped=False,
        renamed=_GPT2_NAMES,
        extra=_starcoder,
    ),
}
