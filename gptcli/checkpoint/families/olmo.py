"""OLMo 1 to 3. Source: transformers' modelling files of the same names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, llama_head_dim, rms
from gptcli.checkpoint.families.parts import each_attention, each_block, every, windows
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.model.config import DecoderConfig, NormConfig, QkNormConfig, RopeConfig

_OLMO3_THETA = 500_000.0
_NORMS_BEHIND = Names(
    attention_norm=None,
    post_attention_norm="post_attention_layernorm",
    mlp_norm=None,
    post_mlp_norm="post_feedforward_layernorm",
)


def olmo(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo: layer norms without weights, and perhaps a bound on q, k and v."""
    clip = hf.optional_number("clip_qkv")
    config = llama_config(hf, norm=NormConfig(kind="layer", eps=1e-5, weight=False))
    return llama_architecture(each_attention(config, lambda layer, attention: replace(attention, clip=clip)), tensors)


def olmo2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo 2: norms behind attention and MLP, and over the full width of q and k."""
    return llama_architecture(_olmo2_config(hf), tensors, _NORMS_BEHIND)


def olmo3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo 3: as OLMo 2, with a window on three layers of four, whose RoPE is not stretched."""
    layers = hf.layers
    types = hf.per_layer("layer_types", layers) or every(4, layers)
    layer_windows = windows(types, hf.whole("sliding_window", 4096))
    head_dim = llama_head_dim(hf)
    full = hf.rope_of_layer_type("full_attention", head_dim, hf.number("rope_theta", _OLMO3_THETA))
    sliding = hf.rope_of_layer_type("sliding_attention", head_dim, _OLMO3_THETA)
    config = each_attention(
        _olmo2_config(hf, rope=full),
        lambda layer, attention: replace(
            attention, window=layer_windows[layer], rope=sliding if layer_windows[layer] else full
        ),
    )
    return llama_architecture(config, tensors, _NORMS_BEHIND)


def _olmo2_config(hf: HfConfig, rope: RopeConfig | None = None) -> DecoderConfig:
    config = llama_config(hf, norm=rms(hf, 1e-5, wide_scale=True), rope=rope)
    qk_norm = QkNormConfig(norm=config.norm, over="full")
    config = each_attention(config, lambda layer, attention: replace(attention, qk_norm=qk_norm))
    return each_block(config, lambda layer, block: replace(block, residual="post"))
