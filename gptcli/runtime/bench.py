"""Measures a loaded engine: prefill, decode, the bytes a token moves, and how fast this machine reads memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from gptcli.model.mlp import Experts, Moe
from gptcli.quant.compiled import CompiledEmbedding, CompiledExperts, CompiledLinear
from gptcli.quant.packed import PackedEmbedding, PackedExperts, PackedLinear, PackedWeight
from gptcli.runtime.engine import Engine

_READ_BYTES = 256 << 20  # more than caches hold
_READS = 5


@dataclass(frozen=True)
class Rate:
    """Tokens a second over several runs."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True)
class Point:
    """Speed at one length of the context. bytes_a_token: what decoding one token reads."""

    prompt_tokens: int
    prefill: Rate
    decode: Rate
    bytes_a_token: int


def measure(
    engine: Engine,
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> Point | None:
    """Prefills so many tokens and decodes so many behind them, greedily, a few times after one that does not count.

    None where it was cancelled. The tokens are arbitrary: speed does not depend on them.
    """
    vocabulary = engine.decoder.config.vocab_size
    prompt = [(7 * place + 3) % vocabulary for place in range(prompt_tokens)]
    prefills, decodes = list[float](), list[float]()
    cache = engine.new_cache()
    for _ in range(repeats + 1):
        cache.truncate(0)
        started = time.perf_counter()
        logits = engine.prefill(prompt, cache, cancelled=cancelled)
        prefills.append(prompt_tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        for _ in range(decode_tokens):
            if logits is None or cancelled():
                return None
            logits = engine.decode(int(logits.argmax()), cache)
        decodes.append(decode_tokens / (time.perf_counter() - started))
    context = prompt_tokens + decode_tokens // 2
    cache_bytes = engine.decoder.config.cache_bytes(context, cache.dtype.itemsize)
    return Point(prompt_tokens, _rate(prefills[1:]), _rate(decodes[1:]), weight_bytes(engine.decoder) + cache_bytes)


def _rate(rates: list[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))


def weight_bytes(decoder: nn.Module) -> int:
    """Bytes of weights that one token is multiplied with: of a mixture, those of the experts it goes through."""
    mixtures = [module for module in decoder.modules() if isinstance(module, Moe)]
    shares = {id(experts): moe.config.top_k / moe.config.experts for moe in mixtures for experts in (moe.up, moe.down)}
    tied = getattr(decoder, "head", None) is None
    total = 0.0
    for name, module in decoder.named_modules():
        if name == "positions" or (name == "embed" and not tied):
            continue
        total += _module_bytes(module) * shares.get(id(module), 1.0)
    return int(total)


def _module_bytes(module: nn.Module) -> int:
    match module:
        case CompiledLinear() | CompiledEmbedding():
            return module.matrix.size
        case CompiledExperts():
            return sum(matrix.size for matrix in module.matrices)
        case PackedLinear() | PackedEmbedding() | PackedExperts():
            return _packed_bytes(module.weight)
        case nn.Linear() | nn.Embedding() | Experts():
            return module.weight.nbytes
    return 0


def _packed_bytes(weight: PackedWeight) -> int:
    return sum(tensor.nbytes for tensor in weight.tensors().values())


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that all threads together read from memory, at best."""
    numbers = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / min(_seconds(numbers) for _ in range(_READS))


def _seconds(numbers: Tensor) -> float:
    started = time.perf_counter()
    float(numbers.sum())
    return time.perf_counter() - started


def peak_memory() -> int:
    """Most bytes that this process has held in memory so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
