"""Mamba 2, and models in which most layers are Mamba 2. Source: transformers' modelling files of the same names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import inf

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.config.typed_fields import MAX_LAYERS
from gptcli.checkpoint.families.layer_configs import (
    activation,
    check_shared,
    check_types,
    head_dim_of,
    with_attention,
    with_blocks,
    with_state,
)
from gptcli.checkpoint.families.llama import (
    Names,
    granite_config,
    llama_architecture,
    llama_config,
    llama_mlp,
    llama_rope,
    rms,
)
from gptcli.checkpoint.families.moe import ExpertNames, with_experts
from gptcli.checkpoint.families.moe_relatives import GRANITE, granite_mixture, sigmoid_mixture
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    Mamba2Config,
    MlpConfig,
    MoeConfig,
    NormConfig,
)

_MAMBA2 = Names(attention_norm="norm", state="mixer", embedding="embeddings", final_norm="norm_f")
_NEMOTRON = replace(
    _MAMBA2,
    mlp_norm="norm",
    qkv=("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
    out="mixer.o_proj",
    up=("mixer.up_proj",),
    down="mixer.down_proj",
)
_NEMOTRON_EXPERTS = ExpertNames("mixer.", shared_up=("up_proj",))
_BAMBA = Names(
    mlp_norm="pre_ff_layernorm",
    up=("feed_forward.gate_proj", "feed_forward.up_proj"),
    down="feed_forward.down_proj",
    final_norm="final_layernorm",
    state="mamba",
)
_GRANITE = Names(up=("shared_mlp.input_linear",), down="shared_mlp.output_linear", state="mamba")

_MOST_STATES = 4096  # channels of a state, and tokens of a convolution: more than in any known model
# Layer types, by all their names.
_KINDS = {
    "M": "mamba", "mamba": "mamba", "linear_attention": "mamba", "*": "attention", "attention": "attention",
    "full_attention": "attention", "-": "mlp", "mlp": "mlp", "E": "moe", "moe": "moe",
}  # fmt: skip


def mamba2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mamba 2: no attention, and no limit to the length of a text but memory's."""
    hf.expect("hidden_act", "silu", "swish")
    hf.ignore("rescale_prenorm_residual", "chunk_size", "time_step_rank", "time_step_min", "time_step_max")
    hf.ignore("time_step_floor")
    hidden, norm = hf.integer("hidden_size"), NormConfig(kind="rms", eps=hf.number("layer_norm_epsilon", 1e-5))
    heads, head_dim = _integer(hf, "num_heads", 128), _integer(hf, "head_dim", 64)
    if heads * head_dim != hf.multiple("expand", 2.0, hidden):
        raise BrokenCheckpoint(f"config.json: {heads} heads of {head_dim} are not expand times hidden_size {hidden}")
    state = Mamba2Config(
        heads=heads,
        head_dim=head_dim,
        groups=_integer(hf, "n_groups", 8),
        state_dim=_integer(hf, "state_size", 128),
        kernel=_integer(hf, "conv_kernel", 4),
        bias=hf.flag("use_bias", False),
        convolution_bias=hf.flag("use_conv_bias", True),
        step_limits=hf.limits("time_step_limit"),
        norm_eps=norm.eps,
    )
    config = DecoderConfig(
        vocab_size=hf.integer("vocab_size"),
        hidden_size=hidden,
        max_context=hf.integer("max_position_embeddings"),
        blocks=(BlockConfig(attention=None, mlp=None, state=_checked(state)),) * hf.layers,
        norm=norm,
        tied_head=hf.flag("tie_word_embeddings", False),
        wide_residual=hf.flag("residual_in_fp32", True),
    )
    return llama_architecture(config, tensors, _MAMBA2)


