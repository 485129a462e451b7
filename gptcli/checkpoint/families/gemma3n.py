"""Gemma 3n and 4: an embedding of each token for each layer, and late layers that share earlier ones' keys and values.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.gemma import FOUR_NORMS
from gptcli.checkpoint.families.layer_configs import (
    activation,
    check_shared,
    full_every,
    windows,
    with_attention,
    with_attention_per_layer,
    with_blocks,
)
from gptcli.checkpoint.families.llama import llama_architecture, llama_config, llama_head_dim, rms
from gptcli.checkpoint.families.moe import stacked_recipes
from gptcli.checkpoint.families.parameters import Parameters, root_of
from gptcli.checkpoint.recipes import Architecture, Concat, Take
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import (
    Activation,
    AltUpConfig,
    AttentionConfig,
    DecoderConfig,
    DenseAndMoeConfig,
    LayerInputsConfig,
    MlpConfig,
    MoeConfig,
    QkNormConfig,
)

_MOST_STREAMS = 64
_MOST_EXPERTS = 4096


def gemma3n_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 3n E2B and E4B, the part for text: several residual streams, and sparse activations in the first layers."""
    layers, head_dim = hf.layers, llama_head_dim(hf, 256)
    hf.ignore("altup_coef_clip")  # of training
    hf.expect("altup_correct_scale", True)
    hf.expect("use_bidirectional_attention", False)
    types = hf.per_layer("layer_types", layers) or full_every(5, layers)
    widths = hf.integer_per_layer("intermediate_size", layers)
    config = _config(hf, types, widths[0])
    ropes = {
        "sliding_attention": hf.rope_of_layer_type(
            "sliding_attention", head_dim, hf.number("rope_local_base_freq", 10_000.0)
        ),
        "full_attention": hf.rope_of_layer_type("full_attention", head_dim, hf.number("rope_theta", 1_000_000.0)),
    }
    config = with_attention_per_layer(config, rope=[ropes[kind] for kind in types])
    sparsity = hf.shares_per_layer("activation_sparsity_pattern", layers)
    if sparsity is None:
        sparsity = [0.95 if layer < 10 < layers else 0.0 for layer in range(layers)]
    mlps = [
        MlpConfig(width=width, activation=_activation(hf), sparsity=share)
        for width, share in zip(widths, sparsity, strict=True)
    ]
    streams = hf.integer("altup_num_inputs", 4, low=2, high=_MOST_STREAMS)
    altup = AltUpConfig(
        streams=streams,
        active=hf.integer("altup_active_idx", 0, low=0, high=streams - 1),
        laurel_rank=hf.integer("laurel_rank", 64),
    )
    return _architecture(tensors, replace(_with_mlps(config, mlps), altup=altup))


def gemma4_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 4, the part for text: larger heads on full layers, whose keys may be the values, too; perhaps experts."""
    layers, width = hf.layers, hf.integer("intermediate_size")
    hf.expect("use_bidirectional_attention", "vision")  # of images alone
    types = hf.per_layer("layer_types", layers) or full_every(6, layers)
    types = [*types[:-1], "full_attention"]
    config = _config(hf, types, width)
    heads = {
        "sliding_attention": (llama_head_dim(hf, 256), hf.heads_of("num_key_value_heads")),
        "full_attention": _full_heads(hf, types),
    }
    check_shared(hf.heads_of("num_attention_heads"), heads["full_attention"][1])
    ropes = {kind: hf.rope_of_layer_type(kind, dim, 10_000.0) for kind, (dim, _) in heads.items()}
    config = with_attention_per_layer(
        config,
        rope=[ropes[kind] for kind in types],
        head_dim=[heads[kind][0] for kind in types],
        kv_heads=[heads[kind][1] for kind in types],
    )
    mlp = MlpConfig(width=width, activation=_activation(hf))
    own = layers - _sharing(hf)
    wide = replace(mlp, width=2 * width) if hf.flag("use_double_wide_mlp", False) else mlp
    dense = [mlp] * own + [wide] * (layers - own)
    mlps: Sequence[MlpConfig | DenseAndMoeConfig] = dense
    if hf.flag("enable_moe_block", False):
        moe = _mixture(hf)
        mlps = [DenseAndMoeConfig(dense=each, moe=moe, norm=config.norm) for each in dense]
    else:
        hf.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
    architecture = _architecture(tensors, with_blocks(_with_mlps(config, mlps), scaled=True))
    return _with_keys_as_values(architecture, tensors, types) if hf.flag("attention_k_eq_v", False) else architecture


def gemma4_unified_text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 4 12B, the part for text: as the large one, without embeddings for layers."""
    return gemma4_text(hf.replaced(hidden_size_per_layer_input=0, enable_moe_block=False), tensors)


