"""How a checkpoint stores its weights: dense, or in a packed format that config.json names. No torch.

Families name weights as transformers does. This module finds the tensors that store each of them. A format is a class
of `Stored` and a finder; its reader is in `quant/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptcli.checkpoint.safetensors_header import DTYPE_BYTES, TensorInfo
from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture

Shape = tuple[int, ...]
Tensors = Mapping[str, TensorInfo]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a weight of this shape is stored: the names of its tensors.

    unread: tensors of it that are not needed. about: the format in a few words, empty if dense.
    """

    shape: Shape
    tensors: tuple[str, ...]
    unread: tuple[str, ...] = ()
    about: str = ""


class Dense(Stored):
    """A single tensor of floats."""


@dataclass(frozen=True, kw_only=True)
class Affine(Stored):
    """MLX's weight, scales and biases."""

    bits: int


@dataclass(frozen=True, kw_only=True)
class Fp8(Stored):
    """E4M3 and its scales: one per `block` of (rows, columns), per row, or one for all."""

    block: tuple[int, int]


class Mxfp4(Stored):
    """gpt-oss's blocks and scales."""


@dataclass(frozen=True, kw_only=True)
class Ggml(Stored):
    """Blocks of one of ggml's types, in a GGUF file; read by `quant.ggml.ggml_weight`."""

    kind: str


class Awq(Stored):
    """AWQ's qweight, qzeros and scales."""


@dataclass(frozen=True, kw_only=True)
class Gptq(Stored):
    """GPTQ's qweight, qzeros, scales and, in some files, g_idx."""

    bits: int
    group_size: int
    zero_offset: int


FLOATS = ("F64", "F32", "F16", "BF16")
# Types of ggml's blocks that `quant.ggml_blocks` (which needs torch) keeps packed; others are expanded.
_PACKED_TYPES = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q5_K", "Q6_K"})

Finder = Callable[[dict[str, Any], Tensors], Iterator[tuple[str, Stored]]]


def stored_weights(config: dict[str, Any], tensors: Tensors) -> dict[str, Stored]:
    """How each weight of a checkpoint is stored, by its name in transformers.

    Raises UnsupportedArchitecture for an unknown quantization, and BrokenCheckpoint for tensors that do not match.
    """
    finder, settings = _finder(config)
    packed = dict(finder(settings, tensors)) | dict(_find_ggml(tensors))
    taken = {name for stored in packed.values() for name in stored.tensors + stored.unread}
    dense = {
        name: Dense(shape=info.shape, tensors=(name,))
        for name, info in tensors.items()
        if name not in taken and name not in packed
    }
    return packed | dense


def is_expanded(stored: Stored) -> bool:
    """Whether a weight consists of ggml's blocks that no packed form keeps."""
    return isinstance(stored, Ggml) and stored.kind not in _PACKED_TYPES


def check_floats(name: str, tensors: Tensors) -> None:
    """Raises BrokenCheckpoint unless a tensor, a dense weight or scales, holds floating-point numbers."""
    if tensors[name].dtype not in FLOATS:
        raise BrokenCheckpoint(f"{name}: its dtype must be one of {', '.join(FLOATS)}, not {tensors[name].dtype}")


def _finder(config: dict[str, Any]) -> tuple[Finder, dict[str, Any]]:
    """The function that finds packed weights, and its settings."""
    mlx, other = config.get("quantization"), config.get("quantization_config")
    for name, settings in (("quantization", mlx), ("quantization_config", other)):
        if settings is not None and not isinstance(settings, dict):
            raise BrokenCheckpoint(f"config.json: {name} must be an object")
    # MLX writes its settings under both names, without a method. Other libraries name theirs.
    method = (other or {}).get("quant_method")
    if method in (None, "mlx"):
        if other is not None and mlx is None:
            raise UnsupportedArchitecture("config.json: quantization_config without a known method is not supported")
        return _find_affine, mlx or {}
    finder = _FINDERS.get(method) if isinstance(method, str) else None
    if finder is None:
        raise UnsupportedArchitecture(f"config.json: quantization {method!r} is not supported")
    return finder, other or {}


