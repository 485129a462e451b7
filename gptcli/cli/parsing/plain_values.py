"""Converts the values of options that are plain, so that a start need not import pydantic."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import typer

_WHOLE = re.compile("-?(0|[1-9][0-9]{0,14})", re.ASCII)
_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)


def with_plain_values(parameters: list[Any]) -> list[Any]:
    """Typer's parameters, which convert plain values themselves.

    Typer 0.29 converts every value with pydantic, defaults too, and importing that takes a third of a fast start.
    """
    for parameter in parameters:
        if not isinstance(parameter.get_runtime_param, _PlainValues):
            parameter.get_runtime_param = _PlainValues(parameter)
    return parameters


class _PlainValues:
    """Takes the place of Typer's conversion of a parameter; leaves to it what is not plain, errors above all."""

    def __init__(self, parameter: Any) -> None:
        self._typers: Callable[[], Any] = parameter.get_runtime_param
        self._annotation, self._info = parameter.type_descriptor.annotation, parameter.type_descriptor.parameter_info

    def __call__(self) -> Self:
        """Itself, as Typer asks the parameter for its conversion."""
        return self

    def coerce(self, value: Any, param: Any, ctx: typer.Context) -> Any:
        """A value from the command line, the environment or a default, as Typer converts it. Raises BadParameter."""
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        try:
            if not several:
                return self._converted(value, self._annotation)
            [each] = get_args(self._annotation)
            if isinstance(value, list | tuple):
                return [self._converted(item, each) for item in value]
        except _NotPlain:
            pass
        return self._typers().coerce(value, param=param, ctx=ctx)

    def _converted(self, value: Any, annotation: Any) -> Any:
        """A plain value. Raises _NotPlain."""
        info = self._info
        if get_origin(annotation) is Literal and isinstance(value, str) and value in get_args(annotation):
            return value
        if annotation in (int, float) and not info.clamp:
            form = _WHOLE if annotation is int else _DECIMAL
            if type(value) in (int, annotation) or isinstance(value, str) and form.fullmatch(value):
                number = annotation(value)
                if (info.min is None or number >= info.min) and (info.max is None or number <= info.max):
                    return number
        if annotation is str and isinstance(value, str) and _is_text(value):
            return value
        checked = (
            info.exists or info.readable or info.writable or info.resolve_path or not (info.file_okay and info.dir_okay)
        )
        if annotation is Path and not checked:
            if isinstance(value, Path) or isinstance(value, str) and _is_text(value) and "\0" not in value:
                return Path(value)
        raise _NotPlain


class _NotPlain(Exception):
    """A value is for Typer to convert or refuse."""


def _is_text(value: str) -> bool:
    """Whether a value has no half of a surrogate pair, as arguments that are not UTF-8 have."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
