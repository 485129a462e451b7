"""The compiled kernels with the operations that programs run inside C, called one by one with tensors."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p, sizeof
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gptcli.kernels.bindings import ACTIVATIONS, CACHE_KINDS, ROUNDED_PRODUCTS, Arithmetic, CacheKind, Matrix
from gptcli.kernels.tensors import Library, address, contiguous


class Attention(Structure):
    """kernels.h's Attention."""

    _fields_ = [
        *((name, c_void_p) for name in ("queries", "keys", "values", "sinks", "slopes", "out")),
        *((name, c_int64) for name in ("kind", "heads", "kv_heads", "head_dim", "room", "start", "length")),
        *((name, c_float) for name in ("scale", "softcap", "rounded")),
    ]


class Prefill(Structure):
    """kernels.h's Prefill."""

    _fields_ = [
        *((name, c_void_p) for name in ("queries", "sinks", "slopes", "keys", "values", "out")),
        *((name, c_int64) for name in ("tokens", "first", "window", "chunked", "dropped", "kind", "heads")),
        *((name, c_int64) for name in ("kv_heads", "head_dim", "room", "query_stride")),
        *((name, c_float) for name in ("scale", "softcap", "rounded")),
        ("arithmetic", c_int64),
    ]


_ATTENTION, _PREFILL = 6, 7  # their numbers in gptcli_struct_bytes
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "gptcli_attention": (c_int, [POINTER(Attention), c_int64]),
    "gptcli_attend_prefill": (c_int, [POINTER(Prefill)]),
    "gptcli_rms_norm": (None, [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_layer_norm": (None, [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_rope": (None, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64]),
    "gptcli_activate": (None, [c_int, c_void_p, c_void_p, c_int64, c_void_p]),
    "gptcli_linear_scores": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int, c_void_p],
    ),
    "gptcli_exp": (None, [c_void_p, c_int64, c_void_p]),
}


def stored_as(kind: CacheKind, vectors: Tensor) -> Tensor:
    """Keys or values, (kv_heads, room, head_dim), as a cache stores them; see kernels.h's `head_bytes`."""
    if kind != "int8":
        return vectors.to({"fp32": torch.float32, "fp16": torch.float16}[kind]).contiguous()
    scales = vectors.abs().amax(-1, keepdim=True) / 127
    numbers = (vectors / scales).round().to(torch.int8)
    return torch.cat([numbers.flatten(1), scales.flatten(1).contiguous().view(torch.int8)], 1).contiguous()


class Operations(Library):
    """The library with the single operations. Tensors are fp32."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        assert self._c.gptcli_struct_bytes(_ATTENTION) == sizeof(Attention)
        assert self._c.gptcli_struct_bytes(_PREFILL) == sizeof(Prefill)

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        start: int,
        length: int,
        scale: float,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        kind: CacheKind = "fp32",
    ) -> Tensor:
        """One token's softmax(scale q k) v over positions start to start + length - 1: (heads, head_dim).

        queries: (heads, head_dim); keys and values: (kv_heads, room, head_dim), which are stored as `kind` says; sinks:
        (heads,).
        """
        queries = contiguous(queries)
        (heads, head_dim), (kv_heads, room, _) = queries.shape, keys.shape
        assert keys.shape == values.shape and heads % kv_heads == 0
        assert 0 <= start and 0 < length and start + length <= room and (sinks is None or sinks.shape == (heads,))
        out, stored = torch.empty(heads, head_dim), [stored_as(kind, keys), stored_as(kind, values)]
        attention = Attention(
            queries.data_ptr(), stored[0].data_ptr(), stored[1].data_ptr(), address(sinks), None, out.data_ptr(),
            CACHE_KINDS.index(kind), heads, kv_heads, head_dim, room, start, length, scale, softcap or 0.0, 0.0,
        )  # fmt: skip
        assert self._c.gptcli_attention(byref(attention), 1) == 0
        return out

    def prefill(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        arithmetic: Literal["fp32", "rounded"],
        window: int = 0,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        kind: CacheKind = "fp32",
    ) -> Tensor:
        """Attention of the last tokens of a text, (tokens, heads, head_dim): `attention` of each, unscaled.

        queries: (tokens, heads, head_dim); keys and values: (kv_heads, positions, head_dim).
        """
        (tokens, heads, head_dim), (kv_heads, positions, _) = queries.shape, keys.shape
        out = torch.empty(tokens, heads, head_dim)
        stored = [stored_as(kind, keys), stored_as(kind, values)]
        prefill = Prefill(
            address(queries), address(sinks), None, stored[0].data_ptr(), stored[1].data_ptr(), address(out),
            tokens, positions - tokens, window, 0, 0, CACHE_KINDS.index(kind), heads, kv_heads, head_dim,
            positions, heads * head_dim, 1.0, softcap, 0.0, {"fp32": 0, "rounded": ROUNDED_PRODUCTS}[arithmetic],
        )  # fmt: skip
        assert self._c.gptcli_attend_prefill(byref(prefill)) == 0
        return out

    def scores(
        self,
        matrix: Matrix,
        x: Tensor,
        targets: Tensor,
        scored: int,
        bias: Tensor | None = None,
        arithmetic: Arithmetic = "fp32",
    ) -> Tensor:
        """Each target's log-probability in fp64, (tokens,), from logits x @ W.T + bias of the first `scored` rows."""
        out = torch.empty(len(x), dtype=torch.float64)
        assert targets.dtype == torch.int64 and len(targets) == len(x) and x.shape[1] == matrix.columns
        status = self._c.gptcli_linear_scores(
            matrix.handle,
            address(x),
            len(x),
            address(bias),
            targets.data_ptr(),
            scored,
            get_args(Arithmetic).index(arithmetic),
            out.data_ptr(),
        )
        assert status == 0
        return out

    def rms_norm(self, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
        x = contiguous(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_rms_norm(x.data_ptr(), address(weight), epsilon, x.numel() // size, size, out.data_ptr())
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
        x = contiguous(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_layer_norm(
            x.data_ptr(), address(weight), address(bias), epsilon, x.numel() // size, size, out.data_ptr()
        )
        return out

    def rotate_(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """`model.rope.rotate` of one position, in place: heads (heads, head_dim), cos and sin (dim,)."""
        count, head_dim = heads.shape
        self._c.gptcli_rope(address(heads), address(cos), address(sin), count, head_dim, cos.numel())

    def activate(self, activation: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """activation(gate) * up, elementwise; the names are `model.config.Activation`'s."""
        gate, out = contiguous(gate), torch.empty_like(gate)
        assert up is None or up.shape == gate.shape
        self._c.gptcli_activate(ACTIVATIONS[activation], gate.data_ptr(), address(up), gate.numel(), out.data_ptr())
        return out

    def exp(self, x: Tensor) -> Tensor:
        """e^x, as the other operations compute it."""
        x = contiguous(x)
        out = torch.empty_like(x)
        self._c.gptcli_exp(x.data_ptr(), x.numel(), out.data_ptr())
        return out
