"""Prepared copies: a program with the weights that it reads, in a file that is run as it is. No torch.

    8 bytes     size of the header, little-endian
    32 bytes    its SHA-256
    header      JSON: the key, the operations, and where in the data each of them finds what
    data        from the next multiple of 64 bytes on, each piece at such a multiple: weights as the kernels read them

A copy is used only where its key is the one that is asked for. The header, which says what the kernels will read and
write, is whole or nothing is used; damage in the data changes numbers, as it would in a checkpoint.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from threading import Thread
from typing import IO, Any, cast

from gptcli.kernels.bindings import Functions, Matrix, Op, Rotation
from gptcli.kernels.memory import Memory
from gptcli.runtime.program import Program, Rows, Vector

_ALIGNED = 64
_POINTERS = [field[0] for field in Op._fields_ if field[1] is ctypes.c_void_p]
_LARGEST_HEADER = 64 << 20  # bytes


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin of positions from 0 on, each (positions, dim)."""

    cosines: Vector
    sines: Vector
    dim: int

    def at(self, position: int) -> Rotation:
        """The rows from a position on."""
        offset = 4 * position * self.dim
        return Rotation(self.cosines.address + offset, self.sines.address + offset, self.dim)


@dataclass(frozen=True)
class Prepared:
    """What runs a decoder's step: the program, and what it needs of the decoder's config.

    cache_kinds: into how many kinds the blocks' caches fall, which hold different stretches of a text. positions: of
    the rotary tables. dtype: as the command line spells it. threads: that run it unless a user asks for others.
    """

    program: Program
    tables: Sequence[RotaryTable]
    cache_kinds: int
    vocab_size: int
    positions: int
    dtype: str
    threads: int
    arrival: _Arrival | None = None

    def wait(self) -> bool:
        """Returns when the weights are there; False where the file ended too early or could not be read."""
        return self.arrival is None or self.arrival.wait()


class _Arrival(Thread):
    """Reads a file's rest into memory beside other work."""

    def __init__(self, file: BufferedReader, data: Memory) -> None:
        super().__init__(daemon=True)
        self._file, self._data = file, data
        self._whole = False

    def run(self) -> None:
        """Fills the memory, and closes the file."""
        with self._file, contextlib.suppress(OSError):
            self._whole = self._file.readinto(self._data.view) == self._data.size

    def wait(self) -> bool:
        """Whether the file had as much as was wanted, once that is known."""
        if self.ident is not None:
            self.join()
        return self._whole


@dataclass
class _Pieces:
    """What a file's data consists of."""

    size: int = 0
    pieces: list[tuple[int, int, int]] = field(default_factory=list)  # offset, address, size
    _known: dict[int, int] = field(default_factory=dict)

    def place(self, address: int, size: int) -> int:
        """Where in the data the bytes at an address go; the same address only once."""
        if address not in self._known:
            self._known[address] = self.size
            self.pieces.append((self.size, address, size))
            self.size += -(-size // _ALIGNED) * _ALIGNED
        return self._known[address]


def write(prepared: Prepared, key: dict[str, Any], library: Functions, file: IO[bytes]) -> None:
    """Writes a prepared copy. Raises OSError."""
    program, data = prepared.program, _Pieces()
    ops = (Op * len(program.ops)).from_buffer_copy(program.ops)
    for op in ops:
        for name in _POINTERS:
            setattr(op, name, None)
    header = {
        "key": key,
        "ops": _text(bytes(ops)),
        "uses": [(place, name, rows.name, rows.width, rows.offset) for place, name, rows in program.uses],
        "matrices": [
            (place, _text(library.record(matrix)), matrix.rows, matrix.columns, data.place(matrix.address, matrix.size))
            for place, matrix in program.matrices
        ],
        "vectors": [
            (place, name, data.place(vector.address, vector.size), vector.size)
            for place, name, vector in program.vectors
        ],
        "tables": [
            (
                data.place(table.cosines.address, table.cosines.size),
                data.place(table.sines.address, table.sines.size),
                table.cosines.size,
                table.dim,
            )
            for table in prepared.tables
        ],
        "cache_kinds": prepared.cache_kinds,
        "vocab_size": prepared.vocab_size,
        "positions": prepared.positions,
        "dtype": prepared.dtype,
        "threads": prepared.threads,
        "size": data.size,
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    begin = len(encoded).to_bytes(8, "little") + hashlib.sha256(encoded).digest() + encoded
    start = _aligned(len(begin))
    file.write(begin)
    for offset, address, size in data.pieces:
        file.seek(start + offset)
        file.write((ctypes.c_char * size).from_address(address))
    file.truncate(start + data.size)


def read(
    file: BufferedReader, key: dict[str, Any], library: Functions, *, free: int, positions: int
) -> Prepared | None:
    """The prepared copy in a file, read into memory of our own; None where its key is another, or it is damaged.

    Its weights are read while the caller goes on, until `Prepared.wait`; the file is then closed. free: bytes that it
    may take. positions: that it must have. Raises OSError and MemoryError.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        header = _header(file)
        if header is None or header["key"] != key or header["size"] > free or header["positions"] < positions:
            return None
        data = Memory(header["size"], huge_pages=True)
        stack.pop_all()
    arrival = _Arrival(file, data)
    try:
        arrival.start()
    except RuntimeError:  # no thread is to be had
        arrival.run()

    def vector(offset: int, size: int) -> Vector:
        return Vector(data.address + offset, size, data)

    def matrix(record: str, rows: int, columns: int, offset: int) -> Matrix:
        return library.restored(base64.b85decode(record), data.address + offset, rows, columns, data)

    ops = base64.b85decode(header["ops"])
    program = Program(
        library,
        list((Op * (len(ops) // ctypes.sizeof(Op))).from_buffer_copy(ops)),
        [(place, name, Rows(buffer, width, offset)) for place, name, buffer, width, offset in header["uses"]],
        [(place, matrix(*described)) for place, *described in header["matrices"]],
        [(place, name, vector(*where)) for place, name, *where in header["vectors"]],
    )
    tables = [RotaryTable(vector(cos, size), vector(sin, size), dim) for cos, sin, size, dim in header["tables"]]
    names = ("cache_kinds", "vocab_size", "positions", "dtype", "threads")
    return Prepared(program, tables, **{name: header[name] for name in names}, arrival=arrival)


def key_if_whole(file: BufferedReader) -> dict[str, Any] | None:
    """The key of the prepared copy in a file, unless that is cut short. Raises OSError."""
    header = _header(file)
    if header is None or os.fstat(file.fileno()).st_size != file.tell() + header["size"]:
        return None
    return cast("dict[str, Any]", header["key"])


def _header(file: BufferedReader) -> dict[str, Any] | None:
    """What a file begins with, if it is whole; the data come next."""
    size, digest = int.from_bytes(file.read(8), "little"), file.read(32)
    encoded = file.read(size) if size <= _LARGEST_HEADER else b""
    if hashlib.sha256(encoded).digest() != digest:
        return None
    file.seek(_aligned(40 + size))
    header: dict[str, Any] = json.loads(encoded)
    return header


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _text(data: bytes) -> str:
    return base64.b85encode(data).decode()
