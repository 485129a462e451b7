"""What the process may take of this machine. No torch."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import psutil

from gptcli.address_space import free_address_space

_CGROUP = Path("/sys/fs/cgroup")
_CPU_MAX = _CGROUP / "cpu.max"  # microseconds of CPU time, and the period they are for


def cpu_limit() -> int:
    """How many CPUs the process may keep busy at once, by its control group: torch counts all that it may run on."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # another system, or `max`: no limit
        return sys.maxsize


def free_memory() -> int:
    """Bytes of main memory that are free."""
    return min(int(psutil.virtual_memory().available), _memory_limit(), free_address_space())


def _memory_limit() -> int:
    """Bytes that the process's control group may still take; what it holds of files can be dropped."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(fields["inactive_file"]) + int(fields["active_file"]))
    except (OSError, ValueError, KeyError):  # another system, or `max`: no limit
        return sys.maxsize
