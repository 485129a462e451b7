"""CUDA tensors without data, on any machine: operations that would wait for the device, or copy to it, raise.

torch has such tensors for its compiler. In a build without CUDA, indexing and in-place copies still need a device, so
the operations that they become replace them here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.config import DecoderConfig
from gptcli.model.decoder import Decoder
from tests.cuda.recorder import tensors

_aten = torch.ops.aten


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Tensors made on "cuda" in the block have a shape, a dtype and a device, but no data."""
    with FakeTensorMode(allow_non_fake_inputs=False), _Spelled():
        yield


def fake_model(config: DecoderConfig, rows: int = 1) -> tuple[Decoder, KVCache]:
    """A decoder in bf16 without data, and a cache with room for one token in each row."""
    cuda = torch.device("cuda")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with cuda:
            decoder = Decoder(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    cache = KVCache(config, config.max_context, cuda, torch.bfloat16, zeroed=True)
    cache.fill([KVCache(config, config.max_context, cuda, torch.bfloat16, zeroed=True)] * rows)
    cache.reserve(1)
    return decoder, cache


class OnTheDevice(TorchDispatchMode):
    """Raises if an operation copies a tensor to the device or from it. Single numbers may go along with a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and checks where its tensors are."""
        out = function(*args, **(kwargs or {}))
        self.operations.append(str(function))
        given = [tensor.device.type for tensor in tensors((args, kwargs)) if tensor.dim()]
        made = [tensor.device.type for tensor in tensors(out)]
        if {"cpu", "cuda"} <= {*given, *made}:
            raise AssertionError(f"{function} is on both sides: {given} to {made}")
        return out


class _Spelled(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__getitem__ and args[0].is_cuda:
            return _indexed(args[0], args[1])
        if function in (Tensor.__setitem__, Tensor.copy_) and args[0].is_cuda:
            return args[0]  # nothing has data
        if function is Tensor.contiguous and args[0].is_cuda and not args[0].is_contiguous():
            return args[0].clone(memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))


def _indexed(x: Tensor, index: Any) -> Any:
    indices = list(index) if isinstance(index, tuple) else [index]
    if any(each is Ellipsis for each in indices):
        first = next(axis for axis, each in enumerate(indices) if each is Ellipsis)
        axes = sum(each is not None for each in indices) - 1
        indices[first : first + 1] = [slice(None)] * (x.dim() - axes)
    chosen: list[Tensor | None] = []
    axis = 0
    for each in indices:
        match each:
            case None:
                x = x.unsqueeze(axis)
            case slice():
                x = _aten.slice(x, axis, each.start, each.stop, each.step or 1)
            case int():
                x = x.select(axis, each)
                continue
            case Tensor():
                chosen += [None] * (axis - len(chosen)) + [each]
        axis += 1
    return _aten.index(x, chosen) if chosen else x
