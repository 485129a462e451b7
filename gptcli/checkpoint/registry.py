"""Which families there are, by `model_type`."""

from __future__ import annotations

from collections.abc import Callable, Collection

from gptcli.checkpoint.families.llama import llama, mistral, qwen2, qwen3, smollm3
from gptcli.checkpoint.hf import HfConfig
from gptcli.checkpoint.recipes import Architecture
from gptcli.errors import UnsupportedArchitecture

Family = Callable[[HfConfig, Collection[str]], Architecture]

FAMILIES: dict[str, Family] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "smollm3": smollm3,
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