def _full_heads(hf: HfConfig, types: Sequence[object]) -> tuple[int, int]:
    """Channels of a head and number of key-value heads, for layers that attend to all."""
    dim, kv_heads = hf.integer("global_head_dim", 512), hf.heads_of("num_key_value_heads")
    if hf.flag("attention_k_eq_v", False):
        kv_heads = hf.heads_of("num_global_key_value_heads", kv_heads)
    hf.ignore("num_global_key_value_heads")
    if not hf.has("per_layer_config"):
        return dim, kv_heads
    usual, found = (llama_head_dim(hf, 256), hf.heads_of("num_key_value_heads")), set()
    own = hf.sections_by_layer("per_layer_config")
    for layer, kind in enumerate(types):
        differing = own.get(layer, HfConfig({}))
        values = differing.integer("head_dim", usual[0]), differing.heads_of("num_key_value_heads", usual[1])
        differing.check_unread(hf.model_type)
        if kind == "full_attention":
            found.add(values)
        elif values != usual:
            raise BrokenCheckpoint(f"config.json: per_layer_config: {layer}: heads of sliding layers must be alike")
    if len(found) != 1:
        raise BrokenCheckpoint("config.json: per_layer_config: heads of full layers must be alike")
    return found.pop()


def _with_mlps(config: DecoderConfig, mlps: Sequence[MlpConfig | DenseAndMoeConfig]) -> DecoderConfig:
    blocks = zip(config.blocks, mlps, strict=True)
    return replace(config, blocks=tuple(replace(block, mlp=mlp) for block, mlp in blocks))


def _activation(hf: HfConfig) -> Activation:
    return activation(hf, "hidden_activation", "gelu_pytorch_tanh")


def _sharing(hf: HfConfig) -> int:
    """How many of the last layers share keys and values."""
    return hf.integer("num_kv_shared_layers", 0, low=0, high=hf.layers - 1)


def _mixture(hf: HfConfig) -> MoeConfig:
    experts = hf.integer("num_experts", high=_MOST_EXPERTS)
    return MoeConfig(
        expert=MlpConfig(width=hf.integer("moe_intermediate_size"), activation=_activation(hf)),
        experts=experts,
        top_k=hf.integer("top_k_experts", high=experts),
        renormalize=True,
        expert_scale=True,
    )


def _config(hf: HfConfig, types: Sequence[object], width: int) -> DecoderConfig:
    """What Gemma 3n and 4 read alike."""
    norm, layers = rms(hf, 1e-6, wide_scale=True), hf.layers
    rope = hf.rope_of_layer_type("sliding_attention", llama_head_dim(hf, 256), 10_000.0)
    mlp = MlpConfig(width=width, activation=_activation(hf))
    config = llama_config(hf, norm=norm, mlp=mlp, head_dim=llama_head_dim(hf, 256), rope=rope, tied=True)
    config = with_attention(
        with_blocks(config, residual="sandwich"),
        scale=1.0,
        qk_norm=QkNormConfig(norm=norm, over="head"),
        v_norm=replace(norm, weight=False),
    )
    own = layers - _sharing(hf)
    sources: list[int | None] = [None] * own
    for kind in types[own:]:
        if kind not in types[:own]:
            raise BrokenCheckpoint(f"config.json: no layer has keys and values for the {kind} layers that share them")
        sources.append(max(layer for layer in range(own) if types[layer] == kind))
    config = with_attention_per_layer(config, window=windows(types, hf.integer("sliding_window", 512)), keys_of=sources)
    inputs = hf.integer("hidden_size_per_layer_input", 256, low=0)
    vocabulary = hf.integer("vocab_size_per_layer_input", 262_144)
    return replace(
        config,
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=hf.optional_number("final_logit_softcapping"),
        layer_inputs=LayerInputsConfig(vocab_size=vocabulary, width=inputs, activation=_activation(hf))
        if inputs
        else None,
    )


