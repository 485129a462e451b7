"""An architecture of GGUF as data, and the names that many architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from ctypes import c_float
from dataclasses import dataclass, field
from typing import Any

from gptcli.gguf.reader import GgufFile


class Fields:
    """The fields of a file's architecture, by their names without the architecture's. Raises as `GgufFile` does."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self.file, self.prefix = file, prefix

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number. A list of one for each layer must repeat it."""
        value = self.file.any(self.prefix + name)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, list):
            raise self.file.unsupported(f"{self.prefix}{name} differs from layer to layer")
        return self.file.get(self.prefix + name, int, default) if type(value) is not int else value

    def most(self, name: str, default: int | None = None) -> int:
        """A whole number, or the largest of a list of one for each layer."""
        value = self.file.any(self.prefix + name)
        if isinstance(value, list) and value and {*map(type, value)} == {int}:
            return int(max(value))
        return self.integer(name, default)

    def per_layer(self, name: str, layers: int) -> list[int]:
        """A whole number for each layer, from a list of as many or more, or from one for all."""
        value = self.file.any(self.prefix + name)
        if not isinstance(value, list):
            return [self.integer(name)] * layers
        if len(value) < layers or {*map(type, value)} - {int, bool}:
            raise self.file.broken(f"{self.prefix}{name} must have a whole number for each of {layers} layers")
        return value[:layers]

    def number(self, name: str, default: float | None = None) -> float | None:
        """A number, or the default: the shortest decimal of its float32, so 1e-05, not 9.999999747378752e-06."""
        if (value := self.file.optional(self.prefix + name, float)) is None:
            return default
        single = c_float(value).value
        found = (float(f"{single:.{digits}g}") for digits in range(1, 10))
        return next((each for each in found if c_float(each).value == single), single)  # NaN equals nothing

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self.file.get(self.prefix + name, bool, default)

    def text(self, name: str, default: str) -> str:
        """A string."""
        return self.file.get(self.prefix + name, str, default)

    def has(self, tensor: str, layer: int = 0) -> bool:
        """Whether the file has this tensor, or a layer has it if the name begins with a dot."""
        return (f"blk.{layer}{tensor}" if tensor.startswith(".") else tensor) in self.file.tensors

    def has_anywhere(self, tensor: str) -> bool:
        """Whether any layer has this tensor, whose name begins with a dot."""
        return any(name.startswith("blk.") and name.endswith(tensor) for name in self.file.tensors)

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have biases, in one tensor or in three."""
        return self.has(".attn_q.bias") or self.has(".attn_qkv.bias")

    def expect(self, name: str, *harmless: object) -> None:
        """Refuses a field unless it is absent or has one of these values."""
        value = self.file.any(self.prefix + name)
        if value is not None and not any(value == known and type(value) is type(known) for known in harmless):
            raise self.file.unsupported(f"{self.prefix}{name} = {str(value)[:40]!r} is not read")

    def sliding(self, layers: int, period: int) -> list[str]:
        """`layer_types`, from the file's pattern or period, else with every `period`-th layer attending to all."""
        name = f"{self.prefix}attention.sliding_window_pattern"
        pattern = self.file.any(name)
        if pattern is None or type(pattern) is int:
            period = period if pattern is None else pattern
            pattern = [period == 0 or (layer + 1) % period != 0 for layer in range(layers)]
        if not isinstance(pattern, list) or len(pattern) < layers or {*map(type, pattern)} - {bool, int}:
            raise self.file.broken(f"{name} must be a period, or a list of {layers} true or false")
        return ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]


Extra = Callable[[Fields, dict[str, Any]], dict[str, Any]]


TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
LLAMA = ATTENTION | MLP | NORMS
FOUR_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAST_NORMS = {name: module for name, module in FOUR_NORMS.items() if name.startswith("post")}
_BARE = (
    *(".sinks", ".e_score_correction_bias", ".expert_bias", ".A_log", ".dt_bias", ".D"),
    *(".correct_output_scale", ".layer_scalar", "router.scale", ".per_expert_scale"),
)
APART = (".norms", "altup_projections", "altup_unembed_projections")  # one tensor in files, several in transformers


