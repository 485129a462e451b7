"""A GGUF file whose fields, tensors and header can be changed one by one."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from gguf import GGUFReader


@dataclass
class RawTensor:
    """A tensor with its sizes in the file's order. at: its offset in the header; None for the true one."""

    shape: list[int]
    kind: int
    data: bytes
    at: int | None = None


@dataclass
class RawGguf:
    """fields: type and value's bytes of each. counts: of tensors and fields in the header; None for the true ones."""

    fields: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    tensors: dict[str, RawTensor] = field(default_factory=dict)
    version: int = 3
    counts: tuple[int | None, int | None] = (None, None)

    @classmethod
    def of(cls, path: Path) -> RawGguf:
        """The parts of a file."""
        reader, data = GGUFReader(path), path.read_bytes()
        raw = cls()
        for name, each in reader.fields.items():
            if not name.startswith("GGUF."):
                start = each.offset + 8 + len(name.encode())
                (kind,) = struct.unpack_from("<I", data, start)
                raw.fields[name] = kind, data[start + 4 : each.offset + sum(part.nbytes for part in each.parts)]
        for tensor in reader.tensors:
            raw.tensors[tensor.name] = RawTensor(
                [int(size) for size in tensor.shape], int(tensor.tensor_type), tensor.data.tobytes()
            )
        return raw

    def header(self) -> bytes:
        """All before the data, padded to 32 bytes."""
        tensors, fields = self.counts
        counts = len(self.tensors) if tensors is None else tensors, len(self.fields) if fields is None else fields
        header = b"GGUF" + struct.pack("<IQQ", self.version, *counts)
        for name, (kind, value) in self.fields.items():
            header += text(name) + struct.pack("<I", kind) + value
        end = 0
        for name, tensor in self.tensors.items():
            at = end if tensor.at is None else tensor.at
            header += text(name) + struct.pack("<I", len(tensor.shape))
            header += struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.kind, at)
            end += len(tensor.data) + -len(tensor.data) % 32
        return header + bytes(-len(header) % 32)

    def written(self) -> bytes:
        """The whole file."""
        return self.header() + b"".join(each.data + bytes(-len(each.data) % 32) for each in self.tensors.values())


def text(value: str) -> bytes:
    """A string in the format's bytes."""
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def texts(values: list[str]) -> tuple[int, bytes]:
    """A field that is a list of strings."""
    return 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))


def numbers(values: list[int]) -> tuple[int, bytes]:
    """A field that is a list of whole numbers."""
    return 9, struct.pack(f"<IQ{len(values)}i", 5, len(values), *values)
