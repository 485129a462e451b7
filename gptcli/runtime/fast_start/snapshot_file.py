"""The two files of a snapshot: a program and the weights that it reads, ready to run. No torch.

The header, one for each way to run a model:

    32 bytes    the SHA-256 of what follows
    JSON        the key, the operations, the offsets of their weights, and the checksum of the weights

The weights, in the kernels' layout, each matrix or vector at a multiple of 64 bytes. Headers of one model share equal
weights. The file's name has the checksum.

A snapshot is used only if its key is the wanted one and both files are whole.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from threading import Thread
from typing import IO, Any, TypeAlias

from gptcli.errors import InputError
from gptcli.files import open_own, replaced
from gptcli.kernels.bindings import CacheKind, Checksum, Functions, Matrix, Op, Rotation
from gptcli.kernels.memory import Memory
from gptcli.runtime.program import Buffer, Program, Vector

Header: TypeAlias = dict[str, Any]

WEIGHTS = ".weights"  # how the name of such a file ends
_ALIGNED = 64
_FIELDS = {"key": dict, "dtype": str, "size": int, "checksum": str}  # what is read of one whose key may differ
_POINTERS = [name for name, kind, *_ in Op._fields_ if kind is ctypes.c_void_p]


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

    positions: rows of the rotary tables. dtype: as on the command line. threads: the default number.
    """

    program: Program
    tables: Sequence[RotaryTable]
    vocab_size: int
    positions: int
    dtype: str
    threads: int
    reading: _BackgroundRead | None = None

    def wait(self) -> None:
        """Waits for the weights. Raises DamagedSnapshot."""
        if self.reading is not None:
            self.reading.wait()


class DamagedSnapshot(Exception):
    """A file of a snapshot has changed since it was written."""


class _BackgroundRead(Thread):
    """Reads a file of weights into memory in a thread."""

    def __init__(self, file: BufferedReader, data: Memory, library: Functions, checksum: str) -> None:
        super().__init__(daemon=True)
        self._file, self._data, self._library, self._checksum = file, data, library, checksum
        self._whole = False

    def run(self) -> None:
        """Fills the memory, and closes the file."""
        with self._file:
            found = Checksum()  # a single call: this thread never waits for the interpreter's lock
            read = self._library.read_into(found, self._file.fileno(), self._data.address, self._data.size)
            self._whole = read and _weights_name(found) == self._checksum

    def wait(self) -> None:
        """Waits. Raises DamagedSnapshot if the file cannot be read or has changed."""
        if self.ident is not None:
            self.join()
        if not self._whole:
            raise DamagedSnapshot


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

    def checksum(self, library: Functions) -> str:
        """The checksum of the data with zeros between the pieces."""
        result = Checksum()
        for _, address, size in self.pieces:
            whole, rest = size // _ALIGNED * _ALIGNED, size % _ALIGNED
            library.add_to_checksum(result, address, whole)
            if rest:
                last = ctypes.create_string_buffer(ctypes.string_at(address + whole, rest), _ALIGNED)
                library.add_to_checksum(result, ctypes.addressof(last), _ALIGNED)
        return _weights_name(result)

    def write(self, file: IO[bytes]) -> None:
        """Writes the data. Raises OSError."""
        for offset, address, size in self.pieces:
            file.seek(offset)
            file.write((ctypes.c_char * size).from_address(address))
        file.truncate(self.size)


def write(snapshot: Snapshot, key: dict[str, Any], library: Functions, path: Path) -> None:
    """Writes a snapshot, whose header goes to `path`. Raises OSError."""
    program, data = snapshot.program, _Pieces()
    ops = (Op * len(program.ops)).from_buffer_copy(program.ops)
    for op in ops:
        for name in _POINTERS:
            setattr(op, name, None)
    header = {
        "key": key,
        "ops": _base64(bytes(ops)),
        "uses": [(index, name, rows.name, rows.width, rows.offset) for index, name, rows in program.uses],
        "matrices": [
            (
                index,
                _base64(library.struct_bytes(matrix)),
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
        "checksum": data.checksum(library),
    }
    if not has_weights(path, header):
        with replaced(weights_of(path, header)) as file:
            data.write(file)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    with replaced(path) as file:
        file.write(hashlib.sha256(encoded).digest() + encoded)


def weights_of(path: Path, header: Header) -> Path:
    """The path of the weights that a snapshot's header at `path` names."""
    return path.with_name(f"{path.name.partition('-')[0]}-{header['checksum']}{WEIGHTS}")


def read(
    path: Path, key: dict[str, Any], library: Functions, cache_kind: CacheKind, *, free: int, positions: int
) -> Snapshot | None:
    """Begins to read the snapshot with the header at `path`; None if its key differs or it does not fit.

    Its weights are read in a thread; see `Snapshot.wait`. free: bytes that it may take. positions: the fewest that it
    must have. Raises DamagedSnapshot, InputError, OSError and MemoryError.
    """
    header = read_header(path)
    if header["key"] != key or header["size"] > free or header["positions"] < positions:
        return None
    data = Memory(header["size"], huge_pages=True)
    reading = _BackgroundRead(open_own(weights_of(path, header)), data, library, header["checksum"])
    try:
        reading.start()
    except RuntimeError:  # no thread can be started
        reading.run()

    def vector(offset: int, size: int) -> Vector:
        return Vector(data.address + offset, size, data)

    def matrix(struct: str, rows: int, columns: int, offset: int) -> Matrix:
        return library.restored(base64.b64decode(struct), data.address + offset, rows, columns, data)

    ops = base64.b64decode(header["ops"])
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


def read_header(path: Path) -> Header:
    """The header in a file. Raises DamagedSnapshot, OSError, and InputError for another version's layout too."""
    with open_own(path) as file:
        digest, encoded = file.read(32), file.read()
    if hashlib.sha256(encoded).digest() != digest:
        raise DamagedSnapshot
    with contextlib.suppress(ValueError, RecursionError):
        header = json.loads(encoded)
        if isinstance(header, dict) and all(isinstance(header.get(name), kind) for name, kind in _FIELDS.items()):
            if header["key"].get("model") and header["checksum"].isalnum():
                return header
    raise InputError(f"not a snapshot of this version: {path}")


def has_weights(path: Path, header: Header) -> bool:
    """Whether the weights of a header at `path` exist, with the right size. Raises OSError."""
    weights = weights_of(path, header)
    return weights.is_file() and weights.stat().st_size == header["size"]


def _weights_name(checksum: ctypes.Array[ctypes.c_uint64]) -> str:
    return hashlib.sha256(bytes(checksum)).hexdigest()[:24]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
