"""Records operations on any device and runs them again on the same tensors, as a CUDA graph does.

Only the operations are repeated, not the Python code between them; shapes, numbers and addresses stay as recorded.
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
    """Records every operation that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and records it."""
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def described(self) -> list[tuple[str, list[Any]]]:
        """The operations' names and arguments, with shape, dtype and stride for each tensor."""
        return [
            (str(function), [_described(leaf) for leaf in tree_leaves((args, kwargs))])
            for function, args, kwargs, _ in self.calls
        ]


def _described(leaf: Any) -> Any:
    return (tuple(leaf.shape), leaf.dtype, leaf.stride()) if isinstance(leaf, Tensor) else leaf


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and dicts."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def capture(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A `gptcli.cuda.graph.Capture`."""
    run()
    with Recorder() as recorder:
        outputs = run()

    def replay() -> Outputs:
        for function, args, kwargs, out in recorder.calls:
            if _is_view(args, kwargs, out) and not function._schema.is_mutable:  # type: ignore[attr-defined]
                continue  # a view already shows what earlier operations changed
            for old, new in zip(tensors(out), tensors(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return outputs

    # A graph has private memory: its contents at capture are no result.
    for output in outputs:
        output.zero_()
    return replay


def _is_view(args: Any, kwargs: Any, out: Any) -> bool:
    given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
    return all(tensor.untyped_storage().data_ptr() in given for tensor in tensors(out))
