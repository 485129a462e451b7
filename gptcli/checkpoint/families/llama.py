"""The Llama shape and the families that differ from it in a line or two: Mistral, Qwen 2 and 3, SmolLM 3.

Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gptcli.checkpoint.hf import HfConfig
from gptcli.checkpoint.recipes import Architecture, Concat, Recipe, Take
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import AttentionConfig, BlockConfig, DecoderConfig, MlpConfig


def llama(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Llama 1 to 3, SmolLM and SmolLM2, and the many checkpoints that call themselves `llama`."""
    hf.expect("rope_interleaved", False)  # written by SmolLM2's converter
    bias = hf.flag("attention_bias", False)
    return llama_like(hf, tensors, qkv_bias=bias, out_bias=bias, mlp_bias=hf.flag("mlp_bias", False))


def mistral(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mistral 7B and its kin: a sliding window on every layer unless it is null."""
    layers = hf.layers
    window = hf.optional_whole("sliding_window")
    return llama_like(hf, tensors, windows=[window] * layers)


def qwen2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 2 and 2.5: biases on q, k and v."""
    return llama_like(hf, tensors, qkv_bias=True, windows=_qwen_windows(hf))


def qwen3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3: every head's q and k normalised before the rotation."""
    bias = hf.flag("attention_bias", False)
    windows = _qwen_windows(hf)
    return llama_like(hf, tensors, qkv_bias=bias, out_bias=bias, qk_norm=True, windows=windows, default_head_dim=128)


def smollm3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """SmolLM 3: no rotation on every fourth layer."""
    layers = hf.layers
    interval = hf.whole("no_rope_layer_interval", 4)
    rotated = hf.per_layer("no_rope_layers", layers)  # 1 is a layer with RoPE, despite the name
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(layers)]
    window = hf.optional_whole("sliding_window")
    if not hf.flag("use_sliding_window", False):
        window = None
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = ["full_attention" if rope or window is None else "sliding_attention" for rope in rotated]
    bias = hf.flag("attention_bias", False)
    return llama_like(
        hf,
        tensors,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=hf.flag("mlp_bias", False),
        windows=_windows(types, window),
        rotated=[bool(rope) for rope in rotated],
        default_theta=2_000_000.0,
        tied_by_default=True,
    )


def llama_like(
    hf: HfConfig,
    tensors: Collection[str],
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows: Sequence[int | None] | None = None,
    rotated: Sequence[bool] | None = None,
    default_head_dim: int | None = None,
    default_theta: float = 10_000.0,
    tied_by_default: bool = False,
) -> Architecture:
    """Pre-norm blocks of grouped-query attention with RoPE and a gated SiLU MLP; families state their differences.

    `windows` and `rotated` have one entry a layer: its attention window, and whether it has RoPE.
    """
    layers, hidden = hf.layers, hf.whole("hidden_size")
    heads = hf.whole("num_attention_heads")
    kv_heads = hf.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise BrokenCheckpoint(f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly")
    head_dim = hf.optional_whole("head_dim") or default_head_dim or hidden // heads
    if head_dim % 2:
        raise BrokenCheckpoint(f"config.json: RoPE needs an even head_dim, not {head_dim}")
    activation = hf.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedArchitecture(f"config.json: hidden_act {activation!r} is not supported")
    rope = hf.rope(head_dim, default_theta)
    mlp = MlpConfig(width=hf.whole("intermediate_size"), bias=mlp_bias)

    def block(layer: int) -> BlockConfig:
        attention = AttentionConfig(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope if rotated is None or rotated[layer] else None,
            window=windows[layer] if windows else None,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
        )
        return BlockConfig(attention=attention, mlp=mlp)

    tied = hf.flag("tie_word_embeddings", tied_by_default)
    config = DecoderConfig(
        vocab_size=hf.whole("vocab_size"),
        hidden_size=hidden,
        max_context=hf.whole("max_position_embeddings"),
        blocks=tuple(block(layer) for layer in range(layers)),
        norm_eps=hf.number("rms_norm_eps", 1e-6),
        # A file that holds a head of its own beside tied embeddings means that head.
        tied_head=tied and "lm_head.weight" not in tensors,
    )
    return Architecture(config, llama_parameters(config, tensors), ignorable=(".rotary_emb.inv_freq",))


def llama_parameters(config: DecoderConfig, tensors: Collection[str]) -> dict[str, Recipe]:
    """Our parameters from Llama's names, with or without the `model.` that AutoModel checkpoints lack."""
    root = "" if "embed_tokens.weight" in tensors else "model."
    parameters: dict[str, Recipe] = {
        "embed.weight": Take(f"{root}embed_tokens.weight"),
        "final_norm.weight": Take(f"{root}norm.weight"),
    }
    if not config.tied_head:
        parameters["head.weight"] = Take("lm_head.weight")
    for layer, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{layer}.", f"{root}layers.{layer}."

        def linear(name: str, sources: Sequence[str], bias: bool, ours: str = ours, theirs: str = theirs) -> None:
            for leaf in ("weight", "bias") if bias else ("weight",):
                names = tuple(f"{theirs}{source}.{leaf}" for source in sources)
                parameters[f"{ours}{name}.{leaf}"] = Concat(names) if len(names) > 1 else Take(names[0])

        projections = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        linear("attention.qkv", projections, block.attention.qkv_bias)
        linear("attention.out", ("self_attn.o_proj",), block.attention.out_bias)
        linear("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj"), block.mlp.bias)
        linear("mlp.down", ("mlp.down_proj",), block.mlp.bias)
        linear("attention_norm", ("input_layernorm",), False)
        linear("mlp_norm", ("post_attention_layernorm",), False)
        if block.attention.qk_norm:
            linear("attention.q_norm", ("self_attn.q_norm",), False)
            linear("attention.k_norm", ("self_attn.k_norm",), False)
    return parameters


def _qwen_windows(hf: HfConfig) -> list[int | None]:
    layers = hf.layers
    first = hf.whole("max_window_layers", 28, low=0)
    window = hf.optional_whole("sliding_window")
    if not hf.flag("use_sliding_window", False):
        window = None
    types = hf.per_layer("layer_types", layers)
    if types is None:
        types = ["sliding_attention" if window and layer >= first else "full_attention" for layer in range(layers)]
    return _windows(types, window)


def _windows(types: Sequence[object], window: int | None) -> list[int | None]:
    unknown = {str(kind) for kind in types} - {"full_attention", "sliding_attention"}
    if unknown:
        raise UnsupportedArchitecture(f"config.json: layer type {min(unknown)!r} is not supported")
    if window is None and "sliding_attention" in types:
        raise BrokenCheckpoint("config.json: layer_types has sliding_attention, but there is no sliding_window")
    return [window if kind == "sliding_attention" else None for kind in types]
