"""Gemma 1 to 3: scaled embeddings, norms' weights stored less 1, tanh GELU. Source: transformers' modelling files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import (
    activation,
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
    with_blocks,
)
from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, llama_head_dim, llama_mlp, rms
from gptcli.checkpoint.recipes import Architecture, PlusOne
from gptcli.model.config import Activation, DecoderConfig, QkNormConfig, RopeConfig

FOUR_NORMS = Names(
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


def gemma(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma and CodeGemma: Llama's block with scaled embeddings and a GELU."""
    hf.ignore("hidden_activation")
    return llama_architecture(_gemma_config(hf, act="gelu_tanh"), tensors, norm_weight=PlusOne)


def gemma2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 2: four norms, softcaps, a window on every other layer."""
    hf.ignore("sliding_window_size")  # repeats sliding_window
    types = hf.per_layer("layer_types", hf.layers) or full_every(2, hf.layers)
    config = with_attention(_gemma_config(hf), softcap=hf.optional_number("attn_logit_softcapping"))
    return _four_norms(hf, tensors, types, config)


def vaultgemma(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """VaultGemma: as Gemma 2, with two norms."""
    types = hf.per_layer("layer_types", hf.layers) or full_every(2, hf.layers)
    config = with_attention(_gemma_config(hf), softcap=hf.optional_number("attn_logit_softcapping"))
    config = _gemma2_config(hf, types, config)
    return llama_architecture(config, tensors, Names(mlp_norm="pre_feedforward_layernorm"), norm_weight=PlusOne)


def gemma3_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 3 1B: q and k normalized, five local layers per global one, and RoPE by kind of layer."""
    hf.expect("attn_logit_softcapping")  # transformers reads it in Gemma 2 only
    pattern = hf.integer("sliding_window_pattern", hf.integer("_sliding_window_pattern", 6))
    types = hf.per_layer("layer_types", hf.layers) or full_every(pattern, hf.layers)
    head_dim = llama_head_dim(hf, 256)
    local = hf.rope_of_layer_type("sliding_attention", head_dim, hf.number("rope_local_base_freq", 10_000.0))
    rope = hf.rope_of_layer_type("full_attention", head_dim, hf.number("rope_theta", 1_000_000.0))
    config = _gemma_config(hf, rope=rope)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"))
    ropes = [local if kind == "sliding_attention" else rope for kind in types]
    return _four_norms(hf, tensors, types, with_attention_per_layer(config, rope=ropes))


def _gemma_config(hf: HfConfig, act: Activation | None = None, rope: RopeConfig | None = None) -> DecoderConfig:
    # Early configs say `gelu` in hidden_act and mean the tanh form all the same.
    hf.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    hf.expect("use_bidirectional_attention", False)
    config = llama_config(
        hf,
        norm=rms(hf, 1e-6, wide_scale=True),
        mlp=llama_mlp(hf, act=act or activation(hf, "hidden_activation", "gelu_pytorch_tanh")),
        head_dim=llama_head_dim(hf, 256),
        rope=rope,
        tied=True,
    )
    return replace(config, embedding_scale=config.hidden_size**0.5)


def _four_norms(hf: HfConfig, tensors: Collection[str], types: Sequence[object], config: DecoderConfig) -> Architecture:
    config = with_blocks(_gemma2_config(hf, types, config), residual="sandwich")
    return llama_architecture(config, tensors, FOUR_NORMS, norm_weight=PlusOne)


def _gemma2_config(hf: HfConfig, types: Sequence[object], config: DecoderConfig) -> DecoderConfig:
    config = with_attention(config, scale=hf.number("query_pre_attn_scalar", 256.0) ** -0.5)
    config = with_attention_per_layer(config, window=windows(types, hf.integer("sliding_window", 4096)))
    return replace(config, logit_softcap=hf.optional_number("final_logit_softcapping"))
