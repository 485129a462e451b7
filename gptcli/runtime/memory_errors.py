"""Tells running out of memory from other failures. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gptcli.errors import OutOfMemory

_HINT = "try a smaller --ctx-size, --quantize int4 or a smaller model"
_REASONS = ("can't allocate memory", "bad_alloc")  # torch's words, and C++'s


@contextmanager
def memory_errors(device: object, doing: str, hint: str = _HINT) -> Iterator[None]:
    """Turns the block's errors for lack of a device's memory into OutOfMemory."""
    try:
        yield
    except MemoryError:
        pass
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError) and not any(reason in str(error) for reason in _REASONS):
            raise
    else:
        return
    raise OutOfMemory(f"out of memory on {device} while {doing}", hint)
