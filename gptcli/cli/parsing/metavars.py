"""The names of options' values in the help and the man pages: FILE, N or the choices, not Python's types.

Values of files may begin with `~`: shells leave it alone in `--file=~/notes.txt`, as the configuration file does.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from gptcli.cli.parsing.plain_values import with_plain_values
from gptcli.cli.terminal.columns import terminal_columns

_FRAMED = 72  # columns that the help with frames needs
_PATHS = re.compile("FILE|DIR|DATA|CONFIG")  # in names of values
_NAMES = {str: "TEXT", int: "N", float: "X", Path: "FILE"}


def value_name(annotation: Any) -> str:
    """The choices of a Literal, or the kind of value; lists and optional values are named as their values."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return value_name(parts[0])
    if origin is Literal:
        return "|".join(parts)
    if parts:  # list[str], or str | None
        return value_name(next(part for part in parts if part is not NoneType))
    return _NAMES[annotation]


class Command(TyperCommand):
    """A command whose help names values as `value_name` does."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]  # of click's own
        """All parameters, `--help` too."""
        return with_plain_values(super().get_params(ctx))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # of click's own
        """Writes the help."""
        _fit_to_terminal(self, ctx, formatter)
        super().format_help(ctx, formatter)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # of click's own
        """Runs the command, with `~` in paths replaced by the user's directory."""
        for parameter in self.params:
            if parameter.name is not None:
                named = bool(_PATHS.search(str(parameter.metavar)))
                ctx.params[parameter.name] = _with_home(ctx.params[parameter.name], named)
        return super().invoke(ctx)


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]  # of click's own
        """All parameters, `--help` too."""
        return with_plain_values(super().get_params(ctx))

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # of click's own
        """Writes the help."""
        _fit_to_terminal(self, ctx, formatter)
        super().format_help(ctx, formatter)


def _fit_to_terminal(command: Any, ctx: typer.Context, formatter: Any) -> None:
    """Names values; leaves frames out on a narrow terminal, where they would cut words."""
    _name_values(command, ctx)
    if (columns := terminal_columns()) < _FRAMED:
        command.rich_markup_mode = None
        formatter.width = columns
        formatter.write_dl = partial(formatter.write_dl, col_max=columns // 3)
        for each in getattr(command, "commands", {}).values():
            each.short_help = each.short_help or each.help.partition("\n\n")[0]  # click would cut it to a line


def _name_values(command: Any, ctx: typer.Context) -> None:
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # its name suffices
        elif parameter.metavar is None:
            kind = parameter.type_descriptor
            parameter.metavar = "" if parameter.is_flag else "|".join(kind.choices or ()) or value_name(kind.annotation)


def _with_home(value: Any, is_path: bool) -> Any:
    """A value with `~` expanded where it is a path, or a text that names one; or several of them."""
    if isinstance(value, list | tuple):
        return type(value)(_with_home(each, is_path) for each in value)
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))
    return os.path.expanduser(value) if is_path and isinstance(value, str) else value
