"""Fully sharded training (Rajbhandari et al., 2020): each process has a shard of every weight, gradient and moment.

A process has a block's whole weights only while it runs the block.
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from gptcli.errors import UsageError
from gptcli.model.decoder import Decoder


def shard_decoder(decoder: Decoder, device: torch.device) -> None:
    """Shares out a decoder's parameters among all processes, on their devices. Raises UsageError if it cannot."""
    uses = Counter(parameter for block in decoder.blocks for parameter in set(block.parameters()))
    if any(count > 1 for count in uses.values()):
        raise UsageError("--fsdp cannot share out weights that several layers have in common", "leave --fsdp out")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in (*decoder.blocks, decoder):
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=module is not decoder)
        sharded.set_gradient_divide_factor(1.0)  # a sum, which gloo has
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_reduce_scatter_unused_params(True, recurse=False)  # an expert may have no token somewhere
    register_fsdp_forward_method(decoder, "run_whole")


def reshard(decoder: nn.Module) -> None:
    """Leaves each process only its shards; does nothing if the decoder is not sharded."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which must all call this; a tensor that is not shared is returned."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
