"""Models that read images, for text alone: the family that `text_config` names, inside a wrapper.

A text's positions in time, height and width are equal, so RoPE by three positions is plain RoPE.
Source: transformers' modelling files of the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from gptcli.checkpoint.config.class_defaults import DEFAULTS, OTHER_NAMES
from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.deepseek import deepseek_v3
from gptcli.checkpoint.families.gemma import gemma3_text
from gptcli.checkpoint.families.gemma3n import gemma3n_text, gemma4_text, gemma4_unified_text
from gptcli.checkpoint.families.lfm2 import lfm2
from gptcli.checkpoint.families.llama import llama, ministral3, mistral, qwen2, qwen3
from gptcli.checkpoint.families.llama4 import llama4_text
from gptcli.checkpoint.families.llama_layer_norm import cohere2, glm4
from gptcli.checkpoint.families.llama_relatives import exaone4
from gptcli.checkpoint.families.moe import qwen3_moe
from gptcli.checkpoint.families.moe_relatives import glm4_moe
from gptcli.checkpoint.families.qwen_hybrid import qwen3_5_moe_text, qwen3_5_text
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

_FIELDS = """
    audio_config audio_token_id audio_soft_tokens_per_image vision_soft_tokens_per_image boa_token_id boi_token_id
    eoa_token_id eoa_token_index eoi_token_id vision_config image_token_id image_token_index image_start_token_id
    image_end_token_id video_token_id video_token_index video_start_token_id video_end_token_id
    vision_start_token_id vision_end_token_id boi_token_index eoi_token_index mm_tokens_per_image image_seq_length
    video_seq_length image_grid_pinpoints multimodal_projector_bias projector_bias projector_hidden_act
    projector_hidden_size projector_use_layernorm projector_layernorm_eps projection_dim projection_hidden_size
    projection_layer_norm_eps perceiver_config adapter_layer_norm_eps alignment_intermediate_size spatial_merge_size
    spatial_pool_mode spatial_pool_stride vision_aspect_ratio vision_feature_layer vision_feature_layers
    vision_feature_select_strategy visual_indicator_token_ids downsample_factor downsample_ratio scale_factor
    _pad_token_id
""".split()  # of images
_MODULES = """
    audio_tower. embed_audio. embed_vision. vision_tower. video_tower. image_tower. vision_model. vision_encoder.
    visual. visual_embeddings_table. image_newline multi_modal_projector. mm_projector. projector.
    vision_projection. aligner. connector. vision_resampler.
