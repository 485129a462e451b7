"""Data-parallel training: each of torchrun's processes runs its part of a batch; gradients are summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gptcli.errors import GptcliError
from gptcli.runtime.device_plan import device_of
from gptcli.runtime.ranks import Ranks

_Result = TypeVar("_Result")
_PATIENCE = timedelta(hours=12)  # rank 0 may encode data, or save to a slow disk, for that long


class Processes:
    """The processes of a run. With a single process, every method returns its argument."""

    def __init__(self, ranks: Ranks | None, device: str = "cpu") -> None:
        """device: as on the command line. Raises NoSuchDevice."""
        self.rank, self.ranks = (0, 1) if ranks is None else (ranks.rank, ranks.ranks)
        if ranks is not None and not dist.is_initialized():
            backend = "nccl" if device_of(device, ranks).type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value."""
        values = [value]
        if self.ranks > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Each process's value, by rank."""
        values = [value] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(values, value)
        return values

    def agreed(self, work: Callable[[], _Result]) -> _Result:
        """Does work in every process. The first error is raised in all, so none waits for one that failed."""
        error: GptcliError | None = None
        try:
            result = work()
        except GptcliError as failure:
            error = failure
        for each in self.gather(error):
            if each is not None:
                raise each
        return result

    def sum(self, value: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.ranks > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether a flag is set in any process."""
        return flag if self.ranks == 1 else bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over all processes; a missing one counts as zero."""
        if self.ranks > 1:
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def part(self, chosen: list[int], rank: int | None = None) -> list[int]:
        """This process's part of a step's sequences, or that of another rank; the first has most."""
        size, rank = -(-len(chosen) // self.ranks), self.rank if rank is None else rank
        return chosen[rank * size : (rank + 1) * size]
