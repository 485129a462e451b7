"""The GPT line: the first GPT, GPT-2, GPT-Neo, GPT-J and GPT-NeoX. Layer norms, plain MLPs, biases.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.layer_configs import activation, head_dim_of, with_attention_per_layer, with_blocks
from gptcli.checkpoint.families.parameters import Parameters, Transform, unchanged
from gptcli.checkpoint.recipes import Architecture, HeadsToQkv, PairsToHalves, Take, Transposed
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import AttentionConfig, BlockConfig, DecoderConfig, MlpConfig, NormConfig, RopeConfig


@dataclass(frozen=True)
class Names:
    """The names of modules: outside the layers, and in each layer."""

    root: str
    layers: str
    embed: str
    final_norm: str | None
    head: str
    norms: Mapping[str, str]  # our norm's name -> theirs
    qkv: tuple[str, ...]
    out: str
    up: str
    down: str
    positions: str | None = None
    embedding_norm: str | None = None
    unused_suffixes: tuple[str, ...] = ()


GPT2 = Names(
    root="transformer.",
    layers="h",
    embed="wte",
    positions="wpe",
    final_norm="ln_f",
    head="lm_head",
    norms={"attention_norm": "ln_1", "mlp_norm": "ln_2"},
    qkv=("attn.c_attn",),
    out="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    unused_suffixes=(".attn.bias", ".attn.masked_bias"),
)
_OPENAI = replace(
    GPT2,
    embed="tokens_embed",
    positions="positions_embed",
    final_norm=None,
    norms={"post_attention_norm": "ln_1", "post_mlp_norm": "ln_2"},
)
_NEO = replace(
    GPT2,
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    out="attn.attention.out_proj",
    unused_suffixes=(".attn.attention.bias", ".attn.attention.masked_bias"),
)
GPTJ = replace(
    GPT2,
    positions=None,
    norms={"attention_norm": "ln_1"},
    qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    out="attn.out_proj",
    up="mlp.fc_in",
    down="mlp.fc_out",
)
_NEOX = Names(
    root="gpt_neox.",
    layers="layers",
    embed="embed_in",
    final_norm="final_layer_norm",
    head="embed_out",
    norms={"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    qkv=("attention.query_key_value",),
    out="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    unused_suffixes=(".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq"),
)


@dataclass(frozen=True)
class Fields:
    """A family's names in config.json for the fields that all have."""

    hidden: str = "n_embd"
    heads: str = "n_head"
    layers: str = "n_layer"
    context: str = "n_positions"
    eps: str = "layer_norm_epsilon"


_NEO_FIELDS = Fields("hidden_size", "num_heads", "num_layers", "max_position_embeddings")
_NEOX_FIELDS = Fields(
    "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings", "layer_norm_eps"
)


