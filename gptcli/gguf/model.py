"""A GGUF file as a checkpoint of transformers: its config, and its tensors by transformers' names."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gptcli.gguf.families.architecture import APART, Fields, fraction_of, tensor_name
from gptcli.gguf.families.registry import ARCHITECTURES
from gptcli.gguf.families.rope_scaling import ROPE_TENSORS, rope_scaling
from gptcli.gguf.model_tensor import Edit, ModelTensor
from gptcli.gguf.not_a_model import refuse_other_files
from gptcli.gguf.reader import GgufFile, GgufTensor
from gptcli.gguf.tokenizer import stop_ids

# Sampling settings by transformers' names, and their fields' names after `general.sampling.`.
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
# Fields, after the architecture's name, that no computation reads or that repeat others.
_WITHOUT_EFFECT = frozenset(
    """
    vocab_size tensor_data_layout rope.scaling.finetuned expert_used_count expert_count rope.dimension_count
    rope.scaling.original_context_length use_parallel_residual
    """.split()
)
_NULLS = ("q_lora_rank", "sliding_window")  # fields of config.json for which null is not the default
_OF_IMAGES = frozenset(("rope.dimension_sections", "rope.mrope_section", "n_deepstack_layers"))
_IMAGE_PARTS = ("v.", "mm.")  # prefixes of tensors in Ollama's files, which hold a whole model
_IMAGE_FIELDS = ("vision.", "mm.", "image_token_index", "spatial_merge_size")
# Fields that are harmless with these values.
_HARMLESS: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "pooling_type": (0,),
    "expert_shared_count": (0, 1),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
    "leading_dense_block_count": (0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "logit_scale": (0.0,),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.alpha": (0.0, 1.0),
    "attention.sliding_window": (0,),
    "embedding_length_per_layer_input": (0,),
    "attention.shared_kv_layers": (0,),
}
# Prefixes of fields that may change what is computed; others are left over.
_OF_COMPUTING = re.compile(
    r"attention|rope|expert|moe|ssm|wkv|attn|logit|final_logit|router|embedding|residual|leading|nextn|num_loops|"
    r"feed_forward|activation|hidden_act|swiglu|full_attention|interleave|deepstack|hyper|altup|laurel|shortconv|"
    r"pooling|use_parallel|dense|kda|ple"
)
_ROWS = (".shared_expert_gate", ".moe_statics.e_score_correction_bias")  # matrices in transformers, vectors in files
_LAYER_TENSOR = re.compile(r"blk\.(\d{1,4})\.(.+?)(?:\.(\d{1,4}))?(?:\.(weight|bias))?")


class GgufModel:
    """A GGUF file of an architecture that we know.

    left_over: names of fields that nothing reads. Raises BrokenCheckpoint, and UnsupportedArchitecture that names what
    is unknown and may change what the model computes.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        refuse_other_files(file)
        name = file.get("general.architecture", str)
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise file.unsupported(f"architecture {name[:40]!r}", f"these are read: {known}")
        self._fields = Fields(file, f"{name}.")
        self._architecture = ARCHITECTURES[name].variant(self._fields) or ARCHITECTURES[name]
        self.config = self._read_config()
        self.left_over = self._check_unread(f"{name}.")

    @cached_property
    def tensors(self) -> dict[str, ModelTensor]:
        """All tensors by their names in transformers; stacked experts and the like have MLX's names."""
        found: dict[str, ModelTensor] = {}
        for tensor in self.file.tensors.values():
            if tensor.name in ROPE_TENSORS or tensor.name.startswith(_IMAGE_PARTS):
                continue
            for name, part in self._as_stored(tensor):
                if name in found:
                    raise self.file.broken(f"two tensors are {name}")
                found[name] = part
        return found | self._xielu()

    @property
    def ahead(self) -> range:
        """The extra layers, after the others, that predict tokens further ahead."""
        layers = self._fields.integer("block_count")
        return range(layers - self._fields.integer("nextn_predict_layers", 0), layers)

    @property
    def reads_images(self) -> bool:
        """Whether the model can read images, which nothing here does."""
        return self._architecture.images or self._has_image_parts

    @property
    def _has_image_parts(self) -> bool:
        return any(name.startswith(_IMAGE_PARTS) for name in self.file.tensors)

    @property
    def generation_config(self) -> dict[str, Any]:
        """The file's settings of generation, as a generation_config.json has them."""
        fields = {ours: self.file.any(f"general.sampling.{theirs}") for ours, theirs in SAMPLING.items()}
        given = {name: value for name, value in fields.items() if value is not None}
        config = {"eos_token_id": stop_ids(self.file), **({"do_sample": True} if given else {}), **given}
        suppressed = self.file.any("tokenizer.ggml.suppress_tokens")  # of images, in Gemma 4
        return config if suppressed is None else config | {"suppress_tokens": suppressed}

    def _read_config(self) -> dict[str, Any]:
        file, fields, architecture = self.file, self._fields, self._architecture
        embedding = file.tensors.get("token_embd.weight")
        if embedding is None:
            raise file.broken("tensor 'token_embd.weight' is missing")
        number = fields.most if architecture.states or architecture.per_layer else fields.integer
        width, heads = fields.integer("embedding_length"), number("attention.head_count")
        kv_heads = number("attention.head_count_kv", heads)
        if width < 1 or min(heads, kv_heads) < (0 if architecture.states else 1):
            raise file.broken(f"{heads} attention heads with {kv_heads} for keys and values, of width {width}")
        head_dim = fields.integer("attention.key_length", width // max(1, heads))
        if head_dim < 1:
            raise file.broken(f"{heads} attention heads of {head_dim} channels")
        latent = "attn_kv_a_mqa" in architecture.block
        if not latent and fields.integer("attention.value_length", head_dim) != head_dim:
            raise file.unsupported("values of another size than keys are not read")
        config: dict[str, Any] = {
            "model_type": architecture.model_type,
            "vocab_size": embedding.shape[0],
            "hidden_size": width,
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": self.ahead.start,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": fields.integer("context_length"),
            "rope_theta": fields.number("rope.freq_base", architecture.theta),
            "tie_word_embeddings": "output.weight" not in file.tensors,
            architecture.eps: self._epsilon(),
            **architecture.constants,
        }
        if config["max_position_embeddings"] < 1 or config["num_hidden_layers"] < 1:
            raise file.broken("it has no context or no layers")
        config["rope_scaling"] = rope_scaling(fields, config)
        if architecture.partial or fields.integer("rope.dimension_count", head_dim) != head_dim:
            config["partial_rotary_factor"] = fraction_of(fields.integer("rope.dimension_count", head_dim), head_dim)
        config |= architecture.extra(fields, config)
        config = {
            architecture.renamed.get(name, name): value
            for name, value in config.items()
            if value is not None or name in _NULLS
        }
        for role in ("bos", "eos"):
            if (id := file.optional(f"tokenizer.ggml.{role}_token_id", int)) is not None:
                config[f"{role}_token_id"] = id
        return config

    def _epsilon(self) -> float | None:
        rms, layer = (self._fields.number(f"attention.layer_norm_{kind}epsilon") for kind in ("rms_", ""))
        if self._architecture.states:
            epsilon = layer if rms is None else rms
        else:
            epsilon = rms if self._architecture.eps == "rms_norm_eps" else layer
        if epsilon is None and not self._has_image_parts:  # Ollama's leave the family's default out
            raise self.file.broken("the epsilon of its norms is missing")
        return epsilon

    def _check_unread(self, prefix: str) -> tuple[str, ...]:
        """The architecture's fields that nothing reads. Raises UnsupportedArchitecture for those that may matter."""
        left_over = []
        for name in self.file.unread(prefix):
            rest, value = name.removeprefix(prefix), self.file.fields[name]
            if self.reads_images and rest.startswith(_IMAGE_FIELDS):
                continue
            without_effect = _WITHOUT_EFFECT | (_OF_IMAGES if self.reads_images else frozenset())
            if rest in without_effect or any(value == known for known in _HARMLESS.get(rest, ())):
                continue
            if _OF_COMPUTING.match(rest):
                raise self.file.unsupported(f"{name} = {str(value)[:40]} is not read, and may change the results")
            left_over.append(name)
        return tuple(left_over)

    def _as_stored(self, tensor: GgufTensor) -> list[tuple[str, ModelTensor]]:
        """The tensors of transformers, by name, that a tensor of the file holds."""
        architecture, file = self._architecture, self.file
        match = _LAYER_TENSOR.fullmatch(tensor.name)
        if match is None:
            stem, _, leaf = tensor.name.rpartition(".")
            if stem not in architecture.top or leaf not in ("weight", "bias"):
                raise file.unsupported(f"tensor {tensor.name[:80]!r} belongs to no part of this architecture")
            if architecture.top[stem].endswith(APART):
                return self._unstacked(tensor, architecture.top[stem])
            return [(f"{architecture.top[stem]}.{leaf}", self._edited(tensor, stem, leaf))]
        layer, stem, expert, leaf = match.groups(default="")
        if int(layer) in self.ahead:
            return []
        kind = stem if not expert else f"{stem}.#"
        if kind == "attn_qkv" and kind not in architecture.block and "attn_q" in architecture.block:
            return self._by_projection(tensor, int(layer), leaf)
        if kind not in architecture.block:
            raise file.unsupported(f"tensor {tensor.name[:80]!r} belongs to no part of this architecture")
        module = f"{architecture.layers}{layer}.{architecture.block[kind]}".replace("#", expert)
        if module.endswith(APART):
            return self._unstacked(tensor, module)
        return [(tensor_name(module, leaf or "weight"), self._edited(tensor, stem, leaf))]

    def _edited(self, tensor: GgufTensor, stem: str, leaf: str) -> ModelTensor:
        architecture, shape, edit = self._architecture, tensor.shape, None
        config = self.config
        added = architecture.plus_one and stem.endswith("norm") and stem != "ssm_norm" and leaf == "weight"
        if added or stem == "ssm_a":
            if tensor.kind != "F32":
                raise self.file.unsupported(f"tensor {tensor.name!r} is of type {tensor.kind}, not F32")
            edit = Edit(rates=True) if stem == "ssm_a" else Edit(minus=1.0)
        elif architecture.pairs and stem in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if stem == "attn_q" else "num_key_value_heads"]
            edit = Edit(pairs=heads)
            self._check_rows(tensor, 2 * heads)
        elif architecture.regrouped and stem == "attn_qkv":
            heads = self._fields.integer("attention.head_count")
            groups = self._fields.integer("attention.head_count_kv", heads)
            edit = Edit(regrouped=groups, queries=heads // groups)
            self._check_rows(tensor, heads + 2 * groups)
        if architecture.block.get(stem, "").endswith(_ROWS) and len(shape) == 1:
            shape = 1, *shape
        elif stem in ("ssm_a", "ssm_d", "ssm_norm"):
            shape = (math.prod(shape),)
        elif stem in ("ssm_conv1d", "shortconv.conv") and len(shape) == 2:
            shape = shape[0], 1, shape[1]
        return ModelTensor(tensor.kind, shape, tensor.file, tensor.offset, tensor.size, edit)

    def _check_rows(self, tensor: GgufTensor, unit: int) -> None:
        if tensor.shape[0] % unit:
            raise self.file.broken(
                f"tensor {tensor.name!r} has {tensor.shape[0]} rows, which are no multiple of {unit}"
            )
        if len(tensor.shape) == 1 and tensor.kind not in ("F32", "F16", "BF16"):
            raise self.file.unsupported(f"tensor {tensor.name!r} is of type {tensor.kind}")

    def _xielu(self) -> dict[str, ModelTensor]:
        """The parameters of Apertus' activation as tensors; in files they are fields."""
        if self.config["model_type"] != "apertus":
            return {}
        shapes: dict[str, tuple[int, ...]] = {"alpha_p": (1,), "alpha_n": (1,), "beta": (), "eps": ()}
        layers, found = self.config["num_hidden_layers"], {}
        for name, shape in shapes.items():
            values = self.file.values(f"xielu.{name}", float)
            if len(values) < layers:
                raise self.file.broken(f"xielu.{name} has {len(values)} values for {layers} layers")
            for layer in range(layers):
                part = ModelTensor("F32", shape, self.file.path, 0, 4, Edit(value=values[layer]))
                found[f"{self._architecture.layers}{layer}.mlp.act_fn.{name}"] = part
        return found

    def _by_projection(self, tensor: GgufTensor, layer: int, leaf: str) -> list[tuple[str, ModelTensor]]:
        """q, k and v from the tensor that joins their rows."""
        dim, kv = self.config["head_dim"], self.config["num_key_value_heads"]
        if "global_head_dim" in self.config and self.config["layer_types"][layer : layer + 1] == ["full_attention"]:
            dim, kv = self.config["global_head_dim"], self.config["num_global_key_value_heads"]
        rows = {"attn_q": self.config["num_attention_heads"] * dim, "attn_k": kv * dim, "attn_v": kv * dim}
        if tensor.shape[0] != sum(rows.values()):
            raise self.file.broken(f"tensor {tensor.name!r} has {tensor.shape[0]} rows, not {sum(rows.values())}")
        parts, offset = [], tensor.offset
        for stem, count in rows.items():
            shape, size = (count, *tensor.shape[1:]), tensor.size // tensor.shape[0] * count
            part = replace(tensor, shape=shape, offset=offset, size=size)
            module = f"{self._architecture.layers}{layer}.{self._architecture.block[stem]}"
            parts.append((f"{module}.{leaf}", self._edited(part, stem, leaf)))
            offset += size
        return parts

    def _unstacked(self, tensor: GgufTensor, name: str) -> list[tuple[str, ModelTensor]]:
        """One tensor for each index of its first dimension."""
        if len(tensor.shape) < 2:
            raise self.file.broken(f"tensor {tensor.name!r} has one dimension")
        count, *shape = tensor.shape
        size = tensor.size // count
        return [
            (
                f"{name}.{index}.weight",
                ModelTensor(tensor.kind, tuple(shape), tensor.file, tensor.offset + index * size, size),
            )
            for index in range(count)
        ]


def read_model(path: Path) -> GgufModel:
    """The model in a GGUF file, or in the parts of one. Raises as GgufFile and GgufModel do."""
    return GgufModel(GgufFile(path))
