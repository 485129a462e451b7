"""A model from nothing: a tokenizer trained on the data, and random weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.config.reference_fields import causal_class
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.recipes import (
    Concat,
    EvensThenOdds,
    PlusOne,
    Recipe,
    ReorderedRows,
    Stack,
    Take,
    Transposed,
    WithoutFirst,
)
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import UnsupportedArchitecture
from gptcli.gguf.safetensors_writer import SafetensorsWriter, write_json
from gptcli.model.attention import Attention
from gptcli.model.decoder import Decoder
from gptcli.model.latent_attention import HeadMatrices
from gptcli.model.linear import Embedding, Linear
from gptcli.model.mlp import Experts
from gptcli.model.norm import Norm

END = "<|endoftext|>"
_SPREAD = 0.02  # the standard deviation of weights, unless the config has an initializer_range


def train_tokenizer(texts: Iterable[str], size: int, target: Path) -> int:
    """Trains a byte-level BPE tokenizer of at most `size` tokens and writes it to a directory; returns its size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(target / "tokenizer.json"))
    write_json(
        target / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "unk_token": END},
    )
    return int(tokenizer.get_vocab_size())


def write_new_model(config: Mapping[str, Any], end: int | None, target: Path, seed: int) -> None:
    """Writes config.json and random weights, distributed as transformers' but drawn in another order.

    All follow GPT-2's rule: normal, with less deviation where a layer adds to the residual stream; norms are 1, biases
    0. end: the id that ends a text. Raises InvalidModel for an unusable config, and OSError.
    """
    fields = dict(config)
    if end is not None:
        fields |= {"bos_token_id": end, "eos_token_id": end}
    fields.setdefault("architectures", [causal_class(str(fields.get("model_type")))])
    hf = HfConfig(fields, "the new config")
    architecture = architecture_of(hf, ())
    with torch.device("meta"):
        decoder = Decoder(architecture.config)
    spread = float(fields.get("initializer_range") or _SPREAD)
    generator = torch.Generator().manual_seed(seed)
    write_json(target / "config.json", fields | {"dtype": "float32"})
    writer, written = SafetensorsWriter(target), set[str]()
    for name, recipe in architecture.parameters.items():
        for tensor, shape in _shapes(recipe, tuple(decoder.get_parameter(name).shape), decoder, name).items():
            if tensor not in written:
                value = _initial(decoder, name, shape, spread, generator)
                if isinstance(recipe, PlusOne):
                    value = value - 1
                writer.add({tensor: value.numpy()})
                written.add(tensor)
    writer.close()
    _ = ModelFolder.open(target).architecture


def _shapes(recipe: Recipe, shape: tuple[int, ...], decoder: Decoder, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors from which a recipe makes a parameter of this shape."""
    match recipe:
        case Take(tensor):
            return {tensor: shape}
        case Transposed(operand):
            *outer, rows, columns = shape
            return _shapes(operand, (*outer, columns, rows), decoder, name)
        case WithoutFirst(operand, count):
            return _shapes(operand, (shape[0] + count, *shape[1:]), decoder, name)
        case PlusOne(operand) | ReorderedRows(operand) | EvensThenOdds(operand):
            return _shapes(operand, shape, decoder, name)
        case Stack(operands):
            parts = [shape[1:]] * len(operands)
        case Concat(operands, axis):
            parent = decoder.get_submodule(name.rsplit(".", 2)[0])
            sizes = _sizes(parent, shape[axis], len(operands))
            parts = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
        case _:
            raise _cannot(name)
    found: dict[str, tuple[int, ...]] = {}
    for operand, part in zip(operands, parts, strict=True):
        found |= _shapes(operand, part, decoder, name)
    return found


def _sizes(parent: nn.Module, whole: int, count: int) -> list[int]:
    """The rows of each part of a joined matrix: q, k and v have their heads', other parts equally many."""
    if isinstance(parent, Attention) and count == 3:
        keys = parent.config.kv_heads * parent.config.head_dim
        return [whole - 2 * keys, keys, keys]
    return [whole // count] * count


def _initial(decoder: Decoder, name: str, shape: tuple[int, ...], spread: float, generator: torch.Generator) -> Tensor:
    module, leaf = decoder.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    match module:
        case Norm() | Linear() | HeadMatrices() | Experts() if leaf == "bias":
            return torch.zeros(shape)
        case Norm():
            return torch.ones(shape)
        case Linear() | HeadMatrices() | Experts() | Embedding():
            adds = name.endswith(("attention.out.weight", "mlp.down.weight"))
            scale = spread / (2 * len(decoder.blocks)) ** 0.5 if adds else spread
            return torch.empty(shape).normal_(0, scale, generator=generator)
    raise _cannot(name)


def _cannot(name: str) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"how {name} begins is not known, so no new model of this type can be made", "fine-tune an existing one"
    )
