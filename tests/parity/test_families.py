"""Every family's logits against transformers, at once, in chunks and token by token; each row can fail."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gptcli.model.attention
import gptcli.model.cache.kv_cache
import gptcli.model.mlp
import gptcli.runtime.program
import gptcli.runtime.program_cache
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import Packing, WeightPlan, load_decoder
from gptcli.cuda.graph import Capture, cuda_graph
from gptcli.cuda.static_step import StaticStep
from gptcli.kernels.bindings import Arithmetic
from gptcli.kernels.tensors import Library
from gptcli.kernels.tensors import library as kernels
from gptcli.model.config import MoeConfig
from gptcli.runtime.device_plan import DevicePlan
from gptcli.runtime.engine import Extension
from gptcli.runtime.fast_start.snapshot_engine import SnapshotEngine, SnapshotLogits
from gptcli.runtime.fast_start.snapshot_file import read, write
from gptcli.runtime.torch_engine import TensorRows, TorchEngine
from tests.cuda.fake_cuda import OnTheDevice, fake_cuda, fake_model
from tests.cuda.recorder import capture
from tests.parity.configs import DELTA, GEMMA3_ROPES, GPT, LATENT, LONGROPE, MINISTRAL, QWEN_MOE, YARN
from tests.parity.reference import Reference, write_reference
from tests.tiny import CONFIG, write_tokenizer

TOLERANCE = 1e-5
IDS = torch.randint(3, 96, (48,), generator=torch.Generator().manual_seed(1)).tolist()

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0}
PHIMOE_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0] * 8, "short_mscale": 1.2, "long_mscale": 1.2, "original_max_position_embeddings": 96,
}  # fmt: skip
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8, "tie_word_embeddings": True}
GEMMA3N = {
    "head_dim": 16, "sliding_window": 8, "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 80,
    "laurel_rank": 8, "altup_num_inputs": 3, "altup_active_idx": 1, "final_logit_softcapping": 3.0,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2 + ["full_attention"],
    "activation_sparsity_pattern": [0.95, 0.8, 0.5, 0.0, 0.0, 0.0, 0.0], "tie_word_embeddings": True,
}  # fmt: skip
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "hidden_size_per_layer_input": 12,
    "vocab_size_per_layer_input": 96, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 6, "tie_word_embeddings": True,
}  # fmt: skip
GEMMA4_UNIFIED = {name: value for name, value in GEMMA4.items() if "per_layer_input" not in name} | {
    "attention_k_eq_v": True, "num_kv_shared_layers": 2,
}  # fmt: skip
GEMMA4_ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
TWO_LONGROPES = {
    layer_type: {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + pair / 16 for pair in range(16)],
        "long_factor": [1.0 + pair / 4 for pair in range(16)],
        "original_max_position_embeddings": border,
    }
    for layer_type, border in (("full_attention", 20), ("sliding_attention", 36))
}
SIGMOID = {
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
    "head_dim": 16,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
}  # fmt: skip
GROUPS = {"n_group": 4, "topk_group": 2}
SCORED_YARN = YARN | {"mscale": 60.0, "mscale_all_dim": 40.0, "beta_fast": 32.0, "beta_slow": 1.0}
MINICPM_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 2.0, 3.0, 6.0], "original_max_position_embeddings": 32, "factor": 4.0, "mscale_all_dim": 40.0,
}  # fmt: skip
LLAMA4 = {
    "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size_mlp": 80,
    "interleave_moe_layer_step": 2, "attention_chunk_size": 8,
}  # fmt: skip
GPT_OSS = {"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 8}
OSS_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 32,
    "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
}  # fmt: skip
MAMBA = {"hidden_size": 64, "num_heads": 8, "head_dim": 16}
HYBRID = {"mamba_n_heads": 8, "mamba_d_state": 12, "mamba_n_groups": 2}
NEMOTRON = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention"], "head_dim": 16,
    "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 12, "n_routed_experts": 6,
    "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 2.5,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A case. breaks and also: changes to its config.json, each of which must change the logits."""

    title: str
    model_type: str
    breaks: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    also: tuple[dict[str, Any], ...] = ()

    def write(self, path: Path, **changes: Any) -> Reference:
        """Writes its reference, with changes to the config."""
        return write_reference(path, self.model_type, **self.config | changes)

    def make(self, path: Path, **changes: Any) -> Path:
        """Writes its reference with the tokenizer of `tests.tiny`."""
        self.write(path, vocab_size=CONFIG["vocab_size"], **changes)
        write_tokenizer(path)
        return path


