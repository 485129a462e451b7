"""DeepSeek V2 and V3, and others with latent attention. Source: transformers' modelling files of the same names."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.latent_attention import latent_attention
from gptcli.checkpoint.families.layer_configs import with_blocks
from gptcli.checkpoint.families.llama import llama_architecture, llama_config, llama_mlp, rms
from gptcli.checkpoint.families.moe import COMMON, expert_of, with_experts
from gptcli.checkpoint.families.moe_relatives import after_dense, sigmoid_mixture, without_layers_ahead
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture
from gptcli.model.config import MoeConfig

_OF_TRAINING = ("aux_loss_alpha", "ep_size", "seq_aux")


def deepseek_v2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """DeepSeek V2: latent attention; dense first layers, then experts chosen within groups, and shared ones."""
    hf.ignore(*_OF_TRAINING, "n_group", "topk_group")  # the latter unless the choice is within groups
    hf.expect("moe_layer_freq", 1)
    if hf.flag("norm_topk_prob", False):  # DeepSeek's own code would divide by the sum, transformers never does
        hf.left_over.append("norm_topk_prob")
    hf.expect("scoring_func", "softmax")
    method = hf.string("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedArchitecture(f"config.json: topk_method {method!r} is not supported")
    grouped = method == "group_limited_greedy"
    bias = hf.flag("mlp_bias", False)
    expert = expert_of(hf, "moe_intermediate_size", 1407)
    moe = MoeConfig(
        expert=expert,
        experts=hf.integer("n_routed_experts", 64),
        top_k=hf.integer("num_experts_per_tok"),
        renormalize=False,
        wide_router=True,
        groups=hf.integer("n_group") if grouped else 1,
        top_groups=hf.integer("topk_group") if grouped else 1,
        group_best=1,
        scale=hf.number("routed_scaling_factor", 1.0),
        shared=replace(expert, width=expert.width * hf.integer("n_shared_experts", 2), bias=bias),
        shared_gate=False,
    )
    config = llama_config(hf, attention=latent_attention(hf), mlp=llama_mlp(hf, bias=bias))
    return with_experts(config, tensors, after_dense(hf, moe, 0), COMMON.recipes, pairs=True)


def deepseek_v3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """DeepSeek V3 and R1, Moonlight: as V2, with a sigmoid router whose choice is corrected."""
    hf.ignore(*_OF_TRAINING)
    hf.expect("moe_layer_freq", 1)
    pairs = hf.flag("rope_interleave", False)  # null is false, absent is true
    moe = _corrected(hf, experts=256, top_k=8, width=2048)
    config = llama_config(hf, attention=latent_attention(hf))
    architecture = with_experts(config, tensors, after_dense(hf, moe, 3), COMMON.recipes, pairs=pairs)
    return without_layers_ahead(hf, tensors, architecture)


def kimi_k2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Kimi K2: DeepSeek V3 with more experts and fewer heads."""
    return deepseek_v3(hf, tensors)


def glm4_moe_lite(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4.7-Flash: as DeepSeek V3, with experts in all layers but the first, or as `mlp_layer_types` says."""
    hf.ignore(*_OF_TRAINING)
    types = hf.per_layer("mlp_layer_types", hf.layers) or ["dense"] + ["sparse"] * (hf.layers - 1)
    if unknown := {str(kind) for kind in types} - {"dense", "sparse"}:
        raise UnsupportedArchitecture(f"config.json: mlp_layer_types: {min(unknown)!r} is not supported")
    dense = types.count("dense")
    if types == ["dense"] * dense + ["sparse"] * (hf.layers - dense):
        hf.expect("first_k_dense_replace", dense)  # which transformers does not read
    pairs = hf.flag("rope_interleave", False)
    moe = _corrected(hf, experts=64, top_k=4, width=1536)
    config = llama_config(hf, attention=latent_attention(hf), norm=rms(hf, 1e-5))
    architecture = with_experts(
        config, tensors, lambda layer: moe if types[layer] == "sparse" else None, COMMON.recipes, pairs=pairs
    )
    return without_layers_ahead(hf, tensors, architecture)


def _corrected(hf: HfConfig, *, experts: int, top_k: int, width: int) -> MoeConfig:
    hf.expect("scoring_func", "sigmoid")
    hf.expect("topk_method", "noaux_tc")
    return sigmoid_mixture(hf, renormalize=False, experts=experts, top_k=top_k, width=width)


def minicpm3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """MiniCPM 3: latent attention, and multipliers on embedding, residual stream and logits."""
    layers, hidden = hf.layers, hf.integer("hidden_size")
    attention = latent_attention(hf, value_dim=hidden // hf.heads_of("num_attention_heads"))
    depth, base = hf.optional_number("scale_depth"), hf.optional_integer("dim_model_base")
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    config = llama_config(hf, attention=attention, mlp=mlp, norm=rms(hf, 1e-5), tied=True)
    config = with_blocks(config, residual_scale=1.0 if depth is None else depth / math.sqrt(layers))
    config = replace(
        config, embedding_scale=hf.number("scale_emb", 12.0), logit_scale=1.0 if base is None else base / hidden
    )
    return llama_architecture(config, tensors)
