"""What is known of a model before its weights are read: where its settings come from, and what it takes of memory."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.language_model import LanguageModel


def stop_sources(lm: LanguageModel) -> dict[str, Sequence[int]]:
    """The ids that end a generation, by the file that names them."""
    own = {"tokenizer_config.json": lm.tokenizer.stop_ids} if lm.tokenizer.stop_ids else {}
    return {**lm.folder.stop_ids, **own}


def default_origin(field: str, lm: LanguageModel) -> str:
    """Where the default of a sampling setting comes from."""
    return "generation_config.json" if field in lm.sampling_defaults else "gptcli"


def weight_bytes(lm: LanguageModel) -> dict[str, int]:
    """What the weights take as they are stored, and where they are expanded."""
    return {"weights_as_stored": lm.folder.weight_bytes, "weights_in_fp32": 4 * lm.folder.parameter_count}
