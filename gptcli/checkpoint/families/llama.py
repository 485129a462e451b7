"""The Llama shape: pre-norm blocks of grouped-query attention with RoPE and a gated MLP; and who differs in a little.

`llama_config` reads what all of them share; a family then changes what differs, and `llama_parameters` names the
tensors of whatever came out. Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gptcli.checkpoint.families.parts import (
    Make,
    Parameters,
    activation,
    as_it_is,
    each_attention,
    each_block,
    head_dim_of,
    windows,
)
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture, PairsToHalves, Recipe, Stack, Take, Transposed
from gptcli.errors import BrokenCheckpoint
from gptcli.model.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    MlpConfig,
    NormConfig,
    PositionScale,
    QkNormConfig,
    RopeConfig,
)


@dataclass(frozen=True)
class Names:
    """What a layer's modules are called behind `model.layers.N.`; None is a norm that is not there."""

    attention_norm: str | None = "input_layernorm"
    post_attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    post_mlp_norm: str | None = None
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    qk_norm: str = "self_attn.{letter}_norm"  # with {head} in it, a tensor for each head
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    final_norm: str = "norm"


def llama(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Llama 1 to 3, SmolLM and SmolLM2, and the many checkpoints that call themselves `llama`."""
    hf.expect("rope_interleaved", False)  # written by SmolLM2's converter
    config = llama_config(hf, mlp_bias=hf.flag("mlp_bias", False))
    return llama_architecture(config, tensors)


def mistral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mistral 7B and its kin: a sliding window on every layer unless it is null."""
    window = hf.optional_whole("sliding_window")
    config = each_attention(llama_config(hf), lambda layer, attention: replace(attention, window=window))
    return llama_architecture(config, tensors)


def ministral3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Ministral 3: q grows with the logarithm of its position."""
    window = hf.optional_whole("sliding_window")
    beta, original = hf.rope_extra("llama_4_scaling_beta"), hf.rope_extra("original_max_position_embeddings")
    if beta and original is None:
        raise BrokenCheckpoint("config.json: rope: original_max_position_embeddings is missing")
    scale = PositionScale(beta=beta, original_context=int(original)) if beta and original else None
    config = each_attention(
        llama_config(hf, norm=rms(hf, 1e-5), bias=False, default_head_dim=128),
        lambda layer, attention: replace(attention, window=window, position_scale=scale),
    )
    return llama_architecture(config, tensors)


def qwen2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 2 and 2.5: biases on q, k and v."""
    hf.expect("use_mrope", False)  # positions of images, in the configs of text models too
    layer_windows = qwen_windows(hf)
    config = each_attention(
        llama_config(hf, bias=False),
        lambda layer, attention: replace(attention, qkv_bias=True, window=layer_windows[layer]),
    )
    return llama_architecture(config, tensors)


def qwen3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3: every head's q and k normalised before the rotation."""
    layer_windows = qwen_windows(hf)
    config = llama_config(hf, default_head_dim=128)
    norm = QkNormConfig(norm=config.norm, over="head")
    config = each_attention(
        config, lambda layer, attention: replace(attention, qk_norm=norm, window=layer_windows[layer])
    )
    return llama_architecture(config, tensors)


def smollm3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """SmolLM 3: no rotation on every fourth layer."""
    hf.ignore("max_window_layers")  # Qwen's, and unused here
    layers = hf.layers
    interval = hf.whole("no_rope_layer_interval", 4)
    rotated = hf.per_layer("no_rope_layers", layers)  # 1 is a layer with RoPE, despite the name
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    window = hf.optional_whole("sliding_window") if hf.flag("use_sliding_window", False) else None
    hf.ignore("sliding_window")
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = ["full_attention" if rope or window is None else "sliding_attention" for rope in rotated]
    layer_windows = windows(types, window)
    config = llama_config(hf, mlp_bias=hf.flag("mlp_bias", False), default_theta=2_000_000.0, tied=True)
    config = each_attention(
        config,
        lambda layer, attention: replace(
            attention, window=layer_windows[layer], rope=attention.rope if rotated[layer] else None
        ),
    )
    return llama_architecture(config, tensors)


def granite(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Granite 3: multipliers on embedding, attention, residual stream and logits."""
    scale, residual_scale = hf.number("attention_multiplier", 1.0), hf.number("residual_multiplier", 1.0)
    config = llama_config(hf, mlp_bias=hf.flag("mlp_bias", False))
    config = each_attention(config, lambda layer, attention: replace(attention, scale=scale))
    config = each_block(config, lambda layer, block: replace(block, residual_scale=residual_scale))
    config = replace(
        config,
        embedding_scale=hf.number("embedding_multiplier", 1.0),
        logit_scale=1 / hf.number("logits_scaling", 1.0),
    )
    return llama_architecture(config, tensors)


def phi3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Phi 3 to 4: q, k and v in one matrix, gate and up in another, LongRoPE."""
    window = hf.optional_whole("sliding_window")
    for field in ("full_attn_mod", "interpolate_factor"):
        hf.expect(field, 1)
    for field in ("lm_head_bias", "mlp_bias"):
        hf.expect(field, False)
    config = llama_config(hf, norm=rms(hf, 1e-5), bias=False, rotary_fraction=1.0)
    config = each_attention(config, lambda layer, attention: replace(attention, window=window))
    return llama_architecture(config, tensors, Names(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",)))


def llama_config(
    hf: HfConfig,
    *,
    norm: NormConfig | None = None,
    act: Activation | None = None,
    gated: bool = True,
    bias: bool | None = None,
    mlp_bias: bool = False,
    rotary_fraction: float | None = None,
    default_head_dim: int | None = None,
    default_theta: float = 10_000.0,
    rope: RopeConfig | None = None,
    tied: bool = False,
) -> DecoderConfig:
    """What the Llama shape reads from a config; the arguments are defaults, and what it cannot read there.

    act: where it is not what `hidden_act` names, or else SiLU. bias: on attention; None asks `attention_bias`.
    rotary_fraction: the share of each head's channels that RoPE turns, unless the config says; None for all of them,
    whatever it says. rope: where the family has read it by itself. tied: whether the head is the embedding, unless the
    config says.
    """
    layers, hidden, heads = hf.layers, hf.whole("hidden_size"), hf.heads_of("num_attention_heads")
    kv_heads = hf.heads_of("num_key_value_heads", heads)
    if heads % kv_heads:
        raise BrokenCheckpoint(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    head_dim = llama_head_dim(hf, default_head_dim)
    if rope is None:
        if rotary_fraction is None:
            hf.expect("partial_rotary_factor", 1.0, 1)
        else:
            rotary_fraction = hf.number("partial_rotary_factor", rotary_fraction)
        rope = hf.rope(head_dim, default_theta, rotary_fraction)
    attention_bias = hf.flag("attention_bias", False)
    bias = attention_bias if bias is None else bias
    attention = AttentionConfig(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=rope,
        scale=head_dim**-0.5,
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MlpConfig(
        width=hf.whole("intermediate_size"),
        activation=act or activation(hf, "hidden_act", "silu"),
        gated=gated,
        bias=mlp_bias,
    )
    return DecoderConfig(
        vocab_size=hf.whole("vocab_size"),
        hidden_size=hidden,
        max_context=hf.whole("max_position_embeddings"),
        blocks=(BlockConfig(attention=attention, mlp=mlp),) * layers,
        norm=norm or rms(hf, 1e-6),
        tied_head=hf.flag("tie_word_embeddings", tied),
    )


def llama_head_dim(hf: HfConfig, default: int | None = None) -> int:
    """Channels of a head."""
    return head_dim_of(hf, hf.whole("hidden_size"), hf.heads_of("num_attention_heads"), default)


def rms(hf: HfConfig, default_eps: float, wide_scale: bool = False) -> NormConfig:
    """RMSNorm with the config's epsilon."""
    return NormConfig(kind="rms", eps=hf.number("rms_norm_eps", default_eps), wide_scale=wide_scale)


def qwen_windows(
    hf: HfConfig, slides: Callable[[int, int], bool] = lambda layer, first: layer >= first
) -> list[int | None]:
    """Qwen's windows: none unless `use_sliding_window`, then as `layer_types` says.

    slides: whether a layer has a window where that is absent, by its index and `max_window_layers`.
    """
    layers = hf.layers
    first = hf.whole("max_window_layers", 28, low=0)
    window = None
    if hf.flag("use_sliding_window", False):
        window = hf.optional_whole("sliding_window")
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
    names: Names = Names(),
    *,
    norm_weight: Make = as_it_is,
    pairs: bool = False,
    root: str = "",
) -> Architecture:
    """The architecture for tensors with Llama's names, or those in `names`.

    norm_weight: what is made of every norm's weight. pairs: RoPE turns neighbouring channels, not halves. root: what
    all names begin with.
    """
    # A file that holds a head of its own beside tied embeddings means that head; a bias makes one, too.
    own_head = not config.tied_head or f"{root}lm_head.weight" in tensors
    config = replace(config, tied_head=not own_head and not config.head_bias)
    prefix = root if f"{root}embed_tokens.weight" in tensors else f"{root}model."
    parameters = Parameters()
    parameters["embed.weight"] = Take(f"{prefix}embed_tokens.weight")
    parameters.norm("final_norm", prefix + names.final_norm, config.norm, norm_weight)
    if not config.tied_head:
        parameters.linear("head", [f"{root}lm_head"], config.head_bias)
        if not own_head:
            parameters["head.weight"] = parameters["embed.weight"]
    for layer, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{layer}.", f"{prefix}layers.{layer}."
        for norm in ("attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm"):
            name = getattr(names, norm)
            parameters.norm(ours + norm, name and theirs + name, config.norm, norm_weight)
        attention_parameters(parameters, ours, theirs, block.attention, names, norm_weight, pairs)
        if isinstance(block.mlp, MlpConfig):
            parameters.linear(f"{ours}mlp.up", [theirs + name for name in names.up], block.mlp.bias)
            parameters.linear(f"{ours}mlp.down", [theirs + names.down], block.mlp.bias)
    return Architecture(config, parameters, unused_suffixes=(".rotary_emb.inv_freq",))


def attention_parameters(
    parameters: Parameters,
    ours: str,
    theirs: str,
    attention: AttentionConfig,
    names: Names,
    norm_weight: Make,
    pairs: bool,
) -> None:
    """Recipes of one layer's attention."""
    make: Sequence[Make] = ()
    channels: Make = as_it_is  # for weights with an axis of channels within a head
    if pairs and attention.rope is not None:
        dim = attention.rope.dim
        halves = [partial(PairsToHalves, heads=heads, dim=dim) for heads in (attention.heads, attention.kv_heads)]
        make = (*halves, as_it_is)

        def channels(part: Recipe) -> Recipe:
            return Transposed(PairsToHalves(Transposed(part), heads=1, dim=dim))

    parameters.linear(f"{ours}attention.qkv", [theirs + name for name in names.qkv], attention.qkv_bias, make)
    parameters.linear(f"{ours}attention.out", [theirs + names.out], attention.out_bias)
    if attention.sinks:
        parameters[f"{ours}attention.sinks"] = Take(f"{theirs}self_attn.sinks")
    if attention.qk_norm is not None:
        for letter, heads in (("q", attention.heads), ("k", attention.kv_heads)):
            norm = f"{ours}attention.{letter}_norm"
            if "{head}" in names.qk_norm:
                tensors = (f"{theirs}{names.qk_norm.format(letter=letter, head=head)}.weight" for head in range(heads))
                parameters[f"{norm}.weight"] = Stack(tuple(map(Take, tensors)))
                continue
            weight = channels if attention.qk_norm.over == "each_head" else norm_weight
            parameters.norm(norm, theirs + names.qk_norm.format(letter=letter), attention.qk_norm.norm, weight)
