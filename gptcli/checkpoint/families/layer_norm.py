"""Families of the Llama shape with layer norms: Phi 1 to 2, StarCoder 2, StableLM, Command R; and GLM-4.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, rms
from gptcli.checkpoint.families.parts import activation, each_attention, each_block, every, windows
from gptcli.checkpoint.hf_config import HfConfig
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
_GLM4 = Names(
    post_attention_norm="post_self_attn_layernorm", post_mlp_norm="post_mlp_layernorm", up=("mlp.gate_up_proj",)
)


def phi(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Phi 1 to 2: one norm for attention and MLP side by side, biases everywhere, RoPE on half of each head."""
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5), bias=True)
    qk_norm = QkNormConfig(norm=norm, over="head") if hf.flag("qk_layernorm", False) else None
    config = llama_config(
        hf,
        norm=norm,
        act=activation(hf, "hidden_act", "gelu_new"),
        gated=False,
        bias=True,
        mlp_bias=True,
        rotary_fraction=0.5,
    )
    config = each_attention(config, lambda layer, attention: replace(attention, qk_norm=qk_norm))
    config = replace(_side_by_side(config), head_bias=True)
    return llama_architecture(config, tensors, _PHI)


def starcoder2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """StarCoder 2: biases and a plain MLP."""
    bias, window = hf.flag("use_bias", True), hf.optional_whole("sliding_window")
    hf.expect("mlp_type", "default")
    hf.expect("norm_type", "layer_norm")
    hf.ignore("rms_norm_eps")
    config = llama_config(
        hf,
        norm=NormConfig(kind="layer", eps=hf.number("norm_epsilon", 1e-5), bias=True),
        act=activation(hf, "hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        bias=bias,
        mlp_bias=bias,
        tied=True,
    )
    config = each_attention(config, lambda layer, attention: replace(attention, window=window))
    return llama_architecture(config, tensors, Names(up=("mlp.c_fc",), down="mlp.c_proj"))


def stablelm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """StableLM: RoPE on a quarter of each head; perhaps parallel, perhaps with a norm for each head."""
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5), bias=True)
    qkv_bias = hf.flag("use_qkv_bias", False)
    qk_norm = None
    if hf.flag("qk_layernorm", False):
        qk_norm = QkNormConfig(norm=replace(norm, bias=False), over="each_head")
    config = llama_config(hf, norm=norm, bias=False, rotary_fraction=0.25)
    config = each_attention(config, lambda layer, attention: replace(attention, qkv_bias=qkv_bias, qk_norm=qk_norm))
    if not hf.flag("use_parallel_residual", False):
        return llama_architecture(config, tensors, _STABLELM)
    return llama_architecture(_side_by_side(config), tensors, replace(_STABLELM, mlp_norm=None))


def cohere(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Command R: one norm without bias for attention and MLP side by side, neighbouring channels rotated."""
    config = _cohere_config(hf)
    qk_norm = QkNormConfig(norm=config.norm, over="each_head") if hf.flag("use_qk_norm", False) else None
    config = each_attention(config, lambda layer, attention: replace(attention, qk_norm=qk_norm))
    return llama_architecture(config, tensors, _ONE_NORM, pairs=True)


def cohere2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Command R7B and A: three layers with a window and RoPE to one with neither."""
    layers = hf.layers
    pattern = hf.whole("sliding_window_pattern", hf.whole("_sliding_window_pattern", 4))
    types = hf.per_layer("layer_types", layers) or every(pattern, layers)
    layer_windows = windows(types, hf.whole("sliding_window", 4096))
    for field, harmless in _COHERE2_SWITCHES.items():
        hf.expect(field, harmless)
    hf.ignore("layer_switch", "use_parallel_embedding")
    config = each_attention(
        _cohere_config(hf),
        lambda layer, attention: replace(
            attention, window=layer_windows[layer], rope=attention.rope if layer_windows[layer] else None
        ),
    )
    return llama_architecture(config, tensors, _ONE_NORM, pairs=True)


# What the first configs spelled out and the architecture takes for granted.
_COHERE2_SWITCHES = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}


def glm4(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4: four norms, neighbouring channels of half of each head rotated."""
    qkv_bias = hf.flag("attention_bias", True)
    config = llama_config(hf, norm=rms(hf, 1.5625e-7), bias=False, rotary_fraction=0.5, default_head_dim=128)
    config = each_attention(config, lambda layer, attention: replace(attention, qkv_bias=qkv_bias))
    config = each_block(config, lambda layer, block: replace(block, residual="sandwich"))
    return llama_architecture(config, tensors, _GLM4, pairs=True)


def _cohere_config(hf: HfConfig) -> DecoderConfig:
    norm = NormConfig(kind="layer", eps=hf.number("layer_norm_eps", 1e-5))
    config = _side_by_side(llama_config(hf, norm=norm, tied=True))
    return replace(config, logit_scale=hf.number("logit_scale", 0.0625))


def _side_by_side(config: DecoderConfig) -> DecoderConfig:
    return each_block(config, lambda layer, block: replace(block, residual="shared"))