def _find_affine(settings: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    for name, info in tensors.items():
        module = name.removesuffix(".weight")
        if module == name or info.dtype != "U32":
            continue
        if not settings:
            raise BrokenCheckpoint("config.json: the weights are quantized, but `quantization` is missing")
        bits, group_size = _affine_settings(settings, module)
        *outer, words = info.shape or (0,)
        if len(outer) not in (1, 2) or words * 32 % bits:
            raise BrokenCheckpoint(f"{name}: no packed matrix of {bits} bits has shape {list(info.shape)}")
        columns = words * 32 // bits
        for leaf in ("scales", "biases"):
            companion = tensors.get(f"{module}.{leaf}")
            if companion is None or companion.shape != (*outer, columns // group_size) or columns % group_size:
                raise BrokenCheckpoint(f"{name}: its {leaf} are missing or of another shape")
            check_floats(f"{module}.{leaf}", tensors)
        names = (name, f"{module}.scales", f"{module}.biases")
        about = f"{bits} bits in groups of {group_size}"
        yield name, Affine(shape=(*outer, columns), tensors=names, bits=bits, about=about)


def _affine_settings(settings: dict[str, Any], module: str) -> tuple[int, int]:
    chosen = settings.get(module, settings)
    if chosen is True:
        chosen = settings
    if not isinstance(chosen, dict):
        raise BrokenCheckpoint(f"config.json: quantization of {module} must be an object")
    mode = chosen.get("mode", settings.get("mode", "affine"))
    if mode != "affine":
        raise UnsupportedArchitecture(f"config.json: quantization mode {mode!r} is not supported")
    group_size, bits = chosen.get("group_size"), chosen.get("bits")
    known = group_size in (32, 64, 128) and bits in (2, 3, 4, 5, 6, 8)
    if type(group_size) is not int or type(bits) is not int or not known:
        raise UnsupportedArchitecture(
            f"config.json: quantization with {bits} bits in groups of {group_size} is not supported"
        )
    return bits, group_size


def _find_ggml(tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    for name, info in tensors.items():
        if info.dtype not in DTYPE_BYTES:
            yield name, Ggml(shape=info.shape, tensors=(name,), about=info.dtype, kind=info.dtype)


def _find_fp8(settings: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    format = settings.get("format", "float-quantized")
    if format != "float-quantized":
        raise UnsupportedArchitecture(
            f"config.json: quantization {settings['quant_method']!r} in the format {format!r} is not supported"
        )
    block = _block(settings)
    for name, info in tensors.items():
        if info.dtype != "F8_E4M3":
            continue
        # Despite the name of the first, both are factors.
        scale = next((found for end in ("_scale_inv", "_scale") if (found := name + end) in tensors), None)
        if scale is None or len(info.shape) != 2:
            raise BrokenCheckpoint(f"{name}: an FP8 matrix without its scales")
        rows, columns = info.shape
        blocks = (-(-rows // block[0]), -(-columns // block[1]))
        if tensors[scale].shape not in ((), (1,), (1, 1), (rows,), (rows, 1), blocks):
            raise BrokenCheckpoint(f"{scale}: no scales of {name} have shape {list(tensors[scale].shape)}")
        check_floats(scale, tensors)
        # Activations are not quantized here.
        module = name.removesuffix("weight")
        unread = (f"{module}input_scale", f"{module}activation_scale")
        yield name, Fp8(shape=info.shape, tensors=(name, scale), unread=unread, block=block, about="FP8")


def _block(settings: dict[str, Any]) -> tuple[int, int]:
    match settings.get("weight_block_size"):
        case None:
            return 128, 128
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise BrokenCheckpoint("config.json: weight_block_size must be two sizes")


def _find_mxfp4(settings: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    for name, info in tensors.items():
        weight = name.removesuffix("_blocks")
        if weight == name:
            continue
        scales = tensors.get(f"{weight}_scales")
        if len(info.shape) < 3 or info.shape[-1] != 16 or scales is None or scales.shape != info.shape[:-1]:
            raise BrokenCheckpoint(f"{name}: its scales are missing or of another shape")
        *outer, groups, _ = info.shape
        if {info.dtype, scales.dtype} != {"U8"}:
            raise BrokenCheckpoint(f"{name}: MXFP4 blocks and scales are bytes, not {info.dtype} and {scales.dtype}")
        yield weight, Mxfp4(shape=(*outer, groups * 32), tensors=(name, f"{weight}_scales"), about="MXFP4")


def _find_awq(settings: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    _expect(settings, bits=(4,), version=(None, "gemm", "GEMM"), zero_point=(None, True))
    for module, qweight in _modules(tensors):
        if len(qweight) != 2:
            raise BrokenCheckpoint(f"{module}.qweight: no packed matrix has shape {list(qweight)}")
        inputs, words = qweight
        group_size = _group_size(settings, inputs)
        if inputs % group_size:
            raise BrokenCheckpoint(f"{module}.qweight: {inputs} inputs are no groups of {group_size}")
        groups, outputs = inputs // group_size, 8 * words
        names = _checked_names(module, tensors, qweight=qweight, qzeros=(groups, words), scales=(groups, outputs))
        yield f"{module}.weight", Awq(shape=(outputs, inputs), tensors=names, about="AWQ, 4 bits")


def _find_gptq(settings: dict[str, Any], tensors: Tensors) -> Iterator[tuple[str, Stored]]:
    _expect(
        settings,
        bits=(2, 3, 4, 8),
        checkpoint_format=(None, "gptq", "gptq_v2"),
        is_marlin_format=(None, False),
        pack_dtype=(None, "int32"),
        dynamic=(None, {}),
    )
    bits = settings["bits"]
    # GPTQ's first format stores zeros less 1.
    zero_offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    for module, qweight in _modules(tensors):
        if len(qweight) != 2 or qweight[0] * 32 % bits or qweight[1] * bits % 32:
            raise BrokenCheckpoint(f"{module}.qweight: no packed matrix of {bits} bits has shape {list(qweight)}")
        inputs, outputs = qweight[0] * 32 // bits, qweight[1]
        group_size = _group_size(settings, inputs)
        groups = -(-inputs // group_size)
        shapes: dict[str, Shape] = {
            "qweight": qweight,
            "qzeros": (groups, outputs * bits // 32),
            "scales": (groups, outputs),
        }
        if f"{module}.g_idx" in tensors:
            shapes["g_idx"] = (inputs,)
        yield (
            f"{module}.weight",
            Gptq(
                shape=(outputs, inputs),
                tensors=_checked_names(module, tensors, **shapes),
                about=f"GPTQ, {bits} bits",
                bits=bits,
                group_size=group_size,
                zero_offset=zero_offset,
            ),
        )


_FINDERS: dict[str, Finder] = {
    "fp8": _find_fp8,
    "fbgemm_fp8": _find_fp8,
    "compressed-tensors": _find_fp8,
    "mxfp4": _find_mxfp4,
    "awq": _find_awq,
    "gptq": _find_gptq,
}


def _expect(settings: dict[str, Any], **known: tuple[Any, ...]) -> None:
    for name, values in known.items():
        value = settings.get(name)
        if not any(value == accepted and type(value) is type(accepted) for accepted in values):
            raise UnsupportedArchitecture(
                f"config.json: quantization_config: {name} = {str(value)[:60]} is not supported"
            )


def _group_size(settings: dict[str, Any], inputs: int) -> int:
    size = settings.get("group_size")
    if size == -1:
        return inputs
    if type(size) is not int or size < 1:
        raise BrokenCheckpoint(f"config.json: quantization_config: group_size must be a size or -1, not {size!r}")
    return size


def _modules(tensors: Tensors) -> Iterator[tuple[str, Shape]]:
    """Names of the modules with `qweight`, `qzeros` and `scales`, each with its shape of `qweight`."""
    for name, info in tensors.items():
        module = name.removesuffix(".qweight")
        if module == name:
            continue
        missing = [leaf for leaf in ("qzeros", "scales") if f"{module}.{leaf}" not in tensors]
        if missing:
            raise BrokenCheckpoint(f"{name}: its {' and '.join(missing)} are missing")
        yield module, info.shape


def _checked_names(module: str, tensors: Tensors, **wanted: Shape) -> tuple[str, ...]:
    """The names of a module's tensors. Raises BrokenCheckpoint for other shapes or dtypes; scales are floats."""
    for leaf, shape in wanted.items():
        found = tensors[f"{module}.{leaf}"]
        if found.shape != shape:
            raise BrokenCheckpoint(f"{module}.{leaf} is {list(found.shape)}, the config wants {list(shape)}")
        if leaf == "scales":
            check_floats(f"{module}.{leaf}", tensors)
        elif found.dtype != "I32":
            raise BrokenCheckpoint(f"{module}.{leaf} cannot be of dtype {found.dtype}")
    return tuple(f"{module}.{leaf}" for leaf in wanted)
