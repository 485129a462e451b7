"""Reads a Hugging Face config.json strictly: typed, within range, in both dialects, with no field left unread.

A field that is neither read nor known to be harmless may change the mathematics, so it is refused by name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

# Fields about training, a file's origin or other programs' defaults. None changes a decoder's logits at inference.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_internal _flash_attn_2_enabled _name_or_path _num_labels
    add_cross_attention architectures attention_dropout attention_probs_dropout_prob attn_implementation attn_pdrop
    auto_map bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size custom_pipelines decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping embd_pdrop embed_dropout embedding_dropout encoder_no_repeat_ngram_size
    eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder
    is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length
    max_sequence_length min_length model_max_length model_type n_ctx n_special no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_router_logits output_scores pad_token_id predict_special_tokens prefix pretraining_tp problem_type
    pruned_heads quantization quantization_config remove_invalid_values repetition_penalty resid_dropout resid_pdrop
    residual_dropout return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers.js_config transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16
    use_cache use_flash_attention use_flash_attn xla_device
    """.split()
)

_MAX_COUNT = 1 << 24  # larger than any known width or vocabulary
_MAX_LAYERS = 1024
_MAX_HEADS = 1024
_MIN_TURNS, _MAX_TURNS = 1e-9, 1e9  # of a rotation within a context