def stacked_experts(module: str, *, fused: bool = False) -> dict[str, str]:
    """The names of experts' matrices that transformers or MLX stacks in one tensor per kind.

    fused: gate and up may be in one tensor, too.
    """
    kinds = ("gate", "up", "down", *(["gate_up"] if fused else []))
    return {f"ffn_{kind}_exps": f"{module}.{kind}_proj" for kind in kinds}


def shared_expert(module: str) -> dict[str, str]:
    """The names of an expert that sees every token."""
    return {f"ffn_{kind}_shexp": f"{module}.{kind}_proj" for kind in ("gate", "up", "down")}


def experts_of(fields: Fields, name: str = "num_experts") -> dict[str, Any]:
    """A mixture's number of experts, under `name`, and how many see each token."""
    return {name: fields.integer("expert_count"), "num_experts_per_tok": fields.integer("expert_used_count")}


def routed_experts(fields: Fields) -> dict[str, Any]:
    """The fields of a mixture after dense first layers, chosen within groups, beside shared experts."""
    return experts_of(fields, "n_routed_experts") | {
        "first_k_dense_replace": fields.integer("leading_dense_block_count", 0),
        "moe_intermediate_size": fields.integer("expert_feed_forward_length"),
        "n_group": fields.integer("expert_group_count", 1),
        "n_shared_experts": fields.integer("expert_shared_count"),
        "norm_topk_prob": fields.flag("expert_weights_norm", False),
        "routed_scaling_factor": fields.number("expert_weights_scale", 1.0),
        "topk_group": fields.integer("expert_group_used_count", 1),
    }


def granite_scales(fields: Fields, config: dict[str, Any]) -> dict[str, Any]:
    """Granite's multipliers."""
    return {
        "attention_multiplier": fields.number("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": fields.number("embedding_scale", 1.0),
        "residual_multiplier": fields.number("residual_scale", 1.0),
        "logits_scaling": fields.number("logit_scale", 1.0),
    }


def original_context(fields: Fields, config: dict[str, Any]) -> int:
    """A model's context before its RoPE was stretched."""
    return fields.integer("rope.scaling.original_context_length", config["max_position_embeddings"])


def tensor_name(module: str, leaf: str) -> str:
    """A tensor's name in transformers; some names end without the leaf, `weight` or `bias`."""
    return module if module.endswith(_BARE) else f"{module}.{leaf}"


def fraction_of(dim: int, head_dim: int) -> float:
    """The fraction for which `int(head_dim * fraction)` is `dim`."""
    fraction = dim / head_dim if head_dim else 0.0
    return fraction if int(head_dim * fraction) == dim else math.nextafter(fraction, math.inf)


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """How a GGUF architecture becomes a model type of transformers.

    model_type: transformers' name; `extra` may replace it. others: further model types stored as this architecture; a
    type of two architectures is written as the first. read_only: no such file is written. variant: returns another
    architecture that files store under the same name, or None.
    top, block: tensors outside of layers and in each layer, by their names without `.weight` or `.bias`; # is an
    expert's number. layers: the prefix of layers in transformers.
    eps: config.json's name for the norms' epsilon. theta: RoPE's base where a file has none. constants: more fields of
    config.json. renamed: other names for config.json's common fields. extra: reads the architecture's own fields.
    pairs: RoPE rotates neighbouring channels, so the converter has reordered the rows of q and k. plus_one: 1 was added
    to norms. regrouped: the rows of attn_qkv were regrouped from heads to q, k and v. partial: RoPE rotates a part of
    each head unless config.json says otherwise.
    images: the model reads images, too; files have only its decoder. per_layer: some numbers are lists, one entry per
    layer. states: the same, with 0 in layers that keep a state.
    """

    model_type: str
    others: tuple[str, ...] = ()
    block: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    top: Mapping[str, str] = field(default_factory=lambda: TOP)
    layers: str = "model.layers."
    eps: str = "rms_norm_eps"
    theta: float = 10_000.0
    pairs: bool = False
    plus_one: bool = False
    regrouped: bool = False
    partial: bool = False
    images: bool = False
    states: bool = False
    per_layer: bool = False
    read_only: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    extra: Extra = field(default=lambda fields, config: {})
    variant: Callable[[Fields], GgufArchitecture | None] = field(default=lambda fields: None)
