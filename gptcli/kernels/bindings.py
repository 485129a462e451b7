"""The compiled functions, called with addresses; `functions()` is None where they were not built. No torch.

Whatever an address points to must be alive, and as large as the function takes it to be.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int64, c_void_p, sizeof
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal, Self, get_args

from gptcli.errors import UsageError

Level = Literal["portable", "avx2", "avx512"]

_VARIABLE = "GPTCLI_KERNELS"
_NO_MEMORY, _NO_TOKEN = -1, -2  # of gptcli_draw
_MOST_THREADS = 256  # kernels.h's MOST_THREADS
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "clamped_swiglu": 4}


class Attention(Structure):
    """kernels.h's Attention."""

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


class Draw(Structure):
    """kernels.h's Draw: what a token is drawn from, and how."""

    _fields_ = [
        ("logits", c_void_p),
        ("vocabulary", c_int64),
        ("allowed", c_void_p),
        ("banned", c_void_p),
        ("banned_count", c_int64),
        ("biased", c_void_p),
        ("biases", c_void_p),
        ("biased_count", c_int64),
        ("recent", c_void_p),
        ("recent_count", c_int64),
        ("greedy", c_int64),
        ("top_k", c_int64),
        ("top_p", c_double),
        ("min_p", c_double),
        *((name, c_float) for name in ("repeat", "presence", "frequency", "temperature")),
        ("uniform", c_double),
    ]


_RECORDS = (Op, Rotation, Frame, Attention, Draw)  # in the order of gptcli_record_bytes
_MATRIX = len(_RECORDS)  # the record that is kernels.h's alone

# Every function's result and arguments, as kernels.h declares them.
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "gptcli_record_bytes": (c_int64, [c_int]),
    "gptcli_has_level": (c_int, [c_char_p]),
    "gptcli_set_level": (c_int, [c_char_p]),
    "gptcli_level": (c_char_p, []),
    "gptcli_set_threads": (c_int, [c_int]),
    "gptcli_threads": (c_int, []),
    "gptcli_matrix_dense": (c_void_p, [c_int, c_void_p, c_int64, c_int64]),
    "gptcli_matrix_coded": (c_void_p, [c_int, c_void_p, c_int64, c_int64]),
    "gptcli_matrix_affine": (c_void_p, [c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int, c_int64]),
    "gptcli_matrix_round_activations": (None, [c_void_p]),
    "gptcli_matrix_free": (None, [c_void_p]),
    "gptcli_matrix_data": (c_void_p, [c_void_p, POINTER(c_int64)]),
    "gptcli_matrix_restored": (c_void_p, [c_char_p, c_void_p]),
    "gptcli_matrix_row": (None, [c_void_p, c_int64, c_void_p]),
    "gptcli_linear": (c_int, [c_void_p, c_void_p, c_int64, c_void_p, c_void_p]),
    "gptcli_attention": (c_int, [POINTER(Attention)]),
    "gptcli_rms_norm": (None, [c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_layer_norm": (None, [c_void_p, c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p]),
    "gptcli_rope": (None, [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64]),
    "gptcli_activate": (None, [c_int, c_void_p, c_void_p, c_int64, c_void_p]),
    "gptcli_run": (c_int, [c_void_p, c_int64, POINTER(Frame)]),
    "gptcli_draw": (c_int64, [POINTER(Draw)]),
    "gptcli_all_finite": (c_int, [c_void_p, c_int64]),
    "gptcli_exp": (None, [c_void_p, c_int64, c_void_p]),
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """Weights of (rows, columns) as the kernels hold them; freed with this object."""

    handle: int
    rows: int
    columns: int
    address: int  # of the weights as the kernels read them
    size: int  # of those in bytes
    weights: object  # what is read in place and so has to stay; None where the kernels have a copy


class Functions:
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

    @classmethod
    def built(cls) -> Self | None:
        """The functions as `functions()` describes them."""
        wanted = os.environ.get(_VARIABLE, "")
        choices = get_args(Level)
        if wanted not in ("", "off", *choices):
            hint = f"set it to off, {', '.join(choices)}, or unset it"
            raise UsageError(f"{_VARIABLE}={wanted} is unknown", hint)
        path = built_file()
        if path is None or wanted == "off":
            return None
        loaded = cls(path)
        for level in choices:
            if level == wanted:
                loaded.set_level(level)
        return loaded

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
        """Uses so many threads from now on, the caller's included; 256 at most."""
        if self._c.gptcli_set_threads(min(threads, _MOST_THREADS)) != 0:
            raise ValueError(f"{threads} threads")

    def record(self, matrix: Matrix) -> bytes:
        """What tells the layout of a matrix's weights, for `restored`."""
        return ctypes.string_at(matrix.handle, self._c.gptcli_record_bytes(_MATRIX))

    def restored(self, record: bytes, address: int, rows: int, columns: int, weights: object) -> Matrix:
        """A matrix from its record and a copy of its weights, which are read in place, 64-byte aligned.

        Raises ValueError for a record of another size.
        """
        if len(record) != self._c.gptcli_record_bytes(_MATRIX):
            raise ValueError("not the record of a matrix")
        return self._matrix(self._c.gptcli_matrix_restored(record, address), rows, columns, weights)

    def _matrix(self, handle: int | None, rows: int, columns: int, weights: object) -> Matrix:
        if handle is None:
            raise MemoryError
        size = c_int64()
        address = self._c.gptcli_matrix_data(handle, byref(size))
        matrix = Matrix(handle, rows, columns, address, size.value, weights)
        weakref.finalize(matrix, self._c.gptcli_matrix_free, handle).atexit = False  # the system is quicker
        return matrix

    def code(self, operation: str) -> int:
        """The number of an operation of a program."""
        return _CODES.index(operation)

    def activation(self, name: str) -> int:
        """The number of one of `model.config.Activation`'s."""
        return ACTIVATIONS[name]

    def run(self, ops: ctypes.Array[Op], frame: Frame) -> None:
        """Runs a program; whatever it points to must be alive, and as large as it says."""
        if self._c.gptcli_run(ctypes.addressof(ops), len(ops), byref(frame)) != 0:
            raise MemoryError

    def draw(self, draw: Draw) -> int | None:
        """Draws a token; None if none is left that may be drawn. Raises MemoryError."""
        token: int = self._c.gptcli_draw(byref(draw))
        if token == _NO_MEMORY:
            raise MemoryError
        return None if token == _NO_TOKEN else token

    def all_finite(self, address: int, size: int) -> bool:
        """Whether none of so many fp32 values is infinite or NaN."""
        return bool(self._c.gptcli_all_finite(address, size))


@cache
def functions() -> Functions | None:
    """The compiled functions, or None: not built here, or switched off by GPTCLI_KERNELS=off.

    GPTCLI_KERNELS may also name the instruction set. Error: UsageError for any other value, or one that the
    processor lacks.
    """
    return Functions.built()


def built_file() -> Path | None:
    """The compiled file, if there is one."""
    folder = Path(__file__).parent
    names = (f"_native{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((folder / name for name in names if (folder / name).is_file()), None)
