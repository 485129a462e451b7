"""Tokens a second of small models of several types: compiled programs, torch running their steps, and transformers.

python benchmarks/model_types.py [TYPE ...] [--prompts 512 2048] [--decode 32] [--repeats 3] [--dtype bf16]

Writes models of 100 to 300 million random weights with transformers. Both of our engines have the same weights in the
kernels' matrices. All three take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the loader does, before torch is imported

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import load_decoder
from gptcli.runtime.device_plan import plan_for
from gptcli.runtime.torch_engine import TorchEngine
from gptcli.settings import RuntimeConfig

BASE: dict[str, Any] = {
    "vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 16, "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
GEMMA = {
    "head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size_per_layer_input": 128,
    "vocab_size_per_layer_input": 16000, "num_kv_shared_layers": 4,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 2,
}  # fmt: skip
TYPES: dict[str, dict[str, Any]] = {
    "minicpm3": LATENT | {
        "kv_lora_rank": 256, "q_lora_rank": 768, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    },
    "deepseek_v3": LATENT | {
        "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": 352,
        "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    },
    "deepseek_v2": LATENT | {
        "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2, "moe_intermediate_size": 352,
        "first_k_dense_replace": 1, "num_hidden_layers": 6,
    },
    "qwen3_5_text": {
        "head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_key_heads": 8,
        "linear_num_value_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_hidden_layers": 8,
    },
    "qwen3_next": {
        "head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_key_heads": 8,
        "linear_num_value_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_hidden_layers": 8,
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 352,
        "shared_expert_intermediate_size": 352,
    },
    "granitemoehybrid": {
        "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "num_local_experts": 0,
        "shared_intermediate_size": 2816, "layer_types": (["mamba"] * 4 + ["attention"]) * 2,
    },
    "mamba2": {"num_heads": 32, "head_dim": 64, "state_size": 128, "n_groups": 1, "num_hidden_layers": 20},
    "falcon_h1": {
        "mamba_d_ssm": 1024, "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 1, "mamba_d_state": 128,
    },
    "lfm2": {
        "layer_types": (["conv", "conv", "full_attention"] * 4)[:10], "block_auto_adjust_ff_dim": False,
    },
    "llama4_text": {
        "head_dim": 64, "num_local_experts": 8, "num_experts_per_tok": 1, "intermediate_size_mlp": 2816,
        "intermediate_size": 1024, "interleave_moe_layer_step": 2, "attention_chunk_size": 256, "num_hidden_layers": 8,
    },
    "gemma4_text": GEMMA | {"global_head_dim": 256},
    "gemma3n_text": GEMMA | {
        "laurel_rank": 64, "altup_num_inputs": 4, "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
    },
    "glm4_moe": {
        "head_dim": 64, "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 352,
        "first_k_dense_replace": 1,
    },
    "bloom": {},
}  # fmt: skip
UNREAD = {
    "mamba2": ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    "bloom": ("intermediate_size", "num_key_value_heads", "max_position_embeddings"),
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def write_model(path: Path, model_type: str, dtype: str, layers: int | None) -> int:
    """Writes a model; returns the number of its weights."""
    config = {name: value for name, value in BASE.items() if name not in UNREAD.get(model_type, ())} | TYPES[model_type]
    if layers is not None:
        config = {name: value[:layers] if isinstance(value, list) else value for name, value in config.items()}
        config["num_hidden_layers"] = layers
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
    model.to(DTYPES[dtype]).save_pretrained(path)
    return sum(parameter.numel() for parameter in model.parameters())


Clock = Callable[[], float]
Speeds = Callable[[list[int], int], tuple[float, float]]  # tokens a second of a prompt, and of tokens behind it


def ours(engine: TorchEngine, clock: Clock) -> Speeds:
    """Of one of our engines."""

    def speeds(prompt: list[int], decode: int) -> tuple[float, float]:
        cache = engine.new_cache()
        started = clock()
        logits = engine.prefill(prompt, cache)
        between = clock()
        for _ in range(decode):
            assert logits is not None
            logits = engine.decode(int(logits.argmax()), cache)
        return len(prompt) / (between - started), decode / (clock() - between)

    return speeds


def theirs(path: Path, dtype: str, clock: Clock) -> Speeds:
    """Of transformers, with the attention that it chooses."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype]).eval()

    @torch.inference_mode()
    def speeds(prompt: list[int], decode: int) -> tuple[float, float]:
        started = clock()
        out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        between = clock()
        kept = "cache_params" if "cache_params" in out else "past_key_values"
        for _ in range(decode):
            out = model(out.logits[:, -1:].argmax(-1), use_cache=True, **{kept: out[kept]})
        return len(prompt) / (between - started), decode / (clock() - between)

    return speeds


def measure(model_type: str, options: argparse.Namespace) -> None:
    """Prints a row of the table for each prompt."""
    threads, clock = (1, time.thread_time) if options.cpu else (None, time.perf_counter)
    with tempfile.TemporaryDirectory() as directory:
        count = write_model(Path(directory), model_type, options.dtype, options.layers)
        folder = ModelFolder.open(Path(directory))
        plan = plan_for(folder, RuntimeConfig(device="cpu", dtype=options.ours, threads=threads))
        decoder = load_decoder(folder, plan.weights)
        program, in_torch = (TorchEngine(decoder, each, 8192, 0.0) for each in (plan, replace(plan, library=None)))
        sides = [theirs(Path(directory), options.dtype, clock), ours(in_torch, clock), ours(program, clock)]
    for prompt in options.prompts:
        tokens = [(7 * position + 3) % 16000 for position in range(prompt)]
        runs = [[side(tokens, options.decode) for side in sides] for _ in range(options.repeats + 1)][1:]
        cells = [f"`{model_type}`, {count / 1e6:.0f}M", program.kernels, str(prompt)]
        for kind in (1, 0):
            others, before, after = (statistics.median(run[i][kind] for run in runs) for i in range(3))
            cells += [f"{speed:.0f}" for speed in (others, before, after)]
            cells += [f"{after / others:.2f}", f"{after / before:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints a table in Markdown. The ratios are the program's beside transformers, and beside torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", default=list(TYPES), metavar="TYPE")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512])
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of weights, and of transformers")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--cpu", action="store_true", help="one thread, and only the time that it gets")
    parser.add_argument("--ours", choices=("auto", "fp32"), default="auto", help="our --dtype")
    options = parser.parse_args()
    sides = "transformers | torch | program | ratio | ratio"
    print(f"| model | program | prompt | decode: {sides} | prompt: {sides} |\n{'|---' * 13}|")
    for model_type in options.types:
        measure(model_type, options)


if __name__ == "__main__":
    main()
