"""Reads a Hugging Face config.json strictly: typed, within range, in both dialects, with every field accounted for.

A field that we do not read is left over if transformers does not read it either, and refused by name if it does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from gptcli.checkpoint import reference_fields
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

T = TypeVar("T")

# Fields that transformers reads and that change no logits: about training, outputs, other heads and other files.
_WITHOUT_EFFECT = frozenset(
    """
    _attn_implementation _attn_implementation_internal _name_or_path architectures attention_dropout
    attn_implementation attn_pdrop auto_map bos_token_id classifier_dropout dtype embd_pdrop embed_dropout
    embedding_dropout eos_token_id experts_implementation gradient_checkpointing hidden_dropout id2label
    initializer_range label2id model_type num_labels output_attentions output_hidden_states output_router_logits
    pad_token_id pretraining_tp problem_type quantization quantization_config resid_dropout resid_pdrop
    residual_dropout return_dict router_aux_loss_coef router_jitter_noise sep_token_id summary_activation
    summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type summary_use_proj torch_dtype
    transformers_version use_cache
    """.split()
)
# Fields that nothing reads and that are in so many files that nobody wants to be told of them.
_COMMONPLACE = frozenset(
    """
    _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _num_labels attention_probs_dropout_prob
    cache_implementation chunk_size_feed_forward cross_attention_hidden_size custom_pipelines decoder_start_token_id
    eod_token_id finetuning_task hidden_dropout_prob is_decoder is_llama_config keys_to_ignore_at_inference
    max_sequence_length model_max_length n_ctx n_special output_past predict_special_tokens prefix pruned_heads
    task_specific_params tf_legacy_loss tie_encoder_decoder tokenizer_class torchscript transformers.js_config
    unsloth_fixed unsloth_version use_bfloat16 use_flash_attention use_flash_attn xla_device
    """.split()
)
# What some tools write of every generation; other values are worth a note.
_OF_GENERATION: dict[str, object] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_scores": False,
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
}
_QUIET = _WITHOUT_EFFECT | _COMMONPLACE
# What some RoPE types read and others do not.
_OF_OTHER_ROPES = frozenset(
    """
    attention_factor beta_fast beta_slow factor high_freq_factor long_factor low_freq_factor
    max_position_embeddings mscale mscale_all_dim original_max_position_embeddings short_factor truncate
    """.split()
)

_INFINITY = ("Infinity", "{'__float__': 'Infinity'}", "inf")  # as older and newer files have it

_MAX_COUNT = 1 << 24  # larger than any known width or vocabulary
_MAX_LAYERS = 1024
_MAX_HEADS = 1024
_MIN_TURNS, _MAX_TURNS = 1e-9, 1e9  # of a rotation within a context


class HfConfig:
    """The fields of one config.json. It remembers which were read, for `check_unread`."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        self._fields = fields
        self._where = where
        self._read: set[str] = set()
        self._rope_extras: set[str] = set()
        self._rope_types: dict[str, str] = {}
        self._prefix = ""  # of the names of fields that are left over
        self.left_over: list[str] = []  # fields that nothing reads, by their paths; found by `check_unread`

    def with_defaults(self, defaults: Mapping[str, Any]) -> HfConfig:
        """The same config, with the fields that it leaves out because its class in transformers has these defaults."""
        given = {name: value for name, value in self._fields.items() if value is not None or name != "rope_parameters"}
        return self._same(HfConfig({**defaults, **given}, self._where))

    def of_type(self, model_type: str) -> HfConfig:
        """The same config by the name of another family."""
        return self.replaced(model_type=model_type)

    def replaced(self, **fields: object) -> HfConfig:
        """The same config with other values of these fields."""
        return self._same(HfConfig({**self._fields, **fields}, self._where))

    def has(self, name: str) -> bool:
        """Whether a field is given and not null."""
        return self._get(name) is not None

    def renamed(self, other_names: Mapping[str, str]) -> HfConfig:
        """The same config by the names that the family reads. Raises BrokenCheckpoint if both are given and differ."""
        fields = dict(self._fields)
        for other, name in other_names.items():
            if (value := fields.pop(other, None)) is None:
                continue
            if fields.get(name) not in (None, value):
                raise BrokenCheckpoint(f"{self._where}: {name} = {fields[name]!r} contradicts {other} = {value!r}")
            fields[name] = value
        return self._like(HfConfig(fields, self._where), self._prefix)

    def section(self, name: str) -> HfConfig:
        """A nested config, such as `text_config`."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return self._like(HfConfig(value, f"{self._where}: {name}"), f"{self._prefix}{name}.")

    def sections_by_layer(self, name: str) -> dict[int, HfConfig]:
        """Nested configs by the number of their layer."""
        fields = self._object(name)
        if not all(layer.isdecimal() and isinstance(own, dict) for layer, own in fields.items()):
            raise self._wrong(name, "objects by their layer", fields)
        nested = self.section(name)
        return {int(layer): nested.section(layer) for layer in fields}

    def _same(self, other: HfConfig) -> HfConfig:
        other._read, other._rope_extras, other._rope_types = self._read, self._rope_extras, self._rope_types
        return self._like(other, self._prefix)

    def _like(self, other: HfConfig, prefix: str) -> HfConfig:
        other._prefix, other.left_over = prefix, self.left_over
        return other

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
        return self._typed(name, default, "true or false")

    def switch(self, name: str, default: bool) -> bool:
        """True or false, or a number that stands for one of them. Absent or null gives the default."""
        value = self._get(name)
        return bool(value) if type(value) is int else self.flag(name, default)

    def string(self, name: str, default: str) -> str:
        """A string. Absent or null gives the default."""
        return self._typed(name, default, "a string")

    def _typed(self, name: str, default: T, expected: str) -> T:
        """A value of the default's type."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, type(default)):
            raise self._wrong(name, expected, value)
        return value

    def per_layer(self, name: str, layers: int) -> list[Any] | None:
        """A list with one entry per layer, or None if absent or null. Longer lists are cut."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < layers:
            raise self._wrong(name, f"a list of {layers}", value)
        return value[:layers]

    def shares_per_layer(self, name: str, layers: int) -> list[float] | None:
        """A number from 0 to less than 1 for each layer, or None if absent or null."""
        shares = self.per_layer(name, layers)
        if shares is not None and any(type(share) not in (int, float) or not 0 <= share < 1 for share in shares):
            raise self._wrong(name, "numbers from 0 to less than 1", shares)
        return shares

    def integer_per_layer(self, name: str, layers: int, default: int | None = None) -> list[int]:
        """A whole number of at least 1 for each layer, from a list or from one for all."""
        if isinstance(self._get(name), list):
            return [HfConfig({name: each}, self._where).integer(name) for each in self.per_layer(name, layers) or ()]
        return [self.integer(name, default)] * layers

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers. Absent or null gives an empty one."""
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self._wrong(name, "a list of whole numbers", value)
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings. Absent or null gives an empty one."""
        value: list[Any] = self._typed(name, [], "a list of strings")
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings", value)
        return value

    def limits(self, name: str) -> tuple[float, float]:
        """A least and a largest number, which may be infinite. Absent or null gives 0 and infinity."""
        value = self._get(name)
        if value is None:
            return 0.0, math.inf
        given = value if isinstance(value, list) else []
        limits = [math.inf if str(item) in _INFINITY else item for item in given]
        if len(limits) != 2 or any(type(item) not in (int, float) for item in limits) or limits[0] > limits[1]:
            raise self._wrong(name, "a least and a largest number", value)
        return float(limits[0]), float(limits[1])

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
        if _is_nested(old or new):
            raise UnsupportedArchitecture(f"{self._where}: in this family RoPE is the same in every layer")
        return self._rope_config("rope_scaling" if old else "rope_parameters", old or new, head_dim, theta, fraction)

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
        return self._rope_config("rope_parameters", parameters, head_dim, theta, None)

    def rope_extra(self, name: str) -> float | None:
        """A number that a family keeps among RoPE's settings. Call it before `rope`, which then accepts the field."""
        self._rope_extras.add(name)
        parameters = self._object("rope_scaling") or self._object("rope_parameters")
        return HfConfig(parameters, f"{self._where}: rope").nonzero(name)

    def ignore_in_rope(self, *names: str) -> None:
        """Accepts fields among RoPE's settings that have no effect in this model. Call it before `rope`."""
        self._rope_extras.update(names)

    @property
    def rope_type(self) -> str:
        """The name of RoPE's type."""
        parameters = self._object("rope_scaling") or self._object("rope_parameters")
        return HfConfig(parameters, f"{self._where}: rope").string("rope_type", str(parameters.get("type", "default")))

    def rename_rope_type(self, old: str, new: str) -> None:
        """Lets `rope` take one name of a RoPE type for another, as a family's early files need it."""
        self._rope_types[old] = new

    def _object(self, name: str) -> dict[str, Any]:
        value = self._get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return value or {}

    def _rope_config(
        self, name: str, parameters: Mapping[str, Any], head_dim: int, theta: float, fraction: float | None
    ) -> RopeConfig:
        rope = self._like(HfConfig(parameters, f"{self._where}: rope"), f"{self._prefix}{name}.")
        theta = rope.number("rope_theta", theta, low=1.0)
        if parameters.get("rope_type") == "proportional":
            turned = int(rope.number("partial_rotary_factor", 1.0, high=1.0) * head_dim // 2)
            proportional = ProportionalScaling(turned=turned, factor=rope.number("factor", 1.0))
            rope.ignore("rope_type")
            rope.check_unread(self.model_type, not_read=_OF_OTHER_ROPES)
            return RopeConfig(theta=theta, dim=head_dim, scaling=proportional)
        if fraction is None:
            rope.expect("partial_rotary_factor", 1.0, 1)
        dim = int(head_dim * rope.number("partial_rotary_factor", fraction or 1.0))
        if dim % 2 or not 0 < dim <= head_dim:
            raise BrokenCheckpoint(f"{self._where}: RoPE cannot turn {dim} of {head_dim} channels: see rotary factors")
        scaling = self._rope_scaling(rope, dim)
        rope._read |= self._rope_extras
        rope.ignore("finetuned")  # written by the authors of Yarn
        if parameters.get("max_position_embeddings") == self._fields.get("max_position_embeddings"):
            rope.ignore("max_position_embeddings")
        rope.check_unread(self.model_type, not_read=_OF_OTHER_ROPES)
        return RopeConfig(theta=theta, dim=dim, scaling=scaling)

    def _rope_scaling(self, rope: HfConfig, dim: int) -> RopeScaling | None:
        kind = rope.string("type", "default")
        kind = rope.string("rope_type", kind)
        kind = self._rope_types.get(kind, kind)
        context = self.integer("max_position_embeddings")
        original = rope.integer("original_max_position_embeddings", context)
        # Phi 3 keeps it at the top level, where it takes precedence.
        original = self.integer("original_max_position_embeddings", original)
        match kind:
            case "default":
                return None
            case "dynamic":
                rope.number("factor")  # takes effect beyond `max_position_embeddings`, where our context ends
                return None
            case "linear":
                return LinearScaling(factor=rope.number("factor"))
            case "llama3":
                low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
                if low > high:
                    raise BrokenCheckpoint(f"{self._where}: rope: low_freq_factor must not be above high_freq_factor")
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

    def numbers(self, name: str, count: int, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """A list of `count` numbers above 0. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
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

    def refuse_own_code(self) -> None:
        """Raises UnsupportedArchitecture if `auto_map` names classes that transformers does not have for this type."""
        classes = self._object("auto_map")
        for kind in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
            name = classes.get(kind)
            if isinstance(name, str) and not reference_fields.has_class(self.model_type, name.rpartition(".")[2]):
                raise UnsupportedArchitecture(
                    f"{self._where}: auto_map: {name} is code of the model's own, and no class of `{self.model_type}`",
                    hint="gptcli runs no code that comes with a model; if that code computes what "
                    f"`{self.model_type}` does, take auto_map out of config.json",
                )

    def check_unread(self, model_type: str, not_read: Collection[str] = ()) -> None:
        """Adds to `left_over` what transformers does not read either.

        not_read: fields that it reads of other configs, not of this one. Raises UnsupportedArchitecture with the names
        of fields that it reads and we do not.
        """
        unread = sorted(name for name, value in self._fields.items() if value is not None and name not in self._read)
        unread = [name for name in unread if name not in _QUIET and not self._is_default(name)]
        refused = [name for name in unread if name not in not_read and reference_fields.reads(model_type, name)]
        if refused:
            listed = ", ".join(f"{name} = {str(self._fields[name])[:40]}" for name in refused[:5])
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise UnsupportedArchitecture(
                f"{self._where}: not supported: {listed}{more}",
                hint="these fields may change what the model computes, so they are not ignored",
            )
        self.left_over += [self._prefix + name for name in unread]

    def _is_default(self, name: str) -> bool:
        """Whether a field that we do not read says what is so anyway."""
        value = self._fields[name]
        match name:
            case "is_encoder_decoder" | "add_cross_attention" | "use_mrope":
                return value is False
            case "is_causal":
                return value is True
            case "layer_types":
                return isinstance(value, list) and all(kind == "full_attention" for kind in value)
        return name in _OF_GENERATION and value == _OF_GENERATION[name]


def _is_nested(fields: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in fields.values())


def yarn_mscale(factor: float, weight: float) -> float:
    """What a context stretched by a factor multiplies queries and keys by (Peng et al., 2023)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn_magnitude(rope: HfConfig, factor: float) -> float:
    given = rope.optional_number("attention_factor")
    numerator, denominator = rope.nonzero("mscale"), rope.nonzero("mscale_all_dim")
    if given is not None:
        return given
    if numerator is None or denominator is None:
        return yarn_mscale(factor, 1.0)
    return yarn_mscale(factor, numerator) / yarn_mscale(factor, denominator)


def _longrope_magnitude(rope: HfConfig, context: int, original: int) -> float:
    factor = rope.number("factor", context / original)
    default = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return rope.number("attention_factor", default)
