"""All families by `model_type`, and the defaults of their configs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from gptcli.checkpoint.config.class_defaults import DEFAULTS, OTHER_NAMES
from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.families.deepseek import deepseek_v2, deepseek_v3, glm4_moe_lite, kimi_k2, minicpm3
from gptcli.checkpoint.families.gemma import gemma, gemma2, gemma3_text, vaultgemma
from gptcli.checkpoint.families.gemma3n import gemma3n_text, gemma4_text, gemma4_unified_text
from gptcli.checkpoint.families.gpt import gpt2, gpt_neo, gpt_neox, gptj, openai_gpt
from gptcli.checkpoint.families.layer_norm import cohere, cohere2, glm, glm4, phi, stablelm, starcoder2
from gptcli.checkpoint.families.lfm2 import lfm2, lfm2_moe
from gptcli.checkpoint.families.llama import granite, llama, ministral3, mistral, phi3, qwen2, qwen3, smollm3
from gptcli.checkpoint.families.llama4 import llama4_text
from gptcli.checkpoint.families.llama_relatives import (
    cwm,
    ernie4_5,
    exaone4,
    helium,
    hunyuan_v1_dense,
    ministral,
    seed_oss,
)
from gptcli.checkpoint.families.mamba import bamba, falcon_h1, granitemoehybrid, mamba2, nemotron_h
from gptcli.checkpoint.families.moe import gpt_oss, mixtral, qwen2_moe, qwen3_moe
from gptcli.checkpoint.families.moe_relatives import (
    dots1,
    ernie4_5_moe,
    flex_olmo,
    glm4_moe,
    granitemoe,
    granitemoeshared,
    hunyuan_v1_moe,
    minimax_m2,
    olmoe,
    phimoe,
)
from gptcli.checkpoint.families.olmo import olmo, olmo2, olmo3
from gptcli.checkpoint.families.open_gpts import bloom, codegen, falcon, gpt_bigcode, mpt, opt, xglm
from gptcli.checkpoint.families.plain_mlp import apertus, arcee, nanochat, nemotron
from gptcli.checkpoint.families.qwen_hybrid import (
    qwen3_5_moe_text,
    qwen3_5_text,
    qwen3_next,
)
from gptcli.checkpoint.families.vision import WRAPPERS
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

_TEXT_MODELS: dict[str, Family] = {
    "apertus": apertus,
    "arcee": arcee,
    "bamba": bamba,
    "bloom": bloom,
    "codegen": codegen,
    "cohere": cohere,
    "cohere2": cohere2,
    "cwm": cwm,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "dots1": dots1,
    "ernie4_5": ernie4_5,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone4": exaone4,
    "falcon": falcon,
    "falcon_h1": falcon_h1,
    "flex_olmo": flex_olmo,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "gemma3n_text": gemma3n_text,
    "gemma4_text": gemma4_text,
    "gemma4_unified_text": gemma4_unified_text,
    "glm": glm,
    "glm4": glm4,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "granitemoe": granitemoe,
    "granitemoehybrid": granitemoehybrid,
    "granitemoeshared": granitemoeshared,
    "helium": helium,
    "hunyuan_v1_dense": hunyuan_v1_dense,
    "hunyuan_v1_moe": hunyuan_v1_moe,
    "kimi_k2": kimi_k2,
    "lfm2": lfm2,
    "lfm2_moe": lfm2_moe,
    "llama": llama,
    "llama4_text": llama4_text,
    "mamba2": mamba2,
    "minicpm3": minicpm3,
    "minimax_m2": minimax_m2,
    "ministral": ministral,
    "ministral3": ministral3,
    "mistral": mistral,
    "mixtral": mixtral,
    "mpt": mpt,
    "nanochat": nanochat,
    "nemotron": nemotron,
    "nemotron_h": nemotron_h,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "openai-gpt": openai_gpt,
    "opt": opt,
    "phi": phi,
    "phi3": phi3,
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_5_moe_text": qwen3_5_moe_text,
    "qwen3_5_text": qwen3_5_text,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "seed_oss": seed_oss,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "vaultgemma": vaultgemma,
    "xglm": xglm,
}
FAMILIES: dict[str, Family] = dict(sorted((_TEXT_MODELS | WRAPPERS).items()))

# Model types that transformers has no class for, and whose class they say they are.
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
    hf = hf.of_type(SAME_AS.get(hf.model_type, hf.model_type))
    hf.refuse_own_code()
    hf = hf.renamed(OTHER_NAMES.get(hf.model_type, {})).with_defaults(DEFAULTS.get(hf.model_type, {}))
    architecture = family(hf, tensors)
    hf.check_unread(hf.model_type)
    return replace(architecture, left_over=tuple(dict.fromkeys(hf.left_over)))
