"""The Llama shape, pre-norm blocks of grouped-query attention with RoPE and a gated MLP, and its close relatives.

`llama_config` reads what they share. A family then changes what differs, and `llama_architecture` names the tensors of
the result. Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.latent_attention import latent_attention_parameters
from gptcli.checkpoint.families.layer_configs import (
    activation,
    check_shared,
    head_dim_of,
    windows,
    with_attention,
    with_attention_per_layer,
    with_blocks,
)
from gptcli.checkpoint.families.parameters import Parameters, Transform, root_of, unchanged
from gptcli.checkpoint.families.state_parameters import state_parameters
from gptcli.checkpoint.recipes import Architecture, PairsToHalves, Recipe, Stack, Take, Transposed
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    LatentAttentionConfig,
    MlpConfig,
    NormConfig,
    PositionScale,
    QkNormConfig,
    RopeConfig,
)


@dataclass(frozen=True)
class Names:
    """The names of a layer's modules, after `model.layers.N.`; None for a norm that the family lacks."""

    attention_norm: str | None = "input_layernorm"
    post_attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    post_mlp_norm: str | None = None
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    qk_norm: str = "self_attn.{letter}_norm"  # or {word}; if it contains {head}, each head has a tensor
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    final_norm: str = "norm"
    embedding: str = "embed_tokens"
    state: str = ""  # the module that keeps a state


LLAMA = Names()
POST_NORMS = Names(
    attention_norm=None,
    post_attention_norm="post_attention_layernorm",
    mlp_norm=None,
    post_mlp_norm="post_feedforward_layernorm",
)


def llama(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Llama 1 to 3, SmolLM and SmolLM2, and the many checkpoints that call themselves `llama`."""
    hf.expect("rope_interleaved", False)  # written by SmolLM2's converter
    return llama_architecture(llama_config(hf, mlp=llama_mlp(hf, bias=hf.flag("mlp_bias", False))), tensors)


def mistral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mistral 7B and its relatives: a sliding window on every layer unless it is null."""
    config = with_attention(llama_config(hf), window=hf.optional_integer("sliding_window"))
    return llama_architecture(config, tensors)


def ministral3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Ministral 3: q grows with the logarithm of its position."""
    beta, original = hf.rope_extra("llama_4_scaling_beta"), hf.rope_extra("original_max_position_embeddings")
    if beta and original is None:
        raise BrokenCheckpoint("config.json: rope: original_max_position_embeddings is missing")
    scale = PositionScale(beta=beta, original_context=int(original)) if beta and original else None
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, head_dim=llama_head_dim(hf, 128))
    config = with_attention(config, window=hf.optional_integer("sliding_window"), position_scale=scale)
    return llama_architecture(config, tensors)


def qwen2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 2 and 2.5: biases on q, k and v."""
    config = with_attention(llama_config(hf, bias=False), qkv_bias=True)
    return llama_architecture(with_attention_per_layer(config, window=qwen_windows(hf)), tensors)


def qwen3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3: every head's q and k normalized before the rotation."""
    config = llama_config(hf, head_dim=llama_head_dim(hf, 128))
    config = with_attention(config, qk_norm=QkNormConfig(norm=config.norm, over="head"))
    return llama_architecture(with_attention_per_layer(config, window=qwen_windows(hf)), tensors)


def smollm3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """SmolLM 3: no rotation on every fourth layer."""
    hf.ignore("max_window_layers")  # Qwen's, and unused here
    layers = hf.layers
    interval = hf.integer("no_rope_layer_interval", 4)
    # 1 is a layer with RoPE, despite the name.
    rotated = hf.per_layer("no_rope_layers", layers) or [int((layer + 1) % interval != 0) for layer in range(layers)]
    window = hf.optional_integer("sliding_window") if hf.flag("use_sliding_window", False) else None
    hf.ignore("sliding_window")
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = ["full_attention" if rope or window is None else "sliding_attention" for rope in rotated]
    mlp = llama_mlp(hf, bias=hf.flag("mlp_bias", False))
    rope = llama_rope(hf, theta=2_000_000.0)
    config = with_attention_per_layer(
        llama_config(hf, mlp=mlp, rope=rope, tied=True),
        window=windows(types, window),
        rope=[rope if has_rope else None for has_rope in rotated],
    )
    return llama_architecture(config, tensors)


def granite(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Granite 3: multipliers on embedding, attention, residual stream and logits."""
    return llama_architecture(granite_config(hf, llama_mlp(hf, bias=hf.flag("mlp_bias", False))), tensors)


def granite_config(hf: HfConfig, mlp: MlpConfig) -> DecoderConfig:
    """What Granite reads with and without a mixture."""
    config = with_attention(llama_config(hf, mlp=mlp), scale=hf.number("attention_multiplier", 1.0))
    config = with_blocks(config, residual_scale=hf.number("residual_multiplier", 1.0))
    return replace(
        config,
        embedding_scale=hf.number("embedding_multiplier", 1.0),
        logit_scale=1 / hf.number("logits_scaling", 1.0),
    )


def phi3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Phi 3 to 4: q, k and v in one matrix, gate and up in another, LongRoPE."""
    for field in ("full_attn_mod", "interpolate_factor"):
        hf.expect(field, 1)
    for field in ("lm_head_bias", "mlp_bias"):
        hf.expect(field, False)
    hf.rename_rope_type("yarn", "longrope")
    rope = llama_rope(hf, fraction=1.0)
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, rope=rope)
    config = with_attention(config, window=hf.optional_integer("sliding_window"))
    return llama_architecture(config, tensors, Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)))


