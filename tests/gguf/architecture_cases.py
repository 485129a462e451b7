"""The cases of tests/gguf/test_architectures.py: a model of transformers for each architecture of GGUF, or several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tests.parity.configs import DELTA, GEMMA3_ROPES, GPT, LATENT, LONGROPE, MINISTRAL, YARN
from tests.parity.configs import QWEN_MOE as MOE

GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "tie_word_embeddings": True}
WINDOW = {"attention.sliding_window": 8}
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 24}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN_FIELDS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
OSS_YARN = YARN | {"rope_theta": 150000.0, "original_max_position_embeddings": 32, "truncate": False}
MULTIPLIERS = {"embedding_scale": 6.0, "residual_scale": 0.3, "logit_scale": 4.0}
GRANITE = {"attention_multiplier": 0.25, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "logits_scaling": 4.0}


@dataclass(frozen=True)
class Case:
    """A model of transformers, the fields that only its file has, and a change that must change the logits."""

    title: str
    architecture: str
    model_type: str
    breaks: dict[str, Any]
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def llama3_factors() -> np.ndarray:
    """The factors that the converter writes for LLAMA3, by transformers' formula."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 10000.0 ** -(torch.arange(0, 16, 2) / 16)
    return (plain / scaled).numpy().astype(np.float32)


def longrope_factors(rope: dict[str, Any]) -> dict[str, np.ndarray]:
    """A file's tensors of LongRoPE's factors."""
    return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in ("short", "long")}


