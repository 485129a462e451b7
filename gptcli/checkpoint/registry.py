"""All families by `model_type`, and the defaults of their configs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gptcli.checkpoint.families.deepseek import deepseek_v2, deepseek_v3, glm4_moe_lite, kimi_k2, minicpm3
from gptcli.checkpoint.families.gemma import gemma, gemma2, gemma3, gemma3_text, vaultgemma
from gptcli.checkpoint.families.gpt import gpt2, gpt_neo, gpt_neox, gptj, openai_gpt
from gptcli.checkpoint.families.layer_norm import cohere, cohere2, glm, glm4, phi, stablelm, starcoder2
from gptcli.checkpoint.families.lfm2 import lfm2, lfm2_moe
from gptcli.checkpoint.families.llama import granite, llama, ministral3, mistral, phi3, qwen2, qwen3, smollm3
from gptcli.checkpoint.families.llama_relatives import (
    cwm,
    ernie4_5,
    exaone4,
    helium,
    hunyuan_v1_dense,
    ministral,
    seed_oss,
)
from gptcli.checkpoint.families.mamba import bamba, falcon_h1, granitemoehybrid, mamba2, nemotron_h
from gptcli.checkpoint.families.moe import gpt_oss, mixtral, qwen2_moe, qwen3_moe
from gptcli.checkpoint.families.moe_relatives import (
    dots1,
    ernie4_5_moe,
    flex_olmo,
    glm4_moe,
    granitemoe,
    granitemoeshared,
    hunyuan_v1_moe,
    minimax_m2,
    olmoe,
    phimoe,
)
from gptcli.checkpoint.families.olmo import olmo, olmo2, olmo3
from gptcli.checkpoint.families.open_gpts import bloom, codegen, falcon, gpt_bigcode, mpt, opt, xglm
from gptcli.checkpoint.families.plain_mlp import apertus, arcee, nanochat, nemotron
from gptcli.checkpoint.families.qwen_hybrid import (
    qwen3_5,
    qwen3_5_moe,
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_next,
)
from gptcli.checkpoint.families.vision import (
    glm4v,
    idefics3,
    internvl,
    llava,
    llava_next,
    mistral3,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
    smolvlm,
)
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

FAMILIES: dict[str, Family] = {
    "apertus": apertus,
    "arcee": arcee,
    "bamba": bamba,
    "bloom": bloom,
    "codegen": codegen,
    "cohere": cohere,
    "cohere2": cohere2,
    "cwm": cwm,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "dots1": dots1,
    "ernie4_5": ernie4_5,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone4": exaone4,
    "falcon": falcon,
    "falcon_h1": falcon_h1,
    "flex_olmo": flex_olmo,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "glm": glm,
    "glm4": glm4,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "glm4v": glm4v,
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "granitemoe": granitemoe,
    "granitemoehybrid": granitemoehybrid,
    "granitemoeshared": granitemoeshared,
    "helium": helium,
    "hunyuan_v1_dense": hunyuan_v1_dense,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "idefics3": idefics3,
    "internvl": internvl,
    "kimi_k2": kimi_k2,
    "lfm2": lfm2,
    "lfm2_moe": lfm2_moe,
    "llama": llama,
    "llava": llava,
    "llava_next": llava_next,
    "mamba2": mamba2,
    "minicpm3": minicpm3,
    "minimax_m2": minimax_m2,
    "ministral": ministral,
    "ministral3": ministral3,
    "mistral": mistral,
    "mistral3": mistral3,
    "mixtral": mixtral,
    "mpt": mpt,
    "nanochat": nanochat,
    "nemotron": nemotron,
    "nemotron_h": nemotron_h,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "openai-gpt": openai_gpt,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_moe": qwen2_moe,
    "qwen2_vl": qwen2_vl,
    "qwen3": qwen3,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "qwen3_5_moe_text": qwen3_5_moe_text,
    "qwen3_5_text": qwen3_5_text,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "qwen3_vl": qwen3_vl,
    "seed_oss": seed_oss,
    "smollm3": smollm3,
    "smolvlm": smolvlm,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "vaultgemma": vaultgemma,
    "xglm": xglm,
}

# Other names of fields in transformers' config classes (`attribute_map`).
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
OTHER_NAMES: dict[str, dict[str, str]] = {
    "bamba": {"layer_types": "layers_block_type"},
    "bloom": {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    "codegen": _GPT2_NAMES,
    "deepseek_v2": {"num_experts": "n_routed_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    "dots1": {"num_local_experts": "n_routed_experts"},
    "ernie4_5_moe": {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    "falcon_h1": {"layer_types": "layers_block_type"},
    "flex_olmo": {"num_local_experts": "num_experts"},
    "glm4_moe": {"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    "glm4_moe_lite": {"num_local_experts": "n_routed_experts", "head_dim": "qk_rope_head_dim"},
    "gpt2": _GPT2_NAMES,
    "gpt_bigcode": _GPT2_NAMES,
    "gpt_neo": {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    "gptj": _GPT2_NAMES,
    "granitemoehybrid": {"layers_block_type": "layer_types"},
    "hunyuan_v1_moe": {"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    "nemotron_h": {"layer_types": "layers_block_type", "num_local_experts": "n_routed_experts"},
    "mpt": {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    "olmoe": {"num_local_experts": "num_experts"},
    "openai-gpt": _GPT2_NAMES,
    "xglm": {"hidden_size": "d_model", "num_attention_heads": "attention_heads", "num_hidden_layers": "num_layers"},
}

# Model types that transformers has no class for, and whose class they say they are.
SAME_AS = {"kimi_k2": "deepseek_v3"}

# Defaults of the config classes in transformers, which configs may leave out. A null stays null.
_DEFAULTS: dict[str, dict[str, object]] = {
    "apertus": {
        "max_position_embeddings": 65_536,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 12_000_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "arcee": {"max_position_embeddings": 4096},
    "bamba": {"max_position_embeddings": 262_144, "num_key_value_heads": 8},
    "bloom": {"seq_length": 2048},
    "codegen": {"n_positions": 2048, "n_head": 16, "n_layer": 28, "rotary_dim": 64},
    "cohere": {"max_position_embeddings": 8192, "rope_theta": 500_000.0},
    "cohere2": {"max_position_embeddings": 8192},
    "cwm": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 8192,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "deepseek_v2": {"max_position_embeddings": 2048, "q_lora_rank": 1536},
    "deepseek_v3": {
        "max_position_embeddings": 4096,
        "n_group": 8,
        "norm_topk_prob": True,
        "q_lora_rank": 1536,
        "rope_interleave": True,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
    },
    "dots1": {"max_position_embeddings": 2048, "num_key_value_heads": 32, "sliding_window": 4096},
    "ernie4_5": {"max_position_embeddings": 131_072, "num_key_value_heads": 2, "head_dim": 128},
    "ernie4_5_moe": {"max_position_embeddings": 131_072, "num_key_value_heads": 4},
    "exaone4": {"max_position_embeddings": 2048, "num_key_value_heads": 32, "sliding_window": 4096},
    "falcon": {"max_position_embeddings": 2048},
    "falcon_h1": {"max_position_embeddings": 8192, "num_key_value_heads": 8, "mamba_d_ssm": 1024},
    "flex_olmo": {"max_position_embeddings": 4096},
    "gemma": {"max_position_embeddings": 8192, "num_key_value_heads": 16},
    "gemma2": {
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {"max_position_embeddings": 131_072, "num_attention_heads": 8, "num_key_value_heads": 4},
    "glm": {"max_position_embeddings": 131_072, "num_key_value_heads": 2},
    "glm4": {"max_position_embeddings": 131_072, "num_key_value_heads": 2},
    "glm4_moe": {"max_position_embeddings": 131_072, "num_key_value_heads": 8},
    "glm4_moe_lite": {
        "max_position_embeddings": 202_752,
        "norm_topk_prob": True,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "rope_interleave": True,
        "routed_scaling_factor": 1.8,
        "v_head_dim": 256,
    },
    "gpt2": {"n_positions": 1024, "n_head": 12, "n_layer": 12},
    "gpt_bigcode": {"n_positions": 1024, "n_head": 12, "n_layer": 12},
    "gpt_neo": {"max_position_embeddings": 2048},
    "gpt_neox": {"max_position_embeddings": 2048},
    "gpt_oss": {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    "gptj": {"n_positions": 2048, "rotary_dim": 64},
    "granite": {"max_position_embeddings": 2048},
    "granitemoe": {"max_position_embeddings": 2048},
    "granitemoehybrid": {"max_position_embeddings": 2048},
    "granitemoeshared": {"max_position_embeddings": 2048},
    "helium": {"max_position_embeddings": 4096, "num_key_value_heads": 20},
    "hunyuan_v1_dense": {"max_position_embeddings": 2048},
    "hunyuan_v1_moe": {"max_position_embeddings": 2048},
    "lfm2": {"max_position_embeddings": 128_000, "num_key_value_heads": 8},
    "lfm2_moe": {"max_position_embeddings": 128_000, "num_key_value_heads": 8},
    "llama": {"max_position_embeddings": 2048},
    "mamba2": {"max_position_embeddings": 1 << 20},  # no position in it limits a text
    "minicpm3": {
        "max_position_embeddings": 32_768,
        "dim_model_base": 256,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "scale_depth": 1.4,
    },
    "minimax_m2": {"max_position_embeddings": 196_608, "num_key_value_heads": 8},
    "ministral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "ministral3": {
        "max_position_embeddings": 262_144,
        "num_key_value_heads": 8,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1_000_000.0,
            "factor": 16.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 16_384,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8},
    "mpt": {"max_seq_len": 2048, "attn_config": {}},
    "nanochat": {"max_position_embeddings": 2048, "final_logit_softcapping": 15.0},
    "nemotron": {"max_position_embeddings": 4096},
    "nemotron_h": {"max_position_embeddings": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
    "olmo": {"max_position_embeddings": 2048},
    "olmo2": {"max_position_embeddings": 2048},
    "olmo3": {"max_position_embeddings": 2048},
    "olmoe": {"max_position_embeddings": 4096},
    "openai-gpt": {"n_positions": 512, "n_head": 12, "n_layer": 12},
    "opt": {"max_position_embeddings": 2048},
    "phi": {"max_position_embeddings": 2048},
    "phi3": {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
    "phimoe": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "router_jitter_noise": 0.01},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen2_moe": {"max_position_embeddings": 32_768, "num_key_value_heads": 16, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3_moe": {"max_position_embeddings": 32_768, "num_key_value_heads": 4, "sliding_window": 4096},
    "qwen3_5_moe_text": {"max_position_embeddings": 32_768, "num_key_value_heads": 2},
    "qwen3_5_text": {"max_position_embeddings": 32_768, "num_key_value_heads": 4},
    "qwen3_next": {"max_position_embeddings": 32_768, "num_key_value_heads": 2},
    "seed_oss": {"max_position_embeddings": 524_288, "num_key_value_heads": 8, "head_dim": 128},
    "smollm3": {"max_position_embeddings": 32_768, "num_key_value_heads": 4},
    "stablelm": {"max_position_embeddings": 4096, "num_key_value_heads": 32},
    "starcoder2": {"max_position_embeddings": 4096, "num_key_value_heads": 2},
    "vaultgemma": {
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "xglm": {"max_position_embeddings": 2048, "attention_heads": 16, "num_layers": 24},
}


def architecture_of(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """The decoder that a config describes, for a checkpoint with tensors of these names.

    Raises UnsupportedArchitecture for an unknown `model_type`, for a field that transformers reads and we do not, and
    for code of the model's own; BrokenCheckpoint for values out of range.
    """
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f"`{hf.model_type}` models are not supported",
            hint="run `gptcli models --supported` to see which are",
        )
    hf = hf.of_type(SAME_AS.get(hf.model_type, hf.model_type))
    hf.refuse_own_code()
    hf = hf.renamed(OTHER_NAMES.get(hf.model_type, {})).with_defaults(_DEFAULTS.get(hf.model_type, {}))
    architecture = family(hf, tensors)
    hf.check_unread(hf.model_type)
    return replace(architecture, left_over=tuple(dict.fromkeys(hf.left_over)))