""".split()
_PREFIXES = tuple(f"{root}{module}" for root in ("", "model.") for module in _MODULES)


@dataclass(frozen=True)
class Text:
    """A model type of `text_config`.

    sizes: defaults of its class in transformers that only a text part may leave out. listed_as: the model type whose
    fields and other defaults hold, if not its own.
    """

    family: Family
    sizes: Mapping[str, object] = field(default_factory=dict)
    listed_as: str | None = None


@dataclass(frozen=True)
class _Wrapper:
    """A model around a text part.

    text: the text part's default type; `text_config` may name another of `texts`. tied: the default of the outer
    `tie_word_embeddings`; None: `text_config` has it. flat: whether text fields may stand beside those of images.
    unread: text fields that the class for the whole does not read, with values that change nothing.
    """

    about: str
    text: str
    texts: Collection[str] = ()
    tied: bool | None = False
    flat: bool = False
    unread: Mapping[str, object] = field(default_factory=dict)


def _by_three_positions(family: Family) -> Family:
    def text(hf: HfConfig, tensors: Collection[str]) -> Architecture:
        hf.ignore_in_rope("mrope_section", "mrope_interleaved")
        hf.rename_rope_type("mrope", "default")
        return family(hf, tensors)

    return text


def _glm4(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    head_dim = hf.integer("hidden_size") // hf.heads_of("num_attention_heads")
    hf.expect("head_dim", head_dim)
    hf.expect("attention_bias", True)
    return glm4(hf.with_defaults({"head_dim": head_dim}), tensors)


def _glm4_moe(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    head_dim = hf.integer("hidden_size") // hf.heads_of("num_attention_heads")
    return glm4_moe(hf.with_defaults({"head_dim": head_dim}), tensors)


_SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_MISTRAL = _SIZES | {"intermediate_size": 14_336}
_QWEN = _SIZES | {"vocab_size": 151_936, "intermediate_size": 22_016}
_QWEN_VL = {
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
}
_LLAMA4 = {"vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "num_hidden_layers": 48}
_GEMMA3N = {"vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 35}
_GEMMA4 = {"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30}
TEXTS: dict[str, Text] = {
    "llama": Text(llama, _SIZES),
    "mistral": Text(mistral, _MISTRAL),
    "ministral3": Text(ministral3),
    "qwen2": Text(qwen2, _QWEN),
    "qwen3": Text(qwen3, _QWEN),
}
_OWN_TEXTS: dict[str, Text] = {
    "cohere2": Text(cohere2),
    "deepseek_v3": Text(deepseek_v3),
    "exaone4": Text(exaone4),
    "exaone4_5_text": Text(exaone4, listed_as="exaone4"),  # what the first files say
    "gemma3_text": Text(gemma3_text, {"vocab_size": 262_208}),
    "gemma3n_text": Text(gemma3n_text, _GEMMA3N),
    "gemma4_text": Text(gemma4_text, _GEMMA4),
    "gemma4_unified_text": Text(gemma4_unified_text, _GEMMA4),
    "glm4v_text": Text(
        _by_three_positions(_glm4),
        {
            "rms_norm_eps": 1e-5,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32_768,
            "partial_rotary_factor": 1.0,
        },
        "glm4v",
    ),
    "kimi_k2": Text(deepseek_v3, listed_as="deepseek_v3"),
    "lfm2": Text(lfm2),
    "glm4v_moe_text": Text(
        _by_three_positions(_glm4_moe),
        {"num_key_value_heads": 8, "max_position_embeddings": 65_536, "attention_bias": True},
        "glm4v_moe",
    ),
    "llama4_text": Text(llama4_text, _LLAMA4),
    "qwen2_vl_text": Text(_by_three_positions(qwen2), _QWEN_VL, "qwen2_vl"),
    "qwen2_5_vl_text": Text(_by_three_positions(qwen2), _QWEN_VL, "qwen2_5_vl"),
    "qwen3_vl_text": Text(
        _by_three_positions(qwen3),
        {"num_key_value_heads": 32, "max_position_embeddings": 128_000, "rope_theta": 500_000.0},
        "qwen3_vl",
    ),
    "qwen3_vl_moe_text": Text(
        _by_three_positions(qwen3_moe),
        {
            "num_key_value_heads": 16,
            "max_position_embeddings": 128_000,
            "rope_theta": 500_000.0,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
        },
        "qwen3_vl_moe",
    ),
    "qwen3_5_text": Text(qwen3_5_text),
    "qwen3_5_moe_text": Text(qwen3_5_moe_text),
}
_WITHOUT_WINDOWS = {"use_sliding_window": False}
_WITHOUT_LOGIT_SCALE = {"logit_scale": 1.0}
_WRAPPERS = {
    "aya_vision": _Wrapper("Aya Vision", "cohere2", tied=True, unread=_WITHOUT_LOGIT_SCALE),
    "cohere2_vision": _Wrapper("Command A Vision", "cohere2", tied=True, unread=_WITHOUT_LOGIT_SCALE),
    "deepseek_vl": _Wrapper("DeepSeek VL 1.3B", "llama", TEXTS, tied=True),
    "exaone4_5": _Wrapper("EXAONE 4.5", "exaone4", ("exaone4_5_text",)),
    "gemma3": _Wrapper("Gemma 3 4B and larger", "gemma3_text", tied=True, unread={"final_logit_softcapping": None}),
    "gemma3n": _Wrapper("Gemma 3n E2B and E4B", "gemma3n_text", tied=True),
    "gemma4": _Wrapper("Gemma 4", "gemma4_text", tied=True),
    "gemma4_unified": _Wrapper("Gemma 4 12B", "gemma4_unified_text", tied=True),
    "glm46v": _Wrapper("GLM-4.6V Flash", "glm4v_text"),
    "glm4v": _Wrapper("GLM-4.1V 9B", "glm4v_text"),
    "glm4v_moe": _Wrapper("GLM-4.5V and 4.6V", "glm4v_moe_text", unread={"use_qk_norm": False}),
    "got_ocr2": _Wrapper("GOT-OCR 2", "qwen2", TEXTS, tied=True),
    "idefics2": _Wrapper("Idefics 2", "mistral", TEXTS),
    "idefics3": _Wrapper("Idefics 3 and the first SmolVLM", "llama", TEXTS),
    "internvl": _Wrapper("InternVL 3 and 3.5", "qwen2", TEXTS, tied=True),
    "kimi_k25": _Wrapper("Kimi K2.5", "deepseek_v3", ("kimi_k2",), tied=True),
    "lfm2_vl": _Wrapper("LFM2-VL", "lfm2", tied=True),
    "lighton_ocr": _Wrapper("LightOnOCR", "qwen3", TEXTS, tied=True),
    "llama4": _Wrapper("Llama 4 Scout and Maverick", "llama4_text", tied=None),
    "llava": _Wrapper("LLaVA 1.5 and Pixtral", "llama", TEXTS),
    "llava_next": _Wrapper("LLaVA 1.6", "llama", TEXTS),
    "llava_next_video": _Wrapper("LLaVA-NeXT-Video", "llama", TEXTS),
    "llava_onevision": _Wrapper("LLaVA-OneVision", "qwen2", TEXTS),
    "mistral3": _Wrapper("Mistral Small 3.1 and 3.2, Ministral 3", "mistral", TEXTS, tied=True),
    "ovis2": _Wrapper("Ovis 2", "qwen2", TEXTS, tied=True),
    "qwen2_5_vl": _Wrapper("Qwen 2.5 VL", "qwen2_5_vl_text", flat=True),
    "qwen2_vl": _Wrapper("Qwen 2 VL", "qwen2_vl_text", flat=True),
    "qwen3_5": _Wrapper("Qwen 3.5 0.8B to 27B", "qwen3_5_text"),
    "qwen3_5_moe": _Wrapper("Qwen 3.5 35B and larger", "qwen3_5_moe_text"),
    "qwen3_vl": _Wrapper("Qwen 3 VL", "qwen3_vl_text", unread=_WITHOUT_WINDOWS),
    "qwen3_vl_moe": _Wrapper(
        "Qwen 3 VL 30B and 235B", "qwen3_vl_moe_text", unread=_WITHOUT_WINDOWS | {"norm_topk_prob": True}
    ),
    "smolvlm": _Wrapper("SmolVLM 2", "llama", TEXTS),
    "video_llama_3": _Wrapper("VideoLLaMA 3", "qwen2", TEXTS),
    "video_llava": _Wrapper("Video-LLaVA", "llama", TEXTS),
    "vipllava": _Wrapper("ViP-LLaVA", "llama", TEXTS),
}


def _family(wrapper: _Wrapper) -> Family:
    def family(hf: HfConfig, tensors: Collection[str]) -> Architecture:
        return _text_of(wrapper, hf, tensors)

    family.__doc__ = f"{wrapper.about}, for text alone: its vision modules stay unused."
    return family


WRAPPERS: dict[str, Family] = {model_type: _family(wrapper) for model_type, wrapper in _WRAPPERS.items()}


def _text_of(wrapper: _Wrapper, hf: HfConfig, tensors: Collection[str]) -> Architecture:
    hf.ignore(*_FIELDS)
    nested = hf.has("text_config") or not wrapper.flat
    text = hf.section("text_config").with_defaults({"model_type": wrapper.text}) if nested else hf
    kind = wrapper.text if text.model_type == hf.model_type else text.model_type
    if kind != wrapper.text and kind not in wrapper.texts:
        raise UnsupportedArchitecture(f"`{hf.model_type}` models around `{kind}` are not supported")
    part = (TEXTS | _OWN_TEXTS)[kind]
    kind = part.listed_as or kind
    if nested:
        text = text.renamed(OTHER_NAMES.get(kind, {}))
    text = text.replaced(model_type=kind).with_defaults({**DEFAULTS.get(kind, {}), **part.sizes})
    text = text.replaced(**wrapper.unread)
    if wrapper.tied is None:
        hf.ignore("tie_word_embeddings")
    else:  # text_config's own field is not read
        text = text.replaced(tie_word_embeddings=hf.flag("tie_word_embeddings", wrapper.tied))
    architecture = part.family(text, tensors)
    if nested:
        hf.ignore("vocab_size", "hidden_size")  # those of text_config, or its defaults, count
        text.check_unread(kind)
    return replace(architecture, unused_prefixes=(*architecture.unused_prefixes, *_PREFIXES), reads_images=True)
