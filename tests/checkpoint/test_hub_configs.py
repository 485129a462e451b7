"""Configs as various tools wrote them on the Hugging Face hub are understood. Sizes are shrunk."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.registry import architecture_of

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 128,
}  # fmt: skip
COMMON = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
    "use_cache": True,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 2048,
    "rope_type": "llama3",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 1, converted early": {"model_type": "llama", "max_sequence_length": 2048, "pad_token_id": -1},
    "Llama 2": {"model_type": "llama", "pretraining_tp": 1, "rope_scaling": None, "_name_or_path": "x"},
    "Llama 3.1": {"model_type": "llama", "attention_bias": False, "eos_token_id": [1, 8, 9], "mlp_bias": False,
         "pretraining_tp": 1, "rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "Yarn Llama 2": {"model_type": "llama", "_flash_attn_2_enabled": True,
         "auto_map": {"AutoConfig": "configuration_llama.LlamaConfig"}, "rope_scaling": {"factor": 16.0,
         "finetuned": True, "original_max_position_embeddings": 256, "type": "yarn"}},
    "SmolLM2": {"model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
         "rope_theta": 100000, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
    "Mistral 0.1": {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0},
    "Mistral Nemo": {"model_type": "mistral", "sliding_window": None, "head_dim": 16, "rope_theta": 1000000.0},
    "Qwen 2.5": {"model_type": "qwen2", "max_window_layers": 24, "rope_theta": 1000000.0, "sliding_window": 32768,
         "use_mrope": False, "use_sliding_window": False},
    "Qwen 3": {"model_type": "qwen3", "attention_bias": False, "head_dim": 16, "max_window_layers": 28,
         "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "use_sliding_window": False},
    "SmolLM3": {"model_type": "smollm3", "attention_bias": False, "max_window_layers": 28, "mlp_bias": False,
         "no_rope_layer_interval": 4, "no_rope_layers": [1, 0], "layer_types": ["full_attention", "full_attention"],
         "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
    "Phi 3.5": {"model_type": "phi3", "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "embd_pdrop": 0.0,
         "original_max_position_embeddings": 1024, "resid_pdrop": 0.0, "rope_scaling": {"long_factor": [2.0] * 8,
         "short_factor": [1.0] * 8, "type": "longrope"}, "rope_theta": 10000.0, "sliding_window": 262144,
         "attention_bias": False},
    "Gemma 2": {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
         "final_logit_softcapping": 30.0, "head_dim": 16, "hidden_act": "gelu_pytorch_tanh",
         "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
         "tie_word_embeddings": None},
    "Mixtral": {"model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
         "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None},
}  # fmt: skip


def architecture(fields: dict[str, Any]) -> Any:
    return architecture_of(HfConfig(COMMON | SIZES | fields), ["model.embed_tokens.weight"])


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_config_from_the_hub_is_understood(fields: dict[str, Any]) -> None:
    assert len(architecture(fields).config.blocks) == 2


def test_mistral_without_a_window_field_has_its_class_default_and_null_has_none() -> None:
    windows = [architecture({"model_type": "mistral", **extra}) for extra in ({}, {"sliding_window": None})]
    assert [found.config.blocks[0].attention.window for found in windows] == [4096, None]
