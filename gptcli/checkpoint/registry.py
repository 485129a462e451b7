"""Which families there are, by `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gptcli.checkpoint.families.gemma import gemma, gemma2, gemma3, gemma3_text
from gptcli.checkpoint.families.gpt import gpt2, gpt_neo, gpt_neox, gptj, openai_gpt
from gptcli.checkpoint.families.layer_norm import cohere, cohere2, glm4, phi, stablelm, starcoder2
from gptcli.checkpoint.families.llama import granite, llama, ministral3, mistral, phi3, qwen2, qwen3, smollm3
from gptcli.checkpoint.families.moe import gpt_oss, mixtral, qwen2_moe, qwen3_moe
from gptcli.checkpoint.families.olmo import olmo, olmo2, olmo3
from gptcli.checkpoint.hf import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

FAMILIES: dict[str, Family] = {
    "cohere": cohere,
    "cohere2": cohere2,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma3_text": gemma3_text,
    "glm4": glm4,
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "llama": llama,
    "ministral3": ministral3,
    "mistral": mistral,
    "mixtral": mixtral,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "openai-gpt": openai_gpt,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}


def architecture_of(hf: HfConfig, tensors: Collection[str]) -> Architecture:
    """The decoder that a config describes, for a checkpoint with tensors of these names.

    Raises UnsupportedArchitecture for an unknown `model_type` or a field that the family does not read, and
    BrokenCheckpoint for values out of range.
    """
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f"`{hf.model_type}` models are not supported",
            hint="run `gptcli models --supported` to see which are",
        )
    architecture = family(hf, tensors)
    hf.refuse_unread()
    return architecture