def llama_config(
    hf: HfConfig,
    *,
    norm: NormConfig | None = None,
    bias: bool | None = None,
    mlp: MlpConfig | None = None,
    head_dim: int | None = None,
    rope: RopeConfig | None = None,
    tied: bool = False,
    attention: LatentAttentionConfig | None = None,
) -> DecoderConfig:
    """The config of the Llama shape. A family passes what it reads in its own way.

    bias: on all of attention; None reads `attention_bias`. tied: the default of `tie_word_embeddings`.
    """
    block = BlockConfig(attention=attention or _attention(hf, bias, head_dim, rope), mlp=mlp or llama_mlp(hf))
    return DecoderConfig(
        vocab_size=hf.integer("vocab_size"),
        hidden_size=hf.integer("hidden_size"),
        max_context=hf.integer("max_position_embeddings"),
        blocks=(block,) * hf.layers,
        norm=norm or rms(hf, 1e-6),
        tied_head=hf.flag("tie_word_embeddings", tied),
    )


def _attention(hf: HfConfig, bias: bool | None, head_dim: int | None, rope: RopeConfig | None) -> AttentionConfig:
    heads = hf.heads_of("num_attention_heads")
    kv_heads = hf.heads_of("num_key_value_heads", heads)
    check_shared(heads, kv_heads)
    head_dim = head_dim or llama_head_dim(hf)
    attention_bias = hf.flag("attention_bias", False)
    bias = attention_bias if bias is None else bias
    return AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope or llama_rope(hf, head_dim=head_dim),
        scale=head_dim**-0.5,
        qkv_bias=bias,
        out_bias=bias,
    )


def llama_head_dim(hf: HfConfig, default: int | None = None) -> int:
    """Channels per head, from `head_dim`, the default or the hidden size."""
    return head_dim_of(hf, hf.integer("hidden_size"), hf.heads_of("num_attention_heads"), default)


def llama_mlp(hf: HfConfig, *, act: Activation | None = None, gated: bool = True, bias: bool = False) -> MlpConfig:
    """The MLP of every layer. act: None reads `hidden_act`, which is SiLU by default."""
    return MlpConfig(
        width=hf.integer("intermediate_size"),
        activation=act or activation(hf, "hidden_act", "silu"),
        gated=gated,
        bias=bias,
    )


def llama_rope(
    hf: HfConfig, *, head_dim: int | None = None, theta: float = 10_000.0, fraction: float | None = None
) -> RopeConfig:
    """RoPE's settings; the arguments are defaults. fraction: the share of a head's channels that rotates; None: all."""
    if fraction is None:
        hf.expect("partial_rotary_factor", 1.0, 1)
    else:
        fraction = hf.number("partial_rotary_factor", fraction)
    return hf.rope(head_dim or llama_head_dim(hf), theta, fraction)


def rms(hf: HfConfig, default_eps: float, wide_scale: bool = False) -> NormConfig:
    """RMSNorm with the config's epsilon."""
    return NormConfig(kind="rms", eps=hf.number("rms_norm_eps", default_eps), wide_scale=wide_scale)


def qwen_windows(
    hf: HfConfig, slides: Callable[[int, int], bool] = lambda layer, first: layer >= first
) -> list[int | None]:
    """Each layer's window: none without `use_sliding_window`, else from `layer_types`.

    slides: without `layer_types`, tells from a layer's index and `max_window_layers` whether it has a window.
    """
    layers = hf.layers
    first = hf.integer("max_window_layers", 28, low=0)
    window = None
    if hf.flag("use_sliding_window", False):
        window = hf.optional_integer("sliding_window")
    else:
        hf.ignore("sliding_window")
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = [
            "sliding_attention" if window and slides(layer, first) else "full_attention" for layer in range(layers)
        ]
    return windows(types, window)


