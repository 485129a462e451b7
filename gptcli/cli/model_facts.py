"""Facts about a model that need no weights: where its settings come from, and how much memory it takes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from gptcli.checkpoint.generation_config import generation_source
from gptcli.errors import GptcliError
from gptcli.language_model import LanguageModel
from gptcli.settings import SamplingConfig
from gptcli.text.tokenizer import Tokenizer


def doubled_bos(tokenizer: Tokenizer, ids: Sequence[int]) -> str | None:
    """The name of BOS if a prompt begins with it twice, else None."""
    first = ids[:2]
    if len(first) < 2 or first[0] != first[1]:
        return None
    name = tokenizer.token_name(first[0])
    begins = name == tokenizer.named_tokens.get("bos_token") or first[0] in tokenizer.surroundings[0]
    return name if begins else None


def has_template(lm: LanguageModel) -> bool:
    """Whether a model has a chat template that can be read."""
    try:
        return bool(lm.template)
    except GptcliError:
        return False


def stop_sources(lm: LanguageModel) -> dict[str, Sequence[int]]:
    """The ids that end a generation, by the file or store that names them."""
    own = {"tokenizer_config.json": lm.tokenizer.stop_ids} if lm.tokenizer.stop_ids and not lm.folder.is_gguf else {}
    named: dict[str, Sequence[int]] = {**lm.folder.stop_ids, **own}
    of_store = sorted(lm.stop_ids.difference(*named.values()))
    return {**named, "Ollama": of_store} if of_store else named


def sampling_facts(
    lm: LanguageModel, sampling: SamplingConfig, names: Iterable[str], by_flag: Container[str] = ()
) -> dict[str, dict[str, Any]]:
    """Sampling settings by name, each with the origin of its value. by_flag: the names that an option gave."""

    def origin(name: str) -> str:
        if name in by_flag:
            return "flag"
        if name in lm.store.sampling:
            return "Ollama"
        return generation_source(lm.folder)[0] if name in lm.sampling_defaults else "gptcli"

    return {name: {"value": getattr(sampling, name), "from": origin(name)} for name in names}


def weight_bytes(lm: LanguageModel) -> dict[str, int]:
    """Bytes of the weights as they are stored, and in fp32."""
    return {"weights_as_stored": lm.folder.weight_bytes, "weights_in_fp32": 4 * lm.folder.parameter_count}
