"""Tiny random checkpoints written by transformers, and what transformers computes from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip

_LLAMA_ONLY = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
# Fields of BASE that a family names differently; its config class would keep them unread.
UNKNOWN = {
    "gpt2": _LLAMA_ONLY,
    "openai-gpt": _LLAMA_ONLY,
    "gptj": _LLAMA_ONLY,
    "gpt_neo": ("intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "gpt_neox": ("num_key_value_heads",),
    "bloom": ("intermediate_size", "num_key_value_heads", "max_position_embeddings"),
    "codegen": _LLAMA_ONLY,
    "falcon": ("intermediate_size", "num_key_value_heads"),
    "gpt_bigcode": _LLAMA_ONLY,
    "mamba2": ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "mpt": _LLAMA_ONLY,
    "opt": ("intermediate_size", "num_key_value_heads"),
    "xglm": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
}

# Fields that a class in transformers needs, though its default is null.
NO_DEFAULT: dict[str, dict[str, Any]] = {"deepseek_v2": {"num_experts_per_tok": 6}}

# The implementation of attention that is the reference: Falcon's eager one adds ALiBi twice.
ATTENTION = {"falcon": "sdpa"}


@dataclass(frozen=True)
class Reference:
    """A checkpoint on disk and the model that wrote it."""

    path: Path
    model: Any

    @property
    def attention_kinds(self) -> list[str]:
        """Transformers' implementations of attention for this family."""
        if (kind := ATTENTION.get(self.model.config.model_type)) is not None:
            return [kind]
        return ["eager", "sdpa"] if self.model._supports_sdpa else ["eager"]

    def in_bf16(self, attention: str) -> Reference:
        """The same model in bf16."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.bfloat16, attn_implementation=attention)
        return Reference(self.path, model.eval())

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """(T, vocab) in fp32."""
        return self.model(torch.tensor([ids])).logits[0].float()

    @torch.no_grad()
    def greedy(self, ids: list[int], tokens: int) -> list[int]:
        """The most probable continuation."""
        out = self.model.generate(
            torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return out[0, len(ids) :].tolist()


def write_reference(path: Path, model_type: str, **overrides: Any) -> Reference:
    """Saves a model with every parameter random: norms of ones and biases of zeros would hide that they are missing."""
    base = {name: value for name, value in BASE.items() if name not in UNKNOWN.get(model_type, ())}
    config = AutoConfig.for_model(model_type, **(base | overrides))
    attention = ATTENTION.get(model_type, "eager")
    model = randomized(AutoModelForCausalLM.from_config(config, attn_implementation=attention))
    model.save_pretrained(path)
    return Reference(path, model)


def randomized(model: Any) -> Any:
    """The model with every parameter random, in fp32, and every buffer that is saved."""
    torch.manual_seed(0)
    model = model.eval().float()
    saved = model.state_dict()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved]
    with torch.no_grad():
        for tensor in (*model.parameters(), *buffers):
            tensor.normal_(0, 0.15 if tensor.dim() < 2 else 0.1)
    return model
