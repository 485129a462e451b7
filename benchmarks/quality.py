"""What quantization costs on real text: divergence from fp32, and how often the top token stays the same.

python benchmarks/quality.py [--model NAME] [--tokens 3072] [--context 512] [--together] [FILES]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gptcli
from gptcli import LanguageModel
from gptcli.errors import GptcliError
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.runtime.engine import Extension

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


def stepwise(lm: LanguageModel, texts: list[list[int]]) -> list[Tensor]:
    """Logits at every position of texts of equal length, one token of each in a step."""
    engine = lm.full_engine()
    caches = [engine.new_cache() for _ in texts]
    logits: list[list[Any]] = [[] for _ in texts]
    for tokens in zip(*texts, strict=True):
        together = engine.extend([Extension(cache, [token]) for cache, token in zip(caches, tokens, strict=True)])
        for own, rows in zip(logits, together, strict=True):
            if isinstance(rows, GptcliError):
                raise rows
            own += rows
    return [torch.stack(own) for own in logits]


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=3072)
    parser.add_argument("--context", type=int, default=512, help="tokens that are seen at most")
    parser.add_argument("--together", action="store_true", help="decode all pieces together, not as prompts")
    parser.add_argument("files", type=Path, nargs="*", default=sorted(Path(__file__).parents[1].glob("**/*.md")))
    options = parser.parse_args()
    text = "\n\n".join(file.read_text(encoding="utf-8") for file in options.files)

    def logprobs(*, together: bool = False, **settings: Any) -> Tensor:
        lm = gptcli.load(options.model, **settings)
        ids = lm.tokenizer.encode(text)[: options.tokens]
        chunks = [ids[start : start + options.context] for start in range(0, len(ids), options.context)]
        logits = stepwise(lm, chunks) if together else [lm.logits(chunk) for chunk in chunks]
        return torch.cat(logits).log_softmax(-1)

    exact = logprobs(dtype="fp32", quantize="none")
    print(f"{len(exact)} tokens\n\n| as | KL from fp32, nats | same top token |\n|---|---|---|")
    for name, settings in WAYS.items():
        got = logprobs(together=options.together, **settings)
        divergence = (exact.exp() * (exact - got)).sum(-1).mean().item()
        same = (exact.argmax(-1) == got.argmax(-1)).float().mean().item()
        print(f"| `{name}` | {divergence:.5f} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()
