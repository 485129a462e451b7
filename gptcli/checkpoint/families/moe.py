"""Mixtures of experts: Mixtral, Qwen's, gpt-oss. Source: transformers' modelling files of the same names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import (
    activation,
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
)
from gptcli.checkpoint.families.llama import (
    LLAMA,
    Names,
    llama_architecture,
    llama_config,
    llama_head_dim,
    llama_rope,
    qwen_windows,
    rms,
)
from gptcli.checkpoint.families.parameters import Parameters, joined, root_of
from gptcli.checkpoint.recipes import Architecture, Concat, EvensThenOdds, Recipe, Stack, Take, Transposed
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import DecoderConfig, MlpConfig, MoeConfig, QkNormConfig

_MOST_EXPERTS = 1 << 16  # in all layers together; three times as many as in the largest models

# A layer's prefix, its mixture and the names of all tensors -> recipes by our names after `mlp.`.
ExpertRecipes = Callable[[str, MoeConfig, Collection[str]], dict[str, Recipe]]


def mixtral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mixtral: a mixture in every layer."""
    moe = MoeConfig(
        expert=expert_of(hf, "intermediate_size"),
        experts=experts_of(hf, 8),
        top_k=hf.integer("num_experts_per_tok", 2),
        renormalize=True,
    )
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, rope=llama_rope(hf, theta=1_000_000.0))
    config = with_attention(config, window=hf.optional_integer("sliding_window"))
    return with_experts(config, tensors, lambda layer: moe, MIXTRAL.recipes)


def qwen2_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 1.5 MoE and Qwen 2 57B: as Qwen 2, with many small experts and a shared one."""
    config = with_attention(llama_config(hf, bias=False), qkv_bias=hf.flag("qkv_bias", True))
    layer_windows = qwen_windows(hf, slides=lambda layer, first: layer < first and layer % 2 == 0)
    config = with_attention_per_layer(config, window=layer_windows)
    moe = MoeConfig(
        expert=expert_of(hf, "moe_intermediate_size", 1408),
        experts=experts_of(hf, 60),
        top_k=hf.integer("num_experts_per_tok", 4),
        renormalize=hf.flag("norm_topk_prob", False),
        shared=expert_of(hf, "shared_expert_intermediate_size", 5632),
    )
    return with_experts(config, tensors, qwen_layers(hf, moe), QWEN.recipes)


def qwen3_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3 30B and 235B: as Qwen 3, with many small experts."""
    hf.ignore("max_window_layers")
    window = hf.optional_integer("sliding_window") if hf.flag("use_sliding_window", False) else None
    hf.ignore("sliding_window")
    windows(hf.per_layer("layer_types", hf.layers) or [], None)  # refuses any that slide
    config = llama_config(hf)
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"), window=window)
    moe = MoeConfig(
        expert=expert_of(hf, "moe_intermediate_size", 768),
        experts=experts_of(hf, 128),
        top_k=hf.integer("num_experts_per_tok", 8),
        renormalize=hf.flag("norm_topk_prob", False),
    )
    return with_experts(config, tensors, qwen_layers(hf, moe), QWEN.recipes)


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
        experts=experts_of(hf, 128),
        top_k=top_k,
        renormalize=True,
        router_bias=True,
    )
    return with_experts(config, tensors, lambda layer: moe, _gpt_oss_recipes)


def expert_of(hf: HfConfig, field: str, default: int | None = None) -> MlpConfig:
    """An expert's MLP, whose width is in this field."""
    return MlpConfig(width=hf.integer(field, default), activation=activation(hf, "hidden_act", "silu"))


def experts_of(hf: HfConfig, default: int) -> int:
    """The number of experts, by either of its names."""
    experts = hf.integer("num_local_experts", hf.integer("num_experts", default))
    for field in ("num_local_experts", "num_experts"):
        hf.expect(field, experts)
    return experts


def qwen_layers(hf: HfConfig, moe: MoeConfig) -> Callable[[int], MoeConfig | None]:
    """The mixture of a layer: every `decoder_sparse_step`-th has one, except those in `mlp_only_layers`."""
    step = hf.integer("decoder_sparse_step", 1)
    dense = hf.integers("mlp_only_layers")
    return lambda layer: moe if layer not in dense and (layer + 1) % step == 0 else None