def llama_architecture(
    config: DecoderConfig,
    tensors: Collection[str],
    names: Names = LLAMA,
    *,
    norm_weight: Transform = unchanged,
    pairs: bool = False,
    q_rows: Transform = unchanged,
) -> Architecture:
    """The architecture for tensors with Llama's names, or with those in `names`.

    norm_weight: applied to every norm's weight. pairs: RoPE rotates neighbouring channels, not halves. q_rows: applied
    to the projection to q.
    """
    prefix = root_of(tensors)
    parameters = Parameters({"embed.weight": Take(f"{prefix}{names.embedding}.weight")})
    parameters.norm("final_norm", prefix + names.final_norm, config.norm, norm_weight)
    config = parameters.head("lm_head", config, tensors)
    for layer, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{layer}.", f"{prefix}layers.{layer}."
        for half, norms in (
            (block.attention or block.state, ("attention_norm", "post_attention_norm")),
            (block.mlp, ("mlp_norm", "post_mlp_norm")),
        ):
            for norm in norms if half else ():
                name = getattr(names, norm)
                parameters.norm(ours + norm, name and theirs + name, config.norm, norm_weight)
        match block.attention:
            case LatentAttentionConfig() as latent:
                latent_attention_parameters(parameters, ours, theirs, latent, tensors, pairs)
            case AttentionConfig() as attention:
                attention_parameters(parameters, ours, theirs, attention, names, norm_weight, q_rows, pairs)
        if block.state is not None:
            state_parameters(parameters, f"{ours}state", theirs + names.state, block.state, tensors)
        if isinstance(block.mlp, MlpConfig):
            parameters.linear(f"{ours}mlp.up", [theirs + name for name in names.up], block.mlp.bias)
            parameters.linear(f"{ours}mlp.down", [theirs + names.down], block.mlp.bias)
            if block.mlp.activation == "xielu":
                leaves = ("alpha_p", "alpha_n", "beta", "eps")
                parameters |= {f"{ours}mlp.xielu.{leaf}": Take(f"{theirs}mlp.act_fn.{leaf}") for leaf in leaves}
    return Architecture(config, parameters, unused_suffixes=(".rotary_emb.inv_freq",))


def attention_parameters(
    parameters: Parameters,
    ours: str,
    theirs: str,
    attention: AttentionConfig,
    names: Names,
    norm_weight: Transform,
    q_rows: Transform,
    pairs: bool,
) -> None:
    """Adds the recipes of one layer's attention."""
    own = attention.keys_of is None  # keys and values
    rows: Sequence[Transform] = () if q_rows is unchanged else (q_rows, unchanged, unchanged)
    channels: Transform = unchanged  # of weights (heads, head_dim)
    if pairs and attention.rope is not None:
        dim = attention.rope.dim
        halves = [partial(PairsToHalves, heads=heads, dim=dim) for heads in (attention.heads, attention.kv_heads)]
        rows = (*halves, unchanged)

        def channels(weight: Recipe) -> Recipe:
            return Transposed(PairsToHalves(Transposed(weight), heads=1, dim=dim))

    projections = [theirs + name for name in (names.qkv if own else names.qkv[:1])]
    parameters.linear(f"{ours}attention.qkv", projections, attention.qkv_bias, rows[: len(projections)])
    parameters.linear(f"{ours}attention.out", [theirs + names.out], attention.out_bias)
    if attention.sinks:
        parameters[f"{ours}attention.sinks"] = Take(f"{theirs}self_attn.sinks")
    if attention.qk_norm is not None:
        for word, heads in (("query", attention.heads), ("key", attention.kv_heads))[: 2 if own else 1]:
            letter = word[0]
            norm = f"{ours}attention.{letter}_norm"
            if "{head}" in names.qk_norm:
                tensors = (f"{theirs}{names.qk_norm.format(letter=letter, head=head)}.weight" for head in range(heads))
                parameters[f"{norm}.weight"] = Stack(tuple(map(Take, tensors)))
                continue
            weight = channels if attention.qk_norm.over == "each_head" else norm_weight
            parameters.norm(
                norm, theirs + names.qk_norm.format(letter=letter, word=word), attention.qk_norm.norm, weight
            )
