"""The user's configuration file: defaults of options for every command, for one command, and for one model."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
import typer

from gptcli.cli.usage_errors import bad_value
from gptcli.cli.value_names import Command
from gptcli.errors import UsageError
from gptcli.files import open_regular
from gptcli.models.catalog import DEFAULT_MODEL

CONFIGURED = "gptcli.configured"  # in a context's meta: the names of the parameters that the file gave

_VARIABLE = "GPTCLI_CONFIG"
_COMMANDS = ("generate", "chat", "score", "tokenize", "bench", "cache")
_MODEL = "model"  # [model.NAME] is a model's table
_LARGEST = 1 << 20  # bytes


class ConfiguredCommand(Command):
    """A command whose options have defaults in the configuration file. A context's obj returns all such commands."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parses arguments, then fills in what neither they nor the environment gave. Raises UsageError."""
        rest = super().parse_args(ctx, args)
        path = config_path()
        if path and not ctx.resilient_parsing and (config := read_config(path)):
            tables = {name: value for name, value in config.items() if isinstance(value, dict)}
            general = {name: value for name, value in config.items() if name not in tables}
            own = tables.get(ctx.info_name or "", {})
            self._apply(ctx, general | own, path)
            of_model = _model_table(tables.get(_MODEL, {}), ctx.params, path)
            self._apply(ctx, of_model, path)
            known = set(_options([self]))
            _refuse_unknown("table", tables, {_MODEL, *_COMMANDS}, path)
            _refuse_unknown("option", own, known, path)
            if not known.issuperset(others := general | of_model):
                _refuse_unknown("option", others, set(_options(ctx.obj())), path)
        return rest

    def _apply(self, ctx: typer.Context, values: Mapping[str, Any], path: Path) -> None:
        for name, (parameter, on) in _options([self]).items():
            source = ctx.get_parameter_source(parameter.name)
            if name in values and (source is None or source.name == "DEFAULT"):
                where, value = f"{path}: {name}", values[name]
                if isinstance(value, bool) != parameter.is_flag:
                    raise UsageError(f"{where} must be {'true or false' if parameter.is_flag else 'a value'}")
                try:
                    ctx.params[parameter.name] = parameter.process_value(ctx, _as_typed(value, on))
                except typer.BadParameter as error:
                    raise UsageError(f"{where} {bad_value(error)}") from None
                ctx.meta.setdefault(CONFIGURED, set()).add(parameter.name)


def config_path() -> Path | None:
    """GPTCLI_CONFIG, or config.toml in the user's configuration directory; None if it is `off`."""
    chosen = os.environ.get(_VARIABLE)
    if chosen == "off":
        return None
    directory = platformdirs.user_config_dir("gptcli", appauthor=False)
    return Path(os.path.expanduser(chosen or os.path.join(directory, "config.toml")))


def read_config(path: Path) -> dict[str, Any]:
    """What a configuration file says; nothing if there is none and none was asked for. Raises GptcliError."""
    if not os.environ.get(_VARIABLE) and not os.path.lexists(path):
        return {}
    with open_regular(path) as file:
        data = file.read(_LARGEST)
    try:
        return tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def _model_table(tables: Mapping[str, Any], parameters: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The table of the model that a command runs; nothing if a session names the model."""
    name: Any = parameters.get("model")
    if name is None and not (parameters.get("session") or parameters.get("continue_last")):
        name = DEFAULT_MODEL
    for table in tables.values():
        if not isinstance(table, dict) or "model" in table:
            raise UsageError(f"{path}: [{_MODEL}.NAME] must be a table of options, without `model`")
    found: dict[str, Any] = tables.get(name, {})
    return found


def _options(commands: Iterable[Any]) -> dict[str, tuple[Any, bool]]:
    """The long options of commands by name; and whether true means on, which it does not in `no-think = true`."""
    named = [
        (option.removeprefix("--"), parameter, on)
        for command in commands
        for parameter in command.params
        for options, on in ((parameter.opts, True), (parameter.secondary_opts, False))
        for option in options
        if option.startswith("--")
    ]
    return {name: (parameter, on) for name, parameter, on in named}


def _as_typed(value: Any, on: bool) -> Any:
    """A TOML value as a command line gives it."""
    if isinstance(value, bool):
        return value == on
    return list(map(str, value)) if isinstance(value, list) else str(value)


def _refuse_unknown(kind: str, names: Iterable[str], known: set[str], path: Path) -> None:
    for name in sorted(set(names) - known):
        near = difflib.get_close_matches(name, known, 1)
        raise UsageError(f"{path}: there is no {kind} {name}", hint=f"perhaps {near[0]}?" if near else None)
