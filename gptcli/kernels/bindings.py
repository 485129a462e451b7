"""ctypes bindings of c/kernels.h: the compiled functions, called with addresses. No torch.

The memory at an address must be alive, and as large as the function expects.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int64, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Literal, Self, cast, get_args

from gptcli.errors import UsageError

Level = Literal["portable", "avx2", "avx512", "avx512_bf16", "amx"]
Arithmetic = Literal["fp32", "bf16", "int8"]  # in the order of kernels.h's Arithmetic
CacheKind = Literal["fp32", "fp16", "int8"]  # in the order of kernels.h's CacheKind

_VARIABLE = "GPTCLI_KERNELS"
_INTERFACE = 0xD8EF8B35  # kernels.h's INTERFACE
_NO_MEMORY, _NO_TOKEN = -1, -2  # of gptcli_draw
ROUNDED_PRODUCTS = 3  # of kernels.h's Arithmetic
# The arithmetic of attention, by that of its layer's products.
ATTENTION_PRODUCTS: dict[Arithmetic, int] = {"fp32": 0, "bf16": ROUNDED_PRODUCTS, "int8": ROUNDED_PRODUCTS}
BF16_LEVELS: tuple[Level, ...] = ("avx512_bf16", "amx")  # those with products in bf16
PAUSE_NANOSECONDS = 100_000_000  # between the pauses of a program
_MOST_THREADS = 256  # kernels.h's MOST_THREADS
CACHE_KINDS: tuple[CacheKind, ...] = get_args(CacheKind)
# Numbers of config.Activation; those without one run in torch.
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "clamped_swiglu": 4, "relu_squared": 5}
LOGISTIC, IDENTITY, TANH = 6, 7, 8  # beside those
ROUTERS = ("softmax", "sigmoid", "sparsemixer")  # in the order of kernels.h's Router
MOST_GROUPS = 64  # kernels.h's MOST_GROUPS

# In the order of kernels.h's Code.
_CODES = (
    "EMBED", "RMS_NORM", "LAYER_NORM", "LINEAR", "CHOOSE", "EXPERTS", "MIX", "GATE", "ROTATE", "ATTEND", "ACTIVATE",
    "ADD", "BY_HEAD", "EXPAND", "SHARE", "CONVOLVE", "RECUR", "XIELU", "CUT_OFF", "MULTIPLY", "SCALE",
    "SCALE_BY_POSITION", "CLAMP", "ADD_SHARE", "MATCH_RMS", "NARROW",
)  # fmt: skip


class Op(Structure):
    """kernels.h's Op: one operation of a program. Fields that are not given are 0."""

    _fields_ = [
        ("code", c_int64),
        *((name, c_void_p) for name in ("matrices", "input", "out", "choices", "keys", "queries", "steps")),
        *((name, c_void_p) for name in ("weight", "bias")),
        *((name, c_int64) for name in ("rows", "size", "stride", "weight_step", "table")),
        *(
            (name, c_int64)
            for name in ("heads", "kv_heads", "window", "cache_kind", "keys_at", "arithmetic", "chunked")
        ),
        *((name, c_int64) for name in ("borrows", "out_stride", "out_step", "copied", "expands_from")),
        *((name, c_int64) for name in ("router", "groups", "top_groups", "group_best", "renormalize")),
        *((name, c_int64) for name in ("state_at", "corrected", "tiled", "narrow")),
        *((name, c_float) for name in ("factor", "softcap", "rounded", "least_sum", "added_to_sum", "jitter")),
        *((name, c_float) for name in ("least", "most")),
    ]


class Rotation(Structure):
    """kernels.h's Rotation: cos and sin of a text's tokens in a step, (tokens, dim)."""

    _fields_ = [("cosines", c_void_p), ("sines", c_void_p), ("dim", c_int64)]


class Row(Structure):
    """kernels.h's Row: a text's keys and values in all blocks of one window."""

    _fields_ = [("memory", c_void_p), ("room", c_int64), ("cached", c_int64)]


class State(Structure):
    """kernels.h's State: a text's states, before a step and after it."""

    _fields_ = [("before", c_void_p), ("after", c_void_p)]


class Frame(Structure):
    """kernels.h's Frame: what changes from step to step."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "texts", "ropes", "windows", "wanted")),
        *((name, c_void_p) for name in ("ids", "starts", "positions", "rotations", "rows", "states")),
        *((name, c_void_p) for name in ("wanted_tokens", "logits", "targets")),
        ("scored", c_int64),
        ("scores", c_void_p),
    ]


class Draw(Structure):
    """kernels.h's Draw: the logits and settings of a draw."""

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


