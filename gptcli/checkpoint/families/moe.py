"""Mixtures of experts: Mixtral, Qwen's, gpt-oss. Source: transformers' modelling files of the same names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gptcli.checkpoint.families.layer_configs import (
    activation,
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
)
from gptcli.checkpoint.families.llama import (
    llama_architecture,
    llama_config,
    llama_head_dim,
    llama_rope,
    qwen_windows,
    rms,
)
from gptcli.checkpoint.families.parameters import joined, root_of
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture, Concat, EvensThenOdds, Recipe, Stack, Take, Transposed
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import DecoderConfig, MlpConfig, MoeConfig, QkNormConfig

_MOST_EXPERTS = 1 << 16  # in all layers together; three times as many as in the largest models

# A layer's prefix, its mixture and the names of all tensors -> recipes by our names after `mlp.`.
ExpertRecipes = Callable[[str, MoeConfig, Collection[str]], dict[str, Recipe]]


def mixtral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mixtral: a mixture in every layer."""
    moe = MoeConfig(
        expert=_expert(hf, "intermediate_size"),
        experts=_experts(hf, 8),
        top_k=hf.integer("num_experts_per_tok", 2),
        renormalize=True,
    )
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, rope=llama_rope(hf, theta=1_000_000.0))
    config = with_attention(config, window=hf.optional_integer("sliding_window"))
    return _with_experts(config, tensors, lambda layer: moe, _mixtral_recipes)


def qwen2_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 1.5 MoE and Qwen 2 57B: as Qwen 2, with many small experts and a shared one."""
    config = with_attention(llama_config(hf, bias=False), qkv_bias=hf.flag("qkv_bias", True))
    layer_windows = qwen_windows(hf, slides=lambda layer, first: layer < first and layer % 2 == 0)
    config = with_attention_per_layer(config, window=layer_windows)
    moe = MoeConfig(
        expert=_expert(hf, "moe_intermediate_size", 1408),
        experts=_experts(hf, 60),
        top_k=hf.integer("num_experts_per_tok", 4),
        renormalize=hf.flag("norm_topk_prob", False),
        shared=_expert(hf, "shared_expert_intermediate_size", 5632),
    )
    return _with_experts(config, tensors, _qwen_layers(hf, moe), _qwen_recipes)


def qwen3_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3 30B and 235B: as Qwen 3, with many small experts."""
    hf.ignore("max_window_layers")
    window = hf.optional_integer("sliding_window") if hf.flag("use_sliding_window", False) else None
    hf.ignore("sliding_window")
    windows(hf.per_layer("layer_types", hf.layers) or [], None)  # refuses any that slide
    config = llama_config(hf)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"), window=window)
    moe = MoeConfig(
        expert=_expert(hf, "moe_intermediate_size", 768),
        experts=_experts(hf, 128),
        top_k=hf.integer("num_experts_per_tok", 8),
        renormalize=hf.flag("norm_topk_prob", False),
    )
    return _with_experts(config, tensors, _qwen_layers(hf, moe), _qwen_recipes)


