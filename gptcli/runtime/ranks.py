"""Which of torchrun's processes this one is. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `ranks`, and number `local_rank` of `local_ranks` on its machine."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int

    def memories(self, device_type: str) -> int:
        """The number of memories of all processes: one per GPU, or one per machine on CPUs."""
        return self.ranks if device_type == "cuda" else self.ranks // self.local_ranks


def ranks_here() -> Ranks | None:
    """This process among the others; None if it is alone. Source: torchrun's environment variables."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
        return None
    return Ranks(*(int(os.environ[name]) for name in names))
