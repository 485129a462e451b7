"""Writes a dense llama as a GGUF file, to measure llama.cpp with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(file: Path, config: dict[str, Any], weights: dict[str, Tensor], *, tokenizer_of: Path) -> None:
    """Writes matrices of any dtype as bf16. config and weights have Hugging Face's names.

    tokenizer_of: the GGUF file to copy the tokenizer from.
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    kv_heads = config.get("num_key_value_heads", heads)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    writer.add_vocab_size(config["vocab_size"])
    for name, field in gguf.GGUFReader(tokenizer_of).fields.items():
        if name.startswith("tokenizer.ggml."):
            writer.add_key_value(name, field.contents(), *field.types[:2])
    for name, weight in weights.items():
        if ".q_proj" in name or ".k_proj" in name:  # llama.cpp's RoPE turns neighbouring channels, not halves
            halves = weight.view(heads if ".q_proj" in name else kv_heads, 2, -1, hidden)
            weight = halves.transpose(1, 2).reshape(weight.shape)
        if weight.dim() == 1:
            writer.add_tensor(_name(name), weight.float().numpy())
        else:
            data = weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    """A weight's name in llama.cpp."""
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{_NAMES[name]}.weight"
    _, _, layer, module = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[module]}.weight"