Checksum = c_uint64 * 8
"""A checksum of data; all 0 for no data. It does not detect forgery."""

_STRUCTURES = (Op, Rotation, Row, Frame, Draw)  # in the order of gptcli_struct_bytes
_MATRIX = len(_STRUCTURES)  # its number for kernels.h's Matrix, which Python does not declare

# The result and the arguments of each function, as kernels.h declares them.
_SIGNATURES: dict[str, tuple[object, list[object]]] = {
    "gptcli_interface": (c_int64, []),
    "gptcli_struct_bytes": (c_int64, [c_int]),
    "gptcli_has_level": (c_int, [c_char_p]),
    "gptcli_set_level": (c_int, [c_char_p]),
    "gptcli_level": (c_char_p, []),
    "gptcli_set_threads": (c_int, [c_int]),
    "gptcli_threads": (c_int, []),
    "gptcli_matrix_dense": (c_void_p, [c_int, c_void_p, c_int64, c_int64]),
    "gptcli_matrix_coded": (c_void_p, [c_int, c_void_p, c_int64, c_int64]),
    "gptcli_matrix_affine": (c_void_p, [c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int, c_int64]),
    "gptcli_matrix_quants": (c_void_p, [*([c_void_p] * 6), c_int64, c_int64, c_int, c_int]),
    "gptcli_matrix_set_arithmetic": (c_int, [c_void_p, c_int]),
    "gptcli_matrix_free": (None, [c_void_p]),
    "gptcli_matrix_data": (c_void_p, [c_void_p, POINTER(c_int64)]),
    "gptcli_matrix_restored": (c_void_p, [c_char_p, c_void_p]),
    "gptcli_matrix_row": (None, [c_void_p, c_int64, c_void_p]),
    "gptcli_linear": (c_int, [c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p]),
    "gptcli_run": (c_int64, [c_void_p, c_int64, POINTER(Frame), c_int64]),
    "gptcli_draw": (c_int64, [POINTER(Draw)]),
    "gptcli_all_finite": (c_int, [c_void_p, c_int64]),
    "gptcli_log_sums": (None, [c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "gptcli_checksum": (None, [c_void_p, c_int64, POINTER(Checksum)]),
    "gptcli_read": (c_int, [c_int, c_void_p, c_int64, POINTER(Checksum)]),
}


@dataclass(frozen=True, eq=False)
class Matrix:
    """kernels.h's Matrix: weights of (rows, columns), freed with this object."""

    handle: int
    rows: int
    columns: int
    address: int  # of the weights as the kernels read them
    size: int  # of those, in bytes
    weights: object  # owns the memory that is read in place; None if the kernels have a copy


class Functions:
    """The compiled functions. They use one thread until `set_threads`."""

    def __init__(self, path: Path) -> None:
        """Opens a compiled file. Raises UsageError if it was compiled from another version of kernels.h."""
        self._c = ctypes.CDLL(str(path))
        try:
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._c, name)
                function.restype, function.argtypes = result, arguments
            alike = self._c.gptcli_interface() == _INTERFACE and [
                self._c.gptcli_struct_bytes(i) for i in range(len(_STRUCTURES))
            ] == list(map(sizeof, _STRUCTURES))
        except AttributeError:
            alike = False
        if not alike:
            raise UsageError(
                f"the compiled kernels are of another version: {path}",
                hint=f"install gptcli again, `pip install -e .` in a clone; {_VARIABLE}=off goes without them",
            )

    @classmethod
    def built(cls) -> Self | None:
        """See `functions`."""
        wanted = os.environ.get(_VARIABLE, "")
        choices = get_args(Level)
        if wanted not in ("", "off", *choices):
            hint = f"set it to off, {', '.join(choices)}, or unset it"
            raise UsageError(f"{_VARIABLE}={wanted} is unknown", hint)
        path = built_file()
        if path is None or wanted == "off":
            return None
        loaded = cls(path)
        if wanted:
            loaded.set_level(cast("Level", wanted))
        return loaded

    @property
    def level(self) -> Level:
        """The instruction set in use: the fastest one of this processor, unless it was set."""
        name: Level = self._c.gptcli_level().decode()
        return name

    def levels(self) -> list[Level]:
        """The instruction sets that this processor supports."""
        return [level for level in get_args(Level) if self._c.gptcli_has_level(level.encode())]

    def set_level(self, level: Level) -> None:
        """Uses an instruction set from now on. Raises UsageError if the processor lacks it."""
        if self._c.gptcli_set_level(level.encode()) != 0:
            supported = ", ".join(self.levels())
            raise UsageError(f"this processor cannot run the {level} kernels", hint=f"it can run: {supported}")

    @property
    def threads(self) -> int:
        """How many threads share the work."""
        count: int = self._c.gptcli_threads()
        return count

    def set_threads(self, threads: int) -> None:
        """Uses this many threads from now on, the caller's included; 256 at most. Raises ValueError below 1."""
        if self._c.gptcli_set_threads(min(threads, _MOST_THREADS)) != 0:
            raise ValueError(f"{threads} threads")

    def struct_bytes(self, matrix: Matrix) -> bytes:
        """The bytes of kernels.h's Matrix, a description of the weights' layout for `restored`."""
        return ctypes.string_at(matrix.handle, self._c.gptcli_struct_bytes(_MATRIX))

    def restored(self, struct: bytes, address: int, rows: int, columns: int, weights: object) -> Matrix:
        """A matrix from its struct and a copy of its weights at `address`, which are read in place, 64-byte aligned.

        weights: owns the copy. Raises ValueError if the struct has another size.
        """
        if len(struct) != self._c.gptcli_struct_bytes(_MATRIX):
            raise ValueError("not the struct of a matrix")
        return self._matrix(self._c.gptcli_matrix_restored(struct, address), rows, columns, weights)

    def _matrix(self, handle: int | None, rows: int, columns: int, weights: object) -> Matrix:
        if handle is None:
            raise MemoryError
        size = c_int64()
        address = self._c.gptcli_matrix_data(handle, byref(size))
        matrix = Matrix(handle, rows, columns, address, size.value, weights)
        weakref.finalize(matrix, self._c.gptcli_matrix_free, handle).atexit = False  # the system frees faster
        return matrix

    def set_arithmetic(self, matrix: Matrix, wanted: Arithmetic) -> Arithmetic:
        """Multiplies more than a few tokens in an arithmetic; returns the one that the matrix and the level allow."""
        names = get_args(Arithmetic)
        effective: Arithmetic = names[self._c.gptcli_matrix_set_arithmetic(matrix.handle, names.index(wanted))]
        return effective

    def code(self, operation: str) -> int:
        """The number of an operation of a program."""
        return _CODES.index(operation)

    def run(self, ops: ctypes.Array[Op], frame: Frame, cancelled: Callable[[], bool]) -> bool:
        """Runs a program, whose addresses must be valid; False once cancelled. Raises MemoryError.

        Pauses ten times a second for signals, and asks `cancelled`.
        """
        done = 0
        while True:
            address = ctypes.addressof(ops) + done * sizeof(Op)
            ran = self._c.gptcli_run(address, len(ops) - done, byref(frame), PAUSE_NANOSECONDS)
            if ran < 0:
                raise MemoryError
            done += ran
            if done == len(ops):
                return True
            if cancelled():
                return False

    def draw(self, draw: Draw) -> int | None:
        """Draws a token; None if none is left that may be drawn. Raises MemoryError."""
        token: int = self._c.gptcli_draw(byref(draw))
        if token == _NO_MEMORY:
            raise MemoryError
        return None if token == _NO_TOKEN else token

    def all_finite(self, address: int, size: int) -> bool:
        """Whether none of `size` fp32 values is infinite or NaN."""
        return bool(self._c.gptcli_all_finite(address, size))

    def log_sums(self, address: int, rows: int, size: int, stride: int) -> list[float]:
        """The logarithm of each row's sum of e^logit, for rows of `size` fp32 logits that lie `stride` apart."""
        sums = (c_double * rows)()
        self._c.gptcli_log_sums(address, rows, size, stride, sums)
        return list(sums)

    def add_to_checksum(self, checksum: ctypes.Array[c_uint64], address: int, size: int) -> None:
        """Adds `size` bytes, a multiple of 64, to a `Checksum`."""
        self._c.gptcli_checksum(address, size, checksum)

    def read_into(self, checksum: ctypes.Array[c_uint64], file: int, address: int, size: int) -> bool:
        """The same with bytes read from a file descriptor to an address; False if the file has fewer."""
        return bool(self._c.gptcli_read(file, address, size, checksum) == 0)


@cache
def functions() -> Functions | None:
    """The compiled functions; None if they were not built here, or are switched off by GPTCLI_KERNELS=off.

    GPTCLI_KERNELS may also name the instruction set. Raises UsageError if it has another value, or names one that the
    processor lacks.
    """
    return Functions.built()


def not_built() -> bool:
    """Whether the kernels are missing, though the user has not switched them off."""
    return built_file() is None and os.environ.get(_VARIABLE) != "off"


def built_file() -> Path | None:
    """The path of the compiled file; None if it was not built."""
    folder = Path(__file__).parent
    names = (f"_native{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((folder / name for name in names if (folder / name).is_file()), None)