def gpt_oss(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """gpt-oss: attention sinks, a window on every other layer, experts with biases and a bounded activation."""
    hf.expect("swiglu_limit", 7.0)
    hf.expect("swiglu_alpha", 1.702)
    top_k = hf.integer("num_experts_per_tok", 4)
    hf.expect("experts_per_token", top_k)
    hf.ignore("initial_context_length")  # repeats rope_scaling
    head_dim = llama_head_dim(hf, 64)
    rope = llama_rope(hf, head_dim=head_dim, theta=150_000.0)
    bias = hf.flag("attention_bias", True)
    config = llama_config(hf, norm=rms(hf, 1e-5, wide_scale=True), bias=bias, head_dim=head_dim, rope=rope)
    types = hf.per_layer("layer_types", hf.layers) or full_every(2, hf.layers)
    config = with_attention_per_layer(config, window=windows(types, hf.integer("sliding_window", 128)))
    config = with_attention(config, sinks=True)
    moe = MoeConfig(
        expert=MlpConfig(width=hf.integer("intermediate_size"), activation="clamped_swiglu", bias=True),
        experts=_experts(hf, 128),
        top_k=top_k,
        renormalize=True,
        router_bias=True,
    )
    return _with_experts(config, tensors, lambda layer: moe, _gpt_oss_recipes)


def _expert(hf: HfConfig, field: str, default: int | None = None) -> MlpConfig:
    return MlpConfig(width=hf.integer(field, default), activation=activation(hf, "hidden_act", "silu"))


def _experts(hf: HfConfig, default: int) -> int:
    experts = hf.integer("num_local_experts", hf.integer("num_experts", default))
    for field in ("num_local_experts", "num_experts"):
        hf.expect(field, experts)
    return experts


def _qwen_layers(hf: HfConfig, moe: MoeConfig) -> Callable[[int], MoeConfig | None]:
    """The mixture of a layer: every `decoder_sparse_step`-th has one, except those in `mlp_only_layers`."""
    step = hf.integer("decoder_sparse_step", 1)
    dense = hf.integers("mlp_only_layers")
    return lambda layer: moe if layer not in dense and (layer + 1) % step == 0 else None


def _with_experts(
    config: DecoderConfig,
    tensors: Collection[str],
    moe_of: Callable[[int], MoeConfig | None],
    recipes_of: ExpertRecipes,
) -> Architecture:
    """The architecture with experts in the layers for which `moe_of` gives a mixture."""
    blocks = tuple(replace(block, mlp=moe_of(layer) or block.mlp) for layer, block in enumerate(config.blocks))
    mixtures = [block.mlp for block in blocks if isinstance(block.mlp, MoeConfig)]
    if (experts := sum(moe.experts for moe in mixtures)) > _MOST_EXPERTS:
        raise UnsupportedArchitecture(f"config.json: {experts} experts are more than {_MOST_EXPERTS}")
    for moe in set(mixtures):
        if moe.top_k > moe.experts:
            raise BrokenCheckpoint(f"config.json: num_experts_per_tok {moe.top_k} of {moe.experts} experts")
    architecture = llama_architecture(replace(config, blocks=blocks), tensors)
    prefix = root_of(tensors)
    parameters = dict(architecture.parameters)
    for layer, block in enumerate(blocks):
        if isinstance(block.mlp, MoeConfig):
            recipes = recipes_of(f"{prefix}layers.{layer}.", block.mlp, tensors)
            parameters |= {f"blocks.{layer}.mlp.{name}": recipe for name, recipe in recipes.items()}
    return replace(architecture, parameters=parameters)


def _mixtral_recipes(layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    root = f"{layer}block_sparse_moe."
    router: dict[str, Recipe] = {"router.weight": Take(f"{root}gate.weight")}
    return router | _expert_recipes(root, moe, tensors, gate="w1", up="w3", down="w2")


def _qwen_recipes(layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    root = f"{layer}mlp."
    shared = f"{root}shared_expert."
    recipes: dict[str, Recipe] = {"router.weight": Take(f"{root}gate.weight")}
    recipes |= _expert_recipes(root, moe, tensors, gate="gate_proj", up="up_proj", down="down_proj")
    if moe.shared is not None:
        recipes |= {
            "shared.up.weight": Concat((Take(f"{shared}gate_proj.weight"), Take(f"{shared}up_proj.weight"))),
            "shared.down.weight": Take(f"{shared}down_proj.weight"),
            "shared_gate.weight": Take(f"{root}shared_expert_gate.weight"),
        }
    return recipes


def _expert_recipes(
    root: str, moe: MoeConfig, tensors: Collection[str], *, gate: str, up: str, down: str
) -> dict[str, Recipe]:
    """Experts' matrices, with one tensor each under these names, or all in one under MLX's names."""
    mlx = f"{root}switch_mlp."
    if f"{mlx}down_proj.weight" in tensors:
        return _stacked_recipes(mlx, leaf="weight")

    def stacked(*names: str) -> Recipe:
        each = ([Take(f"{root}experts.{expert}.{name}.weight") for name in names] for expert in range(moe.experts))
        return Stack(tuple(map(joined, each)))

    return {"up.weight": stacked(gate, up), "down.weight": stacked(down)}


def _stacked_recipes(experts: str, leaf: str) -> dict[str, Recipe]:
    """All experts' matrices or biases in one tensor per projection, as MLX names them."""
    gate, up = Take(f"{experts}gate_proj.{leaf}"), Take(f"{experts}up_proj.{leaf}")
    return {f"up.{leaf}": Concat((gate, up), axis=1), f"down.{leaf}": Take(f"{experts}down_proj.{leaf}")}


def _gpt_oss_recipes(layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    router, experts = f"{layer}mlp.router.", f"{layer}mlp.experts."
    recipes: dict[str, Recipe] = {f"router.{leaf}": Take(router + leaf) for leaf in ("weight", "bias")}
    if f"{experts}down_proj.weight" in tensors:
        return recipes | _stacked_recipes(experts, "weight") | _stacked_recipes(experts, "bias")
    return recipes | {
        "up.weight": EvensThenOdds(Transposed(Take(f"{experts}gate_up_proj"))),
        "up.bias": EvensThenOdds(Take(f"{experts}gate_up_proj_bias")),
        "down.weight": Transposed(Take(f"{experts}down_proj")),
        "down.bias": Take(f"{experts}down_proj_bias"),
    }
