"""OLMo 1 to 3. Source: transformers' modelling files of the same names."""

from __future__ import annotations

from collections.abc import Collection

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import (
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
    with_blocks,
)
from gptcli.checkpoint.families.llama import POST_NORMS, llama_architecture, llama_config, llama_head_dim, rms
from gptcli.checkpoint.recipes import Architecture
from gptcli.model.config import DecoderConfig, NormConfig, QkNormConfig, RopeConfig

_OLMO3_THETA = 500_000.0


def olmo(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo: layer norms without weights, and optional clipping of q, k and v."""
    config = llama_config(hf, norm=NormConfig(kind="layer", eps=1e-5, weight=False))
    return llama_architecture(with_attention(config, clip=hf.optional_number("clip_qkv")), tensors)


def olmo2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo 2: norms after attention and MLP, and over the full width of q and k."""
    return llama_architecture(olmo2_config(hf), tensors, POST_NORMS)


def olmo3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMo 3: as OLMo 2, with a window and unscaled RoPE on three layers of four."""
    types = hf.per_layer("layer_types", hf.layers) or full_every(4, hf.layers)
    layer_windows = windows(types, hf.integer("sliding_window", 4096))
    head_dim = llama_head_dim(hf)
    full = hf.rope_of_layer_type("full_attention", head_dim, hf.number("rope_theta", _OLMO3_THETA))
    sliding = hf.rope_of_layer_type("sliding_attention", head_dim, _OLMO3_THETA)
    ropes = [sliding if window else full for window in layer_windows]
    config = with_attention_per_layer(olmo2_config(hf, rope=full), window=layer_windows, rope=ropes)
    return llama_architecture(config, tensors, POST_NORMS)


def olmo2_config(hf: HfConfig, rope: RopeConfig | None = None, eps: float = 1e-5) -> DecoderConfig:
    """What OLMo 2 and its followers read. eps, rope: a follower's defaults."""
    config = llama_config(hf, norm=rms(hf, eps, wide_scale=True), rope=rope)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="full"))
    return with_blocks(config, residual="post")
