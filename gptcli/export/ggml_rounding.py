"""Rounds floats to ggml's blocks: Q8_0, Q5_0 and Q4_0 as llama.cpp does, K-quants by least squares of our own.

Layouts: ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK = 1 << 20  # values rounded at once
_CANDIDATES = 21  # scales that are tried for a group


def rounded(values: Tensor, kind: str) -> Tensor:
    """The blocks (..., bytes of a row) nearest to values (..., columns), whole blocks: see `block_columns`."""
    columns, make = _TYPES[kind]
    groups = torch.split(values.reshape(-1, columns), _CHUNK // columns)
    data = torch.cat([make(group.float()) for group in groups])
    return data.view(*values.shape[:-1], -1)


def block_columns(kind: str) -> int:
    """The columns of a block of a type."""
    return _TYPES[kind][0]


def _q8_0(x: Tensor) -> Tensor:
    scales = x.abs().amax(-1, keepdim=True) / 127
    return torch.cat([_fp16(scales), _away(x * _inverse(scales)).to(torch.int8).view(torch.uint8)], -1)


def _q4_0(x: Tensor) -> Tensor:
    farthest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scales = farthest / -8
    q = (x * _inverse(scales) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat([_fp16(scales), q[:, :16] | q[:, 16:] << 4], -1)


def _q5_0(x: Tensor) -> Tensor:
    farthest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scales = farthest / -16
    q = (x * _inverse(scales) + 16.5).trunc().clamp(0, 31).to(torch.uint8)
    low, high = q & 15, (q >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    return torch.cat([_fp16(scales), high.sum(-1).to(torch.uint8), low[:, :16] | low[:, 16:] << 4], -1)


def _q6_k(x: Tensor) -> Tensor:
    """16 groups of 16 with scales of 8 bits; w = d * scale * (q - 32)."""
    groups = x.view(-1, 16, 16)
    best = _best_scale(groups, 32)
    d = _stored(best.gather(-1, best.abs().argmax(-1, keepdim=True)) / -128)
    scales = (best * _inverse(d)).round().clamp(-128, 127)
    q = (groups * _inverse(d * scales)[..., None]).round().clamp(-32, 31) + 32
    q = q.to(torch.uint8).view(-1, 2, 4, 32)  # in each half, four rows of 32 columns
    low, high = q & 15, q >> 4
    lower = torch.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2).flatten(1)
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return torch.cat([lower, upper.flatten(1), scales.to(torch.int8).view(torch.uint8), _fp16(d)], -1)


def _q4_k(x: Tensor) -> Tensor:
    """8 groups of 32 with scales and minima of 6 bits; w = d * scale * q - dmin * minimum."""
    groups = x.view(-1, 8, 32)
    best, minima = _best_scale_and_minimum(groups, 15)
    d, dmin = (_stored(each.amax(-1, keepdim=True) / 63) for each in (best, minima))
    scales = (best * _inverse(d)).round().clamp(0, 63)
    offsets = (minima * _inverse(dmin)).round().clamp(0, 63)
    factors = (d * scales)[..., None]
    q = ((groups + (dmin * offsets)[..., None]) * _inverse(factors)).round().clamp(0, 15).to(torch.uint8)
    q = q.view(-1, 4, 2, 32)
    s, m = scales.to(torch.uint8), offsets.to(torch.uint8)
    six = torch.cat([s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | m[:, 4:] << 4], -1)
    return torch.cat([_fp16(d), _fp16(dmin), six, (q[:, :, 0] | q[:, :, 1] << 4).flatten(1)], -1)


def _best_scale(groups: Tensor, most: int) -> Tensor:
    """Scales (n, groups) of values (n, groups, k) with the least weighted error, for levels from -most to most - 1."""
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    weights = groups**2  # large values matter more
    best, least = torch.zeros_like(farthest), (weights * weights).sum(-1, keepdim=True)
    for step in range(_CANDIDATES):
        tried = farthest / -(most + 0.1 * (step - _CANDIDATES // 2))
        q = (groups * _inverse(tried)).round().clamp(-most, most - 1)
        scale = (weights * groups * q).sum(-1, keepdim=True) * _inverse((weights * q * q).sum(-1, keepdim=True))
        error = (weights * (groups - scale * q) ** 2).sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.squeeze(-1)


def _best_scale_and_minimum(groups: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scales and minima, both at least 0: scale * q - minimum has the least weighted error for q from 0 to levels."""
    weights = groups.abs() + (groups**2).mean(-1, keepdim=True).sqrt()
    total = weights.sum(-1, keepdim=True)
    low = groups.amin(-1, keepdim=True).clamp(max=0)
    span = groups.amax(-1, keepdim=True) - low
    best, minimum = span / levels, -low
    q = ((groups - low) * _inverse(best)).round().clamp(0, levels)
    least = (weights * (best * q + low - groups) ** 2).sum(-1, keepdim=True)
    for step in range(_CANDIDATES):
        q = ((groups - low) * (levels - 1 + 0.1 * step) * _inverse(span)).round().clamp(0, levels)
        q1, q2 = (weights * q).sum(-1, keepdim=True), (weights * q * q).sum(-1, keepdim=True)
        x1, xq = (weights * groups).sum(-1, keepdim=True), (weights * groups * q).sum(-1, keepdim=True)
        inverse = _inverse(total * q2 - q1 * q1)
        scale, offset = (total * xq - x1 * q1) * inverse, (q2 * x1 - q1 * xq) * inverse
        positive = offset > 0
        scale = torch.where(positive, xq * _inverse(q2), scale)
        offset = torch.where(positive, 0, offset)
        error = (weights * (scale * q + offset - groups) ** 2).sum(-1, keepdim=True)
        better = (error < least) & (scale > 0)
        best, minimum = torch.where(better, scale, best), torch.where(better, -offset, minimum)
        least = torch.where(better, error, least)
    return best.squeeze(-1), minimum.squeeze(-1)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0, 1 / x)


def _away(x: Tensor) -> Tensor:
    """Rounded, halves away from 0 as C's roundf does."""
    whole = x.trunc()
    return whole + (x - whole).mul(2).trunc()


def _stored(x: Tensor) -> Tensor:
    return x.half().float()


def _fp16(x: Tensor) -> Tensor:
    """(n, 1) as two bytes (n, 2)."""
    return x.half().view(torch.uint8)


_TYPES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q8_0": (32, _q8_0),
    "Q5_0": (32, _q5_0),
    "Q4_0": (32, _q4_0),
    "Q6_K": (256, _q6_k),
    "Q4_K": (256, _q4_k),
}
