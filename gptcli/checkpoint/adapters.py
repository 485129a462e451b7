"""LoRA adapters in PEFT's format: which of our layers their matrices belong to, and how they are applied."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.folder import ModelFolder, stamps_of
from gptcli.checkpoint.load import WeightPlan
from gptcli.checkpoint.recipes import Concat, Recipe, ReorderedRows, Take, Transposed, sources
from gptcli.checkpoint.registry import architecture_of
from gptcli.checkpoint.safetensors_header import read_header
from gptcli.checkpoint.weights.evaluate_recipe import reordered_rows
from gptcli.checkpoint.weights.tensor_source import TensorSource
from gptcli.errors import BrokenCheckpoint, GptcliError, UnsupportedArchitecture
from gptcli.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_there, read_json
from gptcli.model.decoder import Decoder
from gptcli.model.linear import AdaptedLinear

PREFIX = "base_model.model."
# Fields of adapter_config.json without effect on what a trained adapter computes, or read below.
_WITHOUT_EFFECT = frozenset(
    """
    alpha_pattern auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config
    exclude_modules fan_in_fan_out inference_mode layers_pattern layers_to_transform loftq_config
    lora_alpha lora_dropout megatron_core peft_type peft_version qalora_group_size r rank_pattern revision
    runtime_config target_modules task_type use_rslora
    """.split()
)
# Initializations that leave the base weights alone. PiSSA, OLoRA and others change those.
_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_SIMPLE = re.compile(r"[\w.^$|\\\[\]*+-]{0,300}", re.ASCII)  # an expression that matches fast
_MOST_ALPHA = 1e9
_KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Rows:
    """The modules whose rows a layer joins, by their names in transformers, each with its count of rows.

    order: indices of the joined rows, in the layer's order; None: as joined.
    """

    modules: tuple[tuple[str, int], ...]
    order: Tensor | None = None


def adaptable(folder: ModelFolder) -> dict[str, Rows]:
    """The rows of every matrix in the decoder's blocks that an adapter can update, by the path of its layer."""
    canonical = _canonical_names(folder)
    found = {}
    for name, recipe in folder.architecture.parameters.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or not path.startswith("blocks.") or len(folder.parameter_shape(recipe)) != 2:
            continue
        if (rows := _rows(recipe, folder)) is not None:
            modules = tuple((canonical[each].removesuffix(".weight"), count) for each, count in rows.modules)
            found[path] = Rows(modules, rows.order)
    return found


def _rows(recipe: Recipe, folder: ModelFolder) -> Rows | None:
    """The tensors whose rows a matrix joins; None if it is made in another way."""
    match recipe:
        case Take(name) | Transposed(Take(name)):
            return Rows(((name, folder.parameter_shape(recipe)[0]),))
        case Concat(operands, 0):
            parts = [_rows(operand, folder) for operand in operands]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):
                return None
            modules = tuple(each for part in known for each in part.modules)
            if all(part.order is None for part in known):
                return Rows(modules)
            start, orders = 0, []
            for part in known:
                count = sum(rows for _, rows in part.modules)
                orders.append(start + (torch.arange(count) if part.order is None else part.order))
                start += count
            return Rows(modules, torch.cat(orders))
        case ReorderedRows(operand):
            inner = _rows(operand, folder)
            if inner is None:
                return None
            order = reordered_rows(recipe, folder.parameter_shape(operand)[0])
            return Rows(inner.modules, order if inner.order is None else inner.order[order])
    return None


def _canonical_names(folder: ModelFolder) -> dict[str, str]:
    """The names that transformers' classes save the checkpoint's tensors under, by the names here."""
    names = {name: name for name in folder.weights}
    with contextlib.suppress(GptcliError):
        canonical = architecture_of(HfConfig(folder.config), ()).parameters
        for ours, recipe in folder.architecture.parameters.items():
            pairs = sources(recipe), sources(canonical[ours]) if ours in canonical else ()
            if len(pairs[0]) == len(pairs[1]):
                names |= dict(zip(*pairs, strict=True))
    return names


@dataclass(frozen=True)
class Adapter:
    """An adapter: the factors of each module's update, by the module's name in transformers.

    updates: down (rank, in_features) and up (out_features, rank), which includes the scale.
    """

    path: Path
    updates: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def open(cls, path: Path, weight: float = 1.0) -> Adapter:
        """Reads an adapter's directory; its updates are multiplied by a weight.

        Raises BrokenCheckpoint, UnsupportedArchitecture for what changes more than linear layers, and InputError for
        weights that are replaced meanwhile.
        """
        config = read_json(path / ADAPTER_CONFIG)
        _check(config, path)
        weights = path / ADAPTER_WEIGHTS
        if not is_there(weights):
            raise BrokenCheckpoint(f"no weights: {path}: {ADAPTER_WEIGHTS} is not there")
        stamps = stamps_of([weights])
        folder = ModelFolder(path, {}, None, read_header(weights), stamps=stamps)
        factors: dict[str, dict[str, Tensor]] = {}
        with TensorSource(folder) as source:
            for name in folder.tensors:
                if (match := _KEY.fullmatch(name)) is None:
                    raise UnsupportedArchitecture(f"{path}: {name} is not an update of a linear layer")
                pair = factors.setdefault(match[1], {})
                if match[2] in pair:
                    raise BrokenCheckpoint(f"{path}: {match[1]} has two factors {match[2]}")
                pair[match[2]] = source.read(name).float()
        updates = {}
        for module, pair in factors.items():
            down, up = pair.get("A"), pair.get("B")
            if down is None or up is None or not down.dim() == up.dim() == 2 or down.shape[0] != up.shape[1]:
                raise BrokenCheckpoint(f"{path}: {module} does not have two factors that go together")
            _check_module(config, module, down.shape[0], path)
            updates[module] = down, up * (_scale(config, module, down.shape[0]) * weight)
        return cls(path, updates)


