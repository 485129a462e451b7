"""The Typer app and the one error boundary, which turns errors into a line, a hint and an exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from gptcli.cli.parsing.config_file import COMMANDS, ConfiguredCommand
from gptcli.cli.parsing.metavars import Command, Group
from gptcli.cli.parsing.usage_errors import usage_error
from gptcli.cli.terminal.stderr import print_error
from gptcli.errors import ExitCode, GptcliError, UsageError
from gptcli.runtime.ranks import ranks_here
from gptcli.version import VERSION

EXAMPLES = ("gptcli chat", 'gptcli generate "In a small town"')

_COMMANDS = (*COMMANDS, "models")  # each is in a module of its name


def program(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command line. Imports only the command that the arguments name, or all commands if they name none."""
    app = typer.Typer(
        name="gptcli",
        cls=Group,
        help="Local text generation for a terminal, a pipe and a Python program.",
        epilog="To begin: " + ", or ".join(EXAMPLES),
        invoke_without_command=True,
        callback=_gptcli,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    named = arguments[0] if arguments else ""
    for name in [named] if named in _COMMANDS else [] if named == "help" else _COMMANDS:
        module = importlib.import_module(f"gptcli.cli.commands.{name}")
        if name == "models":
            app.add_typer(module.app, name=name)
        else:
            app.command(name, cls=ConfiguredCommand)(getattr(module, name))
    app.command("help", cls=Command)(_help)
    return app


def _gptcli(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"gptcli {VERSION}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _help(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND", autocompletion=lambda: list(_COMMANDS), help="A command, such as `models show`."
        ),
    ] = None,
) -> None:
    """Show the help of gptcli or of a command, as --help does."""
    words = command or []
    level: Any = typer.main.get_command(program(words))
    for number, word in enumerate(words):
        if not isinstance(level, Group):
            named = shlex.join(words[:number])
            raise UsageError(f"there is no command {shlex.join(words)}", f"run `gptcli help {named}`")
        level = level.commands.get(word, level)  # running it refuses an unknown name
    _run_command([*words, "--help"])


def run(arguments: Sequence[str]) -> int:
    """Runs the command line and returns its exit code. KeyboardInterrupt and BrokenPipeError pass through."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        try:
            if "_GPTCLI_COMPLETE" in os.environ:  # a shell asks for completions
                from gptcli.cli.parsing.completion import complete, words_before

                complete(lambda: program(words_before())(prog_name="gptcli"))
            _program(arguments)
            code: int = ExitCode.OK
        except typer.Exit as exit:
            code = exit.exit_code
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except typer.TyperException as error:
        return _report(*usage_error(error, arguments), error.exit_code, error)
    except GptcliError as error:
        return _report(error.message, error.hint, error.exit_code, error)
    except BrokenPipeError:
        raise
    except SystemExit as exit:
        if isinstance(exit.__context__, BrokenPipeError):  # rich turns it into an exit when it draws the help
            raise exit.__context__ from None
        raise
    except OSError as error:
        if error.errno is None:
            return _report_bug(error)
        if error.filename is not None:
            return _report(f"cannot read: {error.filename}: {error.strerror}", None, ExitCode.NO_INPUT, error)
        # Errors of our files have names; this is the terminal, pipe or disk that stdout goes to.
        return _report(f"cannot write: standard output: {error.strerror}", None, ExitCode.NO_OUTPUT, error)
    except MemoryError as error:
        return _report("out of memory", None, ExitCode.NO_MEMORY_OR_DEVICE, error)
    except Exception as error:  # anything else is a bug, and still only a line for the user
        return _report_bug(error)


def _program(arguments: Sequence[str]) -> None:
    """Runs a command. Of the processes of torchrun, rank 0 runs it and the others follow."""
    if (ranks := ranks_here()) is None or arguments[:1] == ["train"]:
        _run_command(arguments)
        return
    from gptcli.runtime.tensor_parallel import dismiss, follow

    if ranks.rank > 0:
        follow(ranks)
        return
    try:
        _run_command(arguments)
    finally:
        dismiss()


def _run_command(arguments: Sequence[str]) -> None:
    command = typer.main.get_command(program(arguments))
    with command.make_context("gptcli", _with_plain_stats(arguments), obj=_configured_commands) as context:
        command.invoke(context)


def _configured_commands() -> list[ConfiguredCommand]:
    whole = typer.main.get_command(program())
    assert isinstance(whole, Group)
    return [command for command in whole.commands.values() if isinstance(command, ConfiguredCommand)]


def _with_plain_stats(arguments: Sequence[str]) -> list[str]:
    """Replaces `--stats=json` by `--stats-json`: Typer has no options with an optional value."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    replaced = ["--stats-json" if argument == "--stats=json" else argument for argument in ours]
    return replaced + list(arguments[len(ours) :])


def _report(message: str, hint: str | None, code: int, error: Exception) -> int:
    if os.environ.get("GPTCLI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print_error(message, hint)
    return code


def _report_bug(error: Exception) -> int:
    message = f"internal error: {type(error).__name__}: {error}"
    return _report(message, "this is a bug; GPTCLI_DEBUG=1 shows where it is", ExitCode.BUG, error)
