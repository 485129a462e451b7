"""Mutators of GGUF files: the tiny model in one, whose header, fields, blocks and parts lie."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from gptcli.gguf.blocks import BLOCKS
from tests.corpus.model_dir import GGUF, Expected, ModelDir, Mutator
from tests.gguf.model_writer import write_model
from tests.gguf.raw_gguf import RawGguf, numbers, text, texts
from tests.gguf.tiny_gguf import add_field

_LIES = [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]


@cache
def _base() -> bytes:
    """The tiny model as a GGUF file, with the same numbers."""
    model = ModelDir.base()
    config, tokenizer = model.json(), model.json("tokenizer.json")
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"] | ids
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in ids else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "general.sampling.temp": 0.7,
    }

    def add(writer: GGUFWriter) -> None:
        for name, value in fields.items():
            add_field(writer, name, value)

    with TemporaryDirectory() as directory:
        model.write(Path(directory) / "base")
        write_model(Path(directory) / "base", Path(directory) / GGUF, "llama", config, {}, {}, add)
        return (Path(directory) / GGUF).read_bytes()


def _raw() -> RawGguf:
    with TemporaryDirectory() as directory:
        path = Path(directory) / GGUF
        path.write_bytes(_base())
        return RawGguf.of(path)


def _put(model: ModelDir, data: RawGguf | bytes) -> None:
    model.files = {GGUF: data.written() if isinstance(data, RawGguf) else data}


def _of_raw(change: Callable[[Random, RawGguf], Expected | None]) -> Mutator:
    """The mutator that changes the parts of the file."""

    @wraps(change)
    def mutate(rng: Random, model: ModelDir) -> Expected | None:
        raw = _raw()
        expected = change(rng, raw)
        _put(model, raw)
        return expected

    return mutate


def gguf_whole(rng: Random, raw: RawGguf) -> Expected:
    """Nothing is wrong, and a field more, of no architecture, is no matter."""
    raw.fields["general.x" * rng.randint(1, 9)] = rng.choice([(8, text("x")), (7, b"\1"), numbers([1, 2, 3])])
    return "accept"


def gguf_cut(rng: Random, model: ModelDir) -> None:
    data, header = _base(), len(_raw().header())
    _put(model, data[: rng.choice([0, 3, 4, 8, 23, header, rng.randrange(header), rng.randrange(len(data) - 64)])])


def gguf_flips(rng: Random, model: ModelDir) -> Expected:
    data = bytearray(_base())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(_raw().header()))] ^= 1 << rng.randrange(8)
    _put(model, bytes(data))
    return "any"


def gguf_versions(rng: Random, raw: RawGguf) -> None:
    raw.version = rng.choice([0, 1, 4, 3 << 24, 2**32 - 1])


def gguf_counts(rng: Random, raw: RawGguf) -> None:
    lie = rng.choice([*_LIES, len(raw.tensors) + 1, len(raw.fields) - 1])
    raw.counts = (lie, None) if rng.random() < 0.5 else (None, lie)


def gguf_lengths(rng: Random, raw: RawGguf) -> None:
    """A string or a list that says that it is longer than the file."""
    name = rng.choice([name for name, (kind, _) in raw.fields.items() if kind in (8, 9)])
    kind, value = raw.fields[name]
    lie = struct.pack("<Q", rng.choice([2**24 + 1, *_LIES[2:]]))
    raw.fields[name] = kind, lie + value[8:] if kind == 8 else value[:4] + lie + value[12:]


def gguf_lists(rng: Random, raw: RawGguf) -> None:
    """A list of a type that there is not, of lists, or a list where something else should be."""
    name = rng.choice(["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"])
    value = raw.fields[name][1]
    other = struct.pack("<I", rng.choice([9, 13, 255, 2**32 - 1]))
    raw.fields[name] = rng.choice([(9, other + value[4:]), (4, b"\1\0\0\0"), (8, text("x")), (13, b""), numbers([])])


def gguf_missing(rng: Random, raw: RawGguf) -> None:
    needed = ["general.architecture", "llama.context_length", "llama.embedding_length", "llama.block_count",
              "llama.feed_forward_length", "llama.attention.head_count", "tokenizer.ggml.model",
              "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"]  # fmt: skip
    if rng.random() < 0.5:
        del raw.fields[rng.choice(needed)]
    else:
        del raw.tensors[rng.choice(list(raw.tensors))]


def gguf_sizes(rng: Random, raw: RawGguf) -> None:
    """Another size in a field, which tensors then contradict."""
    name = rng.choice(["embedding_length", "block_count", "feed_forward_length", "attention.head_count"])
    kind, value = raw.fields[f"llama.{name}"]
    (true,) = struct.unpack("<I", value)
    lie = rng.choice([0, 1, 3, true + 1, 2 * true + 1, 2**16, 2**31, 2**32 - 1])
    raw.fields[f"llama.{name}"] = kind, struct.pack("<I", lie)


def gguf_values(rng: Random, raw: RawGguf) -> Expected:
    """Any value of any type in a field of the architecture or the tokenizer."""
    name = rng.choice([name for name in raw.fields if not name.startswith("general.arch")])
    number = rng.choice(_LIES)
    odd = rng.choice([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e38, 1e-45])
    values: list[tuple[int, bytes]] = [
        (10, struct.pack("<Q", number)), (5, struct.pack("<i", -(number % 2**31))), (6, struct.pack("<f", odd)),
        (12, struct.pack("<d", odd)), (7, b"\2"), (8, text(rng.choice(["", "llama", "\ud7ff", "x" * 70_000]))),
        numbers([]), texts([""]), numbers([number % 2**31] * 5),
    ]  # fmt: skip
    raw.fields[name] = rng.choice(values)
    return "any"


def gguf_not_utf8(rng: Random, raw: RawGguf) -> None:
    bad = struct.pack("<Q", 3) + rng.choice([b"\xff\xfe\xfd", b"\xed\xa0\x80", b"a\x80b"])
    raw.fields["tokenizer.ggml.pre"] = 8, bad


def gguf_shapes(rng: Random, raw: RawGguf) -> None:
    tensor = raw.tensors[rng.choice(list(raw.tensors))]
    shapes = [[], [0], [1] * 5, [2**63, 2], [2**32, 2**32], [*tensor.shape, 2], [size + 1 for size in tensor.shape],
              [rng.choice(_LIES)] * len(tensor.shape), [2**64 - 1]]  # fmt: skip
    tensor.shape = rng.choice([shape for shape in shapes if shape != tensor.shape])


def gguf_kinds(rng: Random, raw: RawGguf) -> None:
    tensor = raw.tensors[rng.choice(list(raw.tensors))]
    known = {block.number for block in BLOCKS.values()}
    tensor.kind = rng.choice([kind for kind in [*range(42), 2**31, 2**32 - 1] if kind not in known])


def gguf_offsets(rng: Random, raw: RawGguf) -> Expected:
    """A tensor that begins within another, or outside of the file."""
    first, other = rng.sample(list(raw.tensors), 2)
    total = sum(len(tensor.data) for tensor in raw.tensors.values())
    inside = [at for at in range(0, len(_base()), 32) if at < total - 64][:: rng.randint(1, 9)]
    raw.tensors[first].at = rng.choice([total + 2**20, 2**40, 2**63, 2**64 - 1, rng.choice(inside) + 4])
    if raw.tensors[first].at in inside:
        raw.tensors[other].at = raw.tensors[first].at
    return "any" if (raw.tensors[first].at or 0) < total else "reject"


def gguf_names(rng: Random, raw: RawGguf) -> None:
    name = rng.choice(list(raw.tensors))
    others = ["", "x" * 70_000, "\x1b[31m", "blk.0.attn_q.weight.weight", "blk.99999999999.attn_q.weight",
              "blk.-1.attn_q.weight", "blk.٣.attn_q.weight", "output.bias.x", name.upper()]  # fmt: skip
    raw.tensors = {rng.choice(others) if each == name else each: tensor for each, tensor in raw.tensors.items()}


def gguf_extra(rng: Random, raw: RawGguf) -> None:
    """A tensor more, which shows another model."""
    other = raw.tensors["output_norm.weight"]
    names = ["blk.0.attn_q_norm.weight", "blk.2.attn_norm.weight", "blk.0.attn_norm.bias", "blk.0.ssm_a", "mn.0.weight",
             "blk.0.attn_sinks.weight", "output_norm.bias", "position_embd.weight"]  # fmt: skip
    raw.tensors[rng.choice(names)] = other


def gguf_mathematics(rng: Random, raw: RawGguf) -> None:
    """A field that says that something else is computed."""
    fields: list[tuple[str, tuple[int, bytes]]] = [
        ("attention.sliding_window", (4, struct.pack("<I", 8))), ("attention.causal", (7, b"\0")),
        ("attention.scale", (6, struct.pack("<f", 0.5))), ("logit_scale", (6, struct.pack("<f", 2.0))),
        ("rope.scaling.type", (8, text("x"))), ("rope.dimension_count", (4, struct.pack("<I", 4))),
        ("attention.key_length", (4, struct.pack("<I", 16))), ("final_logit_softcapping", (6, struct.pack("<f", 3.0))),
        ("attention.max_alibi_bias", (6, struct.pack("<f", 8.0))), ("expert_count", (4, struct.pack("<I", 2))),
        ("rope.dimension_sections", numbers([1, 1, 1, 1])),
    ]  # fmt: skip
    name, value = rng.choice(fields)
    raw.fields[f"llama.{name}"] = value


def gguf_vocabulary(rng: Random, raw: RawGguf) -> None:
    tokens = ["a"] * 320
    changes: list[tuple[str, Any]] = [
        ("tokens", texts(tokens)), ("tokens", texts([])), ("token_type", numbers([3])),
        ("merges", texts(["x"])), ("merges", texts(["zz yy"])), ("merges", texts([""])), ("model", (8, text("bert"))),
        ("model", (8, text("llama"))), ("pre", (8, text("x"))), ("eos_token_id", (4, struct.pack("<I", 320))),
        ("add_eos_token", (4, b"\1\0\0\0")),
    ]  # fmt: skip
    name, value = rng.choice(changes)
    raw.fields[f"tokenizer.ggml.{name}"] = value


def gguf_template(rng: Random, raw: RawGguf) -> Expected:
    raw.fields["tokenizer.chat_template"] = rng.choice([numbers([1]), (8, text("{% for %}")), (8, text("{{" * 9999))])
    return "either"


def gguf_blocks(rng: Random, raw: RawGguf) -> Expected:
    """A matrix of random blocks of any type: perhaps of NaN, never of anything but a model or a refusal."""
    name = rng.choice([name for name, tensor in raw.tensors.items() if len(tensor.shape) == 2])
    tensor = raw.tensors[name]
    kinds = [kind for kind in BLOCKS if tensor.shape[0] % BLOCKS[kind].columns == 0]
    kind = GGMLQuantizationType[rng.choice(kinds)]
    columns, size = GGML_QUANT_SIZES[kind]
    tensor.kind = int(kind)
    tensor.data = np.random.default_rng(rng.getrandbits(32)).bytes(math.prod(tensor.shape) // columns * size)
    return "any"


def gguf_bomb(rng: Random, model: ModelDir) -> None:
    """A sparse file of a terabyte, in which what the header says is long enough."""
    raw = _raw()
    kind, value = raw.fields["tokenizer.ggml.merges"]
    raw.fields["tokenizer.ggml.merges"] = kind, value[:4] + struct.pack("<Q", rng.choice([2**24, 2**32, 2**37]))
    data = raw.written()

    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.truncate(1 << 40)

    model.files = {}
    model.replace(GGUF, make)


def gguf_parts(rng: Random, raw: RawGguf) -> None:
    """A file that says that it is a part of one."""
    raw.fields["split.count"] = 2, struct.pack("<H", rng.choice([2, 3, 65_535]))
    raw.fields["split.no"] = 2, struct.pack("<H", rng.choice([0, 1, 65_535]))


def gguf_config_beside(rng: Random, model: ModelDir) -> Expected:
    """Files beside a GGUF file that it does not need and that are not read."""
    _put(model, _raw())
    model.files["config.json"] = rng.choice([b"", b"{", json.dumps({"model_type": "x"}).encode()])
    return "accept"


_OF_FILES = (gguf_cut, gguf_flips, gguf_bomb, gguf_config_beside)
MUTATORS = [each if each in _OF_FILES else _of_raw(each) for each in (
    gguf_whole, gguf_cut, gguf_flips, gguf_versions, gguf_counts, gguf_lengths, gguf_lists, gguf_missing, gguf_sizes,
    gguf_values, gguf_not_utf8, gguf_shapes, gguf_kinds, gguf_offsets, gguf_names, gguf_extra, gguf_mathematics,
    gguf_vocabulary, gguf_template, gguf_blocks, gguf_bomb, gguf_parts, gguf_config_beside,
)]  # fmt: skip
