"""Makes tiny checkpoints on disk: a llama of a few thousand weights and a byte-level tokenizer, every weight random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXT = "In a small town there lived a clockmaker. The clockmaker had 3 clocks, and 12 small bells. " * 4
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE with every byte, some merges, and three control tokens at ids 0 to 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in CONTROL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def make_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random fp32 tensors of a llama with Hugging Face names."""
    random = np.random.default_rng(seed)
    hidden, width = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (heads * head_dim, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, heads * head_dim),
            f"{prefix}mlp.gate_proj.weight": (width, hidden),
            f"{prefix}mlp.up_proj.weight": (width, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, width),
        }
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def make_model(
    path: Path,
    *,
    weights: dict[str, np.ndarray] | None = None,
    template: str | None = TEMPLATE,
    generation_config: dict[str, Any] | None = None,
    adds_bos: bool = False,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Writes a whole model directory; overrides change its config, None removes a field.

    adds_bos: whether the tokenizer puts `<|im_start|>` before every text.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (CONFIG | overrides).items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))
    save_file(make_weights(config, seed) if weights is None else weights, path / "model.safetensors")
    write_tokenizer(path, template, adds_bos)
    if generation_config is not None:
        (path / "generation_config.json").write_text(json.dumps(generation_config))
    return path


def write_tokenizer(path: Path, template: str | None = TEMPLATE, adds_bos: bool = False) -> None:
    """Writes a tokenizer's files; see `make_model`."""
    tokenizer = make_tokenizer()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def edit(path: Path, **fields: Any) -> None:
    """Changes top-level fields of a JSON file; None stays null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
