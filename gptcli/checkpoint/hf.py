"""Reads a Hugging Face config.json strictly: typed, ranged, both dialects, and no field left unread in silence.

A field that no reader asked for and that is not known to be harmless may change the mathematics, so it is refused
by name. Knows nothing of files or of single families.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling

# Fields that say how to train, where a file came from or what another program does by default. None of them
# changes the logits of a decoder at inference.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_internal _name_or_path add_cross_attention architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id hidden_dropout id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads quantization
    quantization_config remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p
    torch_dtype torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_cache
    """.split()
)

_MAX_COUNT = 1 << 24  # beyond any width or vocabulary there is
_MAX_LAYERS = 4096


class HfConfig:
    """The fields of one config.json; remembers which were read, so that `refuse_unread` can name the others."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        self._fields = fields
        self._where = where
        self._read: set[str] = set()

    @property
    def model_type(self) -> str:
        """The family's name."""
        value = self._fields.get("model_type")
        if not isinstance(value, str):
            raise BrokenCheckpoint(f"{self._where}: model_type must be a string, not {value!r}")
        return value

    def _get(self, name: str) -> Any:
        self._read.add(name)
        return self._fields.get(name)

    def _wrong(self, name: str, expected: str, value: Any) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._where}: {name} must be {expected}, not {str(value)[:60]!r}")

    def whole(self, name: str, default: int | None = None, *, low: int = 1, high: int = _MAX_COUNT) -> int:
        """A whole number in [low, high]; absent or null gives the default, and is an error where that is None."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"a whole number between {low} and {high}", value)
        return value

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.whole("num_hidden_layers", high=_MAX_LAYERS)

    def optional_whole(self, name: str) -> int | None:
        """A whole number of at least 1, or None where it is absent or null."""
        return None if self._get(name) is None else self.whole(name)

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number above `low`; absent or null gives the default, and is an error where that is None."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value) or value <= low:
            raise self._wrong(name, f"a number above {low:g}", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; absent or null gives the default."""
        value = self._get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(name, "true or false", value)
        return value

    def text(self, name: str, default: str) -> str:
        """A text; absent or null gives the default."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def per_layer(self, name: str, layers: int) -> list[Any] | None:
        """A list with one entry a layer, or None where it is absent or null."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < layers:
            raise self._wrong(name, f"a list of {layers}", value)
        return value[:layers]

    def rope(self, head_dim: int, default_theta: float) -> RopeConfig:
        """Rotary settings from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`."""
        outer_theta = self.number("rope_theta", default_theta)
        old, new = self._get("rope_scaling"), self._get("rope_parameters")
        parameters = new if new is not None else old if old is not None else {}
        if not isinstance(parameters, dict):
            raise self._wrong("rope_parameters" if new is not None else "rope_scaling", "an object", parameters)
        rope = HfConfig(parameters, f"{self._where}: rope")
        theta = rope.number("rope_theta", outer_theta, low=1.0)
        kind = rope.text("rope_type", rope.text("type", "default"))
        context = self.whole("max_position_embeddings")
        scaling: LinearScaling | Llama3Scaling | YarnScaling | None
        match kind:
            case "default":
                scaling = None
            case "linear":
                scaling = LinearScaling(factor=rope.number("factor"))
            case "llama3":
                scaling = Llama3Scaling(
                    factor=rope.number("factor"),
                    low_freq_factor=rope.number("low_freq_factor"),
                    high_freq_factor=rope.number("high_freq_factor"),
                    original_context=rope.whole("original_max_position_embeddings", context),
                )
            case "yarn":
                original = rope.whole("original_max_position_embeddings", context)
                factor = rope.number("factor", context / original)
                scaling = YarnScaling(
                    factor=factor,
                    original_context=original,
                    magnitude=_yarn_magnitude(rope, factor),
                    beta_fast=rope.number("beta_fast", 32.0),
                    beta_slow=rope.number("beta_slow", 1.0),
                    truncate=rope.flag("truncate", True),
                )
            case _:
                raise UnsupportedArchitecture(f"{self._where}: rope type {kind!r} is not supported")
        rope.refuse_unread()
        return RopeConfig(theta=theta, dim=head_dim, scaling=scaling)

    def expect(self, name: str, *harmless: Any) -> None:
        """Accepts a field only where it is absent, null or one of the values that leave the mathematics as they are."""
        value = self._get(name)
        if value is not None and not any(value == known and type(value) is type(known) for known in harmless):
            raise UnsupportedArchitecture(f"{self._where}: {name} = {str(value)[:60]!r} is not supported")

    def refuse_unread(self) -> None:
        """Raises UnsupportedArchitecture naming the fields that nobody read and that may matter."""
        unread = sorted(
            name
            for name, value in self._fields.items()
            if name not in self._read and name not in HARMLESS and value is not None
        )
        if unread:
            listed = ", ".join(f"{name} = {str(self._fields[name])[:40]}" for name in unread[:5])
            more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
            raise UnsupportedArchitecture(
                f"{self._where}: not supported: {listed}{more}",
                hint="these fields may change what the model computes, so they are not ignored",
            )


def _yarn_magnitude(rope: HfConfig, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = rope.number("attention_factor", math.nan)
    numerator, denominator = rope.number("mscale", math.nan), rope.number("mscale_all_dim", math.nan)
    if not math.isnan(given):
        return given
    if math.isnan(numerator) or math.isnan(denominator):
        return mscale(1.0)
    return mscale(numerator) / mscale(denominator)
