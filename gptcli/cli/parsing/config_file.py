"""The user's configuration file: defaults of options for every command, for one command, and for one model."""

from __future__ import annotations

import codecs
import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
import typer

from gptcli.cli.parsing.metavars import Command
from gptcli.cli.parsing.usage_errors import bad_value
from gptcli.cli.terminal.stderr import print_note
from gptcli.errors import InputError, UsageError
from gptcli.files import open_regular
from gptcli.models.catalog import DEFAULT_MODEL

# The commands that have a table.
COMMANDS = (
    "generate",
    "chat",
    "batch",
    "serve",
    "score",
    "tokenize",
    "bench",
    "train",
    "cache",
)

_VARIABLE = "GPTCLI_CONFIG"
_CONFIGURED = "gptcli.configured"  # in a context's meta: the names of the parameters that the file gave
_MODELS = "models"  # [models.NAME] is a model's table
_LARGEST = 1 << 20  # bytes
# Options of one call: `--delete` in a file would delete again and again.
_OF_ONE_CALL = {
    "clear",
    "continue",
    "delete",
    "file",
    "fork",
    "help",
    "list",
    "lines",
    "messages",
    "out",
    "retry-failed",
    "script",
    "session",
    "stats-json",
}
# A typed option overrides the other in the file.
_EXCLUDED_BY = {"system": "system_file", "system_file": "system"}


class ConfiguredCommand(Command):
    """A command whose options have defaults in the configuration file. A context's obj returns all such commands."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # of click's own
        """Parses arguments, then fills in what neither they nor the environment gave. Raises UsageError."""
        rest = super().parse_args(ctx, args)
        path = config_path()
        if path and not ctx.resilient_parsing and (config := read_config(path)):
            tables = {name: value for name, value in config.items() if isinstance(value, dict)}
            general = {name: value for name, value in config.items() if name not in tables}
            own = tables.get(ctx.info_name or "", {})
            self._apply(ctx, general, path)
            self._apply(ctx, own, path)
            of_model = _model_table(tables.get(_MODELS, {}), ctx, path)
            self._apply(ctx, of_model, path)
            known = set(_options([self]))
            _refuse_unknown("table", tables, {_MODELS, *COMMANDS}, path)
            _refuse_unknown("option", own, known, path)
            if not known.issuperset(others := general | of_model):
                _refuse_unknown("option", others, set(_options(ctx.obj())), path)
        return rest

    def _apply(self, ctx: typer.Context, values: Mapping[str, Any], path: Path) -> None:
        for name, (parameter, on) in _options([self]).items():
            if name not in values or _is_given(ctx, parameter.name):
                continue
            where, value = f"{path}: {name}", values[name]
            if name in _OF_ONE_CALL:
                raise UsageError(f"{where} is for one call, and has no default")
            if isinstance(value, bool) != parameter.is_flag:
                raise UsageError(f"{where} must be {'true or false' if parameter.is_flag else 'a value'}")
            if isinstance(value, list) != parameter.multiple:
                raise UsageError(f"{where} must be {'a list' if parameter.multiple else 'one value'}")
            if _is_given(ctx, _EXCLUDED_BY.get(parameter.name, "")):
                continue
            try:
                ctx.params[parameter.name] = parameter.process_value(ctx, _as_typed(value, on))
            except typer.BadParameter as error:
                raise UsageError(f"{where} {bad_value(error)}") from None
            ctx.meta.setdefault(_CONFIGURED, set()).add(parameter.name)


def configured(ctx: typer.Context) -> frozenset[str]:
    """The names of the parameters that the configuration file gave."""
    return frozenset(ctx.meta.get(_CONFIGURED, ()))


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter was typed or is in the environment."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def config_path() -> Path | None:
    """GPTCLI_CONFIG, or config.toml in the user's configuration directory; None if it is `off`."""
    chosen = os.environ.get(_VARIABLE)
    if chosen == "off":
        return None
    directory = platformdirs.user_config_dir("gptcli", appauthor=False)
    return Path(os.path.expanduser(chosen or os.path.join(directory, "config.toml")))


def read_config(path: Path) -> dict[str, Any]:
    """A parsed configuration file; empty if there is none and none was asked for. Raises GptcliError."""
    if not os.environ.get(_VARIABLE) and not os.path.lexists(path):
        return {}
    try:
        with open_regular(path) as file:
            data = file.read(_LARGEST + 1)
    except InputError as error:
        hint = f"{_VARIABLE} names it; `off` is for none" if os.environ.get(_VARIABLE) else error.hint
        raise InputError(error.message, hint) from None
    if len(data) > _LARGEST:
        raise UsageError(f"{path}: more than {_LARGEST} bytes")
    if data.startswith(codecs.BOM_UTF8):
        print_note(f"byte-order mark dropped: {path}")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def _model_table(tables: Mapping[str, Any], ctx: typer.Context, path: Path) -> dict[str, Any]:
    """The table of the model that a command runs; empty if a session may name another."""
    for table in tables.values():
        if not isinstance(table, dict) or "model" in table:
            raise UsageError(f"{path}: options of a model go in [{_MODELS}.NAME]; `model` cannot be one")
    name: Any = ctx.params.get("model")
    if isinstance(name, list):  # several models share their options
        if len(name) > 1:
            return {}
        [name] = name
    in_session = ctx.params.get("session") or ctx.params.get("continue_last")
    if in_session and not _is_given(ctx, "model"):
        return {}
    found: dict[str, Any] = tables.get(name or os.environ.get("GPTCLI_MODEL") or DEFAULT_MODEL, {})
    return found


def _options(commands: Iterable[Any]) -> dict[str, tuple[Any, bool]]:
    """The long options of commands by name, each with whether true means on: not in `no-think = true`."""
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
        near = [option for option in sorted(known) if option.startswith(name)] or difflib.get_close_matches(name, known)
        hint = f"a model's options go in [{_MODELS}.NAME]" if kind == "table" else None
        raise UsageError(f"{path}: there is no {kind} {name}", hint=f"did you mean {near[0]}?" if near else hint)
