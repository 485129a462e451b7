"""All families by `model_type`, and the defaults of their configs."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gptcli.checkpoint.families.gemma import gemma, gemma2, gemma3, gemma3_text
from gptcli.checkpoint.families.gpt import gpt2, gpt_neo, gpt_neox, gptj, openai_gpt
from gptcli.checkpoint.families.layer_norm import cohere, cohere2, glm4, phi, stablelm, starcoder2
from gptcli.checkpoint.families.llama import granite, llama, ministral3, mistral, phi3, qwen2, qwen3, smollm3
from gptcli.checkpoint.families.moe import gpt_oss, mixtral, qwen2_moe, qwen3_moe
from gptcli.checkpoint.families.olmo import olmo, olmo2, olmo3
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

FAMILIES: dict[str, Family] = {
    "cohere": cohere,
    "cohere2": cohere2,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "glm4": glm4,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "llama": llama,
    "ministral3": ministral3,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "openai-gpt": openai_gpt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}

# Defaults of the config classes in transformers, which configs may leave out. A null stays null.
_DEFAULTS: dict[str, dict[str, object]] = {
    "cohere": {"rope_theta": 500_000.0},
    "gemma": {"num_key_value_heads": 16},
    "gemma2": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "glm4": {"num_key_value_heads": 2},
    "gpt2": {"n_head": 12, "n_layer": 12},
    "gpt_oss": {
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
    "gptj": {"rotary_dim": 64},
    "ministral3": {
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
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"num_key_value_heads": 8},
    "openai-gpt": {"n_head": 12, "n_layer": 12},
    "phi3": {"original_max_position_embeddings": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen2_moe": {"num_key_value_heads": 16, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3_moe": {"num_key_value_heads": 4, "sliding_window": 4096},
    "smollm3": {"num_key_value_heads": 4},
    "stablelm": {"num_key_value_heads": 32},
    "starcoder2": {"num_key_value_heads": 2},
}


def architecture_of(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """The decoder that a config describes, for a checkpoint with tensors of these names.

    Raises UnsupportedArchitecture for an unknown `model_type` or a field that the family does not read, and
    BrokenCheckpoint for values out of range.
    """
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f"`{hf.model_type}` models are not supported",
            hint="run `gptcli models --supported` to see which are",
        )
    hf = hf.with_defaults(_DEFAULTS.get(hf.model_type, {}))
    architecture = family(hf, tensors)
    hf.refuse_unread()
    return architecture
