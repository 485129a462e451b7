"""Mixtures of experts by other labs: routers, corrections and shared experts of their own.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import windows, with_attention, with_attention_per_layer
from gptcli.checkpoint.families.llama import (
    POST_NORMS,
    granite_config,
    llama_config,
    llama_head_dim,
    llama_mlp,
    llama_rope,
    rms,
)
from gptcli.checkpoint.families.llama_relatives import HUNYUAN, ernie_config, hunyuan_config
from gptcli.checkpoint.families.moe import COMMON, MIXTRAL, ExpertNames, expert_of, experts_of, with_experts
from gptcli.checkpoint.families.olmo import olmo2_config
from gptcli.checkpoint.families.parameters import root_of
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture
from gptcli.model.config import LongRopeScaling, MlpConfig, MoeConfig, NormConfig, QkNormConfig, RopeConfig

GRANITE = ExpertNames(
    "block_sparse_moe.",
    "router.layer",
    stacked=("input_linear.weight", "output_linear.weight"),
    shared="../shared_mlp.",
    shared_up=("input_linear",),
    shared_down="output_linear",
)
_MINIMAX = replace(MIXTRAL, correction="e_score_correction_bias")
_ERNIE = ExpertNames(correction="moe_statics.e_score_correction_bias", correction_is_row=True)
_HUNYUAN = ExpertNames(router="gate.wg", shared="shared_mlp.")


def olmoe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """OLMoE: a mixture in every layer, q and k normalized over their full width."""
    hf.expect("clip_qkv")
    config = llama_config(hf, norm=rms(hf, 1e-5))
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="full"))
    moe = _softmax(hf, experts=64, top_k=8)
    return with_experts(config, tensors, lambda layer: moe, COMMON.recipes)


def flex_olmo(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """FlexOlmo: OLMo 2 with a mixture in every layer."""
    moe = _softmax(hf, experts=7, top_k=5)
    config = olmo2_config(hf, llama_rope(hf, theta=500_000.0), eps=1e-6)
    return with_experts(config, tensors, lambda layer: moe, COMMON.recipes, POST_NORMS)


def _softmax(hf: HfConfig, experts: int, top_k: int) -> MoeConfig:
    return MoeConfig(
        expert=expert_of(hf, "intermediate_size"),
        experts=experts_of(hf, experts),
        top_k=hf.integer("num_experts_per_tok", top_k),
        renormalize=hf.flag("norm_topk_prob", False),
    )


def granitemoe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Granite 3 MoE: as Granite, with a mixture in every layer."""
    return _granite(hf, tensors, None)


