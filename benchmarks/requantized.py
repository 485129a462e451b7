"""Compares a model, requantized by llama.cpp to one type of blocks after another, with two others that run it.

`python benchmarks/requantized.py --gguf FILE --llama PYTHON [--only Q4_K_M ...]`: FILE is a llama, PYTHON has
llama-cpp-python, and this one transformers and gguf. For each type: the largest error of logits against transformers
with the weights that the gguf package decodes, relative to the largest logit, in fp32 and as the command line runs it;
and how many greedy tokens are llama.cpp's. Where one differs, how far apart our logits of the two are, in the same
measure: llama.cpp rounds activations to 8 bits, and so decides near-ties by chance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

from gptcli.gguf.model import read_model
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig

# llama.cpp's numbers of mixes of types (`llama_ftype`).
TYPES = {
    **{"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15},
    **{"Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ3_S": 26, "IQ4_XS": 30, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37},
}
PROMPT = "The three primary colours are red, yellow and"
TOKENS = 48
LLAMA = """
import ctypes, json, sys
import llama_cpp
source, target, kind, ids, count = json.loads(sys.argv[1])
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype, settings.allow_requantize, settings.nthread = kind, True, 2
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(settings)) == 0
model = llama_cpp.Llama(target, n_ctx=256, n_threads=1, verbose=False)
tokens = model.generate(ids, top_k=1, temp=0.0)
print(json.dumps([next(tokens) for _ in range(count)]))
"""


def reference(file: Path) -> Any:
    """transformers' model with the weights that the gguf package reads from a llama file."""
    read = read_model(file)
    heads = {"attn_q": read.config["num_attention_heads"], "attn_k": read.config["num_key_value_heads"]}
    model = LlamaForCausalLM(LlamaConfig(**read.config)).eval()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    parts |= {f"attn_{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
    parts |= {f"ffn_{kind}": f"mlp.{kind}_proj" for kind in ("gate", "up", "down")}
    state: dict[str, Any] = {}
    for tensor in GGUFReader(file).tensors:
        stem = tensor.name.removesuffix(".weight")
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        values = values.reshape(*map(int, tensor.shape[::-1]))
        if stem.startswith("blk."):
            _, layer, stem = stem.split(".")
            if stem in heads:  # pairs of neighbours to halves
                values = values.view(heads[stem], -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
            state[f"model.layers.{layer}.{parts[stem]}.weight"] = values
        else:
            state[f"{names[stem]}.weight"] = values
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state)
    return model


def compared(source: Path, name: str, llama: str, scratch: Path) -> list[str]:
    """A row of the table."""
    file = scratch / f"{name}.gguf"
    exact = LanguageModel.open(str(source), RuntimeConfig(device="cpu"))
    prompt = exact.tokenizer.encode(PROMPT)
    given = json.dumps([str(source), str(file), TYPES[name], prompt, TOKENS])
    done = subprocess.run([llama, "-c", LLAMA, given], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    theirs = json.loads(done.stdout)
    ids = [*prompt, *theirs]
    with torch.no_grad():
        wanted = reference(file)(torch.tensor([ids])).logits[0]
    largest = float(wanted.abs().max())
    errors, ours = [], wanted
    for runtime in (RuntimeConfig(device="cpu", dtype="fp32", quantize="none"), RuntimeConfig(device="cpu")):
        ours = LanguageModel.open(str(file), runtime).logits(ids)
        errors.append(float((ours - wanted).abs().max()) / largest)
    steps = ours[len(prompt) - 1 : -1]
    chosen = steps.argmax(dim=1).tolist()
    gaps = [float(row[mine] - row[other]) / largest for row, mine, other in zip(steps, chosen, theirs, strict=True)]
    same = sum(mine == other for mine, other in zip(chosen, theirs, strict=True))
    kinds = sorted({tensor.kind for tensor in read_model(file).tensors.values()} - {"F32"})
    return [name, ", ".join(kinds), *(f"{error:.1e}" for error in errors), f"{same}/{TOKENS}", f"{max(gaps):.1e}"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama", required=True, help="a Python with llama-cpp-python")
    parser.add_argument("--only", nargs="+", choices=TYPES, default=list(TYPES))
    given = parser.parse_args()
    print(
        "| mix | types in it | error in fp32 | as run | greedy tokens alike | largest gap |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only:
            print(f"| {' | '.join(compared(given.gguf, name, given.llama, Path(scratch)))} |", flush=True)


if __name__ == "__main__":
    main()
