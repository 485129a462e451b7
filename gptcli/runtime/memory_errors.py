"""Tells running out of memory from other failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gptcli.errors import OutOfMemory

_HINT = "try a smaller --ctx-size, --quantize int4 or a smaller model"
_REASONS = ("can't allocate memory", "bad_alloc")  # torch's words, and C++'s


@contextmanager
def memory_errors(device: torch.device, doing: str, hint: str = _HINT) -> Iterator[None]:
    """Turns the block's errors for lack of memory into OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not any(reason in str(error) for reason in _REASONS):
            raise
    else:
        return
    raise OutOfMemory(f"out of memory on {device} while {doing}", hint)