def granitemoeshared(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Granite 3 MoE with an expert that sees every token."""
    if hf.nonzero("shared_intermediate_size") is None:
        return _granite(hf, tensors, None)
    return _granite(hf, tensors, replace(llama_mlp(hf), width=hf.integer("shared_intermediate_size")))


def _granite(hf: HfConfig, tensors: Collection[str], shared: MlpConfig | None) -> Architecture:
    moe = granite_mixture(hf, shared)
    return with_experts(granite_config(hf, moe.expert), tensors, lambda layer: moe, GRANITE.recipes)


def granite_mixture(hf: HfConfig, shared: MlpConfig | None) -> MoeConfig:
    """Granite's experts, and perhaps one that sees every token."""
    return MoeConfig(
        expert=llama_mlp(hf),
        experts=experts_of(hf, 8),
        top_k=hf.integer("num_experts_per_tok", 2),
        renormalize=True,
        shared=shared,
        shared_gate=shared is None,
    )


def glm4_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4.5 to 4.7: dense first layers, then experts and a shared one; RoPE on half of each head."""
    head_dim = llama_head_dim(hf, 128)
    rope = llama_rope(hf, head_dim=head_dim, fraction=0.5)
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, head_dim=head_dim, rope=rope)
    qk_norm = QkNormConfig(norm=config.norm, over="head") if hf.flag("use_qk_norm", False) else None
    config = with_attention(config, qkv_bias=hf.flag("attention_bias", False), qk_norm=qk_norm)
    moe = sigmoid_mixture(hf, renormalize=True, experts=128, top_k=8, width=1408)
    return without_layers_ahead(hf, tensors, with_experts(config, tensors, after_dense(hf, moe, 1), COMMON.recipes))


def without_layers_ahead(hf: HfConfig, tensors: Collection[str], architecture: Architecture) -> Architecture:
    """Leaves unused the extra layers, after the others, that predict tokens further ahead."""
    prefix, ahead = f"{root_of(tensors)}layers.", hf.layers_of("num_nextn_predict_layers", 1, low=0)
    return replace(architecture, ahead=tuple(f"{prefix}{hf.layers + layer}." for layer in range(ahead)))


def dots1(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """dots.llm1: as Qwen 3, with dense first layers, then experts and a shared one."""
    window, first = hf.optional_integer("sliding_window"), hf.integer("max_window_layers", 62, low=0)
    types = hf.per_layer("layer_types", hf.layers)
    if types is None:
        slides = [window is not None and layer >= first for layer in range(hf.layers)]
        types = ["sliding_attention" if sliding else "full_attention" for sliding in slides]
    config = llama_config(hf)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"))
    config = with_attention_per_layer(config, window=windows(types, window))
    moe = sigmoid_mixture(hf, renormalize=False, experts=1, top_k=1, width=1408)
    return with_experts(config, tensors, after_dense(hf, moe, 0), COMMON.recipes)


def sigmoid_mixture(hf: HfConfig, *, renormalize: bool, experts: int, top_k: int, width: int) -> MoeConfig:
    """A sigmoid router with a correction and groups, and a shared expert; the arguments are defaults."""
    expert = expert_of(hf, "moe_intermediate_size", width)
    return MoeConfig(
        expert=expert,
        experts=hf.integer("n_routed_experts", experts),
        top_k=hf.integer("num_experts_per_tok", top_k),
        renormalize=hf.flag("norm_topk_prob", renormalize),
        router="sigmoid",
        wide_router=True,
        correction=True,
        groups=hf.integer("n_group", 1),
        top_groups=hf.integer("topk_group", 1),
        least_sum=1e-20,
        scale=hf.number("routed_scaling_factor", 1.0),
        shared=replace(expert, width=expert.width * hf.integer("n_shared_experts", 1)),
        shared_gate=False,
    )


def after_dense(hf: HfConfig, moe: MoeConfig, dense: int) -> Callable[[int], MoeConfig | None]:
    """The mixture of a layer: those from `first_k_dense_replace` on have one."""
    dense = hf.integer("first_k_dense_replace", dense, low=0)
    return lambda layer: moe if layer >= dense else None


def ernie4_5_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """ERNIE 4.5 MoE: as ERNIE 4.5, with experts in most layers and shared ones."""
    shared = hf.integer("moe_num_shared_experts", 2, low=0)
    expert = expert_of(hf, "moe_intermediate_size", 1536)
    wide = replace(expert, width=expert.width * shared, bias=hf.flag("use_bias", False))
    moe = MoeConfig(
        expert=expert,
        experts=hf.integer("moe_num_experts", 64),
        top_k=hf.integer("moe_k", 6),
        renormalize=True,
        wide_router=True,
        correction=True,
        least_sum=hf.nonzero("moe_norm_min") or (0.0 if hf.has("moe_norm_min") else 1e-12),
        shared=wide if shared else None,
        shared_gate=False,
    )
    start, interval = hf.integer("moe_layer_start_index", 1, low=0), hf.integer("moe_layer_interval", 1)
    end = hf.integer("moe_layer_end_index", -1, low=-1)
    end = hf.layers - 1 if end == -1 else end

    def moe_of(layer: int) -> MoeConfig | None:
        return moe if start <= layer <= end and (layer + 1) % interval == 0 else None

    config = replace(ernie_config(hf, llama_head_dim(hf)), head_bias=wide.bias)
    architecture = with_experts(config, tensors, moe_of, _ERNIE.recipes, pairs=True)
    return replace(architecture, ahead=("model.mtp_",))


def minimax_m2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """MiniMax M2: a mixture in every layer, q and k normalized over their full width, RoPE on part of each head."""
    head_dim = llama_head_dim(hf, 128)
    fraction = hf.integer("rotary_dim", head_dim) / head_dim
    rope = llama_rope(hf, head_dim=head_dim, theta=5_000_000.0, fraction=fraction)
    config = llama_config(hf, bias=False, head_dim=head_dim, rope=rope)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="full"))
    moe = MoeConfig(
        expert=expert_of(hf, "intermediate_size"),
        experts=experts_of(hf, 256),
        top_k=hf.integer("num_experts_per_tok", 8),
        renormalize=True,
        router="sigmoid",
        correction=True,
    )
    return with_experts(config, tensors, lambda layer: moe, _MINIMAX.recipes)


def hunyuan_v1_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Hunyuan A13B: as Hunyuan, with a mixture and a shared expert in every layer."""
    expert = expert_of(hf, "intermediate_size")
    moe = MoeConfig(
        expert=expert,
        experts=experts_of(hf, 1),
        top_k=1,
        renormalize=True,
        wide_router=True,
        shared=expert,
        shared_gate=False,
    )
    chosen = hf.integer_per_layer("moe_topk", hf.layers, 1)
    config = hunyuan_config(hf)
    return with_experts(config, tensors, lambda layer: replace(moe, top_k=chosen[layer]), _HUNYUAN.recipes, HUNYUAN)


def phimoe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Phi 3.5 MoE: layer norms, biases, LongRoPE, and two experts by sparsemixer."""
    hf.expect("num_experts_per_tok", 2)
    hf.ignore("input_jitter_noise")  # of training
    norm = NormConfig(kind="layer", eps=hf.number("rms_norm_eps", 1e-5), bias=True)
    config = llama_config(hf, norm=norm, rope=_phimoe_rope(hf))
    config = with_attention(config, window=hf.optional_integer("sliding_window"))
    config = replace(config, head_bias=hf.flag("lm_head_bias", False))
    moe = MoeConfig(
        expert=expert_of(hf, "intermediate_size"),
        experts=experts_of(hf, 16),
        top_k=2,
        renormalize=False,
        router="sparsemixer",
        jitter=hf.nonzero("router_jitter_noise") or 0.0,
    )
    return with_experts(config, tensors, lambda layer: moe, MIXTRAL.recipes)


def _phimoe_rope(hf: HfConfig) -> RopeConfig:
    """RoPE with `short_mscale` and `long_mscale` as LongRoPE's magnitude.

    As in transformers, texts of any length have the short factors.
    """
    short, long = hf.rope_extra("short_mscale"), hf.rope_extra("long_mscale")
    rope = llama_rope(hf, theta=1_000_000.0)
    if rope.scaling is None:
        return rope
    if not isinstance(rope.scaling, LongRopeScaling) or short is None or short != long:
        raise UnsupportedArchitecture("config.json: rope: only longrope, with short_mscale = long_mscale, is supported")
    return replace(rope, scaling=replace(rope.scaling, long=rope.scaling.short, magnitude=short))
