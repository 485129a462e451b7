"""Qwen3-Next and Qwen 3.5: gated DeltaNet in most layers, gated attention in the others; norms' weights stored less 1.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import check_types, with_attention, with_state
from gptcli.checkpoint.families.llama import Names, llama_config, llama_head_dim, llama_mlp, llama_rope, rms
from gptcli.checkpoint.families.moe import QWEN, expert_of, experts_of, qwen_layers, with_experts
from gptcli.checkpoint.recipes import Architecture, GroupsToParts, PlusOne
from gptcli.errors import BrokenCheckpoint
from gptcli.gguf.families.tiled_heads import TILED
from gptcli.model.config import DecoderConfig, DeltaNetConfig, MlpConfig, MoeConfig, NormConfig, QkNormConfig

_MOST_CHANNELS = 4096  # of a head, and tokens of a convolution: more than any known model has
_NAMES = Names(state="linear_attn")


def qwen3_next(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen3-Next 80B: many small experts and a gated one that sees every token, in every layer."""
    moe = _mixture(hf, experts=512, top_k=10, renormalize=hf.flag("norm_topk_prob", True))
    return _architecture(hf, tensors, llama_mlp(hf), qwen_layers(hf, moe))


def qwen3_5_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3.5 0.8B to 27B, the part for text."""
    return _architecture(hf, tensors, llama_mlp(hf), lambda layer: None)


def qwen3_5_moe_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3.5 35B and larger, the part for text: as Qwen3-Next."""
    hf.ignore("intermediate_size")  # of dense layers
    moe = _mixture(hf, experts=256, top_k=8, renormalize=True)
    return _architecture(hf, tensors, moe.expert, lambda layer: moe)


def _mixture(hf: HfConfig, *, experts: int, top_k: int, renormalize: bool) -> MoeConfig:
    """The arguments are defaults, but for `renormalize`."""
    return MoeConfig(
        expert=expert_of(hf, "moe_intermediate_size", 512),
        experts=experts_of(hf, experts),
        top_k=hf.integer("num_experts_per_tok", top_k),
        renormalize=renormalize,
        shared=expert_of(hf, "shared_expert_intermediate_size", 512),
    )


def _architecture(
    hf: HfConfig, tensors: Collection[str], mlp: MlpConfig, moe_of: Callable[[int], MoeConfig | None]
) -> Architecture:
    config = _config(hf, mlp)
    # Each head's rows of q are followed by those of its gate.
    split = partial(GroupsToParts, groups=hf.heads_of("num_attention_heads"), parts=(1, 1), order=(1, 0))
    return with_experts(config, tensors, moe_of, QWEN.recipes, _NAMES, norm_weight=PlusOne, q_rows=split)


def _config(hf: HfConfig, mlp: MlpConfig) -> DecoderConfig:
    hf.ignore_in_rope("mrope_section", "mrope_interleaved")  # which of three equal positions rotates a channel
    norm, head_dim = rms(hf, 1e-6, wide_scale=True), llama_head_dim(hf, 256)
    rope = llama_rope(hf, head_dim=head_dim, fraction=0.25)
    config = llama_config(hf, norm=norm, mlp=mlp, head_dim=head_dim, rope=rope)
    config = with_attention(config, qk_norm=QkNormConfig(norm=norm, over="head"), gated=True)
    interval = hf.integer("full_attention_interval", 4)
    types = hf.per_layer("layer_types", hf.layers)
    if types is None:
        types = ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(hf.layers)]
    check_types(types, "linear_attention", "full_attention")
    return with_state(config, _delta_net(hf, norm), [kind == "linear_attention" for kind in types])


def _delta_net(hf: HfConfig, norm: NormConfig) -> DeltaNetConfig:
    hf.expect("hidden_act", "silu", "swish")
    heads, key_heads = hf.heads_of("linear_num_value_heads", 32), hf.heads_of("linear_num_key_heads", 16)
    if heads % key_heads:
        raise BrokenCheckpoint(f"config.json: {heads} value heads cannot share {key_heads} key heads evenly")
    return DeltaNetConfig(
        heads=heads,
        key_heads=key_heads,
        key_dim=hf.integer("linear_key_head_dim", 128, high=_MOST_CHANNELS),
        value_dim=hf.integer("linear_value_head_dim", 128, high=_MOST_CHANNELS),
        kernel=hf.integer("linear_conv_kernel_dim", 4, high=_MOST_CHANNELS),
        norm=replace(norm, wide_scale=False),
        tiled=hf.flag(TILED, False),
    )