LATENT_FIELDS = {
    "attention.kv_lora_rank": 24, "attention.q_lora_rank": 40, "attention.key_length": 24,
    "attention.value_length": None, "rope.dimension_count": 8,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "routed_scaling_factor": 2.5, "n_group": 4, "topk_group": 2,
    "rope_parameters": YARN | {"mscale": 40.0, "mscale_all_dim": 40.0},
}  # fmt: skip
DEEPSEEK_FIELDS = LATENT_FIELDS | YARN_FIELDS | {
    "attention.head_count_kv": 1, "attention.key_length": 32, "attention.value_length": 24,
    "attention.key_length_mla": 24, "attention.value_length_mla": 12, "rope.scaling.yarn_log_multiplier": 4.0,
    "expert_count": 8, "expert_used_count": 3, "expert_shared_count": 2, "expert_feed_forward_length": 24,
    "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 4,
    "expert_group_used_count": 2, "leading_dense_block_count": 1,
}  # fmt: skip
EPSILON = {"attention.layer_norm_rms_epsilon": 0.1}
LAYER_EPSILON = {"attention.layer_norm_epsilon": 0.1}
CASES = [
    Case("llama", "llama", "llama", EPSILON),
    Case("llama, wide heads", "llama", "llama", {"rope.freq_base": 5e5}, config={"head_dim": 32}),
    Case("llama, biases", "llama", "llama", EPSILON, config={"attention_bias": True, "mlp_bias": True}),
    Case("llama, stored rope factors", "llama", "llama", {"rope.freq_base": 5e5}, config={"rope_parameters": LLAMA3},
         tensors={"rope_freqs.weight": llama3_factors()}),
    Case("llama, linear rope", "llama", "llama", {"rope.scaling.factor": 2.0},
         {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
         {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    Case("llama, yarn", "llama", "llama", {"rope.scaling.yarn_attn_factor": 2.0}, YARN_FIELDS,
         {"rope_parameters": YARN}),
    Case("mixtral", "llama", "mixtral", {"expert_used_count": 1},
         {"expert_count": 5, "expert_used_count": 2, "rope.freq_base": 1e6}, {"num_local_experts": 5}),
    Case("ministral3", "mistral3", "ministral3", {"attention.temperature_scale": 0.1},
         YARN_FIELDS | {"attention.temperature_scale": 0.5, "rope.scaling.yarn_log_multiplier": 1.0},
         {"head_dim": 16, "rope_parameters": MINISTRAL}),
    Case("qwen2", "qwen2", "qwen2", EPSILON),
    Case("qwen2moe", "qwen2moe", "qwen2_moe", {"expert_used_count": 1},
         EXPERTS | {"expert_shared_feed_forward_length": 40}, MOE | {"shared_expert_intermediate_size": 40}),
    Case("qwen2vl", "qwen2vl", "qwen2_vl_text", EPSILON, {"rope.dimension_sections": [2, 3, 3, 0]},
         {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}),
    Case("qwen3", "qwen3", "qwen3", EPSILON, config={"head_dim": 32}),
    Case("qwen3vl", "qwen3vl", "qwen3_vl_text", EPSILON,
         {"rope.dimension_sections": [6, 5, 5, 0], "n_deepstack_layers": 3},
         {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]}}),
    Case("qwen3vlmoe", "qwen3vlmoe", "qwen3_moe", {"expert_used_count": 1},
         EXPERTS | {"rope.dimension_sections": [6, 5, 5, 0]}, MOE | {"norm_topk_prob": True, "head_dim": 32}),
    Case("internlm2", "internlm2", "llama", {"rope.freq_base": 5e5}),
    Case("xverse", "xverse", "llama", {"rope.freq_base": 5e5}),
    Case("ernie4_5", "ernie4_5", "ernie4_5", {"rope.freq_base": 1e4}, {"rope.freq_base": 5e5}, {"head_dim": 16}),
    Case("exaone", "exaone", "llama", {"rope.freq_base": 5e5}),
    Case("seed_oss", "seed_oss", "seed_oss", EPSILON, config={"head_dim": 32}),
    Case("minicpm", "minicpm", "granite", {"logit_scale": 2.0}, MULTIPLIERS, GRANITE),
    Case("qwen3moe", "qwen3moe", "qwen3_moe", {"expert_used_count": 1}, EXPERTS,
         MOE | {"norm_topk_prob": True, "head_dim": 32}),
    Case("gemma", "gemma", "gemma", EPSILON, config={"head_dim": 32, "tie_word_embeddings": True}),
    Case("gemma2", "gemma2", "gemma2", {"attn_logit_softcapping": 1.0},
         WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
         GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case("gemma2, logits", "gemma2", "gemma2", {"final_logit_softcapping": 2.0},
         WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
         GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    Case("gemma3", "gemma3", "gemma3_text", {"attention.sliding_window": 9}, WINDOW | {"rope.freq_base": 1e6},
         GEMMA | {"num_hidden_layers": 7}),
    Case("gemma3, ropes", "gemma3", "gemma3_text", {"rope.scaling.factor": 4.0},
         WINDOW | {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
         GEMMA | {"num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPES}),
    Case("phi2", "phi2", "phi", {"rope.dimension_count": 16}, {"rope.dimension_count": 8}, {"num_key_value_heads": 4}),
    Case("phi3", "phi3", "phi3", {"attention.sliding_window": 9}, WINDOW,
         {"original_max_position_embeddings": 128, "sliding_window": 8}),
    Case("phi3, longrope", "phi3", "phi3", {"rope.scaling.attn_factor": 2.0},
         {"rope.scaling.original_context_length": 32, "rope.dimension_count": 12,
          "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(32)))},
         {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}, longrope_factors(LONGROPE)),
    Case("gptneox", "gptneox", "gpt_neox", {"use_parallel_residual": False}, {"rope.dimension_count": 4}),
    Case("gptneox, one after the other", "gptneox", "gpt_neox", {"rope.dimension_count": 8},
         {"rope.dimension_count": 4, "use_parallel_residual": False},
         {"use_parallel_residual": False, "attention_bias": False}),
    Case("gpt2", "gpt2", "gpt2", LAYER_EPSILON, {"feed_forward_length": 256}, GPT),
    Case("starcoder2", "starcoder2", "starcoder2", LAYER_EPSILON, config={"sliding_window": None}),
    Case("stablelm", "stablelm", "stablelm", LAYER_EPSILON, {"rope.dimension_count": 4}),
    Case("stablelm, every switch", "stablelm", "stablelm", {"rope.dimension_count": 8},
         {"rope.dimension_count": 4, "use_parallel_residual": True},
         {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    Case("olmo", "olmo", "olmo", {"attention.clamp_kqv": 0.3},
         {"attention.clamp_kqv": 0.5, "attention.layer_norm_epsilon": 1e-5}, {"clip_qkv": 0.5}),
    Case("olmo2", "olmo2", "olmo2", EPSILON),
    Case("olmo3", "olmo2", "olmo3", {"attention.sliding_window_pattern": [False, False, True, True]},
         WINDOW | {"attention.sliding_window_pattern": [True, True, True, False], "rope.freq_base": 5e5},
         {"sliding_window": 8}),
    Case("granite", "granite", "granite", {"residual_scale": 0.5}, MULTIPLIERS | {"attention.scale": 0.1},
         GRANITE | {"attention_multiplier": 0.1}),
    Case("command-r", "command-r", "cohere", {"logit_scale": 0.5}, {"logit_scale": 0.0625, "rope.freq_base": 5e5},
         {"tie_word_embeddings": True, "use_qk_norm": True}),
    Case("cohere2", "cohere2", "cohere2", {"attention.sliding_window": 9}, WINDOW | {"logit_scale": 0.0625},
         {"sliding_window": 8, "tie_word_embeddings": True}),
    Case("glm4", "glm4", "glm4", {"rope.dimension_count": 16}, {"rope.dimension_count": 8}, {"head_dim": 16}),
    Case("smollm3", "smollm3", "smollm3", EPSILON, {"rope.freq_base": 2e6}),
    Case("deepseek2", "deepseek2", "deepseek_v3", {"expert_group_used_count": 3}, DEEPSEEK_FIELDS, DEEPSEEK),
    Case("deepseek2, the temperature of yarn", "deepseek2", "deepseek_v3", {"rope.scaling.yarn_log_multiplier": 1.0},
         DEEPSEEK_FIELDS | {"attention.q_lora_rank": None, "nextn_predict_layers": 0},
         DEEPSEEK | {"q_lora_rank": None}),
    Case("deepseek2, softmax", "deepseek2", "deepseek_v2", {"expert_weights_scale": 1.0},
         DEEPSEEK_FIELDS | {"expert_gating_func": 1, "expert_weights_norm": False},
         DEEPSEEK | {"topk_method": "group_limited_greedy"}),
    Case("minicpm3", "minicpm3", "minicpm3", EPSILON, LATENT_FIELDS,
         LATENT | {"v_head_dim": 16, "tie_word_embeddings": True}),
    Case("gpt-oss", "gpt-oss", "gpt_oss", {"attention.sliding_window": 9},
         WINDOW | YARN_FIELDS | {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 112,
         "rope.freq_base": 150000.0, "rope.scaling.original_context_length": 32},
         {"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8,
         "rope_parameters": OSS_YARN}),
]  # fmt: skip

SSM = {
    "attention.head_count_kv": [0, 2, 0, 2], "ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 12,
    "ssm.time_step_rank": 8, "ssm.group_count": 2,
}  # fmt: skip
HYBRID = {"mamba_n_heads": 8, "mamba_d_state": 12, "mamba_n_groups": 2, "head_dim": 16}
LAYERS = {"layer_types": ["linear_attention", "full_attention"] * 2}
GRANITE_HYBRID = HYBRID | GRANITE | LAYERS
GRANITE_HYBRID_FIELDS = SSM | MULTIPLIERS | {"attention.scale": 0.25, "rope.scaling.finetuned": False}
NEMOTRON = {
    "head_dim": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 12,
    "n_routed_experts": 6, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 2.5,
}  # fmt: skip
NEMOTRON_FIELDS = SSM | {"attention.head_count_kv": [0, 0, 2, 0, 0], "block_count": 5}
LFM2_LAYERS = {"layer_types": ["conv", "full_attention"] * 2}
LFM2_FIELDS = {
    "attention.head_count_kv": [0, 2, 0, 2], "attention.layer_norm_rms_epsilon": 1e-5, "shortconv.l_cache": 3,
    "rope.freq_base": 1e6,
}  # fmt: skip
DELTA_FIELDS = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 12, "ssm.time_step_rank": 4, "ssm.group_count": 2,
    "full_attention_interval": 2, "rope.dimension_count": 8,
}  # fmt: skip
QWEN35_FIELDS = DELTA_FIELDS | {"rope.dimension_sections": [11, 11, 10, 0]}
SHARED = {"shared_expert_intermediate_size": 40}
QWEN_EXPERTS = EXPERTS | {"expert_shared_feed_forward_length": 40}
CASES += [
    Case("mamba2", "mamba2", "mamba2", {"ssm.group_count": 4, "ssm.state_size": 6},
         SSM | {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None,
         "context_length": 1 << 20, "attention.layer_norm_rms_epsilon": 1e-5},
         {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 12, "n_groups": 2}),
    Case("granitehybrid", "granitehybrid", "granitemoehybrid", {"rope.scaling.finetuned": True},
         GRANITE_HYBRID_FIELDS | {"expert_count": 5, "expert_used_count": 2, "expert_shared_feed_forward_length": 40},
         GRANITE_HYBRID | {"num_local_experts": 5, "shared_intermediate_size": 40}),
    Case("granitehybrid, no experts", "granitehybrid", "granitemoehybrid", {"logit_scale": 2.0},
         GRANITE_HYBRID_FIELDS | {"expert_count": 0, "rope.scaling.finetuned": True},
         GRANITE_HYBRID | {"num_local_experts": 0, "shared_intermediate_size": 112, "position_embedding_type": "rope"}),
    Case("bamba", "granitehybrid", "bamba", {"rope.dimension_count": 16},
         SSM | {"rope.dimension_count": 8, "rope.scaling.finetuned": True}, HYBRID | {"attn_layer_indices": [1, 3]}),
    Case("falcon-h1", "falcon-h1", "falcon_h1", EPSILON,
         SSM | {"attention.head_count_kv": 2, "ssm.inner_size": 96, "ssm.time_step_rank": 6},
         HYBRID | {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "key_multiplier": 0.3,
         "attention_in_multiplier": 1.4, "attention_out_multiplier": 0.7, "ssm_in_multiplier": 1.3,
         "ssm_out_multiplier": 0.6, "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3], "mlp_multipliers": [0.8, 0.6],
         "embedding_multiplier": 5.0, "lm_head_multiplier": 0.2}),
    Case("falcon-h1, a norm after the gate", "falcon-h1", "falcon_h1", {"ssm.group_count": 4, "ssm.state_size": 6},
         SSM | {"attention.head_count_kv": 2},
         HYBRID | {"mamba_d_ssm": 128, "mamba_rms_norm": True, "mamba_norm_before_gate": False}),
    Case("nemotron_h", "nemotron_h", "nemotron_h", LAYER_EPSILON,
         NEMOTRON_FIELDS | {"feed_forward_length": [0, 112, 0, 112, 0]},
         NEMOTRON | {"layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"]}),
    Case("nemotron_h_moe", "nemotron_h_moe", "nemotron_h", {"expert_weights_scale": 1.0},
         NEMOTRON_FIELDS | {"feed_forward_length": [0, 24, 0, 24, 0], "expert_count": 6, "expert_used_count": 2,
         "expert_feed_forward_length": 24, "expert_shared_feed_forward_length": 40, "expert_shared_count": 1,
         "expert_group_count": 1, "expert_group_used_count": 1, "expert_weights_norm": True,
         "expert_weights_scale": 2.5},
         NEMOTRON | {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention"]}),
    Case("lfm2", "lfm2", "lfm2", EPSILON, LFM2_FIELDS, LFM2_LAYERS | {"block_auto_adjust_ff_dim": False}),
    Case("lfm2moe", "lfm2moe", "lfm2_moe", {"expert_used_count": 1},
         LFM2_FIELDS | EXPERTS | {"leading_dense_block_count": 1, "expert_gating_func": 2},
         LFM2_LAYERS | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_dense_layers": 1}
         | {"tie_word_embeddings": True}),
    Case("qwen3next", "qwen3next", "qwen3_next", {"rope.dimension_count": 32}, DELTA_FIELDS | QWEN_EXPERTS,
         DELTA | MOE | SHARED | {"norm_topk_prob": True}),
    Case("qwen35", "qwen35", "qwen3_5_text", {"rope.freq_base": 500.0},
         QWEN35_FIELDS | {"attention.recurrent_layers": [True, False, True, False], "full_attention_interval": 4},
         DELTA),
    Case("qwen35moe", "qwen35moe", "qwen3_5_moe_text", {"expert_used_count": 1}, QWEN35_FIELDS | QWEN_EXPERTS,
         DELTA | MOE | SHARED),
]  # fmt: skip
OLLAMA_IMAGES = {"v.blk.0.attn_q.weight": np.ones((4, 4), np.float32), "mm.1.weight": np.ones(4, np.float32)}
CASES += [
    Case("gemma3, with what reads images, as Ollama has it", "gemma3", "gemma3_text", {"rope.local.freq_base": 500.0},
         WINDOW | {"attention.layer_norm_rms_epsilon": None, "rope.local.freq_base": 2e4, "vision.block_count": 1,
         "mm.tokens_per_image": 256},
         GEMMA | {"num_hidden_layers": 7, "rope_parameters": {"full_attention": {"rope_type": "default",
         "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}}, OLLAMA_IMAGES),
    Case("qwen25vl", "qwen25vl", "qwen2", EPSILON, {"vision.block_count": 1}, {}, OLLAMA_IMAGES),
]  # fmt: skip
SIGMOID = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "head_dim": 16}
SIGMOID_FIELDS = EXPERTS | {
    "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2,
    "leading_dense_block_count": 1,
}  # fmt: skip
FIVE = {"num_local_experts": 5, "num_experts_per_tok": 2}
FIVE_FIELDS = {"expert_count": 5, "expert_used_count": 2}
SIX = {"num_local_experts": 6, "num_experts_per_tok": 2}
WIDE_EXPERTS = EXPERTS | {"expert_feed_forward_length": 112}
PHI_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0] * 8, "short_mscale": 1.243163121016122, "long_mscale": 1.243163121016122,
    "original_max_position_embeddings": 96,
}  # fmt: skip
CASES += [
    Case("arcee", "arcee", "arcee", EPSILON),
    Case("nemotron", "nemotron", "nemotron", LAYER_EPSILON,
         {"rope.dimension_count": 8, "rope.scaling.type": "none", "attention.layer_norm_epsilon": 1e-5}),
    Case("apertus", "apertus", "apertus", EPSILON, {"rope.freq_base": 1.2e7}),
    Case("exaone4", "exaone4", "exaone4", {"attention.sliding_window": 9},
         WINDOW | {"attention.sliding_window_pattern": [True, True, True, False]}, {"sliding_window": 8}),
    Case("exaone4, no window", "exaone4", "exaone4", EPSILON,
         config={"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    Case("hunyuan-dense", "hunyuan-dense", "hunyuan_v1_dense", EPSILON, config={"head_dim": 32}),
    Case("chatglm", "chatglm", "glm", {"rope.dimension_count": 16}, {"rope.dimension_count": 8}, {"head_dim": 16}),
    Case("bloom", "bloom", "bloom", LAYER_EPSILON, {"context_length": 128, "feed_forward_length": 256}),
    Case("falcon", "falcon", "falcon", {"rope.freq_base": 500.0},
         {"attention.head_count_kv": 1, "feed_forward_length": 256}),
    Case("falcon, two norms", "falcon", "falcon", LAYER_EPSILON,
         {"attention.head_count_kv": 2, "feed_forward_length": 256},
         {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Case("mpt", "mpt", "mpt", {"attention.clamp_kqv": 0.5},
         {"context_length": 128, "embedding_length": 48, "block_count": 3, "attention.head_count": 6,
         "feed_forward_length": 192, "attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.3},
         {"d_model": 48, "n_heads": 6, "n_layers": 3, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.3}}),
    Case("starcoder", "starcoder", "gpt_bigcode", LAYER_EPSILON,
         {"attention.head_count_kv": 1, "feed_forward_length": 256}, GPT),
    Case("granitemoe", "granitemoe", "granitemoe", {"residual_scale": 0.5},
         FIVE_FIELDS | MULTIPLIERS | {"attention.scale": 0.25}, FIVE | GRANITE),
    Case("granitemoe, a shared expert", "granitemoe", "granitemoeshared", {"expert_used_count": 1},
         FIVE_FIELDS | MULTIPLIERS | {"attention.scale": 0.25, "expert_shared_feed_forward_length": 40},
         FIVE | GRANITE | {"shared_intermediate_size": 40}),
    Case("olmoe", "olmoe", "olmoe", {"expert_used_count": 1}, {"expert_count": 6, "expert_used_count": 2},
         {"num_experts": 6, "num_experts_per_tok": 2}),
    Case("dots1", "dots1", "dots1", {"expert_weights_norm": False}, SIGMOID_FIELDS,
         SIGMOID | {"n_routed_experts": 6, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
         "norm_topk_prob": True}),
    Case("glm4moe", "glm4moe", "glm4_moe", {"expert_weights_scale": 1.0}, SIGMOID_FIELDS | {"rope.dimension_count": 8},
         SIGMOID | {"num_local_experts": 6, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5}),
    Case("ernie4_5-moe", "ernie4_5-moe", "ernie4_5_moe", {"expert_used_count": 1},
         EXPERTS | {"expert_shared_count": 2, "expert_shared_feed_forward_length": 56, "interleave_moe_layer_step": 1,
         "leading_dense_block_count": 1, "rope.freq_base": 5e5},
         {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24}),
    Case("minimax-m2", "minimax-m2", "minimax_m2", {"rope.dimension_count": 16},
         WIDE_EXPERTS | {"rope.dimension_count": 8, "rope.freq_base": 5e6, "expert_gating_func": 2},
         SIX | {"head_dim": 16, "rotary_dim": 8}),
    Case("hunyuan-moe", "hunyuan-moe", "hunyuan_v1_moe", {"expert_used_count": 1},
         WIDE_EXPERTS | {"expert_shared_count": 1, "expert_shared_feed_forward_length": 112},
         {"num_experts": 6, "moe_topk": [2] * 4, "head_dim": 16}),
    Case("phimoe", "phimoe", "phimoe", {"rope.freq_base": 5e5},
         {"expert_count": 6, "expert_used_count": 2, "rope.scaling.original_context_length": 96,
         "rope.scaling.attn_factor": 1.19},
         SIX | {"attention_bias": True, "lm_head_bias": True, "rope_parameters": PHI_ROPE},
         longrope_factors(PHI_ROPE)),
    Case("llama4", "llama4", "llama4_text", {"expert_used_count": 1},
         {"feed_forward_length": 80, "interleave_moe_layer_step": 2, "expert_count": 5, "expert_used_count": 2,
         "expert_feed_forward_length": 112, "rope.freq_base": 5e5, "rope.dimension_count": 16},
         FIVE | {"head_dim": 16, "intermediate_size_mlp": 80, "interleave_moe_layer_step": 2}),
]  # fmt: skip
GEMMA3N = {
    "head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 96,
    "laurel_rank": 8, "final_logit_softcapping": 3.0, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "hidden_size_per_layer_input": 0,
    "num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "tie_word_embeddings": True,
}  # fmt: skip
GEMMA4_FIELDS = WINDOW | {
    "attention.key_length": 32, "attention.value_length": 32, "attention.key_length_swa": 16,
    "attention.value_length_swa": 16, "attention.sliding_window_pattern": [True, True, False] * 2,
    "attention.shared_kv_layers": 0, "embedding_length_per_layer_input": 0, "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4, "rope.dimension_count": 32, "rope.dimension_count_swa": 16,
}  # fmt: skip
TURNED = {"rope_freqs.weight": np.array([1.0] * 4 + [1e30] * 12, np.float32)}
CASES += [
    Case("gemma3n", "gemma3n", "gemma3n_text", {"activation_sparsity_scale": [1.2815516] + [float("-inf")] * 6},
         WINDOW | {"feed_forward_length": [112] * 7, "embedding_length_per_layer_input": 12, "altup.num_inputs": 3,
         "altup.active_idx": 1, "attention.shared_kv_layers": 3, "attention.sliding_window_pattern": [True, False, True,
         True, False, True, False], "activation_sparsity_scale": [1.6448536, 0.8416212, 0.0] + [float("-inf")] * 4,
         "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "final_logit_softcapping": 3.0},
         GEMMA3N | {"num_hidden_layers": 7, "num_kv_shared_layers": 3, "altup_num_inputs": 3, "altup_active_idx": 1,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2 + ["full_attention"],
         "activation_sparsity_pattern": [0.95, 0.8, 0.5, 0.0, 0.0, 0.0, 0.0]}),
    Case("gemma4, as the small ones", "gemma4", "gemma4_text", {"rope.freq_base_swa": 1e3},
         GEMMA4_FIELDS | {"feed_forward_length": [112] * 4 + [224] * 4, "attention.sliding_window_pattern": [True,
         False] * 4, "attention.shared_kv_layers": 4, "embedding_length_per_layer_input": 12,
         "final_logit_softcapping": 3.0},
         GEMMA4 | {"num_hidden_layers": 8, "num_kv_shared_layers": 4, "use_double_wide_mlp": True,
         "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 96, "final_logit_softcapping": 3.0,
         "layer_types": ["sliding_attention", "full_attention"] * 4}, TURNED),
    Case("gemma4, keys that are values", "gemma4", "gemma4_text", {"attention.sliding_window": 9},
         GEMMA4_FIELDS | {"attention.head_count_kv": [2, 2, 1] * 2},
         GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}, TURNED),
    Case("gemma4, experts", "gemma4", "gemma4_text", {"expert_used_count": 1}, GEMMA4_FIELDS | EXPERTS,
         GEMMA4 | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24},
         TURNED),
]  # fmt: skip
