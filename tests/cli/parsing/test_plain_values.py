"""Values that are converted without Typer's own conversion are what it makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from gptcli.cli.app import program
from gptcli.cli.parsing.plain_values import with_plain_values

TEXTS = [
    "",
    "a",
    "ü",
    "~/x",
    "\udcff",
    "0",
    "-0",
    "7",
    "+7",
    "007",
    "1_0",
    " 5",
    "٣",
    "65536",
    "-1",
    "9" * 30,
    "0.5",
    ".5",
]
TEXTS += ["1e3", "nan", "inf", "5.", "-", "true", "fp32", "auto", "FP32", "a\0b", "/tmp", "1.0"]
VALUES = [*TEXTS, None, 0, 7, -1, 0.5, 1.0, Path("/tmp"), True]


def all_parameters() -> dict[str, Any]:
    commands = {"": typer.main.get_command(program())}
    found = {}
    while commands:
        path, command = commands.popitem()
        found |= {f"{path} {parameter.name}".strip(): parameter for parameter in command.params}
        commands |= {f"{path} {name}".strip(): each for name, each in getattr(command, "commands", {}).items()}
    return found


def converted(conversion: Any, value: Any, parameter: Any) -> object:
    context = typer.Context(typer.core.TyperCommand("x"))
    try:
        result = conversion.coerce(value, param=parameter, ctx=context)
    except (typer.BadParameter, ValueError) as error:
        return type(error), str(error)
    return repr(result)


def test_a_plain_value_is_what_typer_makes_of_it() -> None:
    parameters = all_parameters()
    assert len(parameters) > 300
    kinds = {}
    for parameter in parameters.values():
        kind = parameter.type_descriptor
        info = kind.parameter_info
        kinds[repr(kind.annotation), info.min, info.max, info.readable, parameter.multiple, parameter.nargs] = parameter
    assert len(kinds) > 15
    differing = []
    for kind, parameter in kinds.items():
        typers = parameter.get_runtime_param()
        [plain] = with_plain_values([parameter])
        several = parameter.multiple or parameter.nargs == -1
        values = [[value] for value in VALUES] + [None, [], ["a", "b"]] if several else VALUES
        for value in values:
            made = [converted(each, value, parameter) for each in (typers, plain.get_runtime_param())]
            differing += [(kind, value, made)] if made[0] != made[1] else []
    assert differing == []
