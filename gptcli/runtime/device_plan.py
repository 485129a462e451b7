"""Chooses device, precision and packing for a model, from the user's options and this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import Packing, WeightPlan
from gptcli.checkpoint.recipes import sources
from gptcli.cuda.graph import Capture, cuda_graph
from gptcli.cuda.int4 import Tinygemm
from gptcli.errors import NoSuchDevice, OutOfMemory
from gptcli.kernels.bindings import BF16_LEVELS, Arithmetic, CacheKind
from gptcli.kernels.tensors import Library
from gptcli.kernels.tensors import library as kernels
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.config import LatentAttentionConfig, MoeConfig
from gptcli.runtime.ranks import Ranks
from gptcli.runtime.resource_limits import cpu_limit, free_memory
from gptcli.settings import RuntimeConfig

_PACKED_BYTES = {"int8": 1.125, "int4": 0.625}  # per weight, with its share of a scale and bias in fp16
_LARGE = 4 << 30  # bytes of packed weights for which a prompt in fp32 takes minutes on a few cores
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DevicePlan:
    """How a model's weights are loaded, and what runs its steps.

    library: the compiled kernels; None: torch alone. cache_kind: the kernels' format of keys and values. rounding: a
    note on why the arithmetic rounds more than was asked for, if it does. capture: captures a token's step; None: plain
    steps. new_cache: makes a text's cache where torch runs the steps.
    """

    weights: WeightPlan
    library: Library | None = None
    cache_kind: CacheKind = "fp32"
    rounding: str | None = None
    capture: Capture | None = None
    new_cache: Callable[..., KVCache] = KVCache

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.weights.device

    @property
    def dtype_name(self) -> str:
        """The dtype as on the command line."""
        return next(name for name, dtype in _DTYPES.items() if dtype == (self.weights.half or self.weights.dtype))


def plan_for(folder: ModelFolder, runtime: RuntimeConfig, ranks: Ranks | None = None) -> DevicePlan:
    """The plan for a model, or for a rank's share of it. Raises NoSuchDevice or OutOfMemory.

    `auto` runs on CUDA in the checkpoint's precision, or on the CPU in fp32 if that fits. On the CPU, the compiled
    kernels take weights as stored. Without kernels, packed weights are expanded where they fit easily, because torch
    multiplies dense ones faster; experts stay packed. A requested dtype is the least precision of activations; the
    kernels round dense matrices to a requested half. For what they compute in, see `_arithmetic`.
    """
    device = device_of(runtime.device, ranks)
    torch.set_num_threads(runtime.threads or min(torch.get_num_threads(), cpu_limit()))
    if device.type == "cuda":
        # cuDNN's attention plans every new prompt length for half a second.
        torch.backends.cuda.enable_cudnn_sdp(False)
    free = free_bytes(device) * (ranks.memories(device.type) if ranks else 1)
    library = _kernels(runtime) if device.type == "cpu" else None
    half = _DTYPES[runtime.dtype] if library is not None and runtime.dtype in ("bf16", "fp16") else None
    as_stored = library is not None and runtime.quantize != "none"
    if runtime.dtype != "auto":
        dtype = torch.float32 if half else _DTYPES[runtime.dtype]
    elif device.type == "cpu" and _bytes_in_fp32(folder, runtime, library) < free * 0.8:
        dtype = torch.float32
    else:
        dtype, library, as_stored = _stored_dtype(folder), None, False
        if _has_tinygemm(device) and (runtime.quantize in ("int8", "int4") or _is_packed(folder)):
            dtype = torch.bfloat16  # the kernel multiplies these only
    itemsize = (half or dtype).itemsize
    dense_bytes = folder.parameter_count * itemsize
    packing: Packing
    match runtime.quantize:
        case "none":
            packing, needed = "dense", dense_bytes + _latent_bytes(folder, library, itemsize)
        case "int8" | "int4":
            packing = runtime.quantize
            needed = _bytes_in_fp32(folder, runtime, library)
        case "auto":
            kept_bytes = _bytes_for_kernels(folder, runtime) if as_stored and not half else folder.kept_bytes(itemsize)
            # Most experts of a mixture are idle; expanding them wastes memory.
            mixture = any(isinstance(block.mlp, MoeConfig) for block in folder.architecture.config.blocks)
            expand = kept_bytes == dense_bytes or (dense_bytes < free / 4 and not mixture)
            packing = "expand" if expand else "keep"
            needed = dense_bytes if expand and not as_stored else kept_bytes
            needed += _latent_bytes(folder, library, itemsize if half else None)
    if needed > free:
        raise OutOfMemory(
            f"the model needs {needed / 1e9:.1f} GB on {device} ({needed} bytes), "
            f"{free / 1e9:.1f} GB are free ({free} bytes)",
            hint="try --quantize int4, a smaller --dtype or a smaller model",
        )
    arithmetic, rounding = ("fp32", None) if library is None else _arithmetic(folder, runtime, library, as_stored)
    capture = cuda_graph if device.type == "cuda" and not _plain() else None
    weights = WeightPlan(
        device,
        dtype,
        packing,
        library if as_stored or half else None,
        half,
        arithmetic,
        _is_exact(runtime),
        Tinygemm() if _has_tinygemm(device) and dtype == torch.bfloat16 else None,
    )
    return DevicePlan(weights, library, runtime.cache_kind, rounding, capture)


def _bytes_in_fp32(folder: ModelFolder, runtime: RuntimeConfig, library: Library | None) -> int:
    """Bytes of the weights in memory where activations are fp32."""
    if runtime.quantize == "auto":
        kept = folder.kept_bytes(4) if library is None else _bytes_for_kernels(folder, runtime)
        return kept + _latent_bytes(folder, library, None)
    each = _PACKED_BYTES.get(runtime.quantize, 4)
    return int(folder.parameter_count * each) + _latent_bytes(folder, library, each)


def _bytes_for_kernels(folder: ModelFolder, runtime: RuntimeConfig) -> int:
    return folder.bytes_for_kernels(_DTYPES["fp32" if _is_exact(runtime) else "fp16"].itemsize)


def _latent_bytes(folder: ModelFolder, library: Library | None, counted: float | None) -> int:
    """Bytes that latent attention takes in a program beyond those that are counted for its parameter.

    The parameter is in fp32. Of it are made matrices of each head's keys, for prompts a second time, and of its values:
    in 16 bits if it is stored so, else in fp32. counted: bytes a number; None: as many as are stored.
    """
    architecture, total = folder.architecture, 0.0
    for index, block in enumerate(architecture.config.blocks if library is not None else ()):
        if not isinstance(config := block.attention, LatentAttentionConfig):
            continue
        names = sources(architecture.parameters[f"blocks.{index}.attention.kv.weight"])
        stored = [folder.tensors[tensor] for name in names for tensor in folder.weights[name].tensors]
        keys, values = (config.heads * config.latent_dim * each for each in (config.plain_dim, config.value_dim))
        known = sum(tensor.size for tensor in stored) if counted is None else counted * (keys + values)
        element_bytes = 2 if all(tensor.dtype in ("BF16", "F16") for tensor in stored) else 4
        total += 4 * (keys + values) - known + element_bytes * (keys * (1 + config.is_expanded_in_kernels) + values)
    return int(total)


def _is_exact(runtime: RuntimeConfig) -> bool:
    """Whether nothing may be rounded: expanding ggml's blocks to fp16 moves logits by up to a thousandth."""
    return runtime.dtype == "fp32"


