"""All families by `model_type`, and the defaults of their configs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from gptcli.checkpoint.config.class_defaults import DEFAULTS, OTHER_NAMES
from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families import (
    deepseek,
    gemma,
    gemma3n,
    gpt,
    lfm2,
    llama,
    llama4,
    llama_layer_norm,
    llama_plain_mlp,
    llama_relatives,
    mamba,
    moe,
    moe_relatives,
    olmo,
    open_gpts,
    qwen_hybrid,
)
from gptcli.checkpoint.families.vision import WRAPPERS, Family
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

_TEXT_MODELS: dict[str, Family] = {
    "apertus": llama_plain_mlp.apertus,
    "arcee": llama_plain_mlp.arcee,
    "bamba": mamba.bamba,
    "bloom": open_gpts.bloom,
    "codegen": open_gpts.codegen,
    "cohere": llama_layer_norm.cohere,
    "cohere2": llama_layer_norm.cohere2,
    "cwm": llama_relatives.cwm,
    "deepseek_v2": deepseek.deepseek_v2,
    "deepseek_v3": deepseek.deepseek_v3,
    "dots1": moe_relatives.dots1,
    "ernie4_5": llama_relatives.ernie4_5,
    "ernie4_5_moe": moe_relatives.ernie4_5_moe,
    "exaone4": llama_relatives.exaone4,
    "falcon": open_gpts.falcon,
    "falcon_h1": mamba.falcon_h1,
    "flex_olmo": moe_relatives.flex_olmo,
    "gemma": gemma.gemma,
    "gemma2": gemma.gemma2,
    "gemma3_text": gemma.gemma3_text,
    "gemma3n_text": gemma3n.gemma3n_text,
    "gemma4_text": gemma3n.gemma4_text,
    "gemma4_unified_text": gemma3n.gemma4_unified_text,
    "glm": llama_layer_norm.glm,
    "glm4": llama_layer_norm.glm4,
    "glm4_moe": moe_relatives.glm4_moe,
    "glm4_moe_lite": deepseek.glm4_moe_lite,
    "gpt2": gpt.gpt2,
    "gpt_bigcode": open_gpts.gpt_bigcode,
    "gpt_neo": gpt.gpt_neo,
    "gpt_neox": gpt.gpt_neox,
    "gpt_oss": moe.gpt_oss,
    "gptj": gpt.gptj,
    "granite": llama.granite,
    "granitemoe": moe_relatives.granitemoe,
    "granitemoehybrid": mamba.granitemoehybrid,
    "granitemoeshared": moe_relatives.granitemoeshared,
    "helium": llama_relatives.helium,
    "hunyuan_v1_dense": llama_relatives.hunyuan_v1_dense,
    "hunyuan_v1_moe": moe_relatives.hunyuan_v1_moe,
    "kimi_k2": deepseek.kimi_k2,
    "lfm2": lfm2.lfm2,
    "lfm2_moe": lfm2.lfm2_moe,
    "llama": llama.llama,
    "llama4_text": llama4.llama4_text,
    "mamba2": mamba.mamba2,
    "minicpm3": deepseek.minicpm3,
    "minimax_m2": moe_relatives.minimax_m2,
    "ministral": llama_relatives.ministral,
    "ministral3": llama.ministral3,
    "mistral": llama.mistral,
    "mixtral": moe.mixtral,
    "mpt": open_gpts.mpt,
    "nanochat": llama_plain_mlp.nanochat,
    "nemotron": llama_plain_mlp.nemotron,
    "nemotron_h": mamba.nemotron_h,
    "olmo": olmo.olmo,
    "olmo2": olmo.olmo2,
    "olmo3": olmo.olmo3,
    "olmoe": moe_relatives.olmoe,
    "openai-gpt": gpt.openai_gpt,
    "opt": open_gpts.opt,
    "phi": llama_layer_norm.phi,
    "phi3": llama.phi3,
    "phimoe": moe_relatives.phimoe,
    "qwen2": llama.qwen2,
    "qwen2_moe": moe.qwen2_moe,
    "qwen3": llama.qwen3,
    "qwen3_5_moe_text": qwen_hybrid.qwen3_5_moe_text,
    "qwen3_5_text": qwen_hybrid.qwen3_5_text,
    "qwen3_moe": moe.qwen3_moe,
    "qwen3_next": qwen_hybrid.qwen3_next,
    "seed_oss": llama_relatives.seed_oss,
    "smollm3": llama.smollm3,
    "stablelm": llama_layer_norm.stablelm,
    "starcoder2": llama_layer_norm.starcoder2,
    "vaultgemma": gemma.vaultgemma,
    "xglm": open_gpts.xglm,
}
FAMILIES: dict[str, Family] = dict(sorted((_TEXT_MODELS | WRAPPERS).items()))

# Model types without a class in transformers, and the type whose class they use.
SAME_AS = {"kimi_k2": "deepseek_v3"}


def architecture_of(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """The decoder that a config describes, for a checkpoint with tensors of these names.

    Raises UnsupportedArchitecture for an unknown `model_type`, for a field that transformers reads and we do not, and
    for code of the model's own; BrokenCheckpoint for values out of range.
    """
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f"`{hf.model_type}` models are not supported",
            hint="run `gptcli models --supported` to see which are",
        )
    hf = hf.replaced(model_type=SAME_AS.get(hf.model_type, hf.model_type))
    hf.refuse_own_code()
    hf = hf.renamed(OTHER_NAMES.get(hf.model_type, {})).with_defaults(DEFAULTS.get(hf.model_type, {}))
    architecture = family(hf, tensors)
    hf.check_unread(hf.model_type)
    return replace(architecture, left_over=tuple(dict.fromkeys(hf.left_over)))