def bamba(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Bamba: attention with RoPE on half of each head in some layers, Mamba 2 in the others."""
    hf.ignore("num_logits_to_keep", "z_loss_coefficient", "layers_block_type")  # which repeats the indices
    attends = hf.integers("attn_layer_indices")
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    norm = rms(hf, 1e-5)
    config = llama_config(hf, norm=norm, mlp=mlp, rope=llama_rope(hf, fraction=0.5))
    state = _bamba_state(hf, hf.multiple("mamba_expand", 2.0, config.hidden_size), config.norm)
    config = with_state(config, state, [layer not in attends for layer in range(hf.layers)])
    return llama_architecture(config, tensors, _BAMBA)


def granitemoehybrid(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Granite 4: as Granite, with Mamba 2 in most layers, a shared expert, and perhaps others."""
    shared = replace(llama_mlp(hf), width=hf.integer("shared_intermediate_size", 1024))
    config = granite_config(hf, shared)
    kind = hf.string("position_embedding_type", "nope")
    if kind != "rope":
        config = with_attention(config, rope=None)
    types = hf.per_layer("layer_types", hf.layers) or ["mamba"] * hf.layers
    state = _bamba_state(hf, hf.multiple("mamba_expand", 2.0, config.hidden_size), config.norm)
    config = with_state(config, state, [kind == "mamba" for kind in _kinds(types, "mamba", "attention")])
    if hf.integer("num_local_experts", 8, low=0) == 0:
        hf.ignore("num_experts_per_tok")
        apart = any(name.endswith(".0.mlp.down_proj.weight") for name in tensors)  # as MLX and GGUF files have it
        return llama_architecture(config, tensors, Names(state="mamba") if apart else _GRANITE)
    moe = granite_mixture(hf, shared)
    return with_experts(config, tensors, lambda layer: moe, GRANITE.recipes, _GRANITE)


def falcon_h1(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Falcon H1: attention and Mamba 2 side by side in every layer, and multipliers on everything."""
    hf.ignore("num_logits_to_keep", "layers_block_type")
    attention_in, state_in = hf.number("attention_in_multiplier", 1.0), hf.number("ssm_in_multiplier", 1.0)
    for field, scale in (("attention_bias", attention_in), ("mamba_proj_bias", state_in)):
        if scale != 1:
            hf.expect(field, False)  # a bias is not multiplied
    gate_scale, down_scale = hf.numbers("mlp_multipliers", 2, (1.0, 1.0))
    mlp = replace(llama_mlp(hf, bias=hf.flag("mlp_bias", False)), gate_scale=gate_scale, out_scale=down_scale)
    config = llama_config(hf, norm=rms(hf, 1e-5), mlp=mlp)
    squared = attention_in * attention_in  # ** raises an error for infinity
    config = with_attention(
        config,
        scale=config.attentions[0].scale * hf.number("key_multiplier", 1.0) * squared,
        out_scale=attention_in * hf.number("attention_out_multiplier", 1.0),
    )
    given = hf.optional_integer("mamba_d_ssm")
    state = _bamba_state(hf, given or hf.multiple("mamba_expand", 2.0, config.hidden_size), config.norm)
    hf.ignore("mamba_expand")
    gate, x, b, c, steps = (state_in * scale for scale in hf.numbers("ssm_multipliers", 5, (1.0,) * 5))
    state = replace(
        state,
        out_bias=hf.flag("projectors_bias", False),
        norm_eps=config.norm.eps if hf.flag("mamba_rms_norm", False) else None,
        norm_before_gate=hf.flag("mamba_norm_before_gate", True),
        part_scales=(gate, x, b, c, steps),
        out_scale=hf.number("ssm_out_multiplier", 1.0),
    )
    config = replace(
        with_blocks(config, state=state),
        embedding_scale=hf.number("embedding_multiplier", 1.0),
        logit_scale=hf.number("lm_head_multiplier", 1.0),
    )
    return llama_architecture(config, tensors, _BAMBA)


def nemotron_h(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Nemotron H, Nano 2 and Nemotron 3: each layer is Mamba 2, attention, an MLP or a mixture, by a pattern."""
    hf.expect("mamba_hidden_act", "silu", "swish")
    hf.expect("sliding_window")
    hf.ignore("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")  # there is none
    hf.ignore(
        "residual_in_fp32", "rescale_prenorm_residual", "chunk_size", "expand", "num_hidden_layers",
        "num_logits_to_keep", "use_mamba_kernels", "mamba_proj_bias", "mamba_ssm_cache_dtype", "hidden_dropout",
        "moe_shared_expert_overlap", "time_step_max", "time_step_floor", "time_step_limit", "attention_bias",
        "num_nextn_predict_layers", "rms_norm_eps", "mtp_layers_block_type", "mtp_hybrid_override_pattern",
    )  # fmt: skip
    hidden = hf.integer("hidden_size")
    norm = NormConfig(kind="rms", eps=hf.number("layer_norm_epsilon", 1e-5), wide_scale=True)
    state = Mamba2Config(
        heads=_integer(hf, "mamba_num_heads", 128),
        head_dim=_integer(hf, "mamba_head_dim", 64),
        groups=_integer(hf, "n_groups", 8),
        state_dim=_integer(hf, "ssm_state_size", 128),
        kernel=_integer(hf, "conv_kernel", 4),
        bias=hf.flag("use_bias", False),
        convolution_bias=hf.flag("use_conv_bias", True),
        step_limits=(hf.number("time_step_min", 1e-3, low=-inf), inf),
        norm_eps=norm.eps,
    )
    heads = hf.heads_of("num_attention_heads")
    kv_heads, head_dim = hf.heads_of("num_key_value_heads", heads), head_dim_of(hf, hidden, heads, 128)
    check_shared(heads, kv_heads)
    mlp = MlpConfig(
        width=hf.integer("intermediate_size", 21_504),
        activation=activation(hf, "mlp_hidden_act", "relu2"),
        gated=False,
        bias=hf.flag("mlp_bias", False),
    )
    empty = BlockConfig(attention=None, mlp=None)
    attention = AttentionConfig(heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=None, scale=head_dim**-0.5)
    mixture = _nemotron_mixture(hf, mlp)
    blocks = {
        "mamba": replace(empty, state=_checked(state)),
        "attention": replace(empty, attention=attention),
        "mlp": replace(empty, mlp=mlp),
        "moe": replace(empty, mlp=mixture),
    }
    config = DecoderConfig(
        vocab_size=hf.integer("vocab_size"),
        hidden_size=hidden,
        max_context=hf.integer("max_position_embeddings"),
        blocks=tuple(blocks[kind] for kind in _nemotron_kinds(hf)),
        norm=norm,
        tied_head=hf.flag("tie_word_embeddings", False),
    )
    return with_experts(config, tensors, lambda layer: None, _NEMOTRON_EXPERTS.recipes, _NEMOTRON)


def _nemotron_mixture(hf: HfConfig, mlp: MlpConfig) -> MoeConfig:
    moe = sigmoid_mixture(hf, renormalize=True, experts=8, top_k=2, width=7688)
    shared = replace(mlp, width=hf.integer("moe_shared_expert_intermediate_size", 7688))
    latent = hf.optional_integer("moe_latent_size")
    expert = replace(mlp, width=moe.expert.width, bias=False)
    return replace(moe, expert=expert, shared=shared, latent=latent, latent_bias=latent is not None and mlp.bias)


def _nemotron_kinds(hf: HfConfig) -> list[str]:
    """The kind of each layer, from a list or from a pattern such as `M-M*`, whose length is the number of layers."""
    pattern = hf.string("hybrid_override_pattern", "")
    types = hf.strings("layers_block_type") or list(pattern) or ["mamba", "moe", "attention", "mlp"]
    if len(types) > MAX_LAYERS:
        raise BrokenCheckpoint(f"config.json: {len(types)} layers are more than {MAX_LAYERS}")
    return _kinds(types, *_KINDS.values())


def _kinds(types: Sequence[object], *known: str) -> list[str]:
    """Layer types by their shortest names. Raises UnsupportedArchitecture for one that is not among `known`."""
    check_types(types, *(name for name, kind in _KINDS.items() if kind in known))
    return [_KINDS[str(kind)] for kind in types]


def _bamba_state(hf: HfConfig, width: int, norm: NormConfig) -> Mamba2Config:
    """Mamba 2 of `width` channels, from the fields that all hybrids but Nemotron have. norm: gives the epsilon."""
    hf.ignore("mamba_chunk_size")
    hf.expect("hidden_act", "silu", "swish")  # not only the MLP's: the convolution's, too
    heads = _integer(hf, "mamba_n_heads", 128)
    hf.expect("mamba_d_head", "auto", width // heads)
    if width % heads:
        raise BrokenCheckpoint(f"config.json: {width} channels of Mamba 2 cannot be in {heads} heads")
    return _checked(
        Mamba2Config(
            heads=heads,
            head_dim=width // heads,
            groups=_integer(hf, "mamba_n_groups", 1),
            state_dim=_integer(hf, "mamba_d_state", 256),
            kernel=_integer(hf, "mamba_d_conv", 4),
            bias=hf.flag("mamba_proj_bias", False),
            convolution_bias=hf.flag("mamba_conv_bias", True),
            step_limits=hf.limits("time_step_limit"),
            norm_eps=norm.eps,
        )
    )


def _integer(hf: HfConfig, name: str, default: int) -> int:
    return hf.integer(name, default, high=_MOST_STATES)


def _checked(state: Mamba2Config) -> Mamba2Config:
    if state.heads % state.groups:
        raise BrokenCheckpoint(f"config.json: {state.heads} heads of Mamba 2 cannot be in {state.groups} groups")
    return state
