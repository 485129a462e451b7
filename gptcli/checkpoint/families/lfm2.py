"""LFM2: gated short convolutions in most layers, attention in the others. Source: transformers' modelling files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import check_types, with_attention, with_state
from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, llama_rope
from gptcli.checkpoint.families.moe import ExpertNames, expert_of, experts_of, with_experts
from gptcli.checkpoint.recipes import Architecture
from gptcli.model.config import DecoderConfig, MlpConfig, MoeConfig, NormConfig, QkNormConfig, ShortConvolutionConfig

_NAMES = Names(
    attention_norm="operator_norm",
    mlp_norm="ffn_norm",
    out="self_attn.out_proj",
    qk_norm="self_attn.{letter}_layernorm",
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    final_norm="embedding_norm",
    state="conv",
)
_EXPERTS = ExpertNames("feed_forward.", gate="w1", up="w3", down="w2", correction="expert_bias")


def lfm2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """LFM2 350M to 2.6B."""
    attends = hf.integers("full_attn_idxs") or range(hf.layers)
    types = ["full_attention" if layer in attends else "conv" for layer in range(hf.layers)]
    return llama_architecture(_config(hf, _width(hf), types), tensors, _NAMES)


def _width(hf: HfConfig) -> int:
    """The MLP's width, which the files give before it is adjusted."""
    width = hf.integer("block_ff_dim", hf.integer("intermediate_size", 12_288))
    multiple = hf.integer("block_multiple_of", 256)
    adjusted = hf.multiple("block_ffn_dim_multiplier", 1.0, int(2 * width / 3))
    if not hf.flag("block_auto_adjust_ff_dim", True):
        return width
    return -(-adjusted // multiple) * multiple


def lfm2_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """LFM2 8B A1B: dense first layers, then a mixture with a sigmoid router."""
    moe = MoeConfig(
        expert=replace(expert_of(hf, "moe_intermediate_size", 1792), activation="silu"),
        experts=experts_of(hf, 32),
        top_k=hf.integer("num_experts_per_tok", 4),
        renormalize=hf.flag("norm_topk_prob", True),
        router="sigmoid",
        correction=hf.flag("use_expert_bias", True),
        added_to_sum=1e-6,
        scale=hf.number("routed_scaling_factor", 1.0),
    )
    dense = hf.integer("num_dense_layers", 2, low=0)
    config = _config(hf, hf.integer("intermediate_size", 7168), ["full_attention"] * hf.layers)
    return with_experts(config, tensors, lambda layer: moe if layer >= dense else None, _EXPERTS.recipes, _NAMES)


def _config(hf: HfConfig, width: int, types: Sequence[object]) -> DecoderConfig:
    """types: those of the layers, unless `layer_types` says them."""
    types = hf.per_layer("layer_types", hf.layers) or types
    check_types(types, "full_attention", "conv")
    norm = NormConfig(kind="rms", eps=hf.number("norm_eps", 1e-5))
    rope = llama_rope(hf, theta=1_000_000.0)
    tied = hf.flag("tie_embedding", hf.flag("tie_word_embeddings", True))
    hf.expect("num_heads", hf.heads_of("num_attention_heads"))  # by its older name
    config = llama_config(hf, norm=norm, bias=False, mlp=MlpConfig(width=width), rope=rope)
    config = replace(with_attention(config, qk_norm=QkNormConfig(norm=norm, over="head")), tied_head=tied)
    state = ShortConvolutionConfig(kernel=hf.integer("conv_L_cache", 3, high=64), bias=hf.flag("conv_bias", False))
    return with_state(config, state, [kind == "conv" for kind in types])
