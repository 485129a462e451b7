"""Families of the Llama shape with layer norms: Phi 1 to 2, StarCoder 2, StableLM, Command R; and GLM-4.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection
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
from gptcli.checkpoint.families.llama import (
    Names,
    llama_architecture,
    llama_config,
    llama_head_dim,
    llama_mlp,
    llama_rope,
    rms,
)
from gptcli.checkpoint.recipes import Architecture
from gptcli.model.config import DecoderConfig, NormConfig, QkNormConfig

_ONE_NORM = Names(mlp_norm=None)
_STABLELM = Names(qk_norm="self_attn.{letter}_layernorm.norms.{head}")
_PHI = Names(
    mlp_norm=None,
    out="self_attn.dense",
    qk_norm="self_attn.{letter}_layernorm",
    up=("mlp.fc1",),
    down="mlp.fc2",
    final_norm="final_layernorm",
)
_GLM = Names(up=("mlp.gate_up_proj",))
_GLM4 = replace(_GLM, post_attention_norm="post_self_attn_layernorm", post_mlp_norm="post_mlp_layernorm")


def phi(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Phi 1 to 2: one norm for parallel attention and MLP, biases everywhere, RoPE on half of each head."""
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5), bias=True)
    qk_norm = QkNormConfig(norm=norm, over="head") if hf.flag("qk_layernorm", False) else None
    mlp = llama_mlp(hf, act=activation(hf, "hidden_act", "gelu_new"), gated=False, bias=True)
    rope = llama_rope(hf, fraction=0.5)
    config = with_attention(llama_config(hf, norm=norm, bias=True, mlp=mlp, rope=rope), qk_norm=qk_norm)
    config = replace(with_blocks(config, residual="shared"), head_bias=True)
    return llama_architecture(config, tensors, _PHI)


def starcoder2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """StarCoder 2: biases and a plain MLP."""
    hf.expect("mlp_type", "default")
    hf.expect("norm_type", "layer_norm")
    hf.ignore("rms_norm_eps")
    bias = hf.flag("use_bias", True)
    norm = NormConfig(kind="layer", eps=hf.number("norm_epsilon", 1e-5), bias=True)
    mlp = llama_mlp(hf, act=activation(hf, "hidden_act", "gelu_pytorch_tanh"), gated=False, bias=bias)
    config = llama_config(hf, norm=norm, bias=bias, mlp=mlp, tied=True)
    config = with_attention(config, window=hf.optional_integer("sliding_window"))
    return llama_architecture(config, tensors, Names(up=("mlp.c_fc",), down="mlp.c_proj"))


def stablelm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """StableLM: RoPE on a quarter of each head; switches for parallel blocks and for a norm per head."""
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5), bias=True)
    qk_norm = None
    if hf.flag("qk_layernorm", False):
        qk_norm = QkNormConfig(norm=replace(norm, bias=False), over="each_head")
    config = llama_config(hf, norm=norm, bias=False, rope=llama_rope(hf, fraction=0.25))
    config = with_attention(config, qkv_bias=hf.flag("use_qkv_bias", False), qk_norm=qk_norm)
    if not hf.flag("use_parallel_residual", False):
        return llama_architecture(config, tensors, _STABLELM)
    return llama_architecture(with_blocks(config, residual="shared"), tensors, replace(_STABLELM, mlp_norm=None))


def cohere(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Command R: one norm without bias for parallel attention and MLP, RoPE on neighbouring channels."""
    config = _cohere_config(hf)
    qk_norm = QkNormConfig(norm=config.norm, over="each_head") if hf.flag("use_qk_norm", False) else None
    return llama_architecture(with_attention(config, qk_norm=qk_norm), tensors, _ONE_NORM, pairs=True)


def cohere2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Command R7B and A: three layers with a window and RoPE per layer with neither."""
    pattern = hf.integer("sliding_window_pattern", hf.integer("_sliding_window_pattern", 4))
    types = hf.per_layer("layer_types", hf.layers) or full_every(pattern, hf.layers)
    layer_windows = windows(types, hf.integer("sliding_window", 4096))
    for field, harmless in _COHERE2_SWITCHES.items():
        hf.expect(field, harmless)
    hf.ignore("layer_switch", "use_parallel_embedding")
    config = _cohere_config(hf)
    rope = config.attentions[0].rope
    ropes = [rope if window else None for window in layer_windows]
    config = with_attention_per_layer(config, window=layer_windows, rope=ropes)
    return llama_architecture(config, tensors, _ONE_NORM, pairs=True)


# What early configs spell out and the architecture implies.
_COHERE2_SWITCHES = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}


def glm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4 9B and GLM-Edge: RoPE on neighbouring channels of half of each head, gate and up in one matrix."""
    return llama_architecture(_glm_config(hf), tensors, _GLM, pairs=True)


def glm4(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4: four norms, RoPE on neighbouring channels of half of each head."""
    return llama_architecture(with_blocks(_glm_config(hf), residual="sandwich"), tensors, _GLM4, pairs=True)


def _glm_config(hf: HfConfig) -> DecoderConfig:
    head_dim = llama_head_dim(hf, 128)
    rope = llama_rope(hf, head_dim=head_dim, fraction=0.5)
    config = llama_config(hf, norm=rms(hf, 1.5625e-7), bias=False, head_dim=head_dim, rope=rope)
    return with_attention(config, qkv_bias=hf.flag("attention_bias", True))


def _cohere_config(hf: HfConfig) -> DecoderConfig:
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5))
    config = with_blocks(llama_config(hf, norm=norm, tied=True), residual="shared")
    return replace(config, logit_scale=hf.number("logit_scale", 0.0625))