def _kernels(runtime: RuntimeConfig) -> Library | None:
    """The kernels, with torch's number of threads. Portable ones only for weights packed on load: else torch wins."""
    library = kernels()
    if library is None or (library.level == "portable" and runtime.quantize not in ("int8", "int4")):
        return None
    library.set_threads(torch.get_num_threads())
    return library


def _arithmetic(
    folder: ModelFolder, runtime: RuntimeConfig, library: Library, as_stored: bool
) -> tuple[Arithmetic, str | None]:
    """The arithmetic for more than a few tokens, and a note if it rounds more than was asked for.

    `auto` takes bf16 where the processor has such products, else fp32. Activations get 8 bits for a requested `int8` or
    `int4`, and for models that would be too slow without; not on AMX, whose bf16 is faster than others' 8 bits.
    """
    if runtime.dtype in ("fp32", "fp16"):
        return "fp32", None
    if runtime.dtype == "auto" and runtime.quantize in ("int8", "int4") and library.level != "amx":
        return "int8", None
    large = runtime.dtype == "auto" and as_stored and folder.weight_bytes >= _LARGE and _is_packed(folder)
    if large and library.level not in BF16_LEVELS:
        return "int8", (
            f"{folder.weight_bytes / 1e9:.1f} GB of packed weights are many for a processor without bf16 products, so "
            "activations are rounded to 8 bits; --dtype fp32 does not round them"
        )
    return "bf16", None


def _plain() -> bool:
    """Whether torch runs every step alone, operation by operation."""
    return os.environ.get("GPTCLI_KERNELS") == "off"


def _has_tinygemm(device: torch.device) -> bool:
    """Whether torch has an int4 kernel for this device: NVIDIA since Ampere."""
    if device.type != "cuda" or torch.version.hip is not None or _plain():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _is_packed(folder: ModelFolder) -> bool:
    return folder.kept_bytes(4) != folder.parameter_count * 4


def device_of(name: str, ranks: Ranks | None = None) -> torch.device:
    """A device by its name on the command line. Raises NoSuchDevice."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks is not None:
        name = f"cuda:{ranks.local_rank}"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise NoSuchDevice(f"no such device: {name}: this machine has {count} CUDA devices", "use --device cpu")
    return device


def free_bytes(device: torch.device) -> int:
    """Bytes of free memory on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def _stored_dtype(folder: ModelFolder) -> torch.dtype:
    """The precision of most dense matrices, scales of packed ones included; bf16 if there are none."""
    sizes = {"BF16": 0, "F16": 0, "F32": 0}
    for tensor in folder.tensors.values():
        if tensor.dtype in sizes and len(tensor.shape) > 1:
            sizes[tensor.dtype] += tensor.size
    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[max(sizes, key=sizes.__getitem__)]
