"""Writes a llama with random bf16 weights, of a billion parameters or another size, or a Qwen 3 mixture of experts.

python benchmarks/random_model.py DIRECTORY [--layers 16 --hidden 2048 --mlp 8192 --heads 32 --kv-heads 8]
    [--experts 64 --chosen 8] [--mxfp4]
gptcli bench -m DIRECTORY

--mlp is the width of each expert. --mxfp4 writes the MLPs in MXFP4.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.models.locate import locate

VOCABULARY = 49_152


@dataclass(frozen=True)
class Shape:
    """The dimensions of a llama whose embedding is also its head; with experts, of a Qwen 3 mixture."""

    layers: int = 16
    hidden: int = 2048
    mlp: int = 8192
    heads: int = 32
    kv_heads: int = 8
    experts: int = 0
    chosen: int = 8

    @property
    def kv_width(self) -> int:
        """The width of keys, and of values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def parameters(self) -> int:
        """The number of weights in matrices."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        mlp = 3 * self.hidden * self.mlp
        mixture = self.experts * (self.hidden + mlp)
        return self.hidden * VOCABULARY + self.layers * (attention + (mixture or mlp))


def write_model(directory: Path, shape: Shape, mxfp4: bool = False) -> None:
    """Writes config and weights, and copies the default model's tokenizer."""
    config: dict[str, object] = {
        "model_type": "qwen3_moe" if shape.experts else "llama", "vocab_size": VOCABULARY, "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "max_position_embeddings": 8192, "rope_theta": 500_000.0,
        "tie_word_embeddings": True, "eos_token_id": 2,
    }  # fmt: skip
    if shape.experts:
        config |= {"num_experts": shape.experts, "num_experts_per_tok": shape.chosen, "norm_topk_prob": True}
        config |= {"moe_intermediate_size": shape.mlp, "head_dim": shape.hidden // shape.heads}
    if mxfp4:
        config["quantization_config"] = {"quant_method": "mxfp4"}
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.kv_width, shape.hidden),
        "self_attn.v_proj": (shape.kv_width, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "input_layernorm": (shape.hidden,),
        "post_attention_layernorm": (shape.hidden,),
    }
    if shape.experts:
        sizes["mlp.gate"] = (shape.experts, shape.hidden)
        sizes |= {f"self_attn.{name}_norm": (shape.hidden // shape.heads,) for name in "qk"}
    for mlp in [f"mlp.experts.{expert}" for expert in range(shape.experts)] or ["mlp"]:
        sizes |= {f"{mlp}.{name}_proj": (shape.mlp, shape.hidden) for name in ("gate", "up")}
        sizes[f"{mlp}.down_proj"] = (shape.hidden, shape.mlp)
    torch.manual_seed(0)
    weights = {"model.embed_tokens.weight": (VOCABULARY, shape.hidden), "model.norm.weight": (shape.hidden,)}
    for layer in range(shape.layers):
        weights |= {f"model.layers.{layer}.{name}.weight": size for name, size in sizes.items()}
    directory.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, size in weights.items():
        if mxfp4 and ".mlp." in name and name.endswith("_proj.weight"):
            rows, columns = size
            tensors[f"{name}_blocks"] = torch.randint(256, (rows, columns // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_scales"] = torch.randint(119, 122, (rows, columns // 32), dtype=torch.uint8)
        else:
            tensors[name] = torch.randn(size, dtype=torch.bfloat16) * 0.02
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
    parser.add_argument("--mxfp4", action="store_true")
    options = vars(parser.parse_args())
    write_model(options.pop("directory"), mxfp4=options.pop("mxfp4"), shape=Shape(**options))


if __name__ == "__main__":
    main()
