"""Configs from the Hugging Face hub, as various tools wrote them, are understood. Sizes are shrunk."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import InvalidModel

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
LLAMA_ONLY = dict.fromkeys(("rms_norm_eps", "num_key_value_heads", "max_position_embeddings"))  # left out if null
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
          "v_head_dim": 128, "attention_bias": False, "moe_intermediate_size": 32, "rms_norm_eps": 1e-06}  # fmt: skip
DEEPSEEK = LATENT | {
    "aux_loss_alpha": 0.001, "ep_size": 1, "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_experts_per_tok": 8,
    "pretraining_tp": 1, "rope_theta": 10000, "seq_aux": True,
}  # fmt: skip
CODE = {
    "AutoConfig": "configuration_deepseek.Deepseek{}Config", "AutoModel": "modeling_deepseek.Deepseek{}Model",
    "AutoModelForCausalLM": "modeling_deepseek.Deepseek{}ForCausalLM",
}  # fmt: skip
CODE_V2, CODE_V3 = ({name: value.format(version) for name, value in CODE.items()} for version in ("V2", "V3"))
DEEPSEEK_YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip
DEEPSEEK_V3 = DEEPSEEK | {
    "model_type": "deepseek_v3", "auto_map": CODE_V3, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "rope_scaling": DEEPSEEK_YARN,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4, "topk_method": "noaux_tc",
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
}  # fmt: skip
NEMOTRON3 = {
    "model_type": "nemotron_h", "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig",
    "AutoModelForCausalLM": "modeling_nemotron_h.NemotronHForCausalLM"}, "attention_bias": False, "chunk_size": 128,
    "conv_kernel": 4, "expand": 2, "head_dim": 128, "hidden_dropout": 0.0, "hybrid_override_pattern": "ME",
    "layer_norm_epsilon": 1e-05, "mamba_head_dim": 64, "mamba_hidden_act": "silu", "mamba_num_heads": 64,
    "mamba_proj_bias": False, "mamba_ssm_cache_dtype": "float32", "mlp_bias": False, "mlp_hidden_act": "relu2",
    "moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712, "n_group": 1, "n_groups": 8,
    "n_routed_experts": 128, "n_shared_experts": 1, "norm_eps": 1e-05, "norm_topk_prob": True,
    "num_experts_per_tok": 6, "num_logits_to_keep": 1, "pad_token_id": 0, "partial_rotary_factor": 1.0,
    "rescale_prenorm_residual": True, "residual_in_fp32": False, "rope_theta": 10000, "routed_scaling_factor": 2.5,
    "sliding_window": None, "ssm_state_size": 128, "time_step_floor": 0.0001, "time_step_max": 0.1,
    "time_step_min": 0.001, "topk_group": 1, "use_bias": False, "use_conv_bias": True, "use_mamba_kernels": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Nemotron 3 Nano": NEMOTRON3,
    "Nemotron 3 Super": NEMOTRON3 | {"moe_latent_size": 1024, "moe_shared_expert_overlap": False,
         "mtp_hybrid_override_pattern": "*E", "num_nextn_predict_layers": 1, "time_step_limit": [0.0, float("inf")]},
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
    "GLM-4 9B": {"model_type": "glm", "attention_bias": True, "head_dim": 16, "partial_rotary_factor": 0.5,
         "rms_norm_eps": 1.5625e-07, "rope_theta": 10000.0, "pad_token_id": 151329, "eos_token_id": [1, 2]},
    "Minitron 4B": {"model_type": "nemotron", "attention_bias": False, "head_dim": 16, "hidden_act": "relu2",
         "mlp_bias": False, "norm_eps": 1e-05, "partial_rotary_factor": 0.5, "rope_percent": 0.5, "rope_theta": 10000.0,
         "rms_norm_eps": None},
    "EXAONE 4.0 32B": {"model_type": "exaone4", "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"],
         "rope_scaling": LLAMA3, "rope_theta": 1000000, "sliding_window": 4096, "sliding_window_pattern": "LLLG"},
    "EXAONE 4.0 1.2B": {"model_type": "exaone4", "head_dim": 16, "layer_types": ["full_attention", "full_attention"],
         "rope_scaling": LLAMA3, "rope_theta": 1000000, "sliding_window": None, "sliding_window_pattern": None},
    "ERNIE 4.5 0.3B": {"model_type": "ernie4_5", "head_dim": 16, "rope_theta": 500000, "use_bias": False,
         "tie_word_embeddings": True},
    "ERNIE 4.5 21B": {"model_type": "ernie4_5_moe", "moe_capacity": [64, 64, 64], "moe_gate": "topk",
         "moe_intermediate_size": 32, "moe_k": 6, "moe_layer_end_index": -1, "moe_layer_interval": 1,
         "moe_layer_start_index": 1, "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_use_aux_free": True,
         "num_nextn_predict_layers": 1, "rope_theta": 500000.0, "use_bias": False, "router_aux_loss_coef": 0.001},
    "Seed-OSS 36B": {"model_type": "seed_oss", "attention_bias": True, "attention_out_bias": False, "head_dim": 16,
         "mlp_bias": False, "residual_dropout": 0.1, "rope_scaling": {"rope_type": "default"}, "rope_theta": 1e7},
    "Apertus 8B": {"model_type": "apertus", "attention_bias": False, "hidden_act": "xielu", "hidden_dropout": 0.0,
         "mlp_bias": False, "post_norm": False, "qk_norm": True, "rope_scaling": LLAMA3, "rope_theta": 12000000},
    "Hunyuan 7B": {"model_type": "hunyuan_v1_dense", "attention_head_dim": 16, "head_dim": 16, "use_qk_norm": True,
         "use_cla": False, "rope_theta": 10000.0, "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1,
         "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "type": "dynamic"}, "eod_token_id": 3},
    "Hunyuan A13B": {"model_type": "hunyuan_v1_moe", "moe_intermediate_size": [32, 32], "moe_topk": [8, 8],
         "num_experts": 64, "num_shared_expert": [1, 1], "head_dim": 16, "rope_theta": 10000.0, "use_qk_norm": True,
         "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"}},
    "Helium 1 2B": {"model_type": "helium", "attention_bias": False, "head_dim": 16, "mlp_bias": False, "rms_norm_eps":
         1e-08, "rope_theta": 20000.0},
    "MobileLLM-R1 950M": {"model_type": "llama4_text", "attention_chunk_size": 32768, "attn_scale": 0.1,
         "attn_temperature_tuning": False, "floor_scale": 8192, "for_llm_compressor": False, "head_dim": 64,
         "interleave_moe_layer_step": 0, "intermediate_size_mlp": 128, "layer_types": ["full_attention"] * 2,
         "moe_layers": [], "no_rope_layer_interval": 0, "no_rope_layers": [1, 1], "num_experts_per_tok": 0,
         "num_local_experts": 0, "output_router_logits": False, "rope_scaling": None, "rope_theta": 500000.0,
         "use_qk_norm": True},
    "OLMoE 1B 7B": {"model_type": "olmoe", "attention_bias": False, "clip_qkv": None, "norm_topk_prob": False,
         "num_experts": 64, "num_experts_per_tok": 8, "router_aux_loss_coef": 0.01, "rope_theta": 10000.0},
    "Granite 3.1 3B A800M": {"model_type": "granitemoe", "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
         "logits_scaling": 6.0, "num_experts_per_tok": 8, "num_local_experts": 40, "residual_multiplier": 0.22,
         "rope_scaling": None, "rope_theta": 10000000.0, "tie_word_embeddings": True},
    "GLM-4.5 Air": {"model_type": "glm4_moe", "attention_bias": True, "first_k_dense_replace": 1, "head_dim": 16,
         "moe_intermediate_size": 32, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1, "norm_topk_prob":
         True, "num_experts_per_tok": 8, "num_nextn_predict_layers": 1, "partial_rotary_factor": 0.5, "rope_scaling":
         None, "rope_theta": 1000000, "routed_scaling_factor": 1.0, "topk_group": 1, "use_qk_norm": False},
    "dots.llm1": {"model_type": "dots1", "first_k_dense_replace": 1, "max_window_layers": 62, "moe_intermediate_size":
         32, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 2, "norm_topk_prob": True,
         "num_experts_per_tok": 6, "rope_theta": 10000000, "routed_scaling_factor": 2.5, "scoring_func": "noaux_tc",
         "sliding_window": None, "topk_group": 1, "use_sliding_window": False},
    "Phi 3.5 MoE": {"model_type": "phimoe", "attention_bias": True, "input_jitter_noise": 0.01, "lm_head_bias": True,
         "num_experts_per_tok": 2, "num_local_experts": 16, "router_jitter_noise": 0.01, "sliding_window": 131072,
         "rope_scaling": {"long_factor": [2.0] * 8, "long_mscale": 1.24, "original_max_position_embeddings": 1024,
         "short_factor": [1.0] * 8, "short_mscale": 1.24, "type": "longrope"}, "original_max_position_embeddings": 1024,
         "auto_map": {"AutoConfig": "configuration_phimoe.PhiMoEConfig"}},
    "MiniMax M2": {"model_type": "minimax_m2", "attn_type_list": [1, 1], "head_dim": 16, "mtp_transformer_layers": 1,
         "num_experts_per_tok": 8, "num_local_experts": 256, "num_mtp_modules": 3, "qk_norm_type": "per_layer",
         "rope_theta": 5000000, "rotary_dim": 8, "scoring_func": "sigmoid", "shared_intermediate_size": 0, "use_mtp":
         True, "use_qk_norm": True, "use_routing_bias": True, "auto_map": {"AutoModelForCausalLM":
         "modeling_minimax_m2.MiniMaxM2ForCausalLM"}},
    "Falcon 7B": LLAMA_ONLY | {"model_type": "falcon", "alibi": False, "apply_residual_connection_post_layernorm":
         False, "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig", "AutoModelForCausalLM":
         "modeling_falcon.FalconForCausalLM"}, "bias": False, "hidden_dropout": 0.0, "layer_norm_epsilon": 1e-05,
         "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True},
    "Falcon 40B": LLAMA_ONLY | {"model_type": "falcon", "alibi": False, "bias": False, "multi_query": True,
         "new_decoder_architecture": True, "num_kv_heads": 2, "parallel_attn": True},
    "LFM2 350M": {"model_type": "lfm2", "block_auto_adjust_ff_dim": True, "block_dim": 64, "block_ff_dim": 128,
         "block_ffn_dim_multiplier": 1.0, "block_mlp_init_scale": 1.0, "block_multiple_of": 256,
         "block_norm_eps": 1e-05, "block_out_init_scale": 1.0, "block_use_swiglu": True, "block_use_xavier_init": True,
         "conv_L_cache": 3, "conv_bias": False, "conv_dim": 64, "conv_dim_out": 64, "conv_use_xavier_init": True,
         "full_attn_idxs": [1], "norm_eps": 1e-05, "num_heads": 4, "rope_theta": 1000000.0, "tie_embedding": True,
         "rms_norm_eps": None, "use_pos_enc": True},
    "LFM2 8B A1B": {"model_type": "lfm2_moe", "conv_L_cache": 3, "conv_bias": False, "layer_types": ["conv",
         "full_attention"], "moe_intermediate_size": 32, "norm_eps": 1e-05, "norm_topk_prob": True,
         "num_dense_layers": 1, "num_experts": 32, "num_experts_per_tok": 4, "rope_theta": 1000000.0,
         "rms_norm_eps": None, "routed_scaling_factor": 1.0, "use_expert_bias": True},
    "Mamba 2 780M": dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
         "max_position_embeddings")) | {"model_type": "mamba2", "chunk_size": 256, "conv_kernel": 4, "expand": 2,
         "head_dim": 16, "layer_norm_epsilon": 1e-05, "n_groups": 1, "num_heads": 8, "residual_in_fp32": True,
         "rms_norm": True, "state_size": 128, "time_step_floor": 0.0001, "time_step_limit": [0.0, "Infinity"],
         "time_step_max": 0.1, "time_step_min": 0.001, "time_step_rank": 48, "use_bias": False, "use_conv_bias": True},
    "Granite 4.0 H Tiny": {"model_type": "granitemoehybrid", "attention_bias": False, "attention_multiplier": 0.0078125,
         "embedding_multiplier": 12, "init_method": "mup", "layer_types": ["mamba", "attention"], "logits_scaling": 6,
         "mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 128,
         "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 8, "mamba_proj_bias": False, "normalization_function":
         "rmsnorm", "num_experts_per_tok": 6, "num_local_experts": 64, "position_embedding_type": "nope",
         "residual_multiplier": 0.22, "rope_scaling": None, "rope_theta": 10000, "shared_intermediate_size": 64},
    "Bamba 9B": {"model_type": "bamba", "attn_layer_indices": [1], "attn_rotary_emb": 32, "mamba_chunk_size": 256,
         "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_state": 128, "mamba_expand": 2,
         "mamba_n_groups": 1, "mamba_n_heads": 8, "mamba_proj_bias": False, "mlp_bias": False, "num_logits_to_keep": 1,
         "rope_theta": 10000.0},
    "Falcon H1 0.5B": {"model_type": "falcon_h1", "attention_bias": False, "attention_in_multiplier": 1.0,
         "attention_out_multiplier": 0.9375, "attn_layer_indices": None, "embedding_multiplier": 5.656854249492381,
         "head_dim": 16, "key_multiplier": 0.390625, "lm_head_multiplier": 0.0390625, "mamba_chunk_size": 128,
         "mamba_conv_bias": True, "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_ssm": 96, "mamba_d_state": 128,
         "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 6, "mamba_norm_before_gate": False,
         "mamba_proj_bias": False, "mamba_rms_norm": False, "mamba_use_mlp": True, "mlp_bias": False,
         "mlp_expansion_factor": 8, "mlp_multipliers": [0.8838834764831844, 0.5859375], "num_logits_to_keep": 1,
         "projectors_bias": False, "rope_scaling": None, "rope_theta": 1e11, "ssm_in_multiplier": 1.25,
         "ssm_multipliers": [0.35, 0.25, 0.16, 0.5, 0.35], "ssm_out_multiplier": 0.2357},
    "Nemotron H 8B": {"model_type": "nemotron_h", "attention_bias": False, "attention_head_dim": 16, "auto_map": {
         "AutoConfig": "configuration_nemotron_h.NemotronHConfig", "AutoModelForCausalLM":
         "modeling_nemotron_h.NemotronHForCausalLM"}, "chunk_size": 128, "conv_kernel": 4, "expand": 2,
         "hidden_dropout": 0.0, "hybrid_override_pattern": "M*", "layer_norm_epsilon": 1e-05, "mamba_head_dim": 16,
         "mamba_hidden_act": "silu", "mamba_num_heads": 8, "mamba_proj_bias": False, "mlp_bias": False,
         "mlp_hidden_act": "relu2", "n_groups": 8, "num_hidden_layers": 2, "num_logits_to_keep": 1,
         "rescale_prenorm_residual": True, "residual_in_fp32": False, "sliding_window": None, "ssm_state_size": 128,
         "time_step_floor": 0.0001, "time_step_limit": [0.0, "Infinity"], "time_step_max": 0.1, "time_step_min": 0.001,
         "use_bias": False, "use_conv_bias": True, "use_mamba_kernels": True},
    "Qwen3-Next 80B": {"model_type": "qwen3_next", "decoder_sparse_step": 1, "full_attention_interval": 4, "head_dim":
         16, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_num_key_heads": 2,
         "linear_num_value_heads": 4, "linear_value_head_dim": 16, "mlp_only_layers": [], "moe_intermediate_size": 32,
         "norm_topk_prob": True, "num_experts": 512, "num_experts_per_tok": 10, "output_router_logits": False,
         "partial_rotary_factor": 0.25, "rope_scaling": None, "rope_theta": 10000000, "router_aux_loss_coef": 0.001,
         "shared_expert_intermediate_size": 32, "use_sliding_window": False},
    "Qwen 3.5, text": {"model_type": "qwen3_5_text", "attention_bias": False, "attn_output_gate": True,
         "full_attention_interval": 4, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
         "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_value_head_dim": 16, "mamba_ssm_dtype": "float32", "mlp_only_layers": [], "mtp_num_hidden_layers": 1,
         "mtp_use_dedicated_embeddings": False, "rope_parameters": {"mrope_interleaved": True, "mrope_section": [1, 1,
         0], "partial_rotary_factor": 0.25, "rope_theta": 10000000, "rope_type": "default"}},
    "BLOOM 560M": LLAMA_ONLY | {"model_type": "bloom", "attention_softmax_in_fp32": True, "bias_dropout_fusion": True,
         "masked_softmax_fusion": True, "n_embed": 64, "n_inner": None, "n_layer": 2, "num_attention_heads": 4,
         "offset_alibi": 100, "pretraining_tp": 1, "skip_bias_add": True, "skip_bias_add_qkv": False, "slow_but_exact":
         False, "unk_token_id": 0},
    "MPT 7B": LLAMA_ONLY | {"model_type": "mpt", "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl":
         "torch", "attn_pdrop": 0, "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None,
         "prefix_lm": False, "qk_ln": False, "softmax_scale": None}, "auto_map": {"AutoConfig":
         "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}, "d_model": 64,
         "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_config": {"name": "kaiming_normal_"},
         "init_device": "cpu", "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "n_heads": 4,
         "n_layers": 2, "no_bias": True, "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "verbose": 0,
         "tie_word_embeddings": True},
    "MPT without a section": LLAMA_ONLY | {"model_type": "mpt", "attn_config": None, "d_model": 64, "n_heads": 4,
         "n_layers": 2},
    "OPT 350M": LLAMA_ONLY | {"model_type": "opt", "_remove_final_layer_norm": False, "activation_function": "relu",
         "dropout": 0.1, "do_layer_norm_before": False, "ffn_dim": 128, "init_std": 0.02, "layerdrop": 0.0, "prefix":
         "</s>", "word_embed_proj_dim": 32, "tie_word_embeddings": True},
    "StarCoder": LLAMA_ONLY | {"model_type": "gpt_bigcode", "activation_function": "gelu", "attention_softmax_in_fp32":
         True, "inference_runner": 0, "max_batch_size": None, "multi_query": True, "n_embd": 64, "n_head": 4, "n_inner":
         256, "n_layer": 2, "n_positions": 4096, "pad_key_length": True, "pre_allocate_kv_cache": False,
         "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "validate_runner_input": True},
    "CodeGen 350M": LLAMA_ONLY | {"model_type": "codegen", "activation_function": "gelu_new", "attn_pdrop": 0.0,
         "n_ctx": 2048, "n_embd": 64, "n_head": 4, "n_inner": None, "n_layer": 2, "n_positions": 4096, "rotary_dim": 8,
         "scale_attn_weights": True, "summary_type": "cls_index", "tokenizer_class": "GPT2Tokenizer"},
    "XGLM 564M": LLAMA_ONLY | {"model_type": "xglm", "activation_function": "gelu", "attention_heads": 4, "d_model": 64,
         "decoder_start_token_id": 2, "ffn_dim": 256, "init_std": 0.02, "layerdrop": 0.0, "num_layers": 2,
         "pad_token_id": 1, "scale_embedding": True, "tie_word_embeddings": True},
    "DeepSeek V2 Lite": DEEPSEEK | {"model_type": "deepseek_v2", "auto_map": CODE_V2, "n_group": 1, "n_routed_experts":
         64, "n_shared_experts": 2, "norm_topk_prob": False, "num_experts_per_tok": 6, "q_lora_rank": None,
         "rope_scaling": DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "routed_scaling_factor": 1.0,
         "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy"},
    "DeepSeek V2.5": DEEPSEEK | {"model_type": "deepseek_v2", "auto_map": CODE_V2, "n_group": 8, "n_routed_experts":
         160, "n_shared_experts": 2, "norm_topk_prob": False, "num_experts_per_tok": 6, "q_lora_rank": 1536,
         "rope_scaling": DEEPSEEK_YARN, "routed_scaling_factor": 16.0, "scoring_func": "softmax", "topk_group": 3,
         "topk_method": "group_limited_greedy"},
    "DeepSeek V3": DEEPSEEK_V3,
    "DeepSeek V3.1": DEEPSEEK_V3 | {"aux_loss_alpha": None, "seq_aux": None, "quantization_config": {
         "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
         "weight_block_size": [128, 128]}},
    "Kimi K2": DEEPSEEK_V3 | {"model_type": "kimi_k2", "n_group": 1, "n_routed_experts": 384,
         "num_nextn_predict_layers": 0, "pad_token_id": 163839, "rms_norm_eps": 1e-05, "rope_scaling":
         DEEPSEEK_YARN | {"beta_fast": 1.0, "factor": 64.0}, "rope_theta": 50000.0,
         "routed_scaling_factor": 2.827, "topk_group": 1},
    "GLM-4.7 Flash": LATENT | {"model_type": "glm4_moe_lite", "dtype": "bfloat16", "first_k_dense_replace": 1,
         "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 4,
         "num_nextn_predict_layers": 1, "partial_rotary_factor": 1.0, "q_lora_rank": 768, "qk_nope_head_dim": 192,
         "rope_scaling": None, "rope_theta": 1000000, "routed_scaling_factor": 1.8, "topk_group": 1, "topk_method":
         "noaux_tc", "v_head_dim": 256},
    "MiniCPM3 4B": {"model_type": "minicpm3", "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPM3Config",
         "AutoModelForCausalLM": "modeling_minicpm.MiniCPM3ForCausalLM"}, "dim_model_base": 256, "kv_lora_rank": 256,
         "num_key_value_heads": 4, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "rope_scaling":
         {"long_factor": [2.0] * 16, "original_max_position_embeddings": 4096, "short_factor": [1.0] * 16,
         "type": "longrope"}, "scale_depth": 1.4, "scale_emb": 12, "tie_word_embeddings": None},
}  # fmt: skip


GEMMA4 = {
    "attention_bias": False, "attention_dropout": 0.0, "attention_k_eq_v": True, "dtype": "bfloat16",
    "enable_moe_block": False, "expert_intermediate_size": None, "final_logit_softcapping": 30.0, "global_head_dim":
    512, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 262144,
    "model_type": "gemma4_text", "num_experts": None,
    "num_global_key_value_heads": 4, "num_kv_shared_layers": 0, "pad_token_id": 0, "rms_norm_eps": 1e-06,
    "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type":
    "proportional"}, "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}, "sliding_window": 1024,
    "tie_word_embeddings": True, "top_k_experts": None, "use_bidirectional_attention": "vision", "use_cache": True,
    "use_double_wide_mlp": False, "vocab_size_per_layer_input": 262144,
}  # fmt: skip
GEMMA4_AROUND = {
    "model_type": "gemma4", "audio_config": None, "audio_token_id": 258881, "boa_token_id": 256000, "boi_token_id":
    255999, "eoa_token_id": 258883, "eoa_token_index": 258883, "eoi_token_id": 258882, "image_token_id": 258880,
    "initializer_range": 0.02, "tie_word_embeddings": True, "video_token_id": 258884, "vision_config": {},
    "vision_soft_tokens_per_image": 280,
}  # fmt: skip
LLAMA4 = {
    "_attn_implementation_autoset": True, "attention_bias": False, "attention_chunk_size": 8192, "for_llm_compressor":
    False, "head_dim": 128, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 16384, "model_type": "llama4_text",
    "num_experts_per_tok": 1, "num_local_experts": 128, "output_router_logits": False, "pad_token_id": 200018,
    "rope_scaling": None, "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
    "use_qk_norm": False,
}  # fmt: skip
LLAMA4_AROUND = {
    "model_type": "llama4", "boi_token_index": 200080, "eoi_token_index": 200081, "image_token_index": 200092,
    "vision_config": {},
}  # fmt: skip
EXAONE = {
    "_num_mtp_layers": 1, "layer_types": ["sliding_attention", "full_attention"], "mtp_loss_scaling_factor": 0.05,
    "mtp_share_layers": True, "num_nextn_predict_layers": 1, "model_type": "exaone4_5_text", "sliding_window": 4096,
    "sliding_window_pattern": "LLLG", "rope_scaling": LLAMA3 | {"rope_theta": 1000000.0},
}  # fmt: skip
WITH_IMAGES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "EXAONE 4.5, as first released": ({"model_type": "exaone4_5", "image_token_id": 67, "vision_token_id": 67,
         "vision_config": {}}, EXAONE, {"text_config._num_mtp_layers", "text_config.mtp_loss_scaling_factor",
         "text_config.mtp_share_layers", "text_config.num_nextn_predict_layers", "vision_token_id"}),
    "GLM-4.5V, its experts by two names": ({"model_type": "glm4v_moe", "vision_config": {}}, {"model_type":
         "glm4v_moe_text", "first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_routed_experts": 8,
         "num_local_experts": 8}, set()),
    "Gemma 4 31B": (GEMMA4_AROUND, GEMMA4, set()),
    "Gemma 4 26B A4B": (GEMMA4_AROUND, GEMMA4 | {"enable_moe_block": True, "moe_intermediate_size": 704, "num_experts":
         128, "top_k_experts": 8, "num_global_key_value_heads": 2}, set()),
    "Gemma 4 E2B": (GEMMA4_AROUND | {"audio_config": {}}, GEMMA4 | {"attention_k_eq_v": False,
         "hidden_size_per_layer_input": 256, "num_global_key_value_heads": None, "num_hidden_layers": 4,
         "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 512,
         "use_bidirectional_attention": None, "use_double_wide_mlp": True}, set()),
    "Gemma 3n E2B": ({"model_type": "gemma3n", "audio_config": {}, "audio_soft_tokens_per_image": 188, "audio_token_id":
         262273, "boa_token_id": 256000, "boi_token_id": 255999, "eoa_token_id": 262272, "eoi_token_id": 262144,
         "image_token_id": 262145, "vision_config": {}, "vision_soft_tokens_per_image": 256}, {"model_type":
         "gemma3n_text", "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0], "altup_active_idx": 0,
         "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_lr_multiplier": 1.0, "altup_num_inputs": 4,
         "attention_bias": False, "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_activation":
         "gelu_pytorch_tanh", "hidden_size_per_layer_input": 256, "intermediate_size": [8192] * 4, "laurel_rank": 64,
         "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
         "query_pre_attn_scalar": 256, "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0,
         "sliding_window": 512, "vocab_size_per_layer_input": 262144},
         {"text_config.altup_lr_multiplier", "text_config.query_pre_attn_scalar"}),
    "Llama 4 Maverick": (LLAMA4_AROUND, LLAMA4, {"text_config.for_llm_compressor"}),
    "Llama 4 Scout": (LLAMA4_AROUND, LLAMA4 | {"attn_scale": 0.1, "attn_temperature_tuning": 4, "floor_scale": 8192,
         "interleave_moe_layer_step": 1, "moe_layers": [0, 1], "no_rope_layers": [], "num_local_experts": 16,
         "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
         "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "use_qk_norm": True},
         {"text_config.for_llm_compressor"}),
    "Llama 4 by another name": (LLAMA4_AROUND, LLAMA4 | {"model_type": "llama4"}, {"text_config.for_llm_compressor"}),
    "Kimi K2.5": ({"model_type": "kimi_k25", "media_placeholder_token_id": 163605, "pad_token_id": 163839,
         "use_unified_vision_chunk": True, "video_placeholder": "<|kimi_k25_video_placeholder|>", "tie_word_embeddings":
         False, "vision_config": {}}, DEEPSEEK_V3 | {"model_type": "kimi_k2", "n_group": 1, "n_routed_experts": 384,
         "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-05, "rope_theta": 50000.0, "topk_group": 1, "auto_map":
         {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}},
         {"media_placeholder_token_id", "use_unified_vision_chunk", "video_placeholder"}),
    "GLM 4.5V": ({"model_type": "glm4v_moe", "image_end_token_id": 151340, "image_start_token_id": 151339,
         "image_token_id": 151363, "video_end_token_id": 151342, "video_start_token_id": 151341, "video_token_id":
         151364, "vision_config": {}}, {"model_type": "glm4v_moe_text", "attention_bias": True, "first_k_dense_replace":
         1, "head_dim": 128, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 128, "n_shared_experts":
         1, "norm_topk_prob": True, "num_experts_per_tok": 8, "num_nextn_predict_layers": 1, "partial_rotary_factor":
         0.5, "rope_scaling": {"mrope_section": [8, 12, 12], "rope_type": "default"}, "rope_theta": 10000.0,
         "routed_scaling_factor": 1.0, "topk_group": 1, "use_qk_norm": False}, set()),
    "Qwen 3 VL 30B": ({"model_type": "qwen3_vl_moe", "image_token_id": 151655, "video_token_id": 151656,
         "vision_end_token_id": 151653, "vision_start_token_id": 151652, "vision_config": {}, "tie_word_embeddings":
         False}, {"model_type": "qwen3_vl_moe_text", "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
         "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128,
         "num_experts_per_tok": 8, "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
         "rope_type": "default"}, "rope_theta": 5000000}, set()),
    "Idefics 2": ({"model_type": "idefics2", "image_token_id": 32001, "perceiver_config": {}, "tie_word_embeddings":
         False, "vision_config": {}}, {"model_type": "mistral", "pad_token_id": 0, "sliding_window": 4096}, set()),
    "LLaVA-OneVision": ({"model_type": "llava_onevision", "ignore_index": -100, "image_grid_pinpoints": [[384, 384]],
         "image_token_index": 151646, "projector_hidden_act": "gelu", "use_image_newline_parameter": True,
         "video_token_index": 151647, "vision_aspect_ratio": "anyres_max_9", "vision_config": {},
         "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}, {"model_type": "qwen2",
         "max_window_layers": 28, "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False},
         {"ignore_index", "use_image_newline_parameter"}),
    "Aya Vision 8B": ({"model_type": "aya_vision", "adapter_layer_norm_eps": 1e-06, "downsample_factor": 2,
         "image_token_index": 255036, "vision_config": {}, "vision_feature_layer": -1,
         "vision_feature_select_strategy": "full"}, {"model_type": "cohere2", "attention_bias": False,
         "cache_implementation": "hybrid", "head_dim": 128, "layer_norm_eps": 1e-05, "layer_switch": 4, "logit_scale":
         0.25, "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj",
         "rope_scaling": None, "rope_theta": 50000, "rotary_pct": 1.0, "sliding_window": 4096,
         "sliding_window_pattern": 4, "use_embedding_sharing": True, "use_gated_activation": True,
         "use_parallel_block": True, "use_parallel_embedding": True}, set()),
    "LFM2-VL 450M": ({"model_type": "lfm2_vl", "do_image_splitting": True, "downsample_factor": 2, "encoder_patch_size":
         16, "image_token_index": 396, "max_image_tokens": 256, "projector_bias": True, "projector_hidden_act": "gelu",
         "projector_hidden_size": 2560, "vision_config": {}, "vision_feature_layer": -1}, {"model_type": "lfm2",
         "block_auto_adjust_ff_dim": True, "block_dim": 1024, "block_ff_dim": 6656, "block_ffn_dim_multiplier": 1.0,
         "block_multiple_of": 256, "block_norm_eps": 1e-05, "block_use_swiglu": True, "conv_L_cache": 3, "conv_bias":
         False, "conv_dim": 1024, "layer_types": ["conv", "full_attention"], "norm_eps": 1e-05, "num_heads": 4,
         "rope_theta": 1000000.0, "use_pos_enc": True},
         {"do_image_splitting", "encoder_patch_size", "max_image_tokens", "text_config.block_dim",
         "text_config.block_norm_eps", "text_config.block_use_swiglu", "text_config.conv_dim",
         "text_config.use_pos_enc"}),
}  # fmt: skip


@pytest.mark.parametrize(("around", "text", "left_over"), WITH_IMAGES.values(), ids=WITH_IMAGES)
def test_a_config_of_a_model_with_images_is_understood(
    around: dict[str, Any], text: dict[str, Any], left_over: set[str]
) -> None:
    found = architecture_of(HfConfig(around | {"text_config": SIZES | text}), ())
    assert len(found.config.blocks) == text.get("num_hidden_layers", 2)
    assert set(found.left_over) == left_over


def architecture(fields: dict[str, Any]) -> Any:
    whole = {name: value for name, value in (COMMON | SIZES | fields).items() if value or name not in LLAMA_ONLY}
    return architecture_of(HfConfig(whole), ["model.embed_tokens.weight"])


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_config_from_the_hub_is_understood(fields: dict[str, Any]) -> None:
    assert len(architecture(fields).config.blocks) == 2


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if name.startswith(("DeepSeek", "Kimi", "GLM-4.7", "MiniCPM3"))]
)
def test_nothing_of_a_config_with_latent_attention_is_left_over(name: str) -> None:
    assert architecture(CONFIGS[name]).left_over == ()


def test_what_the_reference_does_not_do_of_a_routers_scores_is_left_over() -> None:
    assert architecture(CONFIGS["DeepSeek V2.5"] | {"norm_topk_prob": True}).left_over == ("norm_topk_prob",)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_key_value_heads": 2}, "num_key_value_heads = '2'"),
    ({"scoring_func": "softmax"}, "scoring_func = 'softmax'"),
    ({"topk_method": "greedy"}, "topk_method = 'greedy'"),
    ({"moe_layer_freq": 2}, "moe_layer_freq = '2'"),
    ({"head_dim": 128}, "head_dim = '128'"),
    ({"n_group": 200}, "256 experts cannot be in 200 groups"),
    ({"num_experts_per_tok": 200}, "num_experts_per_tok 200 of 128 experts"),
    ({"q_lora_rank": "none"}, "q_lora_rank must be a whole number"),
])  # fmt: skip
def test_another_mathematics_than_deepseeks_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel, match=message):
        architecture(DEEPSEEK_V3 | change)


def test_mistral_without_a_window_field_has_its_class_default_and_null_has_none() -> None:
    windows = [architecture({"model_type": "mistral", **extra}) for extra in ({}, {"sliding_window": None})]
    assert [found.config.blocks[0].attention.window for found in windows] == [4096, None]
