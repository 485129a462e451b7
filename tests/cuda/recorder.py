"""A recorder for any device: each operation with its tensors, executed again in its place, as a CUDA graph is.

What Python did between the operations is not done again, and shapes, numbers and addresses stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gptcli.cuda.static_step import Outputs

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class Recorder(TorchDispatchMode):
    """Notes every operation that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and notes it."""
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def described(self) -> list[tuple[str, list[Any]]]:
        """The operations' names, with the shapes, types and strides of what they were given, and plain arguments."""
        return [
            (str(function), [_described(leaf) for leaf in tree_leaves((args, kwargs))])
            for function, args, kwargs, _ in self.calls
        ]


def _described(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype, leaf.stride()) if isinstance(leaf, Tensor) else leaf


def tensors(tree: Any) -> Iterator[Tensor]:
    """Those in a nest of lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def record(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A `gptcli.cuda.graph.Record`."""
    run()
    with Recorder() as recorder:
        outputs = run()

    def replay() -> Outputs:
        for function, args, kwargs, out in recorder.calls:
            if _is_view(args, kwargs, out) and not function._schema.is_mutable:  # type: ignore[attr-defined]
                continue  # it shows what the operations before it have changed
            for old, new in zip(tensors(out), tensors(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return outputs

    # A graph's memory is its own: what it held when it was recorded is nobody's result.
    for output in outputs:
        output.zero_()
    return replay


def _is_view(args: Any, kwargs: Any, out: Any) -> bool:
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
    return all(tensor.untyped_storage().data_ptr() in given for tensor in tensors(out))
