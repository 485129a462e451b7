"""How much memory the process may still address: what `ulimit -v` leaves. No torch."""

from __future__ import annotations

import sys
from pathlib import Path

from gptcli.errors import OutOfMemory

# What importing torch for CPUs maps, measured on 2.13. With less, its libraries abort the process.
_TORCH_BYTES = 640 << 20


def free_address_space() -> int:
    """Bytes that may still be mapped; sys.maxsize where there is no limit, or none that can be told."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(0, limit - used)


def check_room_for_torch() -> None:
    """Raises OutOfMemory where torch cannot be imported."""
    free = free_address_space()
    if free < _TORCH_BYTES:
        raise OutOfMemory(
            f"torch needs {_TORCH_BYTES} bytes of address space, {free} are free", hint="raise the limit: ulimit -v"
        )
