"""Reads sampling defaults from a model's generation_config.json, or from config.json where there is none.

Every field of transformers' GenerationConfig is applied, noted, or without effect; a test checks these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gptcli.errors import BrokenCheckpoint, UsageError
from gptcli.files import Unusable
from gptcli.model_notes import Note
from gptcli.settings import SamplingConfig

# SamplingConfig's fields that a model can set.
MODEL_SETTINGS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "no_repeat_ngram_size"),
)
_ID_LISTS = {"suppress_tokens", "begin_suppress_tokens", "bad_words_ids"}
_NUMBERS = {*MODEL_SETTINGS, "repetition_penalty"} - _ID_LISTS - {"repeat_penalty", "repeat_last_n"}
DONE = _NUMBERS | _ID_LISTS | {"do_sample", "eos_token_id"}

_OFF = -1  # other programs' "off", except in the fields below
_NEVER_OFF = {"temperature", "repetition_penalty"}
# transformers' defaults: worth no note
_USUAL = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None, "typical_p": 1.0}
_TINY_TOP_P = 1e-9  # for transformers' 0, which leaves the likeliest token only

# Fields that change a text and are not applied, each with the values that mean off besides null and -1.
NOTED: dict[str, tuple[Any, ...]] = {
    "max_length": (20,),  # transformers' default; we have our own
    "max_new_tokens": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "stop_strings": ([], ""),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "top_h": (),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
    "encoder_repetition_penalty": (1,),  # transformers applies these two to the prompt of a decoder
    "encoder_no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ([], {}),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "diversity_penalty": (0,),
    "constraints": ([],),
    "force_words_ids": ([],),
}

# Fields that change no text: caches, outputs, ids that are read elsewhere, speed, beams, encoders.
WITHOUT_EFFECT = frozenset(
    """
    use_cache cache_implementation cache_config max_cache_len prefill_chunk_size low_memory compile_config
    disable_compile continuous_batching_config use_mtp
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    pad_token_id bos_token_id decoder_start_token_id transformers_version _from_model_config
    early_stopping length_penalty remove_invalid_values
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type
    """.split()
)


GGUF_METADATA = "GGUF metadata"  # in place of a file's name

GENERATION_FIELDS = DONE | NOTED.keys() | WITHOUT_EFFECT


class _Folder(Protocol):
    """See `folder.ModelFolder`."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def generation_config(self) -> Mapping[str, Any] | None: ...
    @property
    def is_gguf(self) -> bool: ...


def generation_source(folder: _Folder) -> tuple[str, Mapping[str, Any]]:
    """The name and fields of the generation config; as in transformers, config.json if there is nothing else."""
    if folder.generation_config is None:
        return "config.json", folder.config
    return GGUF_METADATA if folder.is_gguf else "generation_config.json", folder.generation_config


def sampling_defaults(fields: Mapping[str, Any], where: str = "generation_config.json") -> dict[str, Any]:
    """Defaults for those of MODEL_SETTINGS that the model sets. Raises BrokenCheckpoint for bad values."""
    given = {name: value for name in (*_NUMBERS, *_ID_LISTS) if _is_set(name, value := fields.get(name))}
    for name in _NUMBERS & given.keys():
        if type(given[name]) not in (int, float):
            raise BrokenCheckpoint(f"{where}: {name} must be a number, not {str(given[name])[:40]!r}")
    defaults: dict[str, Any] = {name: given[name] for name in MODEL_SETTINGS if name in given}
    if defaults.get("top_p") == 0:
        defaults["top_p"] = _TINY_TOP_P
    if defaults.get("typical_p", 1) > 1:
        defaults["typical_p"] = 1.0  # off, as in transformers
    if "repetition_penalty" in given:
        # transformers applies it to the whole context.
        defaults |= {"repeat_penalty": given["repetition_penalty"], "repeat_last_n": -1}
    if fields.get("do_sample") is False:
        defaults["temperature"] = 0.0
    for name in _ID_LISTS & given.keys():
        defaults[name] = _ids(name, given[name], where)
    try:
        SamplingConfig.resolve({}, defaults)
    except UsageError as error:
        raise BrokenCheckpoint(f"{where}: {error.message}") from None
    return defaults


def generation_notes(fields: Mapping[str, Any], where: str, context: int) -> list[Note]:
    """Notes on what a model asks of generation and is not applied. A max_length from the context on changes nothing."""
    given = {name: value for name in NOTED if not isinstance(value := fields.get(name), Unusable)}
    asked = [name for name, value in given.items() if _is_set(name, value) and value not in NOTED[name]]
    length = fields.get("max_length")
    if "max_length" in asked and isinstance(length, int) and length >= context:
        asked.remove("max_length")
    notes = [Note(f"not done, though {where} asks for it", tuple(asked))] if asked else []
    if drawn := _drawn_anyway(fields, where):
        what = f"done, though {where} has no do_sample, without which transformers takes the likeliest tokens"
        notes.append(Note(what, drawn))
    return notes


def _drawn_anyway(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Settings that only affect sampling, if the model does not set do_sample."""
    if fields.get("do_sample") is not None:
        return ()
    try:
        defaults = sampling_defaults(fields, where)
    except BrokenCheckpoint:  # raised elsewhere
        return ()
    return tuple(name for name, usual in _USUAL.items() if defaults.get(name, usual) != usual)


def _is_set(name: str, value: Any) -> bool:
    return value is not None and (isinstance(value, Unusable) or value != _OFF or name in _NEVER_OFF)


def _ids(name: str, value: Any, where: str) -> tuple[Any, ...]:
    """A field's ids, as a tuple without negative ones, which no token has; bad words as tuples of all their ids."""
    if name == "bad_words_ids":
        if not isinstance(value, list) or not all(isinstance(word, list) for word in value):
            raise BrokenCheckpoint(f"{where}: {name} must be a list of lists of token ids")
        return tuple(tuple(word) for word in value)
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise BrokenCheckpoint(f"{where}: {name} must be a list of token ids")
    return tuple(token for token in value if token >= 0)
