"""Reads a Hugging Face config.json strictly: typed, within range, in both dialects, with every field accounted for.

A field that we do not read is left over if transformers does not read it either, and refused by name if it does.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

from gptcli.checkpoint.config import reference_fields
from gptcli.checkpoint.config.rope_scaling import rope_scaling
from gptcli.checkpoint.config.typed_fields import TypedFields
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture
from gptcli.model.config import ProportionalScaling, RopeConfig

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
# Fields that nothing reads, too common for a note.
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
# Settings of generation that some tools always write; only other values are noted.
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
# Fields that only some RoPE types read.
_OF_OTHER_ROPES = frozenset(
    """
    attention_factor beta_fast beta_slow factor high_freq_factor long_factor low_freq_factor
    max_position_embeddings mscale mscale_all_dim original_max_position_embeddings short_factor truncate
    """.split()
)


class HfConfig(TypedFields):
    """The fields of one config.json. `check_unread` accounts for all of them."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        super().__init__(fields, where)
        self._rope_extras: set[str] = set()
        self._rope_types: dict[str, str] = {}
        self._prefix = ""  # of names in `left_over`
        self.left_over: list[str] = []  # fields that nothing reads, by their paths; found by `check_unread`

    def with_defaults(self, defaults: Mapping[str, Any]) -> HfConfig:
        """The same config; fields that it leaves out have these defaults of its class in transformers."""
        given = {name: value for name, value in self._fields.items() if value is not None or name != "rope_parameters"}
        return self._same(HfConfig({**defaults, **given}, self.where))

    def replaced(self, **fields: object) -> HfConfig:
        """The same config with other values of these fields."""
        return self._same(HfConfig({**self._fields, **fields}, self.where))

    def renamed(self, other_names: Mapping[str, str]) -> HfConfig:
        """The same config under the names that the family reads. Raises BrokenCheckpoint if two names contradict."""
        fields = dict(self._fields)
        for other, name in other_names.items():
            if (value := fields.pop(other, None)) is None:
                continue
            if fields.get(name) not in (None, value):
                raise BrokenCheckpoint(f"{self.where}: {name} = {fields[name]!r} contradicts {other} = {value!r}")
            fields[name] = value
        return self._like(HfConfig(fields, self.where), self._prefix)

    def section(self, name: str) -> HfConfig:
        """A nested config, such as `text_config`."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return self._like(HfConfig(value, f"{self.where}: {name}"), f"{self._prefix}{name}.")

    def sections_by_layer(self, name: str) -> dict[int, HfConfig]:
        """Nested configs, by layer index."""
        fields = self.mapping(name)
        if not all(layer.isdecimal() and len(layer) < 20 and isinstance(own, dict) for layer, own in fields.items()):
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
            raise BrokenCheckpoint(f"{self.where}: model_type must be a string, not {value!r}")
        return value

    def rope(self, head_dim: int, default_theta: float = 10_000.0, fraction: float | None = None) -> RopeConfig:
        """RoPE's settings, from `rope_theta` and `rope_scaling`, or else from `rope_parameters`.

        fraction: the share of a head's channels that is rotated, unless `partial_rotary_factor` gives another. None:
        all channels, and any other factor is refused.
        """
        theta = self.number("rope_theta", default_theta, low=1.0)
        new, old = self.mapping("rope_parameters"), self.mapping("rope_scaling")
        if _is_nested(old or new):
            raise UnsupportedArchitecture(f"{self.where}: in this family RoPE is the same in every layer")
        return self._rope_config("rope_scaling" if old else "rope_parameters", old or new, head_dim, theta, fraction)

    def rope_of_layer_type(self, layer_type: str, head_dim: int, theta: float) -> RopeConfig:
        """RoPE's settings for one type of layer, from `rope_parameters`; `rope_scaling` is for full attention only.

        theta: the base, unless the settings give another.
        """
        new, old = self.mapping("rope_parameters"), self.mapping("rope_scaling")
        if (new and not _is_nested(new)) or _is_nested(old):  # transformers would ignore these
            raise UnsupportedArchitecture(
                f"{self.where}: in this family rope_parameters must be by layer type, and rope_scaling must not"
            )
        parameters = dict(HfConfig(new, f"{self.where}: rope_parameters").mapping(layer_type))
        if layer_type == "full_attention":
            parameters |= old
        rope = HfConfig(parameters, f"{self.where}: rope")
        rope.expect("truncate", True)
        if parameters.get("type") is not None:
            rope.expect("type", parameters.get("rope_type"))
        return self._rope_config("rope_parameters", parameters, head_dim, theta, None)

    def rope_extra(self, name: str) -> float | None:
        """A family's own number among RoPE's settings. Call it before `rope`, which then accepts the field."""
        self._rope_extras.add(name)
        return self._rope_settings.nonzero(name)

    def ignore_in_rope(self, *names: str) -> None:
        """Accepts fields among RoPE's settings that have no effect in this model. To be called before `rope`."""
        self._rope_extras.update(names)

    @property
    def rope_type(self) -> str:
        """The name of RoPE's type."""
        return _rope_type(self._rope_settings)

    @property
    def _rope_settings(self) -> TypedFields:
        return TypedFields(self.mapping("rope_scaling") or self.mapping("rope_parameters"), f"{self.where}: rope")

    def rename_rope_type(self, old: str, new: str) -> None:
        """Makes `rope` read RoPE type `old` as `new`, for a family's early files."""
        self._rope_types[old] = new

    def _rope_config(
        self, name: str, parameters: Mapping[str, Any], head_dim: int, theta: float, fraction: float | None
    ) -> RopeConfig:
        rope = self._like(HfConfig(parameters, f"{self.where}: rope"), f"{self._prefix}{name}.")
        theta = rope.number("rope_theta", theta, low=1.0)
        if parameters.get("rope_type") == "proportional":
            rotated = int(rope.number("partial_rotary_factor", 1.0, high=1.0) * head_dim // 2)
            proportional = ProportionalScaling(rotated=rotated, factor=rope.number("factor", 1.0))
            rope.ignore("rope_type")
            rope.check_unread(self.model_type, not_read=_OF_OTHER_ROPES)
            return RopeConfig(theta=theta, dim=head_dim, scaling=proportional)
        if fraction is None:
            rope.expect("partial_rotary_factor", 1.0, 1)
        dim = int(min(head_dim * rope.number("partial_rotary_factor", fraction or 1.0), sys.maxsize))
        if dim % 2 or not 0 < dim <= head_dim:
            raise BrokenCheckpoint(f"{self.where}: RoPE cannot turn {dim} of {head_dim} channels: see rotary factors")
        kind = _rope_type(rope)
        context = self.integer("max_position_embeddings")
        original = rope.integer("original_max_position_embeddings", context)
        # Phi 3 keeps it at the top level, where it takes precedence.
        original = self.integer("original_max_position_embeddings", original)
        scaling = rope_scaling(rope, self._rope_types.get(kind, kind), dim, context, original)
        rope._read |= self._rope_extras
        rope.ignore("finetuned")  # written by the authors of Yarn
        if parameters.get("max_position_embeddings") == self._fields.get("max_position_embeddings"):
            rope.ignore("max_position_embeddings")
        rope.check_unread(self.model_type, not_read=_OF_OTHER_ROPES)
        return RopeConfig(theta=theta, dim=dim, scaling=scaling)

    def refuse_own_code(self) -> None:
        """Raises UnsupportedArchitecture if `auto_map` names classes that transformers does not have for this type."""
        classes = self.mapping("auto_map")
        for kind in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
            name = classes.get(kind)
            if isinstance(name, str) and not reference_fields.has_class(self.model_type, name.rpartition(".")[2]):
                raise UnsupportedArchitecture(
                    f"{self.where}: auto_map: {name} is code of the model's own, and no class of `{self.model_type}`",
                    hint="gptcli runs no code that comes with a model; if that code computes what "
                    f"`{self.model_type}` does, take auto_map out of config.json",
                )

    def check_unread(self, model_type: str, not_read: Collection[str] = ()) -> None:
        """Refuses unread fields that transformers reads; adds the other ones to `left_over`.

        not_read: fields that it reads in other configs, not in this one. Raises UnsupportedArchitecture with the names
        of those refused.
        """
        unread = sorted(name for name, value in self._fields.items() if value is not None and name not in self._read)
        unread = [name for name in unread if name not in _QUIET and not self._is_default(name)]
        refused = [name for name in unread if name not in not_read and reference_fields.reads(model_type, name)]
        if refused:
            listed = ", ".join(f"{name} = {str(self._fields[name])[:40]}" for name in refused[:5])
            more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
            raise UnsupportedArchitecture(
                f"{self.where}: not supported: {listed}{more}",
                hint="these fields may change what the model computes, so they are not ignored",
            )
        self.left_over += [self._prefix + name for name in unread]

    def _is_default(self, name: str) -> bool:
        """Whether an unread field has the value that its absence means."""
        value = self._fields[name]
        match name:
            case "is_encoder_decoder" | "add_cross_attention" | "use_mrope":
                return value is False
            case "is_causal":
                return value is True
            case "layer_types":
                return isinstance(value, list) and all(kind == "full_attention" for kind in value)
        return name in _OF_GENERATION and value == _OF_GENERATION[name]


def _rope_type(rope: TypedFields) -> str:
    return rope.string("rope_type", rope.string("type", "default"))


def _is_nested(fields: Mapping[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in fields.values())
