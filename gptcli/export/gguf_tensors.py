"""The tensors of a model's GGUF file, and what each is made of: the reader's tables, read backwards.

A family gives each parameter's recipe twice: over the model's tensors, and over the file's. Where the two agree they
cancel, which leaves each tensor of the file a recipe over tensors of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gptcli.checkpoint.config.hf_config import HfConfig
from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.formats import Shape
from gptcli.checkpoint.recipes import (
    Architecture,
    Concat,
    EvensThenOdds,
    PlusOne,
    Recipe,
    ReorderedRows,
    Stack,
    Take,
    Transposed,
    sources,
)
from gptcli.checkpoint.registry import architecture_of
from gptcli.errors import UnsupportedArchitecture
from gptcli.gguf.families.architecture import GgufArchitecture, tensor_name
from gptcli.gguf.families.registry import ARCHITECTURES

# Model types -> the architecture to write: the first that has the type.
WRITTEN_AS = {
    model_type: name
    for name, known in reversed(ARCHITECTURES.items())
    if not known.read_only
    for model_type in (known.model_type, *known.others)
}


@dataclass(frozen=True)
class Target:
    """A tensor of a file: `recipe` of the model's tensors, or one of two equal parts of what that makes.

    part: the axis of the parts, and which it is.
    """

    name: str
    shape: Shape
    recipe: Recipe
    part: tuple[int, int] | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether activations are multiplied with it: then it may be in any type of blocks, else it is in fp32."""
        stem = self.name.split(".")[-2]
        added = self.name.endswith(".bias") or stem.endswith("norm") or stem in ("position_embd", "attn_sinks", "conv")
        return len(self.shape) > 1 and not added and not stem.startswith("ffn_gate_inp")

    @property
    def is_vocabulary(self) -> bool:
        """Whether it has a row for each token."""
        return self.name in ("token_embd.weight", "output.weight")


def architecture_name(model_type: str) -> str:
    """The GGUF architecture to write a model type as. Raises UnsupportedArchitecture if there is none."""
    if model_type not in WRITTEN_AS:
        raise UnsupportedArchitecture(
            f"cannot write as GGUF: a model of type `{model_type}`",
            f"types that can be written: {', '.join(sorted(WRITTEN_AS))}",
        )
    return WRITTEN_AS[model_type]


def targets_of(folder: ModelFolder, known: GgufArchitecture) -> tuple[list[Target], Mapping[str, Recipe]]:
    """A file's tensors, and our parameters' recipes over them.

    Raises UnsupportedArchitecture for what the architecture has no name for.
    """
    names = _file_names(known, folder.architecture)
    theirs = architecture_of(HfConfig(folder.config), names)
    found: dict[str, Target] = {}
    for parameter, ours in folder.architecture.parameters.items():
        for taken, recipe, part in _solved(theirs.parameters[parameter], ours):
            if (name := names.get(taken)) is None:
                raise UnsupportedArchitecture(
                    f"cannot write as GGUF: the architecture has no tensor for {sources(recipe)[0]}"
                )
            found[name] = Target(name, _shape(folder, name, recipe, part), recipe, part)
    return [found[name] for name in names.values() if name in found], theirs.parameters


def _file_names(known: GgufArchitecture, architecture: Architecture) -> dict[str, str]:
    """Names of every tensor that a file of this architecture may have: in `GgufModel.tensors` -> in the file."""
    names: dict[str, str] = {}
    modules = [("", "", stem, module) for stem, module in known.top.items()]
    for layer in range(len(architecture.config.blocks)):
        modules += [(f"blk.{layer}.", f"{known.layers}{layer}.", *item) for item in known.block.items()]
    for ours, theirs, stem, module in modules:
        for leaf in ("bias",) if stem == "exp_probs_b" else ("weight", "bias"):
            name = theirs + tensor_name(module, leaf)
            if not (stem == "output" and architecture.config.tied_head):
                names.setdefault(name, f"{ours}{stem}.{leaf}")
    return names


def _solved(theirs: Recipe, ours: Recipe) -> Iterator[tuple[str, Recipe, tuple[int, int] | None]]:
    """For each tensor of `theirs`: its name, the recipe with which `theirs` equals `ours`, the part as in `Target`."""
    match theirs, ours:
        case Take(name), _:
            yield name, ours, None
        case PlusOne(Take(name)), PlusOne():
            yield name, ours, None  # in files, 1 is added already
        case Stack((Take(name), *_)), Stack() if ".norms." in name:  # one for each head, which files have in one
            yield name.replace(".norms.0.", ".norms."), ours, None
        case Stack((Take(name),)), Stack((given,)):  # a vector seen as a row
            yield name, given, None
        case Concat((Take(gate), Take(up)), axis), EvensThenOdds() | Take():
            yield gate, ours, (axis, 0)
            yield up, ours, (axis, 1)
        case Concat(wanted, axis=1), Stack(given) if all(isinstance(each, Concat) for each in given):
            for index, operand in enumerate(wanted):
                yield from _solved(operand, Stack(tuple(each.operands[index] for each in given)))  # type: ignore[union-attr]  # Concat
        case Concat(wanted, axis), Concat(given, other) if axis == other and len(wanted) == len(given):
            for operand, operands in zip(wanted, given, strict=True):
                yield from _solved(operand, operands)
        case Transposed(wanted), Transposed(given):
            yield from _solved(wanted, given)
        case ReorderedRows(wanted), ReorderedRows(given) if theirs == replace(ours, operand=wanted):
            yield from _solved(wanted, given)
        case _:
            raise UnsupportedArchitecture(f"cannot write as GGUF: {sources(ours)[0]} has another form there")


def _shape(folder: ModelFolder, name: str, recipe: Recipe, part: tuple[int, int] | None) -> Shape:
    whole = folder.parameter_shape(recipe)
    if part is not None:
        axis, _ = part
        whole = (*whole[:axis], whole[axis] // 2, *whole[axis + 1 :])
    if name.endswith(".shortconv.conv.weight"):  # (channels, 1, kernel) here
        return whole[0], whole[2]
    return whole[1:] if ".ffn_gate_inp_shexp." in name else whole  # a vector there
