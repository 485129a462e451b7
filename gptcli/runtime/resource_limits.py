"""How many CPUs and how much memory the process may use. No torch."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from gptcli.errors import OutOfMemory

_MMAP_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -4, -3, -1  # of glibc's mallopt
_CGROUP = Path("/sys/fs/cgroup")
_CPU_MAX = _CGROUP / "cpu.max"  # microseconds of CPU time, and their period
_MEMORY = Path("/proc/meminfo")

# Address space for importing torch, measured on 2.13 for CPUs. With less, its libraries abort the process.
_TORCH_BYTES = 640 << 20


def cpu_limit() -> int:
    """CPUs' worth of time that the control group allows; torch counts all CPUs that it may run on."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # another system, or `max`: unlimited
        return sys.maxsize


def free_memory() -> int:
    """Bytes of main memory that are free for the process."""
    return min(available_memory(), _memory_limit(), free_address_space())


def available_memory() -> int:
    """Bytes of main memory that programs can have without swapping."""
    try:
        fields = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):  # not Linux
        import psutil  # a tenth of a start

        return int(psutil.virtual_memory().available)


def _memory_limit() -> int:
    """Bytes that the control group may still use; its cached files can be dropped."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(fields["inactive_file"]) + int(fields["active_file"]))
    except (OSError, ValueError, KeyError):  # another system, or `max`: unlimited
        return sys.maxsize


def free_address_space() -> int:
    """Bytes that `ulimit -v` still lets the process map; sys.maxsize without a known limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == resource.RLIM_INFINITY else max(0, limit - used)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next block of that size; does nothing elsewhere.

    By default it gives large blocks back at once, and each page of the next one costs a fault.
    """
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1})


def return_freed_memory() -> None:
    """Makes glibc return every freed block of 1 MiB or more to the system; does nothing elsewhere.

    By default it comes to keep freed blocks of up to 32 MiB.
    """
    _mallopt({_MMAP_THRESHOLD: 2**20})


def _mallopt(values: Mapping[int, int]) -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        for option, value in values.items():
            mallopt(option, value)


def check_room_for_torch() -> None:
    """Raises OutOfMemory where torch cannot be imported."""
    free = free_address_space()
    if free < _TORCH_BYTES:
        raise OutOfMemory(
            f"torch needs {_TORCH_BYTES} bytes of address space, {free} are free", hint="raise the limit: ulimit -v"
        )
