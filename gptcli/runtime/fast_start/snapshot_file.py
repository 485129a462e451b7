"""The file of a snapshot: a program with the weights that it reads, ready to run. No torch.

    8 bytes     size of the header, little-endian
    32 bytes    its SHA-256
    header      JSON: the key, the operations, and the offsets of what each of them reads
    data        weights as the kernels read them, each piece at a multiple of 64 bytes

A snapshot is used only if its key is the wanted one and its header, which says what the kernels read and write, is
whole. Damaged data change numbers, as in a checkpoint.
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

from gptcli.kernels.bindings import CacheKind, Functions, Matrix, Op, Rotation
from gptcli.kernels.memory import Memory
from gptcli.runtime.program import Buffer, Program, Vector

_ALIGNED = 64
_POINTERS = [field[0] for field in Op._fields_ if field[1] is ctypes.c_void_p]
_LARGEST_HEADER = 64 << 20  # bytes


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin of positions from 0 on, each (positions, dim)."""

    cosines: Vector
    sines: Vector
    dim: int

    @property
    def positions(self) -> int:
        """How many rows there are."""
        return self.cosines.size // (4 * self.dim)

    def at(self, position: int) -> Rotation:
        """The rows that begin at a position."""
        offset = 4 * position * self.dim
        return Rotation(self.cosines.address + offset, self.sines.address + offset, self.dim)


@dataclass(frozen=True)
class Snapshot:
    """A decoder's step: the program, and what it needs of the decoder's config.

    positions: rows of the rotary tables. dtype: as the command line spells it. threads: number to run it with unless a
    user asks for another.
    """

    program: Program
    tables: Sequence[RotaryTable]
    vocab_size: int
    positions: int
    dtype: str
    threads: int
    reading: _BackgroundRead | None = None

    def wait(self) -> bool:
        """Waits for the weights; False if the file ended too early or could not be read."""
        return self.reading is None or self.reading.wait()


class _BackgroundRead(Thread):
    """Reads the rest of a file into memory in a thread."""

    def __init__(self, file: BufferedReader, data: Memory) -> None:
        super().__init__(daemon=True)
        self._file, self._data = file, data
        self._whole = False

    def run(self) -> None:
        """Fills the memory, and closes the file."""
        with self._file, contextlib.suppress(OSError):
            self._whole = self._file.readinto(self._data.view) == self._data.size

    def wait(self) -> bool:
        """Waits; whether the file was long enough."""
        if self.ident is not None:
            self.join()
        return self._whole


@dataclass
class _Pieces:
    """The layout of a file's data."""

    size: int = 0
    pieces: list[tuple[int, int, int]] = field(default_factory=list)  # offset, address, size
    _known: dict[int, int] = field(default_factory=dict)

    def offset(self, address: int, size: int) -> int:
        """The offset in the data of the bytes at an address; each address is stored once."""
        if address not in self._known:
            self._known[address] = self.size
            self.pieces.append((self.size, address, size))
            self.size += -(-size // _ALIGNED) * _ALIGNED
        return self._known[address]


def write(snapshot: Snapshot, key: dict[str, Any], library: Functions, file: IO[bytes]) -> None:
    """Writes a snapshot. Raises OSError."""
    program, data = snapshot.program, _Pieces()
    ops = (Op * len(program.ops)).from_buffer_copy(program.ops)
    for op in ops:
        for name in _POINTERS:
            setattr(op, name, None)
    header = {
        "key": key,
        "ops": _text(bytes(ops)),
        "uses": [(index, name, rows.name, rows.width, rows.offset) for index, name, rows in program.uses],
        "matrices": [
            (
                index,
                _text(library.record(matrix)),
                matrix.rows,
                matrix.columns,
                data.offset(matrix.address, matrix.size),
            )
            for index, matrix in program.matrices
        ],
        "vectors": [
            (index, name, data.offset(vector.address, vector.size), vector.size)
            for index, name, vector in program.vectors
        ],
        "tables": [
            (
                data.offset(table.cosines.address, table.cosines.size),
                data.offset(table.sines.address, table.sines.size),
                table.cosines.size,
                table.dim,
            )
            for table in snapshot.tables
        ],
        "vocab_size": snapshot.vocab_size,
        "positions": snapshot.positions,
        "dtype": snapshot.dtype,
        "threads": snapshot.threads,
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
    file: BufferedReader, key: dict[str, Any], library: Functions, cache_kind: CacheKind, *, free: int, positions: int
) -> Snapshot | None:
    """Begins to read the snapshot in a file; None if its key is another, or it is damaged.

    Its weights are read in a thread, which then closes the file; see `Snapshot.wait`. free: bytes that it may take.
    positions: the fewest it must have. Raises OSError and MemoryError.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        header = _header(file)
        if header is None or header["key"] != key or header["size"] > free or header["positions"] < positions:
            return None
        data = Memory(header["size"], huge_pages=True)
        stack.pop_all()
    reading = _BackgroundRead(file, data)
    try:
        reading.start()
    except RuntimeError:  # no thread can be started
        reading.run()

    def vector(offset: int, size: int) -> Vector:
        return Vector(data.address + offset, size, data)

    def matrix(record: str, rows: int, columns: int, offset: int) -> Matrix:
        return library.restored(base64.b85decode(record), data.address + offset, rows, columns, data)

    ops = base64.b85decode(header["ops"])
    program = Program(
        library,
        list((Op * (len(ops) // ctypes.sizeof(Op))).from_buffer_copy(ops)),
        [(index, name, Buffer(buffer, width, offset)) for index, name, buffer, width, offset in header["uses"]],
        [(index, matrix(*described)) for index, *described in header["matrices"]],
        [(index, name, vector(*where)) for index, name, *where in header["vectors"]],
        cache_kind,
    )
    tables = [RotaryTable(vector(cos, size), vector(sin, size), dim) for cos, sin, size, dim in header["tables"]]
    names = ("vocab_size", "positions", "dtype", "threads")
    return Snapshot(program, tables, **{name: header[name] for name in names}, reading=reading)


def key_if_whole(file: BufferedReader) -> dict[str, Any] | None:
    """The key of the snapshot in a file; None if the file is cut short. Raises OSError."""
    header = _header(file)
    if header is None or os.fstat(file.fileno()).st_size != file.tell() + header["size"]:
        return None
    return cast("dict[str, Any]", header["key"])


def _header(file: BufferedReader) -> dict[str, Any] | None:
    """The header, if it is whole; the file is left at the data."""
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
