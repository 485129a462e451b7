"""CUDA tensors without numbers, which every machine has: what would wait for the device, or copy to it, raises.

torch has them for its compiler. On a build without CUDA, indexing and in-place copies ask for a device all the same, so
they are spelled as the operations that they become.
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

from gptcli.model.cache import KVCache
from gptcli.model.config import DecoderConfig
from gptcli.model.decoder import Decoder
from tests.cuda.recorder import tensors

_aten = torch.ops.aten


@contextmanager
def fake_cuda() -> Iterator[None]:
    """What is made on "cuda" in the block has a shape, a type and a device, and no numbers."""
    with FakeTensorMode(allow_non_fake_inputs=False), _Spelled():
        yield


def fake_model(config: DecoderConfig, rows: int = 1) -> tuple[Decoder, KVCache]:
    """A decoder in bf16 without weights, and a cache with room for a token of each of several rows."""
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
    """Raises where an operation brings a tensor to the device, or from it; single numbers are part of a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks where its tensors are."""
        out = function(*args, **(kwargs or {}))
        self.operations.append(str(function))
        places = [tensor.device.type for tensor in tensors((args, kwargs)) if tensor.dim()]
        made = [tensor.device.type for tensor in tensors(out)]
        if {"cpu", "cuda"} <= {*places, *made}:
            raise AssertionError(f"{function} is on both sides: {places} to {made}")
        return out


class _Spelled(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__getitem__ and args[0].is_cuda:
            return _indexed(args[0], args[1])
        if function in (Tensor.__setitem__, Tensor.copy_) and args[0].is_cuda:
            return args[0]  # nothing has numbers
        if function is Tensor.contiguous and args[0].is_cuda and not args[0].is_contiguous():
            return args[0].clone(memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))


def _indexed(x: Tensor, index: Any) -> Any:
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        place = next(place for place, part in enumerate(parts) if part is Ellipsis)
        axes = sum(part is not None for part in parts) - 1
        parts[place : place + 1] = [slice(None)] * (x.dim() - axes)
    chosen: list[Tensor | None] = []
    axis = 0
    for part in parts:
        match part:
            case None:
                x = x.unsqueeze(axis)
            case slice():
                x = _aten.slice(x, axis, part.start, part.stop, part.step or 1)
            case int():
                x = x.select(axis, part)
                continue
            case Tensor():
                chosen += [None] * (axis - len(chosen)) + [part]
        axis += 1
    return _aten.index(x, chosen) if chosen else x