def _architecture(tensors: Collection[str], config: DecoderConfig) -> Architecture:
    architecture = llama_architecture(config, tensors, FOUR_NORMS)
    root, config = root_of(tensors), architecture.config
    parameters = Parameters(architecture.parameters)
    if config.layer_inputs is not None:
        parameters["layer_inputs.embed.weight"] = Take(f"{root}embed_tokens_per_layer.weight")
        parameters.linear("layer_inputs.project", [f"{root}per_layer_model_projection"], bias=False)
        parameters.norm("layer_inputs.norm", f"{root}per_layer_projection_norm", config.norm)
    if config.altup is not None:
        for stream in range(config.altup.streams - 1):
            parameters.linear(f"streams.into.{stream}", [f"{root}altup_projections.{stream}"], bias=False)
            parameters.linear(f"streams.out.{stream}", [f"{root}altup_unembed_projections.{stream}"], bias=False)
    unused = []
    for layer, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{layer}.", f"{root}layers.{layer}."
        if config.layer_inputs is not None:
            parameters.linear(f"{ours}layer_input.gate", [f"{theirs}per_layer_input_gate"], bias=False)
            parameters.linear(f"{ours}layer_input.out", [f"{theirs}per_layer_projection"], bias=False)
            parameters.norm(f"{ours}layer_input.norm", f"{theirs}post_per_layer_input_norm", config.norm)
        if config.altup is not None:
            _altup_parameters(parameters, ours, theirs, config)
        if block.scaled:
            parameters[f"{ours}scale"] = Take(f"{theirs}layer_scalar")
        if isinstance(block.mlp, DenseAndMoeConfig):
            _mixture_parameters(parameters, ours, theirs, block.mlp, tensors)
        if isinstance(block.attention, AttentionConfig) and block.attention.keys_of is not None:
            unused += [f"{theirs}self_attn.{name}" for name in ("k_proj.", "v_proj.", "k_norm.", "v_norm.")]
    return replace(architecture, parameters=parameters, unused_prefixes=tuple(unused))


def _altup_parameters(parameters: Parameters, ours: str, theirs: str, config: DecoderConfig) -> None:
    for mine, names in (
        ("altup.router", "altup.modality_router"),
        ("altup.prediction", "altup.prediction_coefs"),
        ("altup.correction", "altup.correction_coefs"),
        ("laurel.down", "laurel.linear_left"),
        ("laurel.up", "laurel.linear_right"),
    ):
        parameters.linear(ours + mine, [theirs + names], bias=False)
    parameters.norm(f"{ours}altup.norm", f"{theirs}altup.router_norm", config.norm)
    parameters.norm(f"{ours}laurel.norm", f"{theirs}laurel.post_laurel_norm", config.norm)
    parameters[f"{ours}altup.scale"] = Take(f"{theirs}altup.correct_output_scale")


def _mixture_parameters(
    parameters: Parameters, ours: str, theirs: str, both: DenseAndMoeConfig, tensors: Collection[str]
) -> None:
    parameters[f"{ours}mlp.norms.dense_norm.weight"] = parameters.pop(f"{ours}mlp_norm.weight")
    for mine, name in (
        ("post_dense_norm", "post_feedforward_layernorm_1"),
        ("moe_norm", "pre_feedforward_layernorm_2"),
        ("post_moe_norm", "post_feedforward_layernorm_2"),
    ):
        parameters.norm(f"{ours}mlp.norms.{mine}", theirs + name, both.norm)
    parameters.linear(f"{ours}mlp.dense.up", [f"{theirs}mlp.gate_proj", f"{theirs}mlp.up_proj"], bias=False)
    parameters.linear(f"{ours}mlp.dense.down", [f"{theirs}mlp.down_proj"], bias=False)
    for mine, name in (
        ("router_scale", "router.scale"),
        ("moe.router.weight", "router.proj.weight"),
        ("moe.expert_scale", "router.per_expert_scale"),
        ("moe.up.weight", "experts.gate_up_proj"),
        ("moe.down.weight", "experts.down_proj"),
    ):
        parameters[f"{ours}mlp.{mine}"] = Take(theirs + name)
    if f"{theirs}experts.down_proj.weight" in tensors:  # as GGUF files have them
        for mine, recipe in stacked_recipes(f"{theirs}experts.", "weight", tensors).items():
            parameters[f"{ours}mlp.moe.{mine}"] = recipe


def _with_keys_as_values(architecture: Architecture, tensors: Collection[str], types: Sequence[object]) -> Architecture:
    """Full layers project the values as the keys, which then differ by their norm and RoPE."""
    parameters = dict(architecture.parameters)
    for layer, (block, kind) in enumerate(zip(architecture.config.blocks, types, strict=True)):
        assert isinstance(block.attention, AttentionConfig)
        if kind != "full_attention" or block.attention.keys_of is not None:
            continue
        for leaf in ("weight", "bias") if block.attention.qkv_bias else ("weight",):
            recipe = parameters[f"blocks.{layer}.attention.qkv.{leaf}"]
            assert isinstance(recipe, Concat)
            q, k, _ = recipe.operands
            parameters[f"blocks.{layer}.attention.qkv.{leaf}"] = Concat((q, k, k))
    return replace(architecture, parameters=parameters)
