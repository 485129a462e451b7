"""Llama 4: attention in chunks, layers without RoPE, a router that scales what experts see.

Source: transformers' modelling file of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import windows, with_attention_per_layer
from gptcli.checkpoint.families.llama import Names, llama_config, llama_head_dim, llama_mlp, llama_rope, rms
from gptcli.checkpoint.families.moe import ExpertNames, expert_of, experts_of, stacked_recipes, with_experts
from gptcli.checkpoint.recipes import Architecture, Recipe, Take, Transposed
from gptcli.model.config import MlpConfig, MoeConfig, PositionScale, QkNormConfig

_NAMES = Names(up=("feed_forward.gate_proj", "feed_forward.up_proj"), down="feed_forward.down_proj")
_EXPERTS = ExpertNames("feed_forward.", "router", shared="shared_expert.")


def llama4_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Llama 4 Scout and Maverick, the part for text: layers in chunks with RoPE, and others without either."""
    layers = hf.layers
    if hf.integers("no_rope_layers"):  # 1 is a layer with RoPE, despite the name
        hf.ignore("no_rope_layer_interval")
        rotated = hf.per_layer("no_rope_layers", layers) or []
    else:
        interval = hf.integer("no_rope_layer_interval", 4)
        rotated = [(layer + 1) % interval != 0 for layer in range(layers)]
    chunk = hf.optional_integer("attention_chunk_size")
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = ["chunked_attention" if rope and chunk else "full_attention" for rope in rotated]
    head_dim = llama_head_dim(hf, 128)
    rope = llama_rope(hf, head_dim=head_dim, theta=500_000.0)
    expert = expert_of(hf, "intermediate_size")
    dense = replace(llama_mlp(hf), width=hf.integer("intermediate_size_mlp", 16_384))
    config = llama_config(hf, norm=rms(hf, 1e-5), mlp=dense, head_dim=head_dim, rope=rope)
    norm = QkNormConfig(norm=replace(config.norm, weight=False), over="head", after_rope=True)
    norm_if_rotated = norm if hf.flag("use_qk_norm", True) else None
    scale = PositionScale(beta=hf.number("attn_scale", 0.1), original_context=hf.integer("floor_scale", 8192), first=1)
    scale_else = scale if hf.switch("attn_temperature_tuning", True) else None
    config = with_attention_per_layer(
        config,
        window=windows(types, chunk, "chunked_attention", "attention_chunk_size"),
        chunked=[kind == "chunked_attention" for kind in types],
        rope=[rope if has_rope else None for has_rope in rotated],
        qk_norm=[norm_if_rotated if has_rope else None for has_rope in rotated],
        position_scale=[None if has_rope else scale_else for has_rope in rotated],
    )
    return with_experts(config, tensors, _mixture_of(hf, expert), _recipes, _NAMES, pairs=True)


def _mixture_of(hf: HfConfig, expert: MlpConfig) -> Callable[[int], MoeConfig | None]:
    """The mixture of a layer: those in `moe_layers` have one, else every `interleave_moe_layer_step`-th."""
    if hf.has("moe_layers"):
        hf.ignore("interleave_moe_layer_step")
        mixed: Collection[int] = hf.integers("moe_layers")
    else:
        step = hf.integer("interleave_moe_layer_step", 1)
        mixed = range(step - 1, hf.layers, step)
    if not mixed:
        hf.ignore("num_local_experts", "num_experts", "num_experts_per_tok")
        return lambda layer: None
    moe = MoeConfig(
        expert=expert,
        experts=experts_of(hf, 16),
        top_k=hf.integer("num_experts_per_tok", 1),
        renormalize=False,
        router="sigmoid",
        scales_input=True,
        shared=expert,
        shared_gate=False,
    )
    return lambda layer: moe if layer in mixed else None


def _recipes(layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    recipes, experts = _EXPERTS.recipes(layer, moe, tensors), f"{layer}feed_forward.experts."
    if f"{experts}down_proj.weight" in tensors:
        return recipes | stacked_recipes(experts, "weight", tensors)
    if f"{experts}down_proj" in tensors:
        names = {"up.weight": "gate_up_proj", "down.weight": "down_proj"}
        recipes |= {ours: Transposed(Take(experts + theirs)) for ours, theirs in names.items()}
    return recipes
