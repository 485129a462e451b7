"""The compiled kernels, reached through ctypes. `library()` is None where they were not built; then torch does it all.

Tensors are fp32, contiguous and on the CPU unless a promise says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int64, c_void_p, sizeof
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gptcli.errors import UsageError

Level = Literal["portable", "avx2", "avx512"]

_VARIABLE = "GPTCLI_KERNELS"
FLOATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the numbers of dtypes in kernels.h
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "clamped_swiglu": 4}
_BITS = (4, 8)
GROUP = 32  # columns whose activations share a scale: groups of affine weights are multiples of it


class _Attention(Structure):
    _fields_ = [
        ("queries", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("sinks", c_void_p),
        ("out", c_void_p),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("head_stride", c_int64),
        ("start", c_int64),
        ("length", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    ]


# In the order of kernels.h's Code.
_CODES = ("EMBED", "RMS_NORM", "LAYER_NORM", "LINEAR", "ROTATE", "ATTEND", "ACTIVATE", "ADD")


class Op(Structure):
    """kernels.h's Op, one operation of a program; fields that are left out are 0."""

    _fields_ = [
        ("code", c_int64),
        *((name, c_void_p) for name in ("matrix", "input", "out", "weight", "bias", "keys", "values")),
        *((name, c_int64) for name in ("rows", "size", "stride", "weight_step", "table")),
        *((name, c_int64) for name in ("heads", "kv_heads", "window", "row_stride", "head_stride")),
        ("factor", c_float),
        ("softcap", c_float),
    ]


class Rotation(Structure):
    """kernels.h's Rotation: cos and sin of the tokens' positions, (tokens, dim)."""

    _fields_ = [("cosines", c_void_p), ("sines", c_void_p), ("dim", c_int64)]


class Frame(Structure):
    """kernels.h's Frame: what changes from step to step."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "texts", "position", "wanted")),
        *((name, c_void_p) for name in ("ids", "rotations", "held", "logits")),
    ]


_RECORDS = (Op, Rotation, Frame, _Attention)  # in the order of gptcli_record_bytes

# Every function's result and arguments, as kernels.h declares them.
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "gptcli_record_bytes": (c_int64, [c_int]),
    "gptcli_has_level": (c_int, [c_char_p]),
    "gptcli_set_level": (c_int, [c_char_p]),
    "gptcli_level": (c_char_p, []),
    "gptcli_set_threads": (c_int, [c_int]),
    "gptcli_threads": (c_int, []),
    "gptcli_matrix_dense": (c_void_p, [c_int, c_void_p, c_int64, c_int64]),
    "gptcli_matrix_affine": (c_void_p, [c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int, c_int64]),
    "gptcli_matrix_round_activations": (None, [c_void_p]),
    "gptcli_matrix_free": (None, [c_void_p]),
    "gptcli_matrix_bytes": (c_int64, [c_void_p]),
    "gptcli_matrix_row": (None, [c_void_p, c_int64, c_void_p]),
    "gptcli_linear": (c_int, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "gptcli_attention": (c_int, [POINTER(_Attention)]),
    "gptcli_rms_norm": (None, [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_layer_norm": (None, [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_rope": (None, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64]),
    "gptcli_activate": (None, [c_int, c_void_p, c_void_p, c_int64, c_void_p]),
    "gptcli_run": (c_int, [c_void_p, c_int64, POINTER(Frame)]),
    "gptcli_exp": (None, [c_void_p, c_int64, c_void_p]),
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights of (rows, columns) as the kernels hold them; freed with this object."""

    handle: int
    rows: int
    columns: int
    packed_bytes: int  # of the kernels' own copy; 0 where weights are read in place
    weights: Tensor | None  # what is read in place and so has to stay


