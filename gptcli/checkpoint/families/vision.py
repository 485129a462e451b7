"""Models that read images, for text alone: the family that `text_config` names, inside of a wrapper.

A text's positions in time, height and width are equal, so RoPE by three positions turns as plain RoPE does.
Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from gptcli.checkpoint.families.layer_norm import glm4
from gptcli.checkpoint.families.llama import llama, ministral3, mistral, qwen2, qwen3
from gptcli.checkpoint.hf_config import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

_Family = Callable[[HfConfig, Collection[str]], Architecture]

_FIELDS = (
    "vision_config", "image_token_id", "image_token_index", "image_start_token_id", "image_end_token_id",
    "video_token_id", "video_start_token_id", "video_end_token_id", "vision_start_token_id", "vision_end_token_id",
    "image_seq_length", "image_grid_pinpoints", "multimodal_projector_bias", "projector_hidden_act",
    "spatial_merge_size", "vision_feature_layer", "vision_feature_select_strategy", "downsample_ratio", "scale_factor",
    "_pad_token_id",
)  # fmt: skip
_MODULES = ("vision_tower.", "multi_modal_projector.", "visual.", "vision_model.", "connector.", "image_newline")
_PREFIXES = tuple(f"{root}{module}" for root in ("", "model.") for module in _MODULES)

# Families of `text_config`, and the defaults of their classes in transformers, which it may leave out.
_SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_MISTRAL = _SIZES | {
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
_QWEN = _SIZES | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
}
TEXTS: dict[str, tuple[_Family, Mapping[str, object]]] = {
    "llama": (llama, _SIZES),
    "mistral": (mistral, _MISTRAL),
    "ministral3": (ministral3, {"num_key_value_heads": 8}),
    "qwen2": (qwen2, _QWEN),
    "qwen3": (qwen3, _QWEN),
}


def mistral3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Mistral Small 3.1 and 3.2, Ministral 3, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "mistral", tied=True)


def llava(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """LLaVA 1.5 and Pixtral, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "llama")


def llava_next(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """LLaVA 1.6, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "llama")


def internvl(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """InternVL 3 and 3.5, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "qwen2", tied=True)


def idefics3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Idefics 3 and the first SmolVLM, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "llama")


def smolvlm(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """SmolVLM 2, for text alone: its vision modules stay unused."""
    return _named_text(hf, tensors, "llama")


def qwen2_vl(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 2 VL, for text alone: its vision modules stay unused."""
    defaults = {"rms_norm_eps": 1e-5, "num_key_value_heads": 8, "max_position_embeddings": 32_768}
    return _own_text(hf, tensors, qwen2, defaults | {"rope_theta": 1_000_000.0}, flat=True)


def qwen2_5_vl(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 2.5 VL, for text alone: its vision modules stay unused."""
    return qwen2_vl(hf, tensors)


def qwen3_vl(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """Qwen 3 VL, for text alone: its vision modules stay unused."""
    defaults = {"num_key_value_heads": 32, "max_position_embeddings": 128_000, "rope_theta": 500_000.0}
    return _own_text(hf, tensors, _qwen3, defaults)


def glm4v(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """GLM-4.1V 9B, for text alone: its vision modules stay unused."""
    defaults = {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
    return _own_text(hf, tensors, _glm4, defaults | {"partial_rotary_factor": 1.0})


def _qwen3(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    hf.expect("use_sliding_window", False)  # which the reference does not read
    return qwen3(hf, tensors)


def _glm4(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    head_dim = hf.integer("hidden_size") // hf.heads_of("num_attention_heads")
    hf.expect("head_dim", head_dim)
    hf.expect("attention_bias", True)
    return glm4(hf.with_defaults({"head_dim": head_dim}), tensors)


def _named_text(hf: HfConfig, tensors: Collection[str], default: str, tied: bool = False) -> Architecture:
    """The family that `text_config` names, or else the default."""
    text = hf.section("text_config").with_defaults({"model_type": default})
    if text.model_type not in TEXTS:
        raise UnsupportedArchitecture(f"`{hf.model_type}` models around `{text.model_type}` are not supported")
    family, defaults = TEXTS[text.model_type]
    return _text(hf, text.with_defaults(defaults), tensors, family, tied)


def _own_text(
    hf: HfConfig, tensors: Collection[str], family: _Family, defaults: Mapping[str, object], flat: bool = False
) -> Architecture:
    """A text part of the wrapper's own type. flat: whether its fields may stand beside those of images."""
    text = hf
    if hf.has("text_config") or not flat:
        text = hf.section("text_config")
        text.expect("model_type", hf.model_type, f"{hf.model_type}_text")
        text = text.replaced(model_type=hf.model_type)
    text = text.with_defaults(defaults)

    def with_three_positions(text: HfConfig, tensors: Collection[str]) -> Architecture:
        text.ignore_in_rope("mrope_section", "mrope_interleaved")
        text.rename_rope_type("mrope", "default")
        return family(text, tensors)

    return _text(hf, text, tensors, with_three_positions, tied=False)


def _text(hf: HfConfig, text: HfConfig, tensors: Collection[str], family: _Family, tied: bool) -> Architecture:
    """The text part. tied: whether head and embedding are one if the outer config does not say."""
    hf.ignore(*_FIELDS)
    text = text.replaced(tie_word_embeddings=hf.flag("tie_word_embeddings", tied))  # that of text_config ties nothing
    architecture = family(text, tensors)
    if hf.has("text_config"):
        hf.ignore("vocab_size")  # that of text_config, or its default, counts
        text.check_unread(text.model_type)
    return replace(architecture, unused_prefixes=_PREFIXES, reads_images=True)
