"""What quantization costs on real text: divergence from fp32, and how often the top token stays the same.

python benchmarks/quality.py [--model NAME] [--tokens 3072] [--context 512] [FILES]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gptcli
from gptcli.models.catalog import DEFAULT_MODEL

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "--kv fp32": {"kv": "fp32"},
    "--kv int8": {"kv": "int8"},
    "--dtype fp32 --kv fp16": {"dtype": "fp32", "kv": "fp16"},
    "--quantize int8": {"quantize": "int8"},
    "--quantize int4": {"quantize": "int4"},
    "--dtype bf16 --quantize none": {"dtype": "bf16", "quantize": "none"},
    "--dtype fp32": {"dtype": "fp32"},
}


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--context", type=int, default=512, help="tokens that are seen at most")
    parser.add_argument("files", type=Path, nargs="*", default=sorted(Path(__file__).parents[1].glob("**/*.md")))
    options = parser.parse_args()
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in options.files)

    def logprobs(**settings: Any) -> Tensor:
        lm = gptcli.load(options.model, **settings)
        ids = lm.tokenizer.encode(text)[: options.tokens]
        chunks = [ids[start : start + options.context] for start in range(0, len(ids), options.context)]
        return torch.cat([lm.logits(chunk) for chunk in chunks]).log_softmax(-1)

    exact = logprobs(dtype="fp32", quantize="none")
    print(f"{len(exact)} tokens\n\n| as | KL from fp32, nats | same top token |\n|---|---|---|")
    for name, settings in WAYS.items():
        got = logprobs(**settings)
        divergence = (exact.exp() * (exact - got)).sum(-1).mean().item()
        same = (exact.argmax(-1) == got.argmax(-1)).float().mean().item()
        print(f"| `{name}` | {divergence:.5f} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()