class Library:
    """The compiled functions, and how many threads they use: one until `set_threads`."""

    def __init__(self, path: Path) -> None:
        """Opens a compiled file. Error: UsageError for one that was compiled from other sources than these."""
        self._c = ctypes.CDLL(str(path))
        try:
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._c, name)
                function.restype, function.argtypes = result, arguments
            alike = [self._c.gptcli_record_bytes(i) for i in range(len(_RECORDS))] == list(map(sizeof, _RECORDS))
        except AttributeError:
            alike = False
        if not alike:
            raise UsageError(
                f"the compiled kernels are of another version: {path}",
                hint=f"install gptcli again, `pip install -e .` in a clone; {_VARIABLE}=off goes without them",
            )

    @property
    def level(self) -> Level:
        """The instruction set in use: the best that this processor has, unless it was set."""
        name: Level = self._c.gptcli_level().decode()
        return name

    def levels(self) -> list[Level]:
        """The instruction sets to be had here."""
        return [level for level in get_args(Level) if self._c.gptcli_has_level(level.encode())]

    def set_level(self, level: Level) -> None:
        """Uses an instruction set from now on. Error: UsageError where the processor lacks it."""
        if self._c.gptcli_set_level(level.encode()) != 0:
            had = ", ".join(self.levels())
            raise UsageError(f"this processor cannot run the {level} kernels", hint=f"it can run: {had}")

    @property
    def threads(self) -> int:
        """How many threads share a product."""
        count: int = self._c.gptcli_threads()
        return count

    def set_threads(self, threads: int) -> None:
        """Uses 1 to 256 threads from now on, the caller's included."""
        if self._c.gptcli_set_threads(threads) != 0:
            raise ValueError(f"{threads} threads")

    def dense(self, weight: Tensor) -> Matrix:
        """weight: (rows, columns) in fp32, fp16 or bf16; read in place, at any alignment of its elements."""
        rows, columns = weight.shape
        assert weight.is_contiguous() and weight.device.type == "cpu"
        handle = self._c.gptcli_matrix_dense(FLOATS[weight.dtype], weight.data_ptr(), rows, columns)
        return self._matrix(handle, rows, columns, weight)

    def affine(self, packed: Tensor, scales: Tensor, biases: Tensor, bits: int, *, integers: bool = True) -> Matrix:
        """A copy of `quant.affine.AffineWeight` for the kernels; nothing is kept of the tensors.

        packed: (rows, columns * bits / 8) uint8 of 4 or 8 bits; scales and biases: (rows, columns / group) in fp32,
        fp16 or bf16; group: a multiple of 32. integers: whether activations are rounded to 8 bits for it.
        """
        rows, groups = scales.shape
        columns = packed.shape[1] * 8 // bits
        assert bits in _BITS and columns % groups == 0 and columns // groups % GROUP == 0
        assert packed.shape[0] == rows and biases.shape == scales.shape and biases.dtype == scales.dtype
        assert all(t.is_contiguous() and t.device.type == "cpu" for t in (packed, scales, biases))
        handle = self._c.gptcli_matrix_affine(
            packed.data_ptr(), scales.data_ptr(), biases.data_ptr(), FLOATS[scales.dtype],
            rows, columns, bits, columns // groups,
        )  # fmt: skip
        matrix = self._matrix(handle, rows, columns, None)
        if integers:
            self._c.gptcli_matrix_round_activations(handle)
        return matrix

    def _matrix(self, handle: int | None, rows: int, columns: int, weights: Tensor | None) -> Matrix:
        if handle is None:
            raise MemoryError
        matrix = Matrix(handle, rows, columns, self._c.gptcli_matrix_bytes(handle), weights)
        weakref.finalize(matrix, self._c.gptcli_matrix_free, handle).atexit = False  # the system is quicker
        return matrix

    def row(self, matrix: Matrix, row: int) -> Tensor:
        """One row in fp32, (columns,): an embedding."""
        assert 0 <= row < matrix.rows
        out = torch.empty(matrix.columns)
        self._c.gptcli_matrix_row(matrix.handle, row, out.data_ptr())
        return out

    def linear(self, matrix: Matrix, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ W.T + bias: (..., columns) to (..., rows).

        Affine matrices for integers see x in signed 8 bits, a scale for 32 columns, and integer products are exact. All
        others multiply and add in fp32.
        """
        x = _plain(x)
        assert x.shape[-1] == matrix.columns and (bias is None or bias.shape == (matrix.rows,))
        out = torch.empty(*x.shape[:-1], matrix.rows)
        tokens = x.numel() // matrix.columns
        if self._c.gptcli_linear(matrix.handle, x.data_ptr(), tokens, _address(bias), out.data_ptr()) != 0:
            raise MemoryError
        return out

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
    ) -> Tensor:
        """One token's softmax(scale q k) v over positions start to start + length - 1: (heads, head_dim).

        queries: (heads, head_dim); keys and values: (kv_heads, capacity, head_dim), contiguous in each head; sinks:
        (heads,).
        """
        queries = _plain(queries)
        (heads, head_dim), (kv_heads, capacity, _) = queries.shape, keys.shape
        assert keys.stride() == values.stride() and keys.stride()[1:] == (head_dim, 1) and keys.shape == values.shape
        assert keys.dtype == values.dtype == torch.float32 and heads % kv_heads == 0
        assert 0 <= start and 0 < length and start + length <= capacity and (sinks is None or sinks.shape == (heads,))
        out = torch.empty(heads, head_dim)
        attention = _Attention(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), _address(sinks), out.data_ptr(),
            heads, kv_heads, head_dim, keys.stride(0), start, length, scale, softcap or 0.0,
        )  # fmt: skip
        if self._c.gptcli_attention(byref(attention)) != 0:
            raise MemoryError
        return out

    def rms_norm(self, x: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
        x = _plain(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_rms_norm(x.data_ptr(), _address(weight), epsilon, x.numel() // size, size, out.data_ptr())
        return out

    def layer_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
        x = _plain(x)
        out, size = torch.empty_like(x), x.shape[-1]
        self._c.gptcli_layer_norm(
            x.data_ptr(), _address(weight), _address(bias), epsilon, x.numel() // size, size, out.data_ptr()
        )
        return out

    def rotate_(self, heads: Tensor, cos: Tensor, sin: Tensor) -> None:
        """What `model.rope.rotate` does, in place, for one position: heads (heads, head_dim), cos and sin (dim,)."""
        assert heads.is_contiguous() and heads.dtype == torch.float32
        count, head_dim = heads.shape
        self._c.gptcli_rope(heads.data_ptr(), _address(cos), _address(sin), count, head_dim, cos.numel())

    def activate(self, activation: str, gate: Tensor, up: Tensor | None = None) -> Tensor:
        """activation(gate) * up, elementwise; the names are `model.config.Activation`'s."""
        gate, out = _plain(gate), torch.empty_like(gate)
        assert up is None or up.shape == gate.shape
        self._c.gptcli_activate(_ACTIVATIONS[activation], gate.data_ptr(), _address(up), gate.numel(), out.data_ptr())
        return out

    def code(self, operation: str) -> int:
        """The number of an operation of a program."""
        return _CODES.index(operation)

    def activation(self, name: str) -> int:
        """The number of one of `model.config.Activation`'s."""
        return _ACTIVATIONS[name]

    def run(self, ops: ctypes.Array[Op], frame: Frame) -> None:
        """Runs a program; whatever it points to must be alive, and as large as it says."""
        if self._c.gptcli_run(ctypes.addressof(ops), len(ops), byref(frame)) != 0:
            raise MemoryError

    def exp(self, x: Tensor) -> Tensor:
        """e^x, as the other functions compute it."""
        x = _plain(x)
        out = torch.empty_like(x)
        self._c.gptcli_exp(x.data_ptr(), x.numel(), out.data_ptr())
        return out


def _plain(x: Tensor) -> Tensor:
    assert x.dtype == torch.float32 and x.device.type == "cpu"
    return x.contiguous()


def _address(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    return tensor.data_ptr()


@cache
def library() -> Library | None:
    """The kernels, or None: not built here, or switched off by GPTCLI_KERNELS=off.

    GPTCLI_KERNELS may also name the instruction set. Error: UsageError for any other value, or one that the
    processor lacks.
    """
    wanted = os.environ.get(_VARIABLE, "")
    choices = get_args(Level)
    if wanted not in ("", "off", *choices):
        raise UsageError(f"{_VARIABLE}={wanted} is unknown", hint=f"set it to off, {', '.join(choices)}, or unset it")
    path = _built()
    if path is None or wanted == "off":
        return None
    loaded = Library(path)
    for level in choices:
        if level == wanted:
            loaded.set_level(level)
    return loaded


def _built() -> Path | None:
    folder = Path(__file__).parent
    names = (f"_native{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((folder / name for name in names if (folder / name).is_file()), None)
