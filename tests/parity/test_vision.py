"""The text part of models that read images, against transformers' class of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.vision import TEXTS, WRAPPERS
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.kernels.tensors import library as kernels
from tests.parity.reference import BASE, Reference, randomized, write_reference
from tests.parity.test_families import (
    DEEPSEEK,
    DELTA,
    GEMMA,
    GEMMA3N,
    GEMMA4,
    GEMMA4_UNIFIED,
    GROUPS,
    IDS,
    LLAMA4,
    QWEN_MOE,
    SIGMOID,
    TOLERANCE,
    engine_of,
    greedy,
    relative_error,
)

TEXT = {name: value for name, value in BASE.items() if name != "pad_token_id"} | {"pad_token_id": 0}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
PIXTRAL = VISION | {"model_type": "pixtral", "head_dim": 16}
CLIP = VISION | {"model_type": "clip_vision_model", "projection_dim": 32}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
LLAMA4_VISION = VISION | {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
COHERE2 = {"model_type": "cohere2", "sliding_window": 8, "logit_scale": 0.5}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
GLM_MROPE = MROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, dict[str, Any]]] = {
    "mistral3": ("mistral3", {"model_type": "mistral", "head_dim": 16, "sliding_window": 9}, PIXTRAL, {}),
    "mistral3, untied": ("mistral3", {"model_type": "mistral", "head_dim": 16}, PIXTRAL,
                         {"tie_word_embeddings": False}),
    "mistral3, ministral3": ("mistral3", {"model_type": "ministral3", "head_dim": 16}, PIXTRAL, {}),
    "llava": ("llava", {"model_type": "llama"}, CLIP, {}),
    "llava, mistral": ("llava", {"model_type": "mistral", "head_dim": 16}, PIXTRAL, {}),
    "llava_next": ("llava_next", {"model_type": "llama"}, CLIP, {}),
    "internvl, qwen2": ("internvl", {"model_type": "qwen2"}, VISION | {"image_size": [28, 28], "patch_size": [14, 14]},
                        {}),
    "internvl, qwen3": ("internvl", {"model_type": "qwen3", "head_dim": 32},
                        VISION | {"image_size": [28, 28], "patch_size": [14, 14]}, {"tie_word_embeddings": False}),
    "idefics3": ("idefics3", {"model_type": "llama"}, VISION, {}),
    "smolvlm": ("smolvlm", {"model_type": "llama"}, VISION, {}),
    "qwen2_vl": ("qwen2_vl", {"rope_parameters": MROPE}, {"depth": 1, "embed_dim": 32, "hidden_size": 64,
                 "num_heads": 2}, {}),
    "qwen2_5_vl": ("qwen2_5_vl", {"rope_parameters": MROPE}, QWEN_VISION, {}),
    "qwen3_vl": ("qwen3_vl", {"head_dim": 16, "rope_parameters": MROPE | {"mrope_interleaved": True}},
                 QWEN_VISION | {"deepstack_visual_indexes": [0]}, {}),
    "qwen3_5": ("qwen3_5", DELTA, QWEN_VISION, {}),
    "qwen3_5_moe": ("qwen3_5_moe", DELTA | QWEN_MOE | {"shared_expert_intermediate_size": 40}, QWEN_VISION, {}),
    "gemma3": ("gemma3", GEMMA | {"num_hidden_layers": 7, "final_logit_softcapping": 2.0}, VISION, {}),
    "gemma3, untied": ("gemma3", GEMMA, VISION, {"tie_word_embeddings": False}),
    "gemma4": ("gemma4", GEMMA4 | {"final_logit_softcapping": 3.0}, None, {}),
    "gemma4_unified": ("gemma4_unified", GEMMA4_UNIFIED, None, {"tie_word_embeddings": False}),
    "llama4": ("llama4", LLAMA4, LLAMA4_VISION, {}),
    "llama4, tied": ("llama4", LLAMA4 | {"tie_word_embeddings": True}, LLAMA4_VISION, {}),
    "aya_vision": ("aya_vision", COHERE2, VISION, {}),
    "cohere2_vision": ("cohere2_vision", COHERE2, VISION, {"tie_word_embeddings": False}),
    "llava_next_video": ("llava_next_video", {"model_type": "llama"}, CLIP, {}),
    "llava_onevision": ("llava_onevision", {"model_type": "qwen2"}, VISION, {}),
    "video_llava": ("video_llava", {"model_type": "llama"}, CLIP, {}),
    "vipllava": ("vipllava", {"model_type": "llama"}, CLIP, {}),
    "idefics2": ("idefics2", {"model_type": "mistral", "head_dim": 16}, VISION, {}),
    "lfm2_vl": ("lfm2_vl", {"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * 2}, VISION, {}),
    "glm46v": ("glm46v", {"model_type": "glm4v_text", "rope_parameters": GLM_MROPE}, QWEN_VISION, {}),
    "glm4v_moe": ("glm4v_moe", SIGMOID | {"n_routed_experts": 6, "rope_parameters": GLM_MROPE}, QWEN_VISION, {}),
    "got_ocr2": ("got_ocr2", {"model_type": "qwen2"}, VISION, {}),
    "ovis2": ("ovis2", {"model_type": "qwen2"}, VISION, {"hidden_size": 64, "vocab_size": 96}),
    "lighton_ocr": ("lighton_ocr", {"model_type": "qwen3"}, PIXTRAL, {}),
    "deepseek_vl": ("deepseek_vl", {"model_type": "llama"}, VISION, {}),
    "kimi_k25": ("kimi_k25", DEEPSEEK | GROUPS | {"model_type": "deepseek_v3"}, VISION, {}),
    "video_llama_3": ("video_llama_3", {"model_type": "qwen2"}, VISION, {}),
    "exaone4_5": ("exaone4_5", {"model_type": "exaone4"}, VISION, {}),
    "qwen3_vl_moe": ("qwen3_vl_moe", QWEN_MOE | {"head_dim": 16, "rope_parameters": MROPE},
                     QWEN_VISION | {"deepstack_visual_indexes": [0]}, {}),
    "glm4v": ("glm4v", {"rope_parameters": GLM_MROPE},
              QWEN_VISION, {}),
}  # fmt: skip


def saved(path: Path, case: str) -> Reference:
    """A model with its vision part, as transformers writes it."""
    model_type, text, vision, outer = CASES[case]
    config = AutoConfig.for_model(model_type, text_config=TEXT | text, vision_config=vision, **outer)
    model = randomized(AutoModelForImageTextToText.from_config(config, attn_implementation="eager"))
    model.save_pretrained(path)
    if model_type == "kimi_k25":  # transformers saves its layers under a name that it does not read
        tensors = load_file(path / "model.safetensors")
        save_file({name.replace(".blocks.", ".layers."): tensors[name] for name in tensors}, path / "model.safetensors")
    # Llama 4's class of the whole model fails without an image.
    return Reference(path, model.language_model if model_type == "llama4" else model)


@pytest.mark.parametrize("case", CASES)
def test_the_text_part_has_the_logits_and_ids_of_the_reference(tmp_path: Path, case: str) -> None:
    reference = saved(tmp_path, case)
    assert [note.what for note in ModelFolder.open(tmp_path).notes] == [
        "text alone goes in, though the model reads images too"
    ]
    engine = engine_of(tmp_path, library=kernels())
    assert relative_error(engine.logits(IDS), reference.logits(IDS)) < TOLERANCE
    assert greedy(engine, 12) == reference.greedy(IDS, 12)


def test_the_text_of_a_gemma3n_is_that_of_its_class(tmp_path: Path) -> None:
    """Its class of the whole model needs a library for images. Files keep tensors that shared layers do not read."""
    wanted = write_reference(
        tmp_path, "gemma3n_text", **GEMMA3N | {"num_hidden_layers": 7, "num_kv_shared_layers": 3}
    ).logits(IDS)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {f"model.language_model.{name.removeprefix('model.')}": tensors[name] for name in tensors}
    shared = "model.language_model.layers.{}.self_attn.{}.weight"
    for name in ("k_proj", "v_proj", "k_norm"):
        tensors[shared.format(6, name)] = tensors[shared.format(1, name)].clone()
    tensors["model.audio_tower.norm.weight"] = tensors["model.language_model.norm.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3n", "text_config": text}))
    assert [note.names for note in ModelFolder.open(tmp_path).notes] == [()]
    assert relative_error(engine_of(tmp_path).logits(IDS), wanted) < TOLERANCE


@pytest.mark.parametrize("case", ["qwen2_vl", "qwen2_5_vl"])
def test_a_flat_config_means_the_same(tmp_path: Path, case: str) -> None:
    wanted = saved(tmp_path, case).logits(IDS)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = text | config | {"rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert relative_error(engine_of(tmp_path).logits(IDS), wanted) < TOLERANCE


def test_the_first_files_of_exaone_4_5_name_its_text_otherwise(tmp_path: Path) -> None:
    wanted = saved(tmp_path, "exaone4_5").logits(IDS)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["model_type"] = "exaone4_5_text"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert relative_error(engine_of(tmp_path).logits(IDS), wanted) < TOLERANCE


@pytest.mark.parametrize("text_type", sorted(TEXTS.keys() - {"ministral3"}))
def test_what_text_config_leaves_out_is_the_default_of_its_class(text_type: str) -> None:
    whole = json.loads(AutoConfig.for_model(text_type).to_json_string(use_diff=False))
    outer = {"model_type": "llava", "vision_config": {}}
    short = {"model_type": text_type}
    wanted = architecture_of(HfConfig(outer | {"text_config": whole}), ()).config
    assert architecture_of(HfConfig(outer | {"text_config": short}), ()).config == wanted


def class_defaults(model_type: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(AutoConfig.for_model(model_type).to_json_string(use_diff=False))
    if model_type == "glm4v_moe":  # its default sizes contradict each other
        fields["text_config"]["num_attention_heads"] = 32
    return fields


@pytest.mark.parametrize("model_type", WRAPPERS)
def test_every_field_of_the_class_is_understood(model_type: str) -> None:
    fields = class_defaults(model_type)
    assert architecture_of(HfConfig(fields), ()).left_over == ()


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe"])
def test_a_default_left_out_changes_nothing(model_type: str) -> None:
    fields = class_defaults(model_type)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    short = {name: fields["text_config"][name] for name in sizes}
    wanted = architecture_of(HfConfig(fields), ()).config
    assert architecture_of(HfConfig({"model_type": model_type, "text_config": short}), ()).config == wanted


@pytest.mark.parametrize("model_type", ["llava", "qwen3_vl", "glm4v"])
def test_a_flat_config_is_refused_where_the_reference_would_not_read_it(model_type: str) -> None:
    with pytest.raises(BrokenCheckpoint, match="text_config must be an object"):
        architecture_of(HfConfig({"model_type": model_type} | TEXT), ())


def test_a_field_that_the_reference_reads_is_refused_beside_text_config() -> None:
    fields = {"model_type": "llava", "text_config": {"model_type": "llama"}, "sliding_window": 8}
    with pytest.raises(UnsupportedArchitecture, match="sliding_window = 8"):
        architecture_of(HfConfig(fields), ())


@pytest.mark.parametrize(
    ("model_type", "image_token"), [("llava", "image_token_index"), ("idefics3", "image_token_id")]
)
def test_the_vocabulary_of_the_text_counts_where_older_files_name_one_beside_it(
    model_type: str, image_token: str
) -> None:
    text = TEXT | {"model_type": "llama", "vocab_size": 320}
    fields = {"model_type": model_type, "text_config": text, "vision_config": {}, "vocab_size": 128, image_token: 9}
    assert architecture_of(HfConfig(fields), ()).config.vocab_size == 320


def test_a_text_of_another_family_is_refused_by_name() -> None:
    fields = {"model_type": "llava", "text_config": {"model_type": "gpt2"}}
    with pytest.raises(UnsupportedArchitecture, match="`llava` models around `gpt2`"):
        architecture_of(HfConfig(fields), ())


def test_a_value_that_is_not_known_is_refused_inside_of_a_wrapper() -> None:
    fields = {"model_type": "llava", "text_config": {"model_type": "llama", "hidden_act": "tanhshrink"}}
    with pytest.raises(UnsupportedArchitecture, match="tanhshrink"):
        architecture_of(HfConfig(fields), ())
