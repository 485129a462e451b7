"""Writes a llama with random bf16 weights, of a billion parameters or another size.

python benchmarks/random_model.py DIRECTORY [--layers 16 --hidden 2048 --mlp 8192 --heads 32 --kv-heads 8]
gptcli bench -m DIRECTORY
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.models.locate import locate

VOCABULARY = 49_152


@dataclass(frozen=True)
class Shape:
    """The dimensions of a llama whose embedding is also its head."""

    layers: int = 16
    hidden: int = 2048
    mlp: int = 8192
    heads: int = 32
    kv_heads: int = 8

    @property
    def kv_width(self) -> int:
        """The width of keys, and of values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def parameters(self) -> int:
        """The number of weights in matrices."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return self.hidden * VOCABULARY + self.layers * (attention + 3 * self.hidden * self.mlp)


def write_model(directory: Path, shape: Shape) -> None:
    """Writes config and weights, and copies the default model's tokenizer."""
    config = {
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.kv_width, shape.hidden),
        "self_attn.v_proj": (shape.kv_width, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.mlp, shape.hidden),
        "mlp.up_proj": (shape.mlp, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.mlp),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    torch.manual_seed(0)
    weights = {"model.embed_tokens.weight": (VOCABULARY, shape.hidden), "model.norm.weight": (shape.hidden,)}
    for layer in range(shape.layers):
        weights |= {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    directory.mkdir(parents=True)
    tensors = {name: torch.randn(size, dtype=torch.bfloat16) * 0.02 for name, size in weights.items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate(DEFAULT_MODEL) / file, directory)


def main() -> None:
    """Reads the shape from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    for name, default in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args())
    write_model(options.pop("directory"), Shape(**options))


if __name__ == "__main__":
    main()
