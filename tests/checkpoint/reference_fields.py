"""Finds the fields of a config.json that transformers reads for a model type, in its own source.

`python -m tests.checkpoint.reference_fields` writes them to gptcli/checkpoint/config/reference_fields.json.

A name counts as read where it is an attribute of a config, an argument of getattr or hasattr, a key that is popped or
looked up, or, where the name looked up is not in the source, any string of that function. What a class declares and
nothing reads is not counted.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from gptcli.checkpoint.config.reference_fields import PATH
from gptcli.checkpoint.registry import FAMILIES, SAME_AS

# Modules that every text model uses, besides those that its own modules import.
SHARED = (
    "activations", "cache_utils", "configuration_utils", "core_model_loading", "integrations.eager_paged",
    "integrations.hub_kernels", "integrations.moe", "integrations.sdpa_attention", "masking_utils", "modeling_layers",
    "modeling_rope_utils", "modeling_utils",
)  # fmt: skip
# Modules that a model imports and that compute no logits from a config's fields. All others count as the model's.
_BESIDE = (
    "conversion_mapping", "distributed", "generation", "initialization", "integrations.peft", "loss",
    "modeling_flash_attention_utils", "modeling_outputs", "models.auto", "monkey_patching", "processing_utils", "utils",
)  # fmt: skip
# Configs that are not the model's.
_OTHER_CONFIGS = ("compile", "deepspeed", "distributed", "generation", "kernel", "load", "peft", "quantization", "tp")
_LOOKUPS = ("getattr", "hasattr", "setattr", "delattr")
# Parts of names of functions whose keywords are not fields of a config.
_TAKES_NO_FIELDS = ("pretrained", "from_", "get_config", "push_to_hub", "forward", "mask", "resolve", "load")
_KEYED = ("pop", "get", "setdefault")


def reference_fields() -> dict[str, Any]:
    """The data file's content, from the installed transformers."""
    shared = fields_read(map(module_of, shared_names()))
    types = sorted(FAMILIES.keys() - SAME_AS.keys())
    read = {model_type: fields_read(modules_of(model_type)) for model_type in types}
    return {
        "transformers": transformers.__version__,
        "shared": sorted(shared),
        "read": {model_type: sorted(names - shared) for model_type, names in read.items()},
        "classes": {model_type: sorted(classes_of(model_type)) for model_type in types},
    }


def modules_of(model_type: str) -> list[ModuleType]:
    """The modules of a model type's config and model, and what these take their own parts from."""
    config = CONFIG_MAPPING[model_type]
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    model = next(mapping[config] for mapping in mappings if config in mapping)
    modules = {inspect.getmodule(base) for kind in (config, model) for base in kind.__mro__}
    for module in list(modules):
        if module is not None and module.__name__.startswith("transformers.models."):
            modules |= {inspect.getmodule(value) for value in vars(module).values() if callable(value)}
    return sorted(
        (module for module in modules if module is not None and _is_a_models_own(module.__name__)),
        key=lambda module: module.__name__,
    )


def _is_a_models_own(name: str) -> bool:
    package, _, rest = name.partition(".")
    beside = any(f"{rest}.".startswith(f"{module}.") for module in _BESIDE)
    return package == "transformers" and bool(rest) and not beside and rest not in shared_names()


def classes_of(model_type: str) -> Iterator[str]:
    """The names of transformers' own classes for a model type, as `auto_map` names them."""
    for module in modules_of(model_type):
        if module.__name__.startswith("transformers.models."):
            yield from (name for name, value in vars(module).items() if inspect.isclass(value) and _ours(value, module))


def _ours(kind: type, module: ModuleType) -> bool:
    return kind.__module__ == module.__name__ and kind.__name__.endswith(("Config", "Model", "LM", "Generation"))


def module_of(name: str) -> ModuleType:
    """A module of transformers."""
    return importlib.import_module(f"transformers.{name}")


@cache
def shared_names() -> tuple[str, ...]:
    """The names of the modules that every text model runs through."""
    folder = Path(inspect.getfile(module_of("integrations"))).parent
    layers_that_differ = (f"integrations.heterogeneity.{path.stem}" for path in folder.glob("heterogeneity/[a-z]*.py"))
    return (*(name for name in SHARED if _exists(name)), *sorted(layers_that_differ))


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"transformers.{name}") is not None


def fields_read(modules: Iterable[ModuleType]) -> set[str]:
    """Names that the code of these modules may read of a config."""
    return set().union(*map(_read_in, modules))


@cache
def _read_in(module: ModuleType) -> frozenset[str]:
    return frozenset(names_read(inspect.getsource(module)))


def names_read(source: str) -> set[str]:
    """Names that this source may read of a config."""
    reads = _Reads()
    reads.visit(ast.parse(source))
    return reads.names


class _Reads(ast.NodeVisitor):
    """Collects the names read of anything that is called a config, or of `self` in a config's class."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._in_config = False
        self._function = ""

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before = self._in_config
        self._in_config = "Config" in node.name
        self.generic_visit(node)
        self._in_config = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and self._is_lookup(inner) and not _strings([inner.args[1]]):
                self.names |= _strings([node])
        before, self._function = self._function, node.name
        self.generic_visit(node)
        self._function = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._is_config(node.value):
            self.names.add(node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in _LOOKUPS and len(node.args) > 1:
            if self._is_config(node.args[0]):
                self.names |= _strings([node.args[1]])
        if isinstance(node.func, ast.Attribute) and node.func.attr in _KEYED and self._is_fields(node.func.value):
            self.names |= _strings(node.args[:1])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if self._is_fields(node.value):
            self.names |= _strings([node.slice])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if any(isinstance(operator, ast.In | ast.NotIn) for operator in node.ops):
            if any(self._is_fields(container) for container in node.comparators):
                self.names |= _strings([node.left])
        self.generic_visit(node)

    def _is_lookup(self, call: ast.Call) -> bool:
        name = call.func.id if isinstance(call.func, ast.Name) else None
        return name in ("getattr", "hasattr") and len(call.args) > 1 and self._is_config(call.args[0])

    def _is_fields(self, node: ast.expr) -> bool:
        """Whether this may be a dict of a config's fields, or of RoPE's."""
        match node:
            case ast.Name(id="kwargs"):
                return not any(part in self._function for part in _TAKES_NO_FIELDS)
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return any(part in name for part in ("config", "rope", "parameters"))
            case ast.Subscript(value=value) | ast.BoolOp(values=[value, *_]):
                return self._is_fields(value)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(name)), *_]):
                return "rope" in name or "parameters" in name
        return False

    def _is_config(self, node: ast.expr) -> bool:
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                other = name.removesuffix("_config") in _OTHER_CONFIGS
                called_config = ("config" in name.lower() or "cfg" in name.lower()) and not other
                return called_config or (name == "self" and self._in_config)
            case ast.Call(func=ast.Attribute(attr=name)):
                return name in ("get_text_config", "get_decoder_config")
            case ast.Subscript(value=value):
                return isinstance(value, ast.Attribute) and value.attr == "per_layer_config"
        return False


def _strings(nodes: Iterable[ast.AST]) -> set[str]:
    """Strings in the source that could be a field's name."""
    inner = (part for node in nodes for part in ast.walk(node))
    return {
        part.value
        for part in inner
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.isidentifier()
    }


def written(fields: dict[str, Any]) -> str:
    """The data file's text."""
    return json.dumps(fields, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(written(reference_fields()))
