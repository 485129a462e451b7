"""GGUF's architectures as data: what each calls the fields of a config.json and the tensors of transformers.

Names, transformations and defaults are those of llama.cpp's converter and of its model loaders.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.gguf.gemma3n_architectures import GEMMA3N_ARCHITECTURES
from gptcli.gguf.mixture_architectures import MIXTURE_ARCHITECTURES, granite_scales, routed_experts
from gptcli.gguf.naming import (
    ATTENTION,
    FOUR_NORMS,
    LLAMA,
    MLP,
    NORMS,
    QK_NORMS,
    TOP,
    Fields,
    GgufArchitecture,
    shared_expert,
    stacked_experts,
)
from gptcli.gguf.state_architectures import STATE_ARCHITECTURES


def _llama(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    biases = {"attention_bias": fields.qkv_bias, "mlp_bias": fields.has(".ffn_up.bias")}
    experts = fields.integer("expert_count", 0)
    if not experts:
        return biases
    if any(biases.values()):
        raise fields.file.unsupported("a mixture of experts with biases is not read")
    top_k = fields.integer("expert_used_count")
    return {"model_type": "mixtral", "num_local_experts": experts, "num_experts_per_tok": top_k}


def _ministral3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    scaling, beta = config["rope_scaling"], fields.number("attention.temperature_scale")
    if beta and (not scaling or "original_max_position_embeddings" not in scaling):
        raise fields.file.broken("attention.temperature_scale without an original context")
    if scaling and beta:
        scaling["llama_4_scaling_beta"] = beta
    if scaling and (scale := fields.number("rope.scaling.yarn_log_multiplier")):
        scaling |= {"mscale": scale, "mscale_all_dim": scale}
    return {}


def _qwen_moe(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    top_k = fields.integer("expert_used_count")
    if top_k < 1:
        raise fields.file.broken(f"{top_k} experts are used")
    width = fields.integer("expert_feed_forward_length", config["intermediate_size"] // top_k)
    extra = {
        "num_experts": fields.integer("expert_count"),
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
    }
    if config["model_type"] == "qwen2_moe":
        shared = fields.integer("expert_shared_feed_forward_length", config["intermediate_size"])
        extra["shared_expert_intermediate_size"] = shared
    return extra


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
    """What scores are divided by the root of, which files do not say: llama.cpp knows it by the number of layers."""
    if config["num_hidden_layers"] == layers_of_27b:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config["head_dim"])


def _phi3(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    window = fields.integer("attention.sliding_window", 0)
    return {"sliding_window": window or None, "original_max_position_embeddings": _original_context(fields, config)}


def _original_context(fields: Fields, config: dict[str, Any]) -> int:
    return fields.integer("rope.scaling.original_context_length", config["max_position_embeddings"])


def _no_groups(fields: Fields, config: dict[str, Any]) -> None:
    """Takes out the number of heads for keys and values, which is that of all heads."""
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


def _stablelm(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    fields.flag("use_parallel_residual", True)  # which files get wrong: the norm of the MLP tells
    return {
        "use_parallel_residual": not fields.has(".ffn_norm.weight"),
        "use_qkv_bias": fields.qkv_bias,
        "qk_layernorm": fields.has(".attn_q_norm.weight"),
    }


def _olmo(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    if config.pop("layer_norm_eps") not in (None, 1e-5):
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
    """Granite's multipliers, which old files leave to the program that reads them."""
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


def _attention_bias(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    return {"attention_bias": fields.qkv_bias}


def _gpt_oss(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    config["intermediate_size"] = fields.integer("expert_feed_forward_length", config["intermediate_size"])
    if config["rope_scaling"]:
        config["rope_scaling"] |= {"truncate": False}  # llama.cpp rounds, the model does not
    return {
        "attention_bias": fields.qkv_bias,
        "num_local_experts": fields.integer("expert_count"),
        "num_experts_per_tok": fields.integer("expert_used_count"),
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": fields.sliding(config["num_hidden_layers"], 2),
    }


# Groups of experts and how many are used, by layers and experts: old files of DeepSeek V2 and V3 do not say so.
_GROUPS = {(60, 160): (8, 3), (61, 256): (8, 4)}


def _latent(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Latent attention, whether a file's keys and values are those of heads or the latent's."""
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
    corrected = any(name.endswith(".exp_probs_b.bias") for name in fields.file.tensors)
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
_QWEN2_VL = GgufArchitecture(model_type="qwen2", images=True)
_QWEN3 = GgufArchitecture(model_type="qwen3", block=LLAMA | QK_NORMS)
_QWEN3_MOE = GgufArchitecture(
    model_type="qwen3_moe",
    block=ATTENTION | QK_NORMS | NORMS | stacked_experts("mlp.switch_mlp") | {"ffn_gate_inp": "mlp.gate"},
    constants={"norm_topk_prob": True},
    extra=_qwen_moe,
)
_MIXTRAL_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}  # in files of before experts were stacked
_GEMMA = {"hidden_act": "gelu_pytorch_tanh"}
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
    read_only=True,
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
    "qwen2moe": GgufArchitecture(
        model_type="qwen2_moe",
        block=ATTENTION
        | NORMS
        | stacked_experts("mlp.switch_mlp")
        | {"ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate"}
        | shared_expert("mlp.shared_expert"),
        constants={"norm_topk_prob": False},
        extra=_qwen_moe,
    ),
    "qwen2vl": _QWEN2_VL,
    "qwen25vl": _QWEN2_VL,  # of Ollama
    "qwen3": _QWEN3,
    "qwen3moe": _QWEN3_MOE,
    "qwen3vl": replace(_QWEN3, images=True),
    "qwen3vlmoe": replace(_QWEN3_MOE, images=True),
    "internlm2": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "xverse": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "ernie4_5": GgufArchitecture(model_type="llama", pairs=True, extra=_llama),
    "exaone": GgufArchitecture(model_type="llama", extra=_llama),
    "seed_oss": GgufArchitecture(
        model_type="qwen2", block=ATTENTION | MLP | NORMS | {"post_attention_norm": "post_attention_layernorm"}
    ),
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
    "phi2": GgufArchitecture(
        model_type="phi",
        partial=True,
        block=_PHI_BLOCK,
        top=TOP | {"output_norm": "model.final_layernorm"},
        eps="layer_norm_eps",
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
        block=ATTENTION
        | QK_NORMS
        | MLP
        | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
        extra=_olmo2,
    ),
    "granite": GgufArchitecture(model_type="granite", pairs=True, extra=_granite),
    "minicpm": GgufArchitecture(model_type="granite", pairs=True, extra=_minicpm),
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
    "arcee": GgufArchitecture(model_type="arcee", read_only=True, block=_PLAIN_MLP, pairs=True, extra=_llama),
    "nemotron": GgufArchitecture(
        model_type="nemotron",
        read_only=True,
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
    "exaone4": GgufArchitecture(
        model_type="exaone4",
        read_only=True,
        block=ATTENTION
        | QK_NORMS
        | MLP
        | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
        extra=_exaone4,
    ),
    "hunyuan-dense": GgufArchitecture(
        model_type="hunyuan_v1_dense",
        read_only=True,
        block=LLAMA | {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
        extra=_attention_bias,
    ),
    "chatglm": GgufArchitecture(
        model_type="glm",
        read_only=True,
        partial=True,
        block=ATTENTION | NORMS | {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
        extra=_attention_bias,
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
    **GEMMA3N_ARCHITECTURES,
    **MIXTURE_ARCHITECTURES,
    **STATE_ARCHITECTURES,
}
