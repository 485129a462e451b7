"""Options in groups: a command takes a frozen dataclass whose fields are options, and Typer sees single options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

import typer

_Group = TypeVar("_Group")
Selection = Callable[[str], bool]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def option_group(group: type[_Group]) -> type[_Group]:
    """A frozen dataclass whose fields are options, each `Annotated[type, typer.Option(...)]` with a default.

    It has no comparison and no repr, which would cost time at every start.
    """
    return dataclass(frozen=True, kw_only=True, eq=False, repr=False)(group)


def panel(name: str) -> Callable[..., Any]:
    """Returns a function that declares options of one panel of the help, from a help text, flags and Typer's settings.

    Without flags an option has the name of its field; a bool gets `--x` and `--no-x`.
    """

    def option(help: str, *flags: str, **settings: Any) -> Any:
        return typer.Option(*flags, help=help, rich_help_panel=name, **settings)

    return option


def only(*names: str) -> Selection:
    """For `Annotated[Group, only(...)]`: the command has these options of the group; the others keep their defaults."""
    return names.__contains__


def without(*names: str) -> Selection:
    """For `Annotated[Group, without(...)]`: the command has all options of the group but these."""
    return lambda name: name not in names


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each option, as Typer reads it; it is called with an object per group.

    A parameter is a group if its type is a dataclass. Options come in the order of the parameters and fields.
    """
    hints = get_type_hints(command, include_extras=True)
    flat: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        group, *selections = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if not is_dataclass(group):
            flat.append(parameter.replace(annotation=hint, kind=parameter.KEYWORD_ONLY))
            continue
        assert isinstance(group, type)
        all_options = inspect.signature(group, eval_str=True).parameters.values()
        options = [option for option in all_options if all(selects(option.name) for selects in selections)]
        flat += options
        groups[parameter.name] = group, [option.name for option in options]

    def flattened(**given: Any) -> None:
        records = {
            name: group(**{option: given.pop(option) for option in options})
            for name, (group, options) in groups.items()
        }
        command(**given, **records)

    flattened.__name__, flattened.__doc__, flattened.__module__ = command.__name__, command.__doc__, command.__module__
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # which `inspect` reads
    return flattened
