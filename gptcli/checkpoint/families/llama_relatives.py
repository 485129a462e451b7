"""Families of the Llama shape by other labs: a bias, a norm, a window or a pattern of layers apart.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import (
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
    with_blocks,
)
from gptcli.checkpoint.families.llama import (
    POST_NORMS,
    Names,
    llama_architecture,
    llama_config,
    llama_head_dim,
    llama_mlp,
    llama_rope,
    rms,
)
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import DecoderConfig, QkNormConfig

HUNYUAN = Names(qk_norm="self_attn.{word}_layernorm")


def cwm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Code World Model: three layers of four slide, and the first of them does not."""
    types = hf.per_layer("layer_types", hf.layers)
    if types is None:
        types = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(hf.layers)]
    head_dim = llama_head_dim(hf, 128)
    rope = llama_rope(hf, head_dim=head_dim, theta=1_000_000.0)
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, mlp=mlp, head_dim=head_dim, rope=rope)
    config = with_attention_per_layer(config, window=windows(types, hf.optional_integer("sliding_window")))
    return llama_architecture(config, tensors)


def ernie4_5(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """ERNIE 4.5: RoPE on neighbouring channels, and one switch for all biases."""
    return llama_architecture(ernie_config(hf, llama_head_dim(hf)), tensors, pairs=True)


def ernie_config(hf: HfConfig, head_dim: int) -> DecoderConfig:
    """What ERNIE 4.5 reads with and without a mixture."""
    bias = hf.flag("use_bias", False)
    rope = llama_rope(hf, head_dim=head_dim, theta=500_000.0)
    mlp = llama_mlp(hf, bias=bias)
    return llama_config(hf, norm=rms(hf, 1e-5), bias=bias, mlp=mlp, head_dim=head_dim, rope=rope, tied=True)


def exaone4(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """EXAONE 4: norms after attention and MLP; where some layers have a window, the others have no RoPE."""
    window = hf.optional_integer("sliding_window")
    types = hf.per_layer("layer_types", hf.layers)
    if types is None:
        types = full_every(hf.integer("sliding_window_pattern", 4) if window else 1, hf.layers)
    hf.ignore("sliding_window_pattern")
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"))
    rope = config.attentions[0].rope
    ropes = [rope if window is None or kind == "sliding_attention" else None for kind in types]
    config = with_attention_per_layer(config, window=windows(types, window), rope=ropes)
    return llama_architecture(with_blocks(config, residual="post"), tensors, POST_NORMS)


def helium(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Helium: RoPE on neighbouring channels."""
    head_dim = llama_head_dim(hf, 128)
    rope = llama_rope(hf, head_dim=head_dim, theta=100_000.0)
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    norm = rms(hf, 1e-8, wide_scale=True)
    config = llama_config(hf, norm=norm, bias=False, mlp=mlp, head_dim=head_dim, rope=rope)
    config = with_attention(config, qkv_bias=hf.flag("attention_bias", False))
    return llama_architecture(config, tensors, pairs=True)


def hunyuan_v1_dense(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Hunyuan: every head's q and k normalized after the rotation, whose base a factor stretches."""
    return llama_architecture(hunyuan_config(hf), tensors, HUNYUAN)


def hunyuan_config(hf: HfConfig) -> DecoderConfig:
    """What Hunyuan reads with and without a mixture."""
    alpha = hf.rope_extra("alpha")
    rope = llama_rope(hf)
    if alpha is not None and hf.rope_type == "dynamic":
        if rope.dim == 2 or not 1e-3 <= alpha <= 1e6:  # far beyond what is in use; the power would not be finite
            raise BrokenCheckpoint(f"config.json: alpha {alpha:g} cannot stretch RoPE of {rope.dim} channels")
        rope = replace(rope, theta=rope.theta * alpha ** (rope.dim / (rope.dim - 2)))
    config = llama_config(hf, norm=rms(hf, 1e-5), rope=rope)
    return with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head", after_rope=True))


def ministral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Ministral 8B: a window on all layers, or on those that `layer_types` names."""
    window = hf.optional_integer("sliding_window")
    types = hf.per_layer("layer_types", hf.layers) or ["sliding_attention" if window else "full_attention"] * hf.layers
    config = with_attention_per_layer(llama_config(hf, bias=False), window=windows(types, window))
    return llama_architecture(config, tensors)


def seed_oss(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Seed-OSS: biases on q, k and v."""
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    config = llama_config(hf, bias=False, mlp=mlp, head_dim=llama_head_dim(hf))
    bias, out_bias = hf.flag("attention_bias", True), hf.flag("attention_out_bias", False)
    return llama_architecture(with_attention(config, qkv_bias=bias, out_bias=out_bias), tensors)