class HfConfig:
    """The fields of one config.json. It remembers which were read, for `refuse_unread`."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        self._fields = fields
        self._where = where
        self._read: set[str] = set()
        self._rope_extras: set[str] = set()

    def with_defaults(self, defaults: Mapping[str, Any]) -> HfConfig:
        """The same config, with the fields that it leaves out because its class in transformers has these defaults."""
        given = {name: value for name, value in self._fields.items() if value is not None or name != "rope_parameters"}
        return HfConfig({**defaults, **given}, self._where)

    def section(self, name: str) -> HfConfig:
        """A nested config, such as `text_config`."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return HfConfig(value, f"{self._where}: {name}")

    @property
    def model_type(self) -> str:
        """The name of the family."""
        value = self._fields.get("model_type")
        if not isinstance(value, str):
            raise BrokenCheckpoint(f"{self._where}: model_type must be a string, not {value!r}")
        return value

    def _get(self, name: str) -> Any:
        self._read.add(name)
        return self._fields.get(name)

    def _wrong(self, name: str, expected: str, value: Any) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self._where}: {name} must be {expected}, not {str(value)[:60]!r}")

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = _MAX_COUNT) -> int:
        """A whole number in [low, high]. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"a whole number between {low} and {high}", value)
        return value

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.layers_of("num_hidden_layers")

    def layers_of(self, name: str) -> int:
        """The number of layers, from the field that has it."""
        return self.integer(name, high=_MAX_LAYERS)

    def heads_of(self, name: str, default: int | None = None) -> int:
        """A number of attention heads, from the field that has it."""
        return self.integer(name, default, high=_MAX_HEADS)

    def optional_integer(self, name: str) -> int | None:
        """A whole number of at least 1, or None if absent or null."""
        return None if self._get(name) is None else self.integer(name)

    def number(
        self, name: str, default: float | None = None, *, low: float = 0.0, high: float = sys.float_info.max
    ) -> float:
        """A number above `low`, at most `high`. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not low < value <= high:
            raise self._wrong(name, f"a number above {low:g}", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false. Absent or null gives the default."""
        value = self._get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(name, "true or false", value)
        return value

    def string(self, name: str, default: str) -> str:
        """A string. Absent or null gives the default."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string", value)
        return value

    def per_layer(self, name: str, layers: int) -> list[Any] | None:
        """A list with one entry per layer, or None if absent or null. Longer lists are cut."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < layers:
            raise self._wrong(name, f"a list of {layers}", value)
        return value[:layers]

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers. Absent or null gives an empty one."""
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self._wrong(name, "a list of whole numbers", value)
        return value

    def optional_number(self, name: str) -> float | None:
        """A number above 0, or None if absent or null."""
        return None if self._get(name) is None else self.number(name)

    def nonzero(self, name: str, *, low: float = 0.0, high: float = sys.float_info.max) -> float | None:
        """A number above `low`, or None if absent, null or 0, which some settings treat as absent."""
        value = self._get(name)
        if value is None or (type(value) in (int, float) and value == 0):
            return None
        return self.number(name, low=low, high=high)

    def rope(self, head_dim: int, default_theta: float = 10_000.0, fraction: float | None = None) -> RopeConfig:
        """RoPE's settings, from `rope_theta` and `rope_scaling`, or else from `rope_parameters`.

        fraction: the share of a head's channels that is rotated, unless `partial_rotary_factor` gives another. None is
        all of them, and any other factor is refused.
        """
        theta = self.number("rope_theta", default_theta, low=1.0)
        new, old = self._object("rope_parameters"), self._object("rope_scaling")
        return self._rope_config(old or new, head_dim, theta, fraction)

    def rope_of_layer_type(self, layer_type: str, head_dim: int, theta: float) -> RopeConfig:
        """RoPE's settings for one type of layer, from `rope_parameters`; `rope_scaling` is for full attention only.

        theta: the base, unless the settings give another.
        """
        new, old = self._object("rope_parameters"), self._object("rope_scaling")
        if (new and not _is_nested(new)) or _is_nested(old):  # transformers would ignore these
            raise UnsupportedArchitecture(
                f"{self._where}: in this family rope_parameters must be by layer type, and rope_scaling must not"
            )
        parameters = dict(HfConfig(new, f"{self._where}: rope_parameters")._object(layer_type))
        if layer_type == "full_attention":
            parameters |= old
        rope = HfConfig(parameters, f"{self._where}: rope")
        rope.expect("truncate", True)
        if parameters.get("type") is not None:
            rope.expect("type", parameters.get("rope_type"))
        return self._rope_config(parameters, head_dim, theta, None)

    def rope_extra(self, name: str) -> float | None:
        """A number that a family keeps among RoPE's settings. Call it before `rope`, which then accepts the field."""
        self._rope_extras.add(name)
        parameters = self._object("rope_scaling") or self._object("rope_parameters")
        return HfConfig(parameters, f"{self._where}: rope").nonzero(name)

    def _object(self, name: str) -> dict[str, Any]:
        value = self._get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return value or {}

    def _rope_config(
        self, parameters: Mapping[str, Any], head_dim: int, theta: float, fraction: float | None
    ) -> RopeConfig:
        rope = HfConfig(parameters, f"{self._where}: rope")
        theta = rope.number("rope_theta", theta, low=1.0)
        if fraction is None:
            rope.expect("partial_rotary_factor", 1.0, 1)
        dim = int(head_dim * rope.number("partial_rotary_factor", fraction or 1.0))
        if dim % 2 or not 0 < dim <= head_dim:
            raise BrokenCheckpoint(f"{self._where}: RoPE cannot turn {dim} of {head_dim} channels: see rotary factors")
        scaling = self._rope_scaling(rope, dim)
        rope._read |= self._rope_extras
        rope.expect("finetuned", True, False)  # written by the authors of Yarn
        rope.expect("max_position_embeddings", self._fields.get("max_position_embeddings"))
        rope.refuse_unread()
        return RopeConfig(theta=theta, dim=dim, scaling=scaling)

    def _rope_scaling(self, rope: HfConfig, dim: int) -> RopeScaling | None:
        kind = rope.string("type", "default")
        kind = rope.string("rope_type", kind)
        context = self.integer("max_position_embeddings")
        original = rope.integer("original_max_position_embeddings", context)
        # Phi 3 keeps it at the top level, where it takes precedence.
        original = self.integer("original_max_position_embeddings", original)
        match kind:
            case "default":
                rope.expect("factor", 1.0, 1)
                return None
            case "linear":
                return LinearScaling(factor=rope.number("factor"))
            case "llama3":
                low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
                if low >= high:
                    raise BrokenCheckpoint(f"{self._where}: rope: low_freq_factor must be below high_freq_factor")
                return Llama3Scaling(
                    factor=rope.number("factor"), low_freq_factor=low, high_freq_factor=high, original_context=original
                )
            case "yarn":
                factor = rope.number("factor", context / original)
                return YarnScaling(
                    factor=factor,
                    original_context=original,
                    magnitude=_yarn_magnitude(rope, factor),
                    beta_fast=rope.nonzero("beta_fast", low=_MIN_TURNS, high=_MAX_TURNS) or 32.0,
                    beta_slow=rope.nonzero("beta_slow", low=_MIN_TURNS, high=_MAX_TURNS) or 1.0,
                    truncate=rope.flag("truncate", True),
                )
            case "longrope" | "su":
                if original < 2:
                    raise BrokenCheckpoint(f"{self._where}: rope: original_max_position_embeddings must be at least 2")
                return LongRopeScaling(
                    short=rope.numbers("short_factor", dim // 2),
                    long=rope.numbers("long_factor", dim // 2),
                    original_context=original,
                    magnitude=_longrope_magnitude(rope, context, original),
                )
        raise UnsupportedArchitecture(f"{self._where}: rope type {kind!r} is not supported")

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of `count` numbers above 0."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(name, f"a list of {count} numbers", value)
        return tuple(HfConfig({name: item}, self._where).number(name) for item in value)

    def expect(self, name: str, *harmless: Any) -> None:
        """Refuses a field unless it is absent, null or one of these values, which do not change the mathematics."""
        value = self._get(name)
        if value is not None and not any(value == known and type(value) is type(known) for known in harmless):
            raise UnsupportedArchitecture(f"{self._where}: {name} = {str(value)[:60]!r} is not supported")

    def ignore(self, *names: str) -> None:
        """Accepts fields with any value, because they have no effect in this model."""
        self._read.update(names)

    def refuse_unread(self) -> None:
        """Raises UnsupportedArchitecture with the names of unread fields that may matter."""
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


def _is_nested(fields: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in fields.values())


def _yarn_magnitude(rope: HfConfig, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = rope.optional_number("attention_factor")
    numerator, denominator = rope.nonzero("mscale"), rope.nonzero("mscale_all_dim")
    if given is not None:
        return given
    if numerator is None or denominator is None:
        return mscale(1.0)
    return mscale(numerator) / mscale(denominator)


def _longrope_magnitude(rope: HfConfig, context: int, original: int) -> float:
    factor = rope.number("factor", context / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return rope.number("attention_factor", default)
