"""Mutators of weights: headers that lie, files that end early, shards that contradict each other."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from functools import wraps
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tests.corpus.model_dir import WEIGHTS, Expected, ModelDir, Mutator

Tensors = dict[str, tuple[str, Any]]
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
HOSTILE_NAMES = ["\x1b[31mred\x1b]0;owned\x07", "\u202ereversed", "n" * 70_000, "../../etc/passwd", "", "a\0b",
                 "\ud800", "two\nlines", "%s%n{0}", "[red]x[/b]", "\u2028", "\x9b2J"]  # fmt: skip


def _of_header(change: Callable[[Random, dict[str, Any]], Expected | None]) -> Mutator:
    """The mutator that changes the header of the weights."""

    @wraps(change)
    def mutate(rng: Random, model: ModelDir) -> Expected | None:
        header, data = model.header()
        expected = change(rng, header)
        model.put_header(header, data)
        return expected

    return mutate


def _of_tensors(change: Callable[[Random, Tensors], Expected | None]) -> Mutator:
    """The mutator that changes tensors, by name: a dtype and the values."""

    @wraps(change)
    def mutate(rng: Random, model: ModelDir) -> Expected | None:
        tensors = _tensors(model)
        expected = change(rng, tensors)
        _put(model, tensors)
        return expected

    return mutate


def header_length(rng: Random, model: ModelDir) -> None:
    data = model.files[WEIGHTS]
    (length,) = struct.unpack("<Q", data[:8])
    lies = [2**63, 2**64 - 1, 2**32, 0, 1, 8, length - 1, length + 1, len(data), len(data) - 8, 100_000_001,
            rng.getrandbits(64), length ^ (1 << rng.randrange(64))]  # fmt: skip
    model.files[WEIGHTS] = struct.pack("<Q", rng.choice(lies)) + data[8:]


def truncated(rng: Random, model: ModelDir) -> None:
    header, data = model.header()
    whole = model.files[WEIGHTS]
    start = len(whole) - len(data)
    borders = [0, 8, start, *(start + entry["data_offsets"][1] for entry in header.values() if "dtype" in entry)]
    at = rng.choice(borders) + rng.choice([-1, 0, 1])
    model.files[WEIGHTS] = whole[: max(0, min(at, len(whole) - 1))]


def appended(rng: Random, model: ModelDir) -> None:
    model.files[WEIGHTS] += rng.randbytes(rng.choice([1, 7, 8, 4096]))


@_of_header
def offsets(rng: Random, header: dict[str, Any]) -> None:
    name, other = rng.sample(_names(header), 2)
    begin, end = header[name]["data_offsets"]
    step = rng.choice([1, 4, 128, 2**32, 2**63])
    lies: list[Any] = [
        [begin + step, end + step], [begin - step, end - step], [begin, end + step], [end, begin], [begin, begin],
        [float(begin), end], [str(begin), str(end)], [begin, end, end], [begin], [True, end], [None, None], None,
        {"begin": begin, "end": end}, [-1, end - begin - 1], [begin + 2**64, end + 2**64],
    ]  # fmt: skip
    header[name]["data_offsets"] = rng.choice(lies)
    if rng.random() < 0.2:
        header[name]["data_offsets"] = header[other]["data_offsets"]


@_of_header
def shapes(rng: Random, header: dict[str, Any]) -> None:
    entry = header[rng.choice(_names(header))]
    shape = entry["shape"]
    size = int(np.prod(shape))
    lies: list[Any] = [
        [-n for n in shape], [float(n) for n in shape], [str(n) for n in shape], [True, *shape], [1, *shape],
        [*shape, 1], [*shape, 0], [2**63, *shape], [2**32, 2**32, *shape], [size * 2, 0.5], [size, 1, 1], [], None,
        "2", {"0": size}, [shape], [1] * 100_000 + shape, [10**400],
    ]  # fmt: skip
    entry["shape"] = rng.choice(lies)


@_of_header
def many_dimensions(rng: Random, header: dict[str, Any]) -> None:
    """A shape of valid numbers whose product takes an hour, or has more digits than Python prints."""
    header[rng.choice(sorted(header))]["shape"] = [rng.choice([1, 2**31, 2**47])] * rng.choice([9, 300, 200_000])


@_of_header
def dtypes(rng: Random, header: dict[str, Any]) -> None:
    known = ["I32", "U32", "F16", "BF16", "F64", "I64", "U64", "BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "I16", "U16"]
    unknown = ["f32", "F33", "", "F4", "F8_E8M0", "C64", "\x1b[2J", "F" * 70_000, None, 32, True, ["F32"], {}, 1e999]
    header[rng.choice(_names(header))]["dtype"] = rng.choice(known + unknown)


@_of_header
def same_size_dtypes(rng: Random, header: dict[str, Any]) -> None:
    """The right bytes, labelled as integers."""
    for name in rng.sample(_names(header), rng.randint(1, 4)):
        header[name]["dtype"] = rng.choice(["I32", "U32"])


@_of_tensors
def whole_numbers(rng: Random, tensors: Tensors) -> None:
    """Tensors of integers or booleans instead of weights."""
    dtype, kind = rng.choice([("U8", np.uint8), ("I8", np.int8), ("BOOL", np.bool_), ("I64", np.int64)])
    for name in rng.sample(sorted(tensors), 2):
        tensors[name] = dtype, tensors[name][1].astype(kind)


@_of_tensors
def doubles(rng: Random, tensors: Tensors) -> Expected:
    for name in rng.sample(sorted(tensors), rng.randint(1, 3)):
        tensors[name] = "F64", tensors[name][1].astype(np.float64)
    return "either"


def reordered(rng: Random, model: ModelDir) -> Expected:
    """The same tensors in another order, with metadata."""
    tensors = _tensors(model)
    names = sorted(tensors)
    rng.shuffle(names)
    _put(model, {name: tensors[name] for name in names}, {"format": "pt", "note": rng.choice(HOSTILE_NAMES[:6])})
    return "accept"


def duplicate_keys(rng: Random, model: ModelDir) -> None:
    header, data = model.header()
    name = rng.choice(_names(header))
    text = json.dumps(header)
    if rng.random() < 0.5:
        entry = header[rng.choice([name, *_names(header)])]
        text = f"{text[:-1]}, {json.dumps(name)}: {json.dumps(entry)}}}"
    else:
        text = text.replace(
            '"dtype": "F32"', rng.choice(['"dtype": "F32", "dtype": "F32"', '"dtype": "I8", "dtype": "F32"']), 1
        )
    model.put_header(text.encode(), data)


@_of_header
def fields_of_an_entry(rng: Random, header: dict[str, Any]) -> None:
    name = rng.choice(_names(header))
    if rng.random() < 0.7:
        del header[name][rng.choice(["dtype", "shape", "data_offsets"])]
    else:
        header[name] = rng.choice([None, [], "F32", 7, {}, [header[name]]])


@_of_header
def metadata(rng: Random, header: dict[str, Any]) -> Expected:
    odd = [None, [], "x", 7, {"a": 1}, {"a": None}, {"a" * 70_000: "b"}, {"\ud800": "\x1b[2J"}, {}, {"format": "tf"}]
    header["__metadata__"] = rng.choice(odd)
    return "either"


@_of_header
def renamed(rng: Random, header: dict[str, Any]) -> None:
    header[rng.choice(HOSTILE_NAMES)] = header.pop(rng.choice(_names(header)))


def hostile_extra(rng: Random, model: ModelDir) -> Expected:
    """A tensor that nothing uses, whose name is an attack on a terminal, a path or a parser."""
    header, data = model.header()
    header[rng.choice(HOSTILE_NAMES)] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    model.put_header(header, data + bytes(4))
    return "either"


def header_flips(rng: Random, model: ModelDir) -> Expected:
    header, data = model.header()
    text = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    model.put_header(bytes(text), data)
    return "either"


def header_bombs(rng: Random, model: ModelDir) -> None:
    header, data = model.header()
    text = json.dumps(header)
    bombs = ["[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, "9" * 5_000, "NaN", "Infinity"]
    model.put_header(f'{text[:-1]}, "bomb": {rng.choice(bombs)}}}'.encode(), data)


@_of_tensors
def tensors_missing(rng: Random, tensors: Tensors) -> None:
    del tensors[rng.choice(sorted(tensors))]


@_of_tensors
def tensors_extra(rng: Random, tensors: Tensors) -> Expected:
    """Tensors that nothing uses, neither does the reference."""
    extra = ["x", "model.layers.0.self_attn.q_norm.weight", "lm_head.bias", f"{rng.choice(sorted(tensors))}_scale"]
    tensors[rng.choice(extra)] = "F32", np.ones(32, np.float32)
    return "accept"


@_of_tensors
def tensors_of_another_model(rng: Random, tensors: Tensors) -> None:
    """A layer beyond the last, or a bias beside a weight that has none."""
    extra = ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.bias"]
    tensors[rng.choice(extra)] = "F32", np.ones(32, np.float32)


@_of_tensors
def harmless_extra(rng: Random, tensors: Tensors) -> Expected:
    tensors[f"model.layers.{rng.randrange(2)}.self_attn.rotary_emb.inv_freq"] = "F32", np.ones(4, np.float32)
    return "accept"


@_of_tensors
def transposed(rng: Random, tensors: Tensors) -> None:
    oblong = [name for name, (_, values) in tensors.items() if values.ndim == 2 and values.shape[0] != values.shape[1]]
    name = rng.choice(sorted(oblong))
    values = tensors[name][1]
    tensors[name] = "F32", rng.choice([values.T, values[:-1], values[:, :-1], values[None], values.ravel()])


@_of_tensors
def not_finite(rng: Random, tensors: Tensors) -> None:
    name = rng.choice(sorted(tensors))
    values = tensors[name][1].copy()
    values.ravel()[rng.randrange(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
    tensors[name] = "F32", values


@_of_tensors
def enormous_values(rng: Random, tensors: Tensors) -> Expected:
    name = rng.choice(sorted(tensors))
    tensors[name] = "F32", tensors[name][1] * np.float32(rng.choice([1e38, 1e30, 1e-38, 0.0, -1e20]))
    return "any"


def payload_noise(rng: Random, model: ModelDir) -> Expected:
    header, data = model.header()
    noisy = bytearray(data)
    start = rng.randrange(len(noisy) - 64)
    noisy[start : start + 64] = rng.randbytes(64)
    model.put_header(header, bytes(noisy))
    return "any"


def sharded(rng: Random, model: ModelDir) -> Expected:
    _shard(rng, model)
    return "accept"


def shards(rng: Random, model: ModelDir) -> None:
    """Two shards, and one contradiction between them and their index."""
    _shard(rng, model)
    index = model.json(INDEX)
    weight_map: dict[str, Any] = index["weight_map"]
    name = rng.choice(sorted(weight_map))
    home = weight_map[name]
    other = SHARDS[1 - SHARDS.index(home)]
    paths = ["../../x.safetensors", "/etc/passwd", "/etc/x.safetensors", "sub/x.safetensors", "", ".", "..", None, 7,
             [home], {}, True, "x\0.safetensors", "nope.safetensors", "config.json", "./" + home, home + "/",
             "\x1b[31m.safetensors", "a" * 5_000 + ".safetensors", "\ud800.safetensors"]  # fmt: skip
    match rng.randrange(6):
        case 0:
            weight_map[name] = rng.choice(paths)
        case 1:
            del model.files[home]
        case 2:
            header, data = model.header(other)
            header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
            model.put_header(header, data + bytes(4), other)
        case 3:
            index["weight_map"] = rng.choice([None, [], {}, "x", 7, list(weight_map.items()), {"x": home}])
        case 4:
            model.files[home] = model.files[home][: rng.randrange(len(model.files[home]))]
        case 5:
            index = rng.choice([None, [], "x", 7])
    model.put(INDEX, index)


def careless_index(rng: Random, model: ModelDir) -> Expected:
    """An index that names a tensor too many, too few, or in another shard; each is in one of them all the same."""
    _shard(rng, model)
    index = model.json(INDEX)
    weight_map: dict[str, Any] = index["weight_map"]
    name = rng.choice(sorted(weight_map))
    match rng.randrange(3):
        case 0:
            weight_map[name] = SHARDS[1 - SHARDS.index(weight_map[name])]
        case 1:
            del weight_map[name]
        case 2:
            weight_map[rng.choice(HOSTILE_NAMES)] = SHARDS[0]
    model.put(INDEX, index)
    return "either"


def index_beside_a_whole_file(rng: Random, model: ModelDir) -> Expected:
    """The whole file takes precedence, whatever the index says."""
    model.put(INDEX, {"weight_map": rng.choice([{}, {"x": "../x"}, None])})
    return "either"


def file_types(rng: Random, model: ModelDir) -> Expected:
    """A pipe, directory, device, link that others may have made or file of another format instead of a file."""
    needed = [WEIGHTS, "config.json", "tokenizer.json"]
    name = rng.choice([*needed, "tokenizer_config.json", "generation_config.json"])
    content = model.files[name]

    def elsewhere(path: Path) -> None:
        outside = path.parent.with_name(path.parent.name + ".outside")
        outside.write_bytes(content)
        path.symlink_to(outside)
        path.parent.chmod(0o777)

    kinds: list[Callable[[Path], object]] = [
        os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("/dev/null"),
        lambda path: path.symlink_to("/dev/stdin"), lambda path: path.symlink_to("/proc/self/mem"),
        lambda path: path.symlink_to(path.name), lambda path: path.symlink_to(path.parent),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        lambda path: path.write_bytes(b"\x80\x02}q\x00."), lambda path: _sparse(path, content, 1 << 40),
        lambda path: path.write_bytes(b"PK\x03\x04" + content), elsewhere,
    ]  # fmt: skip
    model.replace(name, rng.choice(kinds))
    return "either" if name == "generation_config.json" else "reject"


def files_missing(rng: Random, model: ModelDir) -> Expected:
    needed = [WEIGHTS, "config.json", "tokenizer.json"]
    name = rng.choice([*needed, "tokenizer_config.json", "generation_config.json"])
    content = model.files.pop(name)
    if name == WEIGHTS:
        odd = ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "Model.safetensors", "model.safetensors.tmp"]
        model.files[rng.choice(odd)] = content
    return "reject" if name in needed else "either"


def link_within(rng: Random, model: ModelDir) -> Expected:
    name = rng.choice(sorted(model.files))
    model.files["real"] = model.files[name]
    model.replace(name, lambda path: path.symlink_to("real"))
    return "either"


def code_beside(rng: Random, model: ModelDir) -> Expected:
    """Python files that must not run, under names that might be imported."""
    evil = b"import os, sys; sys.stderr.write('Traceback: I was run'); os._exit(99)"
    for name in ("modeling_tiny.py", "json.py", "torch.py", "tokenizers.py", "sitecustomize.py", "__init__.py"):
        model.files[name] = evil
    ours = rng.random() < 0.5
    model.change(
        "config.json", auto_map={"AutoModelForCausalLM": f"modeling_tiny.{'LlamaForCausalLM' if ours else 'Tiny'}"}
    )
    return "accept" if ours else "reject"


def too_large(rng: Random, model: ModelDir) -> None:
    """A well-formed, sparse file that is larger than memory."""
    size = rng.choice([1 << 23, 1 << 24])
    model.change("config.json", hidden_size=4096, vocab_size=size, head_dim=1024, intermediate_size=size)
    enlarged = {16: 2048, 32: 4096, 48: size, 320: size}
    header: dict[str, Any] = {}
    end = 0
    for name, entry in model.header()[0].items():
        shape = [enlarged[n] for n in entry["shape"]]
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    model.replace(WEIGHTS, lambda path: _sparse(path, struct.pack("<Q", len(text)) + text, 8 + len(text) + end))


def _names(header: dict[str, Any]) -> list[str]:
    return sorted(name for name in header if name != "__metadata__")


def _tensors(model: ModelDir) -> Tensors:
    header, data = model.header()
    return {
        name: ("F32", np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"]))
        for name, entry in sorted(header.items())
        if name != "__metadata__"
    }


def _put(model: ModelDir, tensors: Tensors, metadata: object = None, name: str = WEIGHTS) -> None:
    ends = list(accumulate((values.nbytes for _, values in tensors.values()), initial=0))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    for (tensor, (dtype, values)), begin, end in zip(tensors.items(), ends[:-1], ends[1:], strict=True):
        header[tensor] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, end]}
    model.put_header(header, b"".join(np.ascontiguousarray(values).tobytes() for _, values in tensors.values()), name)


def _shard(rng: Random, model: ModelDir) -> None:
    tensors = _tensors(model)
    names = sorted(tensors)
    rng.shuffle(names)
    half = rng.randint(1, len(names) - 1)
    weight_map = {name: SHARDS[index >= half] for index, name in enumerate(names)}
    del model.files[WEIGHTS]
    for shard in SHARDS:
        _put(model, {name: tensors[name] for name in names if weight_map[name] == shard}, name=shard)
    model.put(INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})


def _sparse(path: Path, content: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)


def pack(model: ModelDir) -> None:
    """Packs the embedding and a projection as MLX does, with 4 bits and groups of 32."""
    rng = np.random.default_rng(0)
    tensors = _tensors(model)
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        rows, columns = tensors.pop(name)[1].shape
        module = name.removesuffix("weight")
        tensors[name] = "U32", rng.integers(0, 2**32, (rows, columns // 8), np.uint32)
        tensors[f"{module}scales"] = "F32", rng.normal(0, 0.05, (rows, columns // 32)).astype(np.float32)
        tensors[f"{module}biases"] = "F32", rng.normal(0, 0.05, (rows, columns // 32)).astype(np.float32)
    _put(model, tensors)
    model.change("config.json", quantization={"bits": 4, "group_size": 32})


def integer_scales(rng: Random, model: ModelDir) -> None:
    """Packed weights whose scales or biases are labelled as integers of the same size, or are as many bytes."""
    pack(model)
    header, data = model.header()
    name = rng.choice([name for name in sorted(header) if name.endswith((".scales", ".biases"))])
    begin, end = header[name]["data_offsets"]
    header[name]["dtype"] = rng.choice(["I32", "U32", "U8"])
    if header[name]["dtype"] == "U8":
        size = (end - begin) // 4
        data = data[: begin + size] + data[end:]
        removed = end - begin - size
        for entry in header.values():
            entry["data_offsets"] = [offset - removed * (offset >= end) for offset in entry["data_offsets"]]
    model.put_header(header, data)


OF_HEADERS = [offsets, shapes, dtypes, same_size_dtypes, fields_of_an_entry, renamed, header_flips]
MUTATORS = [
    header_length, truncated, appended, offsets, shapes, many_dimensions, integer_scales, dtypes,
    same_size_dtypes, whole_numbers, doubles, reordered,
    duplicate_keys, fields_of_an_entry, metadata, renamed, hostile_extra, header_flips, header_bombs,
    tensors_missing, tensors_extra, tensors_of_another_model, harmless_extra, transposed, not_finite,
    enormous_values, payload_noise, sharded, shards, careless_index, index_beside_a_whole_file, file_types,
    files_missing, link_within, code_beside, too_large,
]  # fmt: skip
