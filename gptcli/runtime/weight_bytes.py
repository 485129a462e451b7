"""Counts the bytes of weights that a decoder reads for one token."""

from __future__ import annotations

from torch import nn

from gptcli.cuda.int4 import TinygemmEmbedding, TinygemmLinear
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear
from gptcli.model.mlp import Experts, Moe
from gptcli.quant.packed import PackedEmbedding, PackedExperts, PackedLinear


def weight_bytes(decoder: nn.Module) -> int:
    """Bytes of weights that one token is multiplied with; in a mixture, those of the chosen experts only."""
    mixtures = [module for module in decoder.modules() if isinstance(module, Moe)]
    shares = {id(experts): moe.config.top_k / moe.config.experts for moe in mixtures for experts in (moe.up, moe.down)}
    tied = getattr(decoder, "head", None) is None
    total = 0.0
    for name, module in decoder.named_modules():
        if name in ("positions", "layer_inputs.embed") or (name == "embed" and not tied):
            continue
        total += _module_bytes(module) * shares.get(id(module), 1.0)
    return int(total)


def _module_bytes(module: nn.Module) -> int:
    match module:
        case CompiledLinear() | CompiledEmbedding():
            return module.matrix.size
        case CompiledExperts():
            return sum(matrix.size for matrix in module.matrices)
        case TinygemmLinear() | TinygemmEmbedding():
            return module.matrix.nbytes
        case PackedLinear() | PackedEmbedding() | PackedExperts():
            return sum(tensor.nbytes for tensor in module.weight.tensors().values())
        case nn.Linear() | nn.Embedding() | Experts():
            return module.weight.nbytes
    return 0