def with_experts(
    config: DecoderConfig,
    tensors: Collection[str],
    moe_of: Callable[[int], MoeConfig | None],
    recipes_of: ExpertRecipes,
    names: Names = LLAMA,
    **options: Any,
) -> Architecture:
    """The architecture with experts where `moe_of` gives a mixture for a layer. options: of `llama_architecture`.

    Raises UnsupportedArchitecture for too many experts, BrokenCheckpoint for groups or choices that do not fit them.
    """
    blocks = tuple(replace(block, mlp=moe_of(layer) or block.mlp) for layer, block in enumerate(config.blocks))
    mixtures = [block.mlp for block in blocks if isinstance(block.mlp, MoeConfig)]
    if (experts := sum(moe.experts for moe in mixtures)) > _MOST_EXPERTS:
        raise UnsupportedArchitecture(f"config.json: {experts} experts are more than {_MOST_EXPERTS}")
    for moe in set(mixtures):
        if moe.experts % moe.groups or moe.top_groups > moe.groups or 1 < moe.groups > moe.experts // moe.group_best:
            raise BrokenCheckpoint(f"config.json: {moe.experts} experts cannot be in {moe.groups} groups")
        if moe.top_k > (among := moe.experts // moe.groups * moe.top_groups):
            raise BrokenCheckpoint(f"config.json: num_experts_per_tok {moe.top_k} of {among} experts")
    architecture = llama_architecture(replace(config, blocks=blocks), tensors, names, **options)
    prefix = root_of(tensors)
    parameters = dict(architecture.parameters)
    for layer, block in enumerate(blocks):
        if isinstance(block.mlp, MoeConfig):
            recipes = recipes_of(f"{prefix}layers.{layer}.", block.mlp, tensors)
            parameters |= {f"blocks.{layer}.mlp.{name}": recipe for name, recipe in recipes.items()}
    return replace(architecture, parameters=parameters)


@dataclass(frozen=True)
class ExpertNames:
    """The names of a mixture's modules, after a layer's prefix; `gate`, `up` and `down` in each expert."""

    root: str = "mlp."
    router: str = "gate"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    correction: str = "gate.e_score_correction_bias"
    correction_is_row: bool = False  # stored as (1, experts)
    shared: str = "shared_experts."
    shared_up: tuple[str, ...] = ("gate_proj", "up_proj")
    shared_down: str = "down_proj"
    stacked: tuple[str, str] | None = None  # all experts' gate and up, and down, in one tensor each
    latent: tuple[str, str] = ("fc1_latent_proj", "fc2_latent_proj")  # what projects to what experts see, and back

    def recipes(self, layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
        """Recipes by our names after `mlp.`, from a layer's prefix and the names of all tensors."""
        root = layer + self.root
        shared = layer + self.shared.removeprefix("../") if self.shared.startswith("../") else root + self.shared
        recipes = Parameters({"router.weight": Take(f"{root}{self.router}.weight")})
        if self.stacked is not None and f"{root}switch_mlp.down_proj.weight" not in tensors:
            up, down = self.stacked
            recipes |= {"up.weight": Take(root + up), "down.weight": Take(root + down)}
        else:
            recipes |= _expert_recipes(root, moe, tensors, gate=self.gate, up=self.up, down=self.down)
        if moe.correction:
            correction = Take(root + self.correction)
            recipes["correction"] = correction if self.correction_is_row else Stack((correction,))
        if moe.latent is not None:
            for name, source in zip(("latent_in", "latent_out"), self.latent, strict=True):
                recipes.linear(name, [root + source], moe.latent_bias)
        if moe.shared is not None:
            apart = self.shared_down != COMMON.shared_down and f"{shared}{COMMON.shared_down}.weight" in tensors
            names = COMMON if apart else self  # as GGUF files have them
            recipes.linear("shared.up", [shared + name for name in names.shared_up], moe.shared.bias)
            recipes.linear("shared.down", [shared + names.shared_down], moe.shared.bias)
            if moe.shared_gate:
                recipes["shared_gate.weight"] = Take(f"{root}shared_expert_gate.weight")
        return recipes


COMMON = ExpertNames()
MIXTRAL = ExpertNames("block_sparse_moe.", gate="w1", up="w3", down="w2")
QWEN = ExpertNames(shared="shared_expert.")


def _expert_recipes(
    root: str, moe: MoeConfig, tensors: Collection[str], *, gate: str, up: str, down: str
) -> dict[str, Recipe]:
    """Experts' matrices, with one tensor each under these names, or all in one under MLX's names."""
    mlx = f"{root}switch_mlp."
    if f"{mlx}down_proj.weight" in tensors:
        return stacked_recipes(mlx, "weight", tensors, gated=moe.expert.gated)
    if f"{root}experts.gate_up_proj" in tensors:  # as the files of Qwen 3.5 have them
        return {"up.weight": Take(f"{root}experts.gate_up_proj"), "down.weight": Take(f"{root}experts.down_proj")}
    rows = (gate, up) if moe.expert.gated else (up,)

    def stacked(*names: str) -> Recipe:
        each = ([Take(f"{root}experts.{expert}.{name}.weight") for name in names] for expert in range(moe.experts))
        return Stack(tuple(map(joined, each)))

    return {"up.weight": stacked(*rows), "down.weight": stacked(down)}


def stacked_recipes(experts: str, leaf: str, tensors: Collection[str], *, gated: bool = True) -> dict[str, Recipe]:
    """Recipes for MLX's names: a tensor per projection with all experts' matrices or biases; gate and up may be one."""
    gate, up = Take(f"{experts}gate_proj.{leaf}"), Take(f"{experts}up_proj.{leaf}")
    both: Recipe = Concat((gate, up), axis=1) if gated else up
    if (fused := f"{experts}gate_up_proj.{leaf}") in tensors:
        both = Take(fused)
    return {f"up.{leaf}": both, f"down.{leaf}": Take(f"{experts}down_proj.{leaf}")}


def _gpt_oss_recipes(layer: str, moe: MoeConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    router, experts = f"{layer}mlp.router.", f"{layer}mlp.experts."
    recipes: dict[str, Recipe] = {f"router.{leaf}": Take(router + leaf) for leaf in ("weight", "bias")}
    if f"{experts}down_proj.weight" in tensors:
        return recipes | stacked_recipes(experts, "weight", tensors) | stacked_recipes(experts, "bias", tensors)
    return recipes | {
        "up.weight": EvensThenOdds(Transposed(Take(f"{experts}gate_up_proj"))),
        "up.bias": EvensThenOdds(Take(f"{experts}gate_up_proj_bias")),
        "down.weight": Transposed(Take(f"{experts}down_proj")),
        "down.bias": Take(f"{experts}down_proj_bias"),
    }