def _check(config: Mapping[str, Any], path: Path) -> None:
    where = path / ADAPTER_CONFIG
    if config.get("peft_type") != "LORA":
        raise UnsupportedArchitecture(f"{where}: peft_type {config.get('peft_type')!r} is not supported: LORA is")
    if config.get("bias", "none") != "none":
        raise UnsupportedArchitecture(f"{where}: bias = {config['bias']!r} is not supported")
    if (kind := config.get("init_lora_weights")) not in _INITIALIZATIONS:
        raise UnsupportedArchitecture(
            f"{where}: init_lora_weights = {str(kind)[:60]!r} is not supported: it changes the base weights",
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) writes a plain adapter",
        )
    for name, value in config.items():
        if name not in ("init_lora_weights", *_WITHOUT_EFFECT) and value not in (None, False, [], {}, ""):
            raise UnsupportedArchitecture(f"{where}: {name} = {str(value)[:60]} is not supported")


def _check_module(config: Mapping[str, Any], module: str, rank: int, path: Path) -> None:
    """Raises BrokenCheckpoint for an update of another rank than the config's, or of a module that it leaves out."""
    given = _of_module(config, "rank_pattern", module, config.get("r", 8))
    if type(given) is not int or given != rank or not rank:
        raise BrokenCheckpoint(f"{path}: {module} has rank {rank}, {ADAPTER_CONFIG} says {str(given)[:40]}")
    targets, layers, excluded = map(config.get, ("target_modules", "layers_to_transform", "exclude_modules"))
    layer = re.search(r"\.(\d{1,9})\.", module)
    layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if (
        not (isinstance(targets, str) or (isinstance(targets, list) and _is_one_of(module, targets)))
        or (layers and (layer is None or int(layer[1]) not in layers))
        or (isinstance(excluded, list) and _is_one_of(module, excluded))
    ):
        raise BrokenCheckpoint(f"{path}: {module} has weights, but is none of the modules of {ADAPTER_CONFIG}")


def _is_one_of(module: str, names: Sequence[Any]) -> bool:
    """Whether a module has one of these names, or ends with one: PEFT's rule for lists."""
    return any(f".{module}".endswith(f".{name}") for name in names)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _of_module(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    if not isinstance(alpha, int | float) or not abs(alpha) < _MOST_ALPHA:
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG}: lora_alpha must be a number, not {str(alpha)[:40]}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """The value of a field's first key, a regular expression, that matches the end of a module's name: PEFT's rule.

    Expressions that could take long are refused: UnsupportedArchitecture.
    """
    patterns = config.get(field) or {}
    if not isinstance(patterns, dict):
        raise BrokenCheckpoint(f"{ADAPTER_CONFIG}: {field} must be an object, not {str(patterns)[:40]}")
    for key, value in patterns.items():
        if _SIMPLE.fullmatch(key) is None or key.count("*") + key.count("+") > 2:
            raise UnsupportedArchitecture(f"{ADAPTER_CONFIG}: {field}: the expression {key[:60]!r} is not supported")
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error as error:
            raise BrokenCheckpoint(f"{ADAPTER_CONFIG}: {field}: {key[:60]!r} is no expression: {error}") from None
    return default


def apply_adapters(decoder: Decoder, folder: ModelFolder, adapters: Sequence[Adapter], plan: WeightPlan) -> None:
    """Adds adapters to the layers of a loaded decoder. Raises as `updates_of` does."""
    for path, factors in updates_of(folder, adapters).items():
        down, up = (each.to(plan.device, plan.dtype) for each in factors)
        decoder.set_submodule(path, AdaptedLinear(decoder.get_submodule(path), down, up))


def updates_of(folder: ModelFolder, adapters: Sequence[Adapter]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of each layer's whole update, by the layer's path: down (R, columns) and up (rows, R).

    Raises BrokenCheckpoint for an adapter of another model.
    """
    layers = adaptable(folder) if adapters else {}
    for adapter in adapters:
        known = {module for rows in layers.values() for module, _ in rows.modules}
        if unknown := sorted(set(adapter.updates) - known):
            what = "an adapter of another model, or of layers that can have none"
            raise BrokenCheckpoint(f"{adapter.path}: {what}: {', '.join(unknown[:3])}")
    updates = {}
    for path, rows in layers.items():
        factors = [pair for adapter in adapters if (pair := _joined(rows, adapter)) is not None]
        if factors:
            updates[path] = torch.cat([pair[0] for pair in factors]), torch.cat([pair[1] for pair in factors], 1)
    return updates


def _joined(rows: Rows, adapter: Adapter) -> tuple[Tensor, Tensor] | None:
    """The factors of a layer's whole update, joined from those of its modules, each for its own rows."""
    chosen = [(module, count, *adapter.updates[module]) for module, count in rows.modules if module in adapter.updates]
    if not chosen:
        return None
    for module, count, down, up in chosen:
        if up.shape[0] != count or down.shape[1] != chosen[0][2].shape[1]:
            raise BrokenCheckpoint(f"{adapter.path}: {module}: {list(up.shape)} and {list(down.shape)} do not fit it")
    ups = {module: up for module, _, _, up in chosen}
    blocks = (ups.get(module, torch.zeros(count, 0)) for module, count in rows.modules)
    whole = torch.block_diag(*blocks)
    return torch.cat([down for _, _, down, _ in chosen]), whole if rows.order is None else whole[rows.order]
