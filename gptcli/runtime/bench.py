"""Measures a loaded engine: prefill, decode, the bytes a token moves, and how fast this machine reads memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from gptcli.cuda.int4 import TinygemmEmbedding, TinygemmLinear
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear
from gptcli.kernels.tensors import Library
from gptcli.model.mlp import Experts, Moe
from gptcli.quant.packed import PackedEmbedding, PackedExperts, PackedLinear
from gptcli.runtime.torch_engine import TorchEngine

_READ_BYTES = 256 << 20  # more than fits in caches
_READS = 3
_CUDA_READ_BYTES = 1 << 30
_CUDA_READS = 20  # in a row: the launch and the wait are then a small share


@dataclass(frozen=True)
class Rate:
    """Tokens per second over several runs."""

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
    engine: TorchEngine,
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    bandwidth: Bandwidth,
    cancelled: Callable[[], bool] = lambda: False,
) -> Point | None:
    """Prefills, then decodes greedily, `repeats` times after an uncounted first run; None if cancelled.

    The tokens are arbitrary: speed does not depend on them. bandwidth: measured between the runs.
    """
    vocabulary = engine.decoder.config.vocab_size
    prompt = [(7 * position + 3) % vocabulary for position in range(prompt_tokens)]
    prefills, decodes = list[float](), list[float]()
    cache = engine.new_cache()
    for _ in range(repeats + 1):
        cache.truncate(0)
        started = _settled(engine.plan.device)
        logits = engine.prefill(prompt, cache, cancelled=cancelled)
        prefills.append(prompt_tokens / (_settled(engine.plan.device) - started))
        started = _settled(engine.plan.device)
        for _ in range(decode_tokens):
            if logits is None or cancelled():
                return None
            logits = engine.decode(int(logits.argmax()), cache)
        decodes.append(decode_tokens / (_settled(engine.plan.device) - started))
        bandwidth.measure()
    context = prompt_tokens + decode_tokens // 2
    program_bytes = engine.program_bytes_a_token
    weights = weight_bytes(engine.decoder) if program_bytes is None else program_bytes
    bytes_a_token = weights + engine.cache_bytes(context)
    bandwidth.best = max(bandwidth.best, max(decodes) * bytes_a_token)
    return Point(prompt_tokens, _rate(prefills[1:]), _rate(decodes[1:]), bytes_a_token)


def _settled(device: torch.device) -> float:
    """The time, in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rate(rates: list[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))


def weight_bytes(decoder: nn.Module) -> int:
    """Bytes of weights that one token is multiplied with; in a mixture, those of the chosen experts only."""
    mixtures = [module for module in decoder.modules() if isinstance(module, Moe)]
    shares = {id(experts): moe.config.top_k / moe.config.experts for moe in mixtures for experts in (moe.up, moe.down)}
    tied = getattr(decoder, "head", None) is None
    total = 0.0
    for name, module in decoder.named_modules():
        if name in ("positions", "layer_inputs.embed") or (name == "embed" and not tied):
            continue
        total += _module_bytes(module) * shares.get(id(module), 1.0)
    return int(total)


def _module_bytes(module: nn.Module) -> int:
    match module:
        case CompiledLinear() | CompiledEmbedding():
            return module.matrix.size
        case CompiledExperts():
            return sum(matrix.size for matrix in module.matrices)
        case TinygemmLinear() | TinygemmEmbedding():
            return module.matrix.nbytes
        case PackedLinear() | PackedEmbedding() | PackedExperts():
            return sum(tensor.nbytes for tensor in module.weight.tensors().values())
        case nn.Linear() | nn.Embedding() | Experts():
            return module.weight.nbytes
    return 0


class Bandwidth:
    """Bytes per second that a device's memory delivers. best: the most of all measurements and ways to read so far.

    On a CPU all threads read; on CUDA a sum or a copy moves the bytes. library: the kernels, whose reading is measured,
    too.
    """

    def __init__(self, device: torch.device, library: Library | None) -> None:
        self.best = 0.0
        self._device = device
        self._size, self._times = (_CUDA_READ_BYTES, _CUDA_READS) if device.type == "cuda" else (_READ_BYTES, 1)
        numbers = torch.ones(self._size // 4, device=device)
        self._ways: list[tuple[Callable[[], object], int]] = [(numbers.sum, self._size)]
        if device.type == "cuda":
            copy = torch.empty_like(numbers)
            self._ways.append((lambda: copy.copy_(numbers), 2 * self._size))
        if library is not None:
            columns = 1 << 13
            packed = torch.zeros(self._size // columns, columns, dtype=torch.uint8)
            scales = torch.zeros(len(packed), columns // 32, dtype=torch.half)
            matrix, x = library.affine(packed, scales, scales, 8), torch.zeros(1, columns)
            self._ways.append((lambda: library.linear(matrix, x), matrix.size))

    def measure(self) -> None:
        """Measures a few times more."""
        for act, size in self._ways * _READS:
            self.best = max(self.best, size / _seconds(self._device, act, self._times))


def _seconds(device: torch.device, act: Callable[[], object], times: int) -> float:
    started = _settled(device)
    for _ in range(times):
        act()
    return (_settled(device) - started) / times


def peak_device_memory(device: torch.device) -> int | None:
    """Peak bytes of this process in a CUDA device's memory; None for the CPU."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else None


def peak_memory() -> int:
    """Peak bytes of this process in main memory."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
