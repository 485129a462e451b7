"""Decodes ggml's blocks of every type to numpy arrays.

A block is a run of columns of one row; a structured dtype describes its layout. Each decoder takes n blocks and returns
their values (n, columns) in fp32, exactly as ggml computes them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

Array: TypeAlias = Any  # an np.ndarray; numpy's types say Any for arithmetic on unknown dtypes, too

_CHUNK = 1 << 20  # values decoded at once
# ggml's "non-linear" 4 bits. Source: kvalues_iq4nl of ggml-common.h.
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the 4-bit floats of MXFP4 and NVFP4, which are integers.
TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@dataclass(frozen=True)
class BlockType:
    """A type's number in GGUF files, the columns of a block, its fields (name, dtype, count), and what decodes them."""

    number: int
    columns: int
    fields: tuple[tuple[str, str, int], ...]
    decode: Callable[[Array], Array]

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return sum(int(kind[-1]) * count for _, kind, count in self.fields)


def decoded(name: str, data: Array) -> Array:
    """The values (..., columns) in fp32 of rows (..., bytes) of a type of BLOCKS."""
    import numpy as np

    block = BLOCKS[name]
    dtype = np.dtype([(field, f"<{kind}", (count,)) for field, kind, count in block.fields])
    blocks = np.ascontiguousarray(data).reshape(-1).view(dtype)
    values = np.empty((*data.shape[:-1], data.shape[-1] // block.size * block.columns), np.float32)
    flat, step = values.reshape(-1, block.columns), _CHUNK // block.columns
    with np.errstate(all="ignore"):  # damaged scales give NaN or infinity
        for start in range(0, len(blocks), step):
            flat[start : start + step] = block.decode(blocks[start : start + step])
    return values


def _split(data: Array, bits: int, run: int = 1) -> Array:
    """(n, bytes) to one number per byte: for each run of bytes, the lowest bits of all its bytes, then the next."""
    import numpy as np

    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    numbers = data.reshape(len(data), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return numbers.reshape(len(data), -1)


def _wide(data: Array) -> Array:
    """Numbers of any kind in fp32."""
    import numpy as np

    return data.astype(np.float32)


def _scaled(scales: Array, q: Array) -> Array:
    """Values q (n, columns) times scales (n, groups)."""
    return (scales[..., None] * _wide(q).reshape(*scales.shape, -1)).reshape(q.shape)


def _floats(block: Array) -> Array:
    return _wide(block["x"])


def _bf16(block: Array) -> Array:
    import numpy as np

    return (block["x"].astype(np.uint32) << 16).view(np.float32)


def _q4_0(block: Array) -> Array:
    return _wide(block["d"]) * (_wide(_split(block["q"], 4, 16)) - 8)


def _q4_1(block: Array) -> Array:
    return _wide(block["d"]) * _split(block["q"], 4, 16) + _wide(block["m"])


def _five_bits(block: Array) -> Array:
    return _wide(_split(block["q"], 4, 16) | _split(block["high"], 1) << 4)


def _q5_0(block: Array) -> Array:
    return _wide(block["d"]) * (_five_bits(block) - 16)


def _q5_1(block: Array) -> Array:
    return _wide(block["d"]) * _five_bits(block) + _wide(block["m"])


def _q8_0(block: Array) -> Array:
    return _wide(block["d"]) * _wide(block["q"])


def _q2_k(block: Array) -> Array:
    scales, minima = block["scales"] & 15, block["scales"] >> 4
    q = _scaled(_wide(block["d"]) * scales, _split(block["q"], 2, 32))
    return _below(q, _wide(block["dmin"]) * minima)


def _q3_k(block: Array) -> Array:
    low, high = _split(block["scales"][:, :8], 4, 8), _split(block["scales"][:, 8:], 2, 4)
    q = _wide(_split(block["q"], 2, 32)) - 4 * _wide(1 - _split(block["mask"], 1, 32))
    return _scaled(_wide(block["d"]) * (_wide(low | high << 4) - 32), q)


def scales_and_minima(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of 6 bits from 12 bytes: (n, 12) to two of (n, 8). As in Q4_K and Q5_K."""
    import numpy as np

    low, middle, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, mixed & 15 | low >> 2 & 48], axis=1)
    return scales, np.concatenate([middle & 63, mixed >> 4 | middle >> 2 & 48], axis=1)


def _q4_k(block: Array) -> Array:
    return _of_scales_and_minima(block, _split(block["q"], 4, 32))


def _q5_k(block: Array) -> Array:
    return _of_scales_and_minima(block, _split(block["q"], 4, 32) | _split(block["high"], 1, 32) << 4)


def _of_scales_and_minima(block: Array, q: Array) -> Array:
    scales, minima = scales_and_minima(block["scales"])
    return _below(_scaled(_wide(block["d"]) * scales, q), _wide(block["dmin"]) * minima)


def _below(values: Array, minima: Array) -> Array:
    """Values (n, columns) less the minimum of their group (n, groups)."""
    return (values.reshape(*minima.shape, -1) - minima[..., None]).reshape(values.shape)


def _q6_k(block: Array) -> Array:
    q = _split(block["q"], 4, 64) | _split(block["high"], 2, 32) << 4
    return _scaled(_wide(block["d"]) * block["scales"], _wide(q) - 32)


def _tq1_0(block: Array) -> Array:
    """Five base-3 digits per byte, as a fraction of 256; four in the last bytes."""
    import numpy as np

    runs = (block["q"][:, :32], 5), (block["q"][:, 32:], 5), (block["last"], 4)
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]
    digits = [(data[:, None] * powers[:count]).reshape(len(data), -1) for data, count in runs]
    return _wide(block["d"]) * (_wide(np.concatenate(digits, axis=1).astype(np.uint16) * 3 >> 8) - 1)


def _tq2_0(block: Array) -> Array:
    return _wide(block["d"]) * (_wide(_split(block["q"], 2, 32)) - 1)


def _mxfp4(block: Array) -> Array:
    """The numbers are doubled, so scales are halved. The two least scales are subnormal in fp32."""
    import numpy as np

    e = block["e"].astype(np.uint32)
    halves = np.where(e < 2, np.uint32(0x00200000) << e, (e - 1) << 23).view(np.float32)
    return halves * np.array(TWICE_E2M1, np.float32)[_split(block["q"], 4, 16)]


def _nvfp4(block: Array) -> Array:
    """Scales have 4 bits of exponent and 3 of mantissa, no sign. They are halved, for the numbers are doubled."""
    import numpy as np

    e, mantissa = block["e"] >> 3 & 15, _wide(block["e"] & 7)
    scales = np.where(e == 0, mantissa / 1024, np.ldexp(1 + mantissa / 8, e.astype(np.int32) - 8))
    scales[block["e"] == 0x7F] = 0
    return _scaled(_wide(scales), np.array(TWICE_E2M1, np.float32)[_split(block["q"], 4, 8)])


def _q1_0(block: Array) -> Array:
    return _wide(block["d"]) * (2 * _wide(_split(block["q"], 1)) - 1)


def _iq4_nl(block: Array) -> Array:
    return _wide(block["d"]) * _iq4_values(block["q"])


def _iq4_xs(block: Array) -> Array:
    scales = _split(block["low"], 4) | _split(block["high"], 2) << 4
    return _scaled(_wide(block["d"]) * (_wide(scales) - 32), _iq4_values(block["q"]))


def _iq4_values(q: Array) -> Array:
    import numpy as np

    return np.array(IQ4_NL, np.float32)[_split(q, 4, 16)]


def _iq2_xxs(block: Array) -> Array:
    words = block["q"].reshape(len(block), 8, 2)
    indices, rest = _bytes_of(words[..., 0]), words[..., 1]
    scales = _wide(block["d"]) * (_wide(rest >> 28) + 0.5) * 0.25
    return _scaled(scales, _from_grid("IQ2_XXS", indices) * _signs_of_28_bits(rest))


def _iq2_xs(block: Array) -> Array:
    grid = _from_grid("IQ2_XS", block["q"] & 511)
    return _scaled(_small_scales(block), grid * _signs(_signs_of_7_bits()[block["q"] >> 9]))


def _iq2_s(block: Array) -> Array:
    indices = block["q"] | _split(block["high"], 2).astype("u2") << 8
    return _scaled(_small_scales(block), _from_grid("IQ2_S", indices) * _signs(block["signs"]))


def _small_scales(block: Array) -> Array:
    return _wide(block["d"]) * (_wide(_split(block["scales"], 4)) + 0.5) * 0.25


def _iq3_xxs(block: Array) -> Array:
    scales = _wide(block["d"]) * (_wide(block["rest"] >> 28) + 0.5) * 0.5
    return _scaled(scales, _from_grid("IQ3_XXS", block["q"]) * _signs_of_28_bits(block["rest"]))


def _iq3_s(block: Array) -> Array:
    indices = block["q"] | _split(block["high"], 1).astype("u2") << 8
    scales = _wide(block["d"]) * (2 * _wide(_split(block["scales"], 4)) + 1)
    return _scaled(scales, _from_grid("IQ3_S", indices) * _signs(block["signs"]))


def _iq1_s(block: Array) -> Array:
    import numpy as np

    high = block["high"]
    shifts = np.array([0, 3, 6, 9], np.uint16)
    indices = block["q"] | ((high[..., None] >> shifts & 7) << 8).reshape(len(block), -1)
    shifted = _shifted(_from_grid("IQ1_S", indices), high >> 15)
    return _scaled(_wide(block["d"]) * (2 * _wide(high >> 12 & 7) + 1), shifted)


def _iq1_m(block: Array) -> Array:
    import numpy as np

    words, high = block["scales"], _split(block["high"], 4)
    d = np.bitwise_or.reduce(words >> 12 << np.array([0, 4, 8, 12], np.uint16), axis=1)
    scales = 2 * _wide(words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & 7).reshape(len(block), -1) + 1
    indices = block["q"] | (high & 7).astype("u2") << 8
    shifted = _shifted(_from_grid("IQ1_S", indices), high >> 3)
    return _scaled(_wide(d.astype(np.uint16).view(np.float16))[:, None] * scales, shifted)


def _shifted(values: Array, down: Array) -> Array:
    """Values (n, columns) plus 1/8, or minus 1/8 where their group's bit (n, groups) is set."""
    return (values.reshape(*down.shape, -1) + (0.125 - 0.25 * _wide(down))[..., None]).reshape(values.shape)


def _from_grid(name: str, indices: Array) -> Array:
    return grid(name)[indices].reshape(len(indices), -1)


@cache
def grid(name: str) -> Array:
    """A codebook (entries, values) of the format: see tests/gguf/record_codebooks.py, which wrote codebooks.json."""
    import numpy as np

    recorded = json.loads(Path(__file__).with_name("codebooks.json").read_text())[name]
    levels = np.array(recorded["levels"], np.float32)
    stored = np.frombuffer(base64.b64decode(recorded["entries"]), np.uint8).reshape(1, -1)
    return levels[_split(stored, 4)].reshape(-1, recorded["width"])


@cache
def _signs_of_7_bits() -> Array:
    """Eight sign bits for each number of 7 bits; the eighth makes their count even."""
    import numpy as np

    numbers = np.arange(128, dtype=np.uint8)
    odd = np.bitwise_xor.reduce(numbers[:, None] >> np.arange(7, dtype=np.uint8) & 1, axis=1)
    return numbers | odd << 7


def _signs(data: Array) -> Array:
    return 1 - 2 * _wide(_split(data, 1))


def _signs_of_28_bits(words: Array) -> Array:
    import numpy as np

    numbers = words[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return _signs(_signs_of_7_bits()[numbers.reshape(len(words), -1)])


def _bytes_of(words: Array) -> Array:
    import numpy as np

    return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)


def _type(number: int, columns: int, decode: Callable[[Array], Array], **fields: str) -> BlockType:
    """fields: each field's dtype and, after a star, its count."""
    parsed = ((name, *spec.partition("*")[::2]) for name, spec in fields.items())
    return BlockType(number, columns, tuple((name, kind, int(count or 1)) for name, kind, count in parsed), decode)


BLOCKS: dict[str, BlockType] = {
    "F32": _type(0, 1, _floats, x="f4"),
    "F16": _type(1, 1, _floats, x="f2"),
    "BF16": _type(30, 1, _bf16, x="u2"),
    "Q4_0": _type(2, 32, _q4_0, d="f2", q="u1*16"),
    "Q4_1": _type(3, 32, _q4_1, d="f2", m="f2", q="u1*16"),
    "Q5_0": _type(6, 32, _q5_0, d="f2", high="u1*4", q="u1*16"),
    "Q5_1": _type(7, 32, _q5_1, d="f2", m="f2", high="u1*4", q="u1*16"),
    "Q8_0": _type(8, 32, _q8_0, d="f2", q="i1*32"),
    "Q2_K": _type(10, 256, _q2_k, scales="u1*16", q="u1*64", d="f2", dmin="f2"),
    "Q3_K": _type(11, 256, _q3_k, mask="u1*32", q="u1*64", scales="u1*12", d="f2"),
    "Q4_K": _type(12, 256, _q4_k, d="f2", dmin="f2", scales="u1*12", q="u1*128"),
    "Q5_K": _type(13, 256, _q5_k, d="f2", dmin="f2", scales="u1*12", high="u1*32", q="u1*128"),
    "Q6_K": _type(14, 256, _q6_k, q="u1*128", high="u1*64", scales="i1*16", d="f2"),
    "IQ2_XXS": _type(16, 256, _iq2_xxs, d="f2", q="u4*16"),
    "IQ2_XS": _type(17, 256, _iq2_xs, d="f2", q="u2*32", scales="u1*8"),
    "IQ3_XXS": _type(18, 256, _iq3_xxs, d="f2", q="u1*64", rest="u4*8"),
    "IQ1_S": _type(19, 256, _iq1_s, d="f2", q="u1*32", high="u2*8"),
    "IQ4_NL": _type(20, 32, _iq4_nl, d="f2", q="u1*16"),
    "IQ3_S": _type(21, 256, _iq3_s, d="f2", q="u1*64", high="u1*8", signs="u1*32", scales="u1*4"),
    "IQ2_S": _type(22, 256, _iq2_s, d="f2", q="u1*32", signs="u1*32", high="u1*8", scales="u1*8"),
    "IQ4_XS": _type(23, 256, _iq4_xs, d="f2", high="u1*2", low="u1*4", q="u1*128"),
    "IQ1_M": _type(29, 256, _iq1_m, q="u1*32", high="u1*16", scales="u2*4"),
    "TQ1_0": _type(34, 256, _tq1_0, q="u1*48", last="u1*4", d="f2"),
    "TQ2_0": _type(35, 256, _tq2_0, q="u1*64", d="f2"),
    "MXFP4": _type(39, 32, _mxfp4, e="u1", q="u1*16"),
    "NVFP4": _type(40, 64, _nvfp4, e="u1*4", q="u1*32"),
    "Q1_0": _type(41, 128, _q1_0, d="f2", q="u1*16"),
}
