"""Measures a loaded engine: prefill, decode, the bytes a token moves, and how fast this machine reads memory."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch

from gptcli.kernels.tensors import Library
from gptcli.runtime.engine import FullEngine

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
    engine: FullEngine,
    vocabulary: int,
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    bandwidth: Bandwidth,
    cancelled: Callable[[], bool] = lambda: False,
) -> Point | None:
    """Prefills, then decodes greedily, `repeats` times after an uncounted first run; None if cancelled.

    The tokens are arbitrary: speed does not depend on them. bandwidth: measured between the runs.
    """
    device = torch.device(engine.device_name)
    prompt = [(7 * position + 3) % vocabulary for position in range(prompt_tokens)]
    prefills, decodes = list[float](), list[float]()
    cache = engine.new_cache()
    for _ in range(repeats + 1):
        cache.truncate(0)
        started = _settled(device)
        logits = engine.prefill(prompt, cache, cancelled=cancelled)
        prefills.append(prompt_tokens / (_settled(device) - started))
        started = _settled(device)
        for _ in range(decode_tokens):
            if logits is None or cancelled():
                return None
            logits = engine.decode(int(logits.argmax()), cache)
        decodes.append(decode_tokens / (_settled(device) - started))
        bandwidth.measure()
    bytes_a_token = engine.bytes_a_token(prompt_tokens + decode_tokens // 2)
    bandwidth.best = max(bandwidth.best, max(decodes) * bytes_a_token)
    return Point(prompt_tokens, _rate(prefills[1:]), _rate(decodes[1:]), bytes_a_token)


def _settled(device: torch.device) -> float:
    """The time, in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _rate(rates: list[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))


class Bandwidth:
    """Bytes per second that a device's memory delivers. best: the most of all measurements and ways to read so far.

    On a CPU all threads read; on CUDA a sum or a copy moves the bytes. library: the kernels, whose reading is measured,
    too.
    """

    def __init__(self, device_name: str, library: Library | None) -> None:
        self.best = 0.0
        self._device = device = torch.device(device_name)
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
            started = _settled(self._device)
            for _ in range(self._times):
                act()
            seconds = (_settled(self._device) - started) / self._times
            self.best = max(self.best, size / seconds)


def peak_device_memory(device_name: str) -> int | None:
    """Peak bytes of this process in a CUDA device's memory; None for the CPU."""
    return None if device_name == "cpu" else int(torch.cuda.max_memory_reserved(device_name))


def peak_memory() -> int:
    """Peak bytes of this process in main memory."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
