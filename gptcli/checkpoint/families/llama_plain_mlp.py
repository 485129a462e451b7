"""Families of the Llama shape whose MLP has no gate: Nemotron, AFM, Apertus, nanochat.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import activation, with_attention
from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, llama_mlp, llama_rope, rms
from gptcli.checkpoint.recipes import Architecture, PlusOne
from gptcli.model.config import MlpConfig, NormConfig, QkNormConfig

_PLAIN = Names(up=("mlp.up_proj",))
_APERTUS = replace(_PLAIN, attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm")


def apertus(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Apertus: xIELU, whose shape is learned, and every head's q and k normalized."""
    act = "xielu" if hf.string("hidden_act", "xielu") == "xielu" else activation(hf, "hidden_act", "xielu")
    mlp = llama_mlp(hf, act=act, gated=False)
    config = llama_config(hf, norm=rms(hf, 1e-5), mlp=mlp, rope=llama_rope(hf, theta=12_000_000.0))
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"))
    return llama_architecture(config, tensors, _APERTUS)


def arcee(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """AFM 4.5B: a squared ReLU."""
    return llama_architecture(llama_config(hf, norm=rms(hf, 1e-5), mlp=_mlp(hf)), tensors, _PLAIN)


def nanochat(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """nanochat: norms without weights, also of the embedding and after RoPE, which rotates backward; a softcap."""
    norm = replace(rms(hf, 1e-6), weight=False)
    mlp = llama_mlp(hf, act=activation(hf, "hidden_act", "relu2"), gated=False)
    config = llama_config(hf, norm=norm, mlp=mlp, rope=replace(llama_rope(hf), backward=True))
    config = with_attention(config, qk_norm=QkNormConfig(norm=norm, over="head", after_rope=True))
    config = replace(config, embedding_norm=True, logit_softcap=hf.optional_number("final_logit_softcapping"))
    return llama_architecture(config, tensors, replace(_PLAIN, up=("mlp.fc1",), down="mlp.fc2"))


def nemotron(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Nemotron 3 and 4, Minitron: a squared ReLU, layer norms stored less 1, RoPE on half of each head."""
    norm = NormConfig(kind="layer", eps=hf.number("norm_eps", 1e-5), bias=True)
    config = llama_config(hf, norm=norm, mlp=_mlp(hf), rope=llama_rope(hf, fraction=0.5))
    return llama_architecture(config, tensors, _PLAIN, norm_weight=PlusOne)


def _mlp(hf: HfConfig) -> MlpConfig:
    act = activation(hf, "hidden_act", "relu2")
    return llama_mlp(hf, act=act, gated=False, bias=hf.flag("mlp_bias", False))
