"""Gemma 1 to 3: embeddings scaled, norms' weights stored less 1, tanh GELU. Source: transformers' modelling files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from gptcli.checkpoint.families.llama import Names, llama_architecture, llama_config, rms
from gptcli.checkpoint.families.parts import each_attention, each_block, every, windows
from gptcli.checkpoint.hf import HfConfig
from gptcli.checkpoint.recipes import Architecture, PlusOne
from gptcli.model.config import AttentionConfig, DecoderConfig, QkNormConfig, RopeConfig

_FOUR_NORMS = Names(
    post_attention_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_mlp_norm="post_feedforward_layernorm",
)


# What the hub's configs of Gemma 3 leave out of `text_config`.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}


def gemma(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma and CodeGemma: Llama's block with scaled embeddings and a GELU."""
    return llama_architecture(_gemma_config(hf), tensors, norm_weight=PlusOne)


def gemma2(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 2: four norms, softcaps, a window on every other layer."""
    layers = hf.layers
    types = hf.per_layer("layer_types", layers) or every(2, layers)
    return _four_norms(hf, tensors, types, default_caps=(50.0, 30.0))


def gemma3_text(hf: HfConfig, tensors: Collection[str], root: str = "") -> Architecture:
    """Gemma 3 1B: q and k normalised, five local layers to a global one, each kind with RoPE of its own."""
    layers = hf.layers
    pattern = hf.whole("sliding_window_pattern", hf.whole("_sliding_window_pattern", 6))
    types = hf.per_layer("layer_types", layers) or every(pattern, layers)
    head_dim = hf.whole("head_dim", 256)
    local = RopeConfig(theta=hf.number("rope_local_base_freq", 10_000.0), dim=head_dim)
    if hf.nested("rope_parameters", "sliding_attention"):
        local = hf.rope(head_dim, local.theta, layer_type="sliding_attention")
    rope = hf.rope(head_dim, 1_000_000.0, layer_type="full_attention")

    def edit(layer: int, attention: AttentionConfig) -> AttentionConfig:
        norm = QkNormConfig(norm=rms(hf, 1e-6, wide_scale=True), over="head")
        return replace(attention, qk_norm=norm, rope=local if types[layer] == "sliding_attention" else rope)

    return _four_norms(hf, tensors, types, default_caps=(None, None), edit=edit, root=root)


def gemma3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Gemma 3 4B and more, the text alone: what it sees images with lies unused."""
    hf.ignore("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    hf.expect("tie_word_embeddings", True)
    text = hf.part("text_config").with_defaults(_GEMMA3_DEFAULTS)
    text.expect("model_type", "gemma3_text")
    architecture = gemma3_text(text, tensors, root="language_model.")
    text.refuse_unread()
    return replace(architecture, unused_parts=("vision_tower.", "multi_modal_projector."))


def _gemma_config(hf: HfConfig) -> DecoderConfig:
    # Early configs say `gelu` in hidden_act and mean the tanh form all the same.
    hf.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    hf.expect("use_bidirectional_attention", False)
    config = llama_config(
        hf,
        norm=rms(hf, 1e-6, wide_scale=True),
        act=("hidden_activation", "gelu_pytorch_tanh"),
        default_head_dim=256,
        rope_layer_type="full_attention",
        tied=True,
    )
    return replace(config, embedding_scale=config.hidden_size**0.5)


def _four_norms(
    hf: HfConfig,
    tensors: Collection[str],
    types: Sequence[object],
    default_caps: tuple[float | None, float | None],
    edit: Callable[[int, AttentionConfig], AttentionConfig] = lambda layer, attention: attention,
    root: str = "",
) -> Architecture:
    layer_windows = windows(types, hf.whole("sliding_window", 4096))
    scale = hf.number("query_pre_attn_scalar", 256.0) ** -0.5
    softcap = hf.nullable_number("attn_logit_softcapping", default_caps[0])
    config = each_attention(
        _gemma_config(hf),
        lambda layer, attention: replace(
            edit(layer, attention), scale=scale, softcap=softcap, window=layer_windows[layer]
        ),
    )
    config = each_block(config, lambda layer, block: replace(block, residual="sandwich"))
    config = replace(config, logit_softcap=hf.nullable_number("final_logit_softcapping", default_caps[1]))
    return llama_architecture(config, tensors, _FOUR_NORMS, norm_weight=PlusOne, root=root)