CROSSED = "phi3, longrope crossed while decoding"  # after IDS
GREEDY = (
    "llama", CROSSED, "lfm2", "lfm2_moe", "mamba2", "bamba", "granitemoehybrid", "falcon_h1", "nemotron_h",
    "qwen3_next", "qwen3_5", "qwen3_5_moe",
)  # fmt: skip
ROWS = [
    Row("llama", "llama", {"rms_norm_eps": 0.1}),
    Row("llama, one kv head, wide heads", "llama", {"rope_parameters": {"rope_theta": 5e5}},
         {"num_key_value_heads": 1, "head_dim": 32}),
    Row("llama3 rope", "llama", {"rope_parameters": LLAMA3 | {"factor": 2.0, "original_max_position_embeddings": 16}},
         {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}),
    Row("linear rope", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
         {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    Row("dynamic rope", "llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
         {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}),
    Row("yarn rope", "llama", {"rope_parameters": YARN | {"attention_factor": 1.0}}, {"rope_parameters": YARN}),
    Row("yarn rope, every field", "llama", {"rope_parameters": YARN | {"beta_fast": 32.0}}, {"rope_parameters": YARN |
         {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 1.3}}),
    Row("yarn rope, mscale", "llama", {"rope_parameters": YARN}, {"rope_parameters": YARN | {"mscale": 4.0,
         "mscale_all_dim": 0.1}}),
    Row("mistral, window", "mistral", {"sliding_window": 9}, {"sliding_window": 8}),
    Row("mistral, no window", "mistral", {"sliding_window": 8}, {"sliding_window": None}),
    Row("qwen2", "qwen2", {"rms_norm_eps": 0.1}),
    Row("qwen2, window", "qwen2", {"layer_types": ["full_attention"] * 4}, {"use_sliding_window": True,
         "sliding_window": 8, "max_window_layers": 2}),
    Row("qwen3", "qwen3", {"rms_norm_eps": 0.1}, {"head_dim": 32}),
    Row("smollm3", "smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
    Row("granite", "granite", {"residual_multiplier": 1.0}, {"attention_multiplier": 0.1, "residual_multiplier": 0.3,
         "embedding_multiplier": 6.0, "attention_bias": True, "mlp_bias": True},
         ({"embedding_multiplier": 1.0}, {"attention_multiplier": 0.25})),
    Row("granite, logits", "granite", {"logits_scaling": 1.0}, {"logits_scaling": 4.0}),
    Row("olmo", "olmo", {"clip_qkv": 0.3}, {"clip_qkv": 0.5}),
    Row("olmo, no clip", "olmo", {"clip_qkv": 0.5}),
    Row("olmo2", "olmo2", {"rms_norm_eps": 0.1}),
    Row("olmo3", "olmo3", {"sliding_window": 9}, {"sliding_window": 8}),
    Row("gemma", "gemma", {"rms_norm_eps": 0.1}, {"head_dim": 32}),
    Row("gemma2", "gemma2", {"attn_logit_softcapping": 1.0}, GEMMA | {"attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
         ({"final_logit_softcapping": None}, {"query_pre_attn_scalar": 32}, {"sliding_window": 9})),
    Row("gemma3", "gemma3_text", {"sliding_window": 9}, GEMMA | {"num_hidden_layers": 7}),
    Row("gemma3, ropes", "gemma3_text", {"rope_parameters": GEMMA3_ROPES | {"sliding_attention": {"rope_theta": 1e6}}},
         GEMMA | {"num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPES}),
    Row("gemma3, two borders of longrope", "gemma3_text",
         {"rope_parameters": {"full_attention": TWO_LONGROPES["full_attention"], "sliding_attention": {}}}, GEMMA |
         {"num_hidden_layers": 7, "rope_parameters": TWO_LONGROPES}),
    Row("gemma3n", "gemma3n_text", {"sliding_window": 9}, GEMMA3N | {"num_hidden_layers": 7, "num_kv_shared_layers": 3},
         ({"altup_active_idx": 0}, {"activation_sparsity_pattern": [0.0] * 7},
         {"final_logit_softcapping": None})),
    Row("gemma3n, nothing shared", "gemma3n_text", {"altup_active_idx": 1}, GEMMA3N | {"num_kv_shared_layers": 0,
         "altup_active_idx": 0, "altup_num_inputs": 2, "intermediate_size": [48, 64, 80, 96], "attention_bias": True,
         "activation_sparsity_pattern": None, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    Row("gemma4, as the small ones", "gemma4_text", {"sliding_window": 9}, GEMMA4 | {"num_hidden_layers": 8,
         "num_kv_shared_layers": 4, "use_double_wide_mlp": True, "final_logit_softcapping": 3.0,
         "layer_types": ["sliding_attention", "full_attention"] * 4},
         ({"final_logit_softcapping": None}, {"rope_parameters": GEMMA4_ROPES | {"full_attention": {"rope_theta": 1e6,
         "rope_type": "proportional", "partial_rotary_factor": 1.0}}})),
    Row("gemma4, as the large one", "gemma4_text", {"sliding_window": 9}, GEMMA4 | {"hidden_size_per_layer_input": 0,
         "attention_k_eq_v": True, "num_global_key_value_heads": 1, "attention_bias": True,
         "tie_word_embeddings": False}),
    Row("gemma4, experts", "gemma4_text", {"top_k_experts": 1}, GEMMA4 | {"enable_moe_block": True, "num_experts": 6,
         "top_k_experts": 2, "moe_intermediate_size": 24, "hidden_size_per_layer_input": 0}),
    Row("phi", "phi", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}),
    Row("phi, qk norms", "phi", {"layer_norm_eps": 0.1}, {"qk_layernorm": True}),
    Row("phi3", "phi3", {"sliding_window": 8}, {"original_max_position_embeddings": 128}),
    Row("phi3, window", "phi3", {"sliding_window": None}, {"sliding_window": 8}),
    Row("phi3, longrope within", "phi3", {"rope_parameters": LONGROPE | {"short_factor": [1.0] * 6}},
         {"rope_parameters": LONGROPE, "original_max_position_embeddings": 96}),
    Row("phi3, longrope beyond", "phi3", {"rope_parameters": LONGROPE | {"long_factor": [1.0] * 6}},
         {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    Row(CROSSED, "phi3", {"original_max_position_embeddings": 96},
         {"rope_parameters": LONGROPE, "original_max_position_embeddings": 60}),
    Row("starcoder2", "starcoder2", {"sliding_window": None}, {"sliding_window": 8}),
    Row("starcoder2, no biases", "starcoder2", {"norm_epsilon": 0.1}, {"use_bias": False}),
    Row("stablelm", "stablelm", {"layer_norm_eps": 0.1}),
    Row("stablelm, every switch", "stablelm", {"layer_norm_eps": 0.1}, {"use_parallel_residual": True,
         "qk_layernorm": True, "use_qkv_bias": True}),
    Row("cohere", "cohere", {"logit_scale": 0.5}),
    Row("cohere, qk norms", "cohere", {"layer_norm_eps": 0.1}, {"use_qk_norm": True, "attention_bias": True}),
    Row("cohere2", "cohere2", {"sliding_window": 9}, {"sliding_window": 8}),
    Row("glm4", "glm4", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}, {"head_dim": 16}),
    Row("ministral3", "ministral3", {"rope_parameters": MINISTRAL | {"llama_4_scaling_beta": 0.2}}, {"head_dim": 16,
         "rope_parameters": MINISTRAL}),
    Row("mixtral", "mixtral", {"num_experts_per_tok": 1}, {"num_local_experts": 5}),
    Row("llama4", "llama4_text", {"attention_chunk_size": 9}, LLAMA4 | {"floor_scale": 5, "attn_scale": 0.7},
         ({"floor_scale": 6}, {"attn_scale": 0.5}, {"attn_temperature_tuning": False}, {"use_qk_norm": False},
         {"no_rope_layers": [1, 1, 1, 1]}, {"num_experts_per_tok": 1}, {"layer_types": ["full_attention"] * 4})),
    Row("llama4, every other switch", "llama4_text", {"rope_parameters": {"rope_theta": 500.0}}, LLAMA4 | {
         "use_qk_norm": False, "attn_temperature_tuning": False, "attention_chunk_size": None, "moe_layers": [1],
         "no_rope_layer_interval": 3, "tie_word_embeddings": True, "attention_bias": True, "num_experts_per_tok": 1,
         "rope_parameters": LLAMA3 | {"high_freq_factor": 1.0, "original_max_position_embeddings": 16}},
         ({"no_rope_layers": [1, 1, 1, 0]},)),
    Row("mixtral, gelu, window", "mixtral", {"hidden_act": "silu"}, {"num_local_experts": 4, "hidden_act": "gelu",
         "sliding_window": 8}, ({"sliding_window": 9},)),
    Row("qwen2_moe", "qwen2_moe", {"norm_topk_prob": True}, QWEN_MOE | {"shared_expert_intermediate_size": 40,
         "hidden_act": "relu"}, ({"hidden_act": "silu"},)),
    Row("qwen3_moe", "qwen3_moe", {"norm_topk_prob": False}, QWEN_MOE | {"norm_topk_prob": True, "head_dim": 32}),
    Row("qwen3_moe, some layers dense", "qwen3_moe", {"rms_norm_eps": 0.1}, QWEN_MOE | {"mlp_only_layers": [1],
         "decoder_sparse_step": 2}),
    Row("gpt_oss", "gpt_oss", {"sliding_window": 9}, GPT_OSS),
    Row("gpt_oss, yarn", "gpt_oss", {"rope_parameters": OSS_YARN | {"truncate": True}}, GPT_OSS |
         {"rope_parameters": OSS_YARN}),
    Row("gpt2", "gpt2", {"layer_norm_epsilon": 0.1}, GPT),
    Row("gpt2, scales", "gpt2", {"scale_attn_by_inverse_layer_idx": False}, GPT |
         {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_inner": 80},
         ({"scale_attn_weights": True},)),
    Row("openai-gpt", "openai-gpt", {"layer_norm_epsilon": 0.1}, GPT),
    Row("gpt_neo", "gpt_neo", {"window_size": 9}, {"num_layers": 4, "num_heads": 4, "window_size": 8,
         "attention_types": [[["global", "local"], 2]], "intermediate_size": 80}),
    Row("gptj", "gptj", {"rotary_dim": 4}, GPT | {"rotary_dim": 8, "tie_word_embeddings": False}),
    Row("gpt_neox", "gpt_neox", {"use_parallel_residual": False}),
    Row("gpt_neox, one after the other", "gpt_neox", {"use_parallel_residual": True}, {"use_parallel_residual": False,
         "attention_bias": False}),
    Row("glm", "glm", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}, {"head_dim": 16}),
    Row("nemotron", "nemotron", {"norm_eps": 0.1}, {"attention_bias": True, "mlp_bias": True},
         ({"hidden_act": "relu"}, {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}})),
    Row("arcee", "arcee", {"hidden_act": "relu"}, {"mlp_bias": True}),
    Row("apertus", "apertus", {"rms_norm_eps": 0.1}, {"rope_parameters": LLAMA3 | {
         "original_max_position_embeddings": 16}}, ({"rope_parameters": {"rope_theta": 10000.0}},)),
    Row("exaone4", "exaone4", {"sliding_window": 9}, {"sliding_window": 8}, ({"layer_types": ["full_attention"] * 4},)),
    Row("exaone4, no window", "exaone4", {"sliding_window": 64}, {"sliding_window": None,
         "layer_types": ["full_attention"] * 4}),
    Row("ernie4_5", "ernie4_5", {"rope_parameters": {"rope_theta": 10000.0}}, {"use_bias": True, "head_dim": 32}),
    Row("seed_oss", "seed_oss", {"rms_norm_eps": 0.1}, {"attention_out_bias": True, "mlp_bias": True, "head_dim": 32}),
    Row("cwm", "cwm", {"sliding_window": 9}, {"sliding_window": 8, "head_dim": 16, "rope_parameters": LLAMA3 | {
         "original_max_position_embeddings": 16}}, ({"rope_parameters": {"rope_theta": 10000.0}},)),
    Row("hunyuan", "hunyuan_v1_dense", {"rope_parameters": ALPHA | {"alpha": 2.0}}, {"rope_parameters": ALPHA,
         "head_dim": 32}, ({"rms_norm_eps": 0.1},)),
    Row("ministral", "ministral", {"layer_types": ["sliding_attention"] * 4}, {"sliding_window": 8,
         "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    Row("helium", "helium", {"rms_norm_eps": 0.1}, {"head_dim": 16}),
    Row("olmoe", "olmoe", {"norm_topk_prob": True}, {"num_experts": 6, "num_experts_per_tok": 2,
         "attention_bias": True}),
    Row("flex_olmo", "flex_olmo", {"norm_topk_prob": False}, {"num_experts": 6, "num_experts_per_tok": 2,
         "norm_topk_prob": True}),
    Row("granitemoe", "granitemoe", {"residual_multiplier": 1.0}, {"num_local_experts": 5, "attention_multiplier": 0.1,
         "residual_multiplier": 0.3, "embedding_multiplier": 6.0}, ({"num_experts_per_tok": 1},)),
    Row("granitemoeshared", "granitemoeshared", {"logits_scaling": 1.0}, {"num_local_experts": 5, "logits_scaling": 4.0,
         "shared_intermediate_size": 40}),
    Row("glm4_moe", "glm4_moe", {"routed_scaling_factor": 1.0}, SIGMOID | {"num_local_experts": 6},
         ({"norm_topk_prob": False},)),
    Row("glm4_moe, groups, qk norms", "glm4_moe", {"topk_group": 2}, SIGMOID | {"n_routed_experts": 8, "n_group": 4,
         "topk_group": 3, "use_qk_norm": True, "attention_bias": True, "n_shared_experts": 2}),
    Row("dots1", "dots1", {"norm_topk_prob": True}, SIGMOID | {"n_routed_experts": 6, "n_shared_experts": 2,
         "sliding_window": 8, "max_window_layers": 2}, ({"sliding_window": 9},)),
    Row("ernie4_5_moe", "ernie4_5_moe", {"moe_norm_min": 0.9}, {"moe_num_experts": 6, "moe_k": 2, "use_bias": True,
         "moe_intermediate_size": 24}, ({"moe_k": 1},)),
    Row("ernie4_5_moe, some layers dense", "ernie4_5_moe", {"moe_k": 1}, {"moe_num_experts": 6, "moe_k": 2,
         "moe_intermediate_size": 24, "moe_layer_interval": 2, "moe_num_shared_experts": 0, "moe_norm_min": 0.0}),
    Row("minimax_m2", "minimax_m2", {"num_experts_per_tok": 1}, {"num_local_experts": 6, "num_experts_per_tok": 2,
         "head_dim": 16, "rotary_dim": 8}, ({"rms_norm_eps": 0.1},)),
    Row("hunyuan, mixture", "hunyuan_v1_moe", {"moe_topk": 1}, {"num_experts": 6, "moe_topk": [2, 1, 3, 2],
         "head_dim": 16, "attention_bias": True}, ({"rope_parameters": ALPHA},)),
    Row("phimoe", "phimoe", {"router_jitter_noise": 0.9}, {"num_local_experts": 6, "router_jitter_noise": 0.2,
         "attention_bias": True, "lm_head_bias": True, "sliding_window": 8}, ({"sliding_window": 9},)),
    Row("phimoe, longrope within", "phimoe", {"rope_parameters": PHIMOE_LONGROPE | {"short_mscale": 1.0,
         "long_mscale": 1.0}}, {"num_local_experts": 4, "rope_parameters": PHIMOE_LONGROPE}),
    Row("phimoe, longrope beyond", "phimoe", {"rope_parameters": PHIMOE_LONGROPE | {"short_factor": [2.0] * 8}},
         {"num_local_experts": 4, "rope_parameters": PHIMOE_LONGROPE | {"original_max_position_embeddings": 16}}),
    Row("vaultgemma", "vaultgemma", {"attn_logit_softcapping": 1.0}, GEMMA | {"attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0}, ({"final_logit_softcapping": None}, {"sliding_window": 9})),
    Row("nanochat", "nanochat", {"rms_norm_eps": 0.1}, {"final_logit_softcapping": 3.0},
         ({"final_logit_softcapping": None}, {"hidden_act": "relu"})),
    Row("opt", "opt", {"activation_function": "gelu"}, {"ffn_dim": 112}),
    Row("opt, projected, norms after", "opt", {"activation_function": "gelu"}, {"ffn_dim": 112,
         "word_embed_proj_dim": 32, "do_layer_norm_before": False, "tie_word_embeddings": True}),
    Row("opt, nothing to switch on", "opt", {"activation_function": "relu"}, {"ffn_dim": 112, "enable_bias": False,
         "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True, "activation_function": "gelu"}),
    Row("gpt_bigcode", "gpt_bigcode", {"layer_norm_epsilon": 0.1}, GPT | {"n_inner": 80}),
    Row("gpt_bigcode, many kv heads", "gpt_bigcode", {"scale_attn_weights": False}, GPT | {"multi_query": False}),
    Row("codegen", "codegen", {"rotary_dim": 4}, GPT | {"rotary_dim": 8, "tie_word_embeddings": False}),
    Row("falcon", "falcon", {"rope_parameters": {"rope_theta": 500.0}}),
    Row("falcon, new decoder", "falcon", {"rope_parameters": {"rope_theta": 500.0}}, {"new_decoder_architecture": True,
         "num_kv_heads": 2, "ffn_hidden_size": 112}),
    Row("falcon, new decoder, one norm", "falcon", {"layer_norm_epsilon": 0.1}, {"new_decoder_architecture": True,
         "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "bias": True, "tie_word_embeddings": True}),
    Row("falcon, alibi, one after the other", "falcon", {"alibi": False}, {"alibi": True, "multi_query": False,
         "parallel_attn": False, "bias": True}),
    Row("bloom", "bloom", {"layer_norm_epsilon": 0.1}, {"hidden_size": 48, "num_attention_heads": 6}),
    Row("mpt", "mpt", {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3}}, {"d_model": 48, "n_heads": 6,
         "n_layers": 3, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.3}},
         ({"attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.1}},)),
    Row("lfm2", "lfm2", {"norm_eps": 0.1}, {"layer_types": ["conv", "conv", "full_attention", "conv"],
         "block_multiple_of": 16, "conv_bias": True}, ({"rope_parameters": {"rope_theta": 500.0}},)),
    Row("lfm2, a wider kernel", "lfm2", {"norm_eps": 0.1}, {"layer_types": ["full_attention", "conv"] * 2,
         "block_auto_adjust_ff_dim": False, "conv_L_cache": 5}),
    Row("lfm2_moe", "lfm2_moe", {"routed_scaling_factor": 1.0}, {"layer_types": ["conv", "full_attention"] * 2,
         "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_dense_layers": 1,
         "routed_scaling_factor": 2.5}, ({"norm_topk_prob": False},)),
    Row("mamba2", "mamba2", {"layer_norm_epsilon": 0.1}, MAMBA | {"state_size": 12, "n_groups": 2}),
    Row("mamba2, biases, bounded steps", "mamba2", {"time_step_limit": [0.0, 1e9]}, MAMBA | {"state_size": 12,
         "n_groups": 1, "use_bias": True, "use_conv_bias": False, "time_step_limit": [2.0, 3.0], "conv_kernel": 3,
         "residual_in_fp32": False}),
    Row("bamba", "bamba", {"rms_norm_eps": 0.1}, HYBRID | {"attn_layer_indices": [1, 3]},
         ({"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},)),
    Row("bamba, biases", "bamba", {"rms_norm_eps": 0.1}, HYBRID | {"attn_layer_indices": [2], "mamba_proj_bias": True,
         "attention_bias": True, "mlp_bias": True, "mamba_conv_bias": False}),
    Row("granitemoehybrid", "granitemoehybrid", {"residual_multiplier": 1.0}, HYBRID | {"num_local_experts": 5,
         "shared_intermediate_size": 40, "residual_multiplier": 0.3, "embedding_multiplier": 6.0,
         "layer_types": ["linear_attention", "full_attention"] * 2}, ({"num_experts_per_tok": 1},
         {"position_embedding_type": "rope"})),
    Row("granitemoehybrid, no experts, rope", "granitemoehybrid", {"position_embedding_type": "nope"}, HYBRID | {
         "num_local_experts": 0, "shared_intermediate_size": 40, "attention_multiplier": 0.1, "logits_scaling": 4.0,
         "position_embedding_type": "rope", "layer_types": ["linear_attention", "full_attention"] * 2}),
    Row("falcon_h1", "falcon_h1", {"key_multiplier": 1.0}, HYBRID | {"mamba_d_ssm": 96, "mamba_n_heads": 6,
         "mamba_d_head": 16, "key_multiplier": 0.3, "attention_in_multiplier": 1.4, "attention_out_multiplier": 0.7,
         "ssm_in_multiplier": 1.3, "ssm_out_multiplier": 0.6, "ssm_multipliers": [0.5, 0.7, 0.9, 1.1, 1.3],
         "mlp_multipliers": [0.8, 0.6], "embedding_multiplier": 5.0, "lm_head_multiplier": 0.2},
         ({"ssm_multipliers": [1.0] * 5}, {"attention_in_multiplier": 1.0}, {"attention_out_multiplier": 1.0},
         {"ssm_in_multiplier": 1.0}, {"ssm_out_multiplier": 1.0}, {"mlp_multipliers": [1.0, 0.6]},
         {"mlp_multipliers": [0.8, 1.0]}, {"lm_head_multiplier": 1.0}, {"embedding_multiplier": 1.0})),
    Row("falcon_h1, norm after gate, biases", "falcon_h1", {"mamba_norm_before_gate": True}, HYBRID | {
         "mamba_d_ssm": 128, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "projectors_bias": True,
         "attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}),
    Row("falcon_h1, norm before gate", "falcon_h1", {"mamba_norm_before_gate": False}, HYBRID | {
         "mamba_d_ssm": None, "mamba_rms_norm": True}),
    Row("nemotron_h", "nemotron_h", {"layer_norm_epsilon": 0.1}, NEMOTRON, ({"routed_scaling_factor": 1.0},
         {"mlp_hidden_act": "relu"}, {"norm_topk_prob": False})),
    Row("nemotron_h, biases, bounded steps", "nemotron_h", {"time_step_min": 0.001}, NEMOTRON | {"use_bias": True,
         "mlp_bias": True, "use_conv_bias": False, "time_step_min": 2.0, "norm_topk_prob": False}),
    Row("nemotron_h, experts of a latent", "nemotron_h", {"routed_scaling_factor": 1.0}, NEMOTRON | {
         "moe_latent_size": 24, "mlp_bias": True, "n_group": 2, "topk_group": 1}),
    Row("qwen3_next", "qwen3_next", {"norm_topk_prob": False}, DELTA | QWEN_MOE | {"mlp_only_layers": [1],
         "shared_expert_intermediate_size": 40},
         ({"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0}}, {"rms_norm_eps": 0.1})),
    Row("qwen3_next, biases, as many keys as values", "qwen3_next", {"rms_norm_eps": 0.1}, DELTA | QWEN_MOE | {
         "linear_num_key_heads": 4, "attention_bias": True, "linear_conv_kernel_dim": 3, "full_attention_interval": 2,
         "mlp_only_layers": [0, 1, 2, 3], "layer_types": None}),
    Row("qwen3_5", "qwen3_5_text", {"rms_norm_eps": 0.1}, DELTA,
         ({"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.25}},)),
    Row("qwen3_5_moe", "qwen3_5_moe_text", {"num_experts_per_tok": 1}, DELTA | QWEN_MOE | {
         "shared_expert_intermediate_size": 40}),
    Row("xglm", "xglm", {"scale_embedding": False}, {"d_model": 64, "ffn_dim": 112, "num_layers": 3,
         "attention_heads": 4}),
    Row("deepseek_v2", "deepseek_v2", {"topk_method": "greedy"}, DEEPSEEK | GROUPS | {"mlp_bias": True,
         "topk_method": "group_limited_greedy", "attention_bias": True, "rope_parameters": SCORED_YARN},
         ({"rope_parameters": SCORED_YARN | {"mscale": 40.0}}, {"rope_parameters": SCORED_YARN | {"mscale": 30.0,
         "mscale_all_dim": 20.0}}, {"topk_group": 3}, {"n_group": 2})),
    Row("deepseek_v2, one matrix for queries", "deepseek_v2", {"num_experts_per_tok": 2}, DEEPSEEK |
         {"q_lora_rank": None}, ({"routed_scaling_factor": 1.0}, {"rope_parameters": {"rope_theta": 500.0}})),
    Row("deepseek_v3", "deepseek_v3", {"topk_group": 3}, DEEPSEEK | GROUPS | {"rope_parameters": SCORED_YARN},
         ({"norm_topk_prob": False}, {"rope_interleave": False}, {"rope_parameters": SCORED_YARN | {
         "mscale_all_dim": 0.0}}, {"n_group": 2}, {"rms_norm_eps": 0.1})),
    Row("deepseek_v3, every other switch", "deepseek_v3", {"rope_interleave": True}, DEEPSEEK | {"q_lora_rank": None,
         "attention_bias": True, "rope_interleave": False, "norm_topk_prob": False, "n_group": 1, "topk_group": 1,
         "v_head_dim": 32, "tie_word_embeddings": True}, ({"norm_topk_prob": True},)),
    Row("glm4_moe_lite", "glm4_moe_lite", {"rope_interleave": False}, DEEPSEEK | {"first_k_dense_replace": 2,
         "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}, ({"num_experts_per_tok": 2},)),
    Row("glm4_moe_lite, groups", "glm4_moe_lite", {"n_group": 2}, DEEPSEEK | GROUPS, ({"rms_norm_eps": 0.1},)),
    Row("minicpm3", "minicpm3", {"scale_depth": 2.0}, LATENT | {"v_head_dim": None, "attention_bias": True,
         "rope_parameters": SCORED_YARN},
         ({"scale_emb": 6.0}, {"dim_model_base": 128}, {"rope_parameters": SCORED_YARN | {"rope_theta": 500.0}})),
    Row("minicpm3, longrope beyond", "minicpm3", {"rope_parameters": MINICPM_LONGROPE | {"long_factor": [1.0] * 4}},
         LATENT | {"scale_depth": None, "dim_model_base": None, "rope_parameters": MINICPM_LONGROPE, "mlp_bias": True,
         "tie_word_embeddings": True}, ({"scale_depth": 1.0},)),
]  # fmt: skip
ROW = {row.title: row for row in ROWS}


def needed_library() -> Library:
    if (library := kernels()) is None:
        pytest.skip("the kernels are not built here")
    return library


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.cpu() - want.cpu()).abs().max() / want.cpu().abs().max()).item()


def rms_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).square().mean() / want.square().mean()).sqrt().item()


def engine_of(
    path: Path,
    dtype: torch.dtype = torch.float32,
    library: Library | None = None,
    capture: Capture | None = None,
    device: str = "cpu",
    half: torch.dtype | None = None,
    packing: Packing = "expand",
    arithmetic: Arithmetic = "fp32",
) -> TorchEngine:
    weights = WeightPlan(torch.device(device), dtype, packing, library, half, arithmetic)
    plan, decoder = DevicePlan(weights, library, capture=capture), load_decoder(ModelFolder.open(path), weights)
    return TorchEngine(decoder, plan, decoder.config.max_context, load_s=0.0)


@pytest.fixture(scope="module", params=ROWS, ids=[row.title for row in ROWS])
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def reference(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return row.write(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def wanted(reference: Reference) -> Tensor:
    """The reference's logits at every position of IDS."""
    return reference.logits(IDS)


@pytest.fixture(scope="module", params=["torch", "kernels"] + ["cuda"] * torch.cuda.is_available())
def engine(reference: Reference, request: pytest.FixtureRequest) -> TorchEngine:
    if request.param == "cuda":
        return engine_of(reference.path, capture=cuda_graph, device="cuda")
    return engine_of(reference.path, library=needed_library() if request.param == "kernels" else None)


def test_all_logits_agree_at_prefill(wanted: Tensor, engine: TorchEngine) -> None:
    assert relative_error(engine.logits(IDS), wanted) < TOLERANCE


def small_steps(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Makes caches grow often."""
    for module in (gptcli.model.cache.kv_cache, gptcli.runtime.program_cache):
        monkeypatch.setattr(module, "CACHE_STEP", tokens)


def test_all_logits_agree_in_chunks(wanted: Tensor, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptcli.runtime.program, "CHUNK", 7)
    small_steps(monkeypatch, 4)
    assert relative_error(engine.logits(IDS), wanted) < TOLERANCE


def test_all_logits_agree_token_by_token(
    reference: Reference, wanted: Tensor, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch, 4)
    cache = engine.new_cache()
    logits = torch.stack([engine.decode(token, cache) for token in IDS])
    for border in sorted(engine.decoder.config.rope_borders, reverse=True):
        # Up to the border, all positions are rotated as in a short text.
        wanted = torch.cat([reference.logits(IDS[:border]), wanted[border:]])
    assert relative_error(logits, wanted) < TOLERANCE


@pytest.mark.parametrize("row", [row for row in ROWS if row.title in GREEDY], indirect=True, ids=lambda row: row.title)
def test_greedy_ids_agree_over_32_steps(row: Row, reference: Reference, engine: TorchEngine) -> None:
    assert greedy(engine, 32) == reference.greedy(IDS, 32)


def greedy(engine: TorchEngine, tokens: int) -> list[int]:
    """The most probable continuation of IDS."""
    cache, ids = engine.new_cache(), list[int]()
    logits = engine.prefill(IDS, cache)
    while len(ids) < tokens:
        assert logits is not None
        ids.append(int(logits.argmax()))
        logits = engine.decode(ids[-1], cache)
    return ids


def test_a_snapshot_has_exactly_the_logits_of_the_decoder(engine: TorchEngine, tmp_path: Path) -> None:
    config = engine.decoder.config
    snapshot = engine.snapshot(96)
    lowered = engine._program is not None and not config.rope_borders
    assert (snapshot is not None) == (lowered and config.logit_scale == 1 and config.logit_softcap is None)
    if snapshot is None:
        return
    library = needed_library()
    write(snapshot, {"model": "this one"}, library, tmp_path / "copy")
    copy = read(tmp_path / "copy", {"model": "this one"}, library, "fp32", free=sys.maxsize, positions=80)
    assert copy is not None
    copy.wait()
    del snapshot
    again = SnapshotEngine(copy, library, engine.ctx_size, room=80, drop=lambda: None)
    cache, snapshot_cache = engine.new_cache(), again.new_cache()

    def same(rows: list[SnapshotLogits], wanted: Tensor) -> bool:
        found = [ctypes.string_at(row.data_ptr(), 4 * config.vocab_size) for row in rows]
        return found == [row.numpy().tobytes() for row in wanted]

    logits = engine.prefill(IDS, cache)
    row = again.prefill(IDS, snapshot_cache, lambda done, total: None, lambda: False)
    assert logits is not None and row is not None and same([row], logits[None])
    for tokens in ([5], [6, 7, 8], [9]):
        assert same(again.step(tokens, snapshot_cache), engine.step(tokens, cache))
    cache.truncate(50)
    snapshot_cache.truncate(50)
    if cache.length == 50:  # else its window has moved past
        assert same(again.step([7], snapshot_cache), engine.step([7], cache))


def test_texts_that_share_their_steps_have_the_logits_they_have_alone(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch, 4)
    texts = [IDS[start:] + IDS[:start] for start in (16, 5, 30, 11)]  # what follows the prompts
    alone = [engine.new_cache() for _ in texts]
    for length, cache in zip((16, 16, 9, 3), alone, strict=True):
        engine.prefill(IDS[:length], cache)
    together = [engine.copy_of(cache, cache.length) for cache in alone]
    running = list(range(len(texts)))
    for step in range(48 if engine.decoder.config.rope_borders else 16):
        if step in (5, 11):  # the first text ends
            running[0] = running.pop()
        step_of_all = [Extension(together[text], [texts[text][step]]) for text in running]
        wanted = torch.stack([engine.decode(texts[text][step], alone[text]) for text in running])
        if step == 7:  # a prompt begins beside them
            step_of_all.insert(1, Extension(engine.new_cache(), IDS[:8]))
            begun = engine.prefill(IDS[:8], engine.new_cache())
            assert begun is not None
            wanted = torch.cat([wanted[:1], begun[None], wanted[1:]])
        got = torch.stack([own for [own] in engine.extend(step_of_all)])
        assert relative_error(got, wanted) < TOLERANCE


def test_keys_and_values_in_fewer_bits_round_little(row: Row, wanted: Tensor, reference: Reference) -> None:
    exact, least = engine_of(reference.path, library=needed_library()), 0.0
    assert exact._program is not None
    if not exact.decoder.config.attentions or row.model_type == "apertus":
        return  # it keeps nothing; or its activation, with every parameter random, jumps at 0
    mixture = any(isinstance(block.mlp, MoeConfig) for block in exact.decoder.config.blocks)
    most_int8 = 0.3 if mixture else 5e-2  # a router may choose another expert
    for kind, most in (("fp32", TOLERANCE), ("fp16", 2e-3), ("int8", most_int8)):
        plan = replace(exact.plan, cache_kind=kind)
        engine = TorchEngine(exact.decoder, plan, exact.ctx_size, load_s=0.0)
        error = relative_error(engine.logits(IDS), wanted)
        assert least < error < most
        least = 2 * error


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine, threads would mostly wait for each other at every tiny product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_captured_step_has_the_logits_of_a_plain_one(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch, 10)  # LongRoPE's borders fall inside a step, not between
    monkeypatch.setattr(gptcli.model.attention, "_SPLIT", 5)
    monkeypatch.setattr(gptcli.model.mlp, "_few_on_a_gpu", lambda x: len(x) <= 3)
    plain, captured = engine_of(reference.path), engine_of(reference.path, capture=capture)
    if captured.decoder.config.keeps_states:
        captured.decode(IDS[0], captured.new_cache())
        assert captured.failures == ("slower than it could be: steps of layers that keep a state are not recorded",)
        return
    assert relative_error(decoded(captured), decoded(plain)) < TOLERANCE
    assert not captured.failures


def decoded(engine: TorchEngine) -> Tensor:
    """Logits of steps after a prompt: past LongRoPE's borders and the cache's room, of several rows, then of fewer, and
    after the text was truncated."""
    cache = engine.new_cache()
    engine.prefill(IDS[:25], cache)
    steps = 20 if engine.decoder.config.rope_borders else 12
    logits = [engine.decode(token, cache)[None] for token in IDS[25 : 25 + steps]]
    rows = TensorRows(engine)
    rows.begin(cache, 3)
    logits += [torch.stack(list(rows.step([token, token + 1, token + 2]))) for token in IDS[:5]]
    rows.drop(0)
    logits.append(torch.stack(list(rows.step([5, 6]))))
    cache.truncate(20 + steps)
    logits += [engine.decode(token, cache)[None] for token in IDS[:2]]
    return torch.cat(logits)


def test_a_step_on_cuda_waits_for_nothing_and_copies_nothing_there(reference: Reference) -> None:
    config = ModelFolder.open(reference.path).architecture.config
    if config.keeps_states:
        return  # such steps are not captured
    mixture = any(isinstance(block.mlp, MoeConfig) for block in config.blocks)  # which multiplies few rows otherwise
    for rows in (1, 8) if mixture else (1,):
        with fake_cuda(), torch.inference_mode():
            step = StaticStep(*fake_model(config, rows))
            with OnTheDevice() as seen:
                logits, finite = step.run()
        assert (logits.device.type, logits.shape, logits.dtype) == ("cuda", (rows, config.vocab_size), torch.float32)
        assert (finite.device.type, finite.shape, finite.dtype) == ("cuda", (), torch.bool)
        assert len(seen.operations) > 10 * len(config.blocks)


def test_bf16_is_as_near_to_fp32_as_the_references_own_bf16(reference: Reference, wanted: Tensor) -> None:
    own = max(rms_error(reference.in_bf16(kind).logits(IDS), wanted) for kind in reference.attention_kinds)
    assert rms_error(engine_of(reference.path, torch.bfloat16).logits(IDS), wanted) < 1.1 * own
    if (library := kernels()) is not None:
        rounded = engine_of(reference.path, library=library, half=torch.bfloat16).logits(IDS)
        # The median, because in a mixture a few tokens go to another expert.
        assert 0 < (rounded - wanted).square().mean(-1).median().sqrt() < own * wanted.square().mean().sqrt()


def test_each_change_that_a_row_names_changes_the_logits(
    row: Row, reference: Reference, wanted: Tensor, tmp_path: Path
) -> None:
    for file in reference.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (row.breaks, *row.also):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        assert relative_error(engine_of(tmp_path).logits(IDS), wanted) > 10 * TOLERANCE, change


def test_kimi_k2_is_deepseek_v3_by_another_name(tmp_path: Path) -> None:
    reference = write_reference(tmp_path, "deepseek_v3", **DEEPSEEK | GROUPS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "kimi_k2"}))
    assert relative_error(engine_of(tmp_path).logits(IDS), reference.logits(IDS)) < TOLERANCE