def openai_gpt(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """The first GPT: norms after each sum, none at the end."""
    # Its `gelu` is the tanh form.
    act = "gelu_tanh" if hf.string("afn", "gelu") == "gelu" else activation(hf, "afn", "gelu")
    mlp = MlpConfig(width=4 * hf.integer("n_embd"), activation=act, gated=False, bias=True)
    config = with_blocks(gpt_config(hf, gpt_attention(hf), mlp), residual="after")
    config = replace(config, final_norm=False)
    return gpt_architecture(config, tensors, _OPENAI, weight=Transposed)


def gpt2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GPT-2: norms before attention and MLP, learned positions."""
    hf.expect("reorder_and_upcast_attn", False, True)  # changes the order of operations, not their result
    hf.expect("add_cross_attention", False)
    attention = gpt_attention(hf)
    if not hf.flag("scale_attn_weights", True):
        attention = replace(attention, scale=1.0)
    config = gpt_config(hf, attention, gpt_mlp(hf))
    if hf.flag("scale_attn_by_inverse_layer_idx", False):
        scales = [attention.scale / (layer + 1) for layer in range(len(config.blocks))]
        config = with_attention_per_layer(config, scale=scales)
    return gpt_architecture(config, tensors, GPT2, weight=Transposed)


def gpt_neo(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GPT-Neo: scores without a scale, a window on every other layer."""
    hf.ignore("attention_types")  # a shorter form of attention_layers
    kinds = hf.per_layer("attention_layers", hf.layers_of("num_layers"))
    if kinds is None:
        raise BrokenCheckpoint("config.json: attention_layers must list what each layer is")
    window = hf.integer("window_size", 256)
    if set(map(str, kinds)) - {"global", "local"}:
        raise BrokenCheckpoint("config.json: attention_layers must be `global` or `local`")
    attention = replace(gpt_attention(hf, _NEO_FIELDS), scale=1.0, qkv_bias=False)
    width = hf.optional_integer("intermediate_size") or 4 * hf.integer("hidden_size")
    config = gpt_config(hf, attention, gpt_mlp(hf, width), _NEO_FIELDS)
    config = with_attention_per_layer(config, window=[window if kind == "local" else None for kind in kinds])
    return gpt_architecture(config, tensors, _NEO)


def gptj(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GPT-J: one norm for parallel attention and MLP; RoPE rotates the first channels of each head, in pairs."""
    hf.expect("rotary", True)
    config, rope = gptj_config(hf)
    halves = partial(PairsToHalves, heads=config.attentions[0].heads, dim=rope.dim)
    return gpt_architecture(config, tensors, GPTJ, rows=(halves, halves, unchanged))


def gptj_config(hf: HfConfig) -> tuple[DecoderConfig, RopeConfig]:
    """What GPT-J and CodeGen read, and their RoPE."""
    attention = gpt_attention(hf)
    hf.ignore("scale_attn_weights")  # GPT-2's; GPT-J always scales
    rope = RopeConfig(theta=10_000.0, dim=hf.optional_integer("rotary_dim") or attention.head_dim)
    if rope.dim > attention.head_dim or rope.dim % 2:
        raise BrokenCheckpoint(f"config.json: RoPE cannot turn {rope.dim} of {attention.head_dim} channels")
    attention = replace(attention, rope=rope, qkv_bias=False, out_bias=False)
    config = gpt_config(hf, attention, gpt_mlp(hf), tied=False)
    return replace(with_blocks(config, residual="shared"), learned_positions=False, head_bias=True), rope


def gpt_neox(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GPT-NeoX and Pythia: parallel attention and MLP, RoPE on some channels of each head."""
    attention = gpt_attention(hf, _NEOX_FIELDS)
    hf.ignore("partial_rotary_factor")  # repeats rotary_pct
    bias = hf.flag("attention_bias", True)
    rope = hf.rope(attention.head_dim, hf.number("rotary_emb_base", 10_000.0), hf.number("rotary_pct", 0.25))
    attention = replace(attention, rope=rope, qkv_bias=bias, out_bias=bias)
    mlp = MlpConfig(
        width=hf.integer("intermediate_size"), activation=activation(hf, "hidden_act", "gelu"), gated=False, bias=True
    )
    config = replace(gpt_config(hf, attention, mlp, _NEOX_FIELDS, tied=False), learned_positions=False)
    if hf.flag("use_parallel_residual", True):
        config = with_blocks(config, residual="parallel")
    return gpt_architecture(config, tensors, _NEOX, rows=(partial(HeadsToQkv, groups=attention.heads),))


def gpt_attention(hf: HfConfig, fields: Fields = Fields()) -> AttentionConfig:
    """Attention with biases and without RoPE."""
    heads = hf.heads_of(fields.heads)
    head_dim = head_dim_of(hf, hf.integer(fields.hidden), heads)
    return AttentionConfig(
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        rope=None,
        scale=head_dim**-0.5,
        qkv_bias=True,
        out_bias=True,
    )


def gpt_mlp(hf: HfConfig, width: int | None = None, default_act: str = "gelu_new") -> MlpConfig:
    """The MLP of every layer: four times as wide as the hidden size, unless the config or a family says otherwise."""
    width = width or hf.optional_integer("n_inner") or 4 * hf.integer("n_embd")
    act = activation(hf, "activation_function", default_act)
    return MlpConfig(width=width, activation=act, gated=False, bias=True)


def gpt_config(
    hf: HfConfig,
    attention: AttentionConfig,
    mlp: MlpConfig,
    fields: Fields = Fields(),
    tied: bool = True,
    norm: NormConfig | None = None,
) -> DecoderConfig:
    """GPT-2's order of norms, and learned positions, unless a family changes them."""
    return DecoderConfig(
        vocab_size=hf.integer("vocab_size"),
        hidden_size=hf.integer(fields.hidden),
        max_context=hf.integer(fields.context),
        blocks=(BlockConfig(attention=attention, mlp=mlp),) * hf.layers_of(fields.layers),
        norm=norm or NormConfig(kind="layer", eps=hf.number(fields.eps, 1e-5), bias=True),
        tied_head=hf.flag("tie_word_embeddings", tied),
        learned_positions=True,
    )


def gpt_architecture(
    config: DecoderConfig,
    tensors: Collection[str],
    names: Names,
    *,
    weight: Transform = unchanged,
    rows: tuple[Transform, ...] = (),
) -> Architecture:
    """The architecture for tensors with these names.

    weight: applied to every matrix in a layer. rows: for each tensor of `names.qkv`, applied to weight and bias.
    """
    # MLX gives all these families GPT-2's names, with matrices (out, in).
    if names.root != "model." and f"model.{names.embed}.weight" in tensors:
        names = replace(names, root="model.", layers="h", head=f"model.{names.head}")
        weight = unchanged
    roots = ("", names.root.partition(".")[2], names.root)
    root = next(
        (root for root in roots if any(name.startswith(f"{root}{names.layers}.0.") for name in tensors)), names.root
    )
    parameters = Parameters({"embed.weight": Take(f"{root}{names.embed}.weight")})
    if names.positions:
        parameters["positions.weight"] = Take(f"{root}{names.positions}.weight")
    if names.embedding_norm:
        parameters.norm("embedding_norm", root + names.embedding_norm, config.norm)
    parameters.norm("final_norm", names.final_norm and root + names.final_norm, config.norm)
    config = parameters.head(names.head, config, tensors)
    for layer, (block, attention) in enumerate(zip(config.blocks, config.attentions, strict=True)):
        ours, theirs = f"blocks.{layer}.", f"{root}{names.layers}.{layer}."
        for mine, norm in names.norms.items():
            parameters.norm(ours + mine, theirs + norm, config.norm)
        assert isinstance(attention, AttentionConfig)
        qkv = [theirs + name for name in names.qkv]
        parameters.linear(f"{ours}attention.qkv", qkv, attention.qkv_bias, rows, weight)
        parameters.linear(f"{ours}attention.out", [theirs + names.out], attention.out_bias, weight=weight)
        assert isinstance(block.mlp, MlpConfig)
        parameters.linear(f"{ours}mlp.up", [theirs + names.up], block.mlp.bias, weight=weight)
        parameters.linear(f"{ours}mlp.down", [theirs + names.down], block.mlp.bias, weight=weight)
    return Architecture(config, parameters, names.unused_suffixes)
