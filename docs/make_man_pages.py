"""Writes docs/man/*.1, the man pages, from the commands as Typer knows them: python docs/make_man_pages.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from gptcli.cli.app import EXAMPLES, program
from gptcli.cli.parsing.metavars import Group, value_name
from gptcli.errors import ExitCode
from gptcli.version import VERSION

DIRECTORY = Path(__file__).parent / "man"

ENVIRONMENT = {
    "GPTCLI_MODEL": "The model of a command that names none.",
    "GPTCLI_API_KEY": "The key that requests to `gptcli serve` must have.",
    "GPTCLI_CONFIG": "The configuration file; `off` for none.",
    "GPTCLI_WEIGHTS": "Directories of models, `:` between them; the first takes new ones.",
    "GPTCLI_PREPARED": "`off`: neither keep nor use snapshots of models.",
    "GPTCLI_KERNELS": "`off`: compute in torch alone; or a level: `portable`, `avx2`, `avx512`, `avx512_bf16`, `amx`.",
    "GPTCLI_STORES": "`off`: leave out the models of Ollama, LM Studio and llama.cpp.",
    "GPTCLI_DEBUG": "`1`: show the traceback of an error.",
    "GPTCLI_THEME": "`light` or `dark`: the terminal's background, which is asked for otherwise.",
    "HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME": "Where the models of the Hugging Face cache are.",
    "NO_COLOR": "If set, nothing is coloured.",
}
EXIT_STATUS = {
    ExitCode.OK: "Done.",
    ExitCode.BUG: "A bug in gptcli.",
    ExitCode.USAGE: "A wrong option or argument.",
    ExitCode.INVALID_MODEL: "The model, its tokenizer or its template cannot be used.",
    ExitCode.NO_INPUT: "An input or model is missing, unreadable or not text.",
    ExitCode.NO_MEMORY_OR_DEVICE: "Out of memory, or no such device.",
    ExitCode.CONTEXT_FULL: "It does not fit the context.",
    ExitCode.NON_FINITE: "The model computed NaN or infinity.",
    ExitCode.NO_OUTPUT: "Output or state could not be written.",
    ExitCode.REQUESTS_FAILED: "Some requests of a batch failed; its output says why.",
}
SIGNALS = ("129, 130, 141, 143", "Ended by SIGHUP, SIGINT, SIGPIPE, SIGTERM.")
FILES = {
    "~/.config/gptcli/config.toml": "Defaults of options.",
    "~/.local/share/gptcli/models": "Models that were fetched or imported; in a source checkout, `weights/`.",
    "~/.cache/huggingface/hub": "Models that other programs fetched.",
    "~/.cache/gptcli/prepared": "Snapshots of models, for a fast start. They can be deleted.",
    "~/.local/state/gptcli": "Sessions of `gptcli chat`, and what was typed at its prompt.",
}


def pages() -> dict[str, str]:
    """Every page by its file name."""
    main = typer.main.get_command(program())
    assert isinstance(main, Group)
    commands = {"gptcli": main, **{f"gptcli {name}": command for name, command in main.commands.items()}}
    return {
        f"{_dashed(name)}.1": "\n".join(_page(name, command, commands)) + "\n" for name, command in commands.items()
    }


def _page(name: str, command: Any, commands: dict[str, Any]) -> Iterator[str]:
    about, rest = _about(command)
    others = {_dashed(other): commands[other] for other in commands if other != name}
    yield '.\\" Written by docs/make_man_pages.py.'
    yield f'.TH {_escaped(_dashed(name).upper())} 1 "" "gptcli {VERSION}" gptcli'
    yield f".SH NAME\n{_escaped(_dashed(name))} \\- {_text(about[0].lower() + about[1:].rstrip('.'))}"
    yield f".SH SYNOPSIS\n{_usage(name, command)}"
    yield f".SH DESCRIPTION\n{_text(about)}" + (f"\n.PP\n{_text(rest)}" if rest else "")
    if name == "gptcli":
        summaries = ((f"{_bold(other)}(1)", _about(others[other])[0]) for other in others)
        yield f".SH COMMANDS\n{_entries(summaries)}"
        yield ".SH EXAMPLES\n.nf\n" + "\n".join(map(_escaped, EXAMPLES)) + "\n.fi"
    elif subcommands := getattr(command, "commands", None):
        yield ".SH COMMANDS"
        for subcommand_name, subcommand in subcommands.items():
            yield f".SS {_escaped(subcommand_name)}\n{_usage(f'{name} {subcommand_name}', subcommand)}"
            yield f".PP\n{_text(_about(subcommand)[0])}"
            yield from (_entries(entries) for entries in _options(subcommand).values())
    yield ".SH OPTIONS"
    for panel, entries in _options(command).items():
        yield (f".SS {_escaped(panel)}\n" if panel else "") + _entries(entries)
    codes = [(str(code.value), EXIT_STATUS[code]) for code in ExitCode]
    yield f".SH EXIT STATUS\n{_table([*codes, SIGNALS])}"
    yield f".SH ENVIRONMENT\n{_table(ENVIRONMENT.items())}"
    yield f".SH FILES\n{_table(FILES.items())}"
    yield ".SH SEE ALSO\n" + ",\n".join(f"{_bold(other)}(1)" for other in others)


def _about(command: Any) -> tuple[str, str]:
    """What a command does, in a sentence, and the rest of its description."""
    first, _, rest = inspect.cleandoc(command.help).partition("\n\n")
    return " ".join(first.split()), rest


def _usage(name: str, command: Any) -> str:
    arguments = [_argument(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
    more = ["COMMAND", "..."] if getattr(command, "commands", None) else arguments
    return f"{_bold(name)} [\\fIOPTION\\fR]... {_escaped(' '.join(more))}".rstrip()


def _argument(parameter: Any) -> str:
    metavar = parameter.metavar.removesuffix("...").strip("[]") + ("..." if parameter.nargs != 1 else "")
    return metavar if parameter.required else f"[{metavar}]"


def _options(command: Any) -> dict[str, list[tuple[str, str]]]:
    """Arguments and options with their help, by panel; those of no panel come first."""
    panels: dict[str, list[tuple[str, str]]] = {"": []}
    types = inspect.signature(command.callback, eval_str=True).parameters
    for parameter in command.params:
        if parameter.hidden:
            continue
        if parameter.param_type_name == "argument":
            term = f"\\fI{_escaped(_argument(parameter))}\\fR"
        else:
            term = ", ".join(map(_bold, sorted([*parameter.opts, *parameter.secondary_opts], key=len)))
            if not parameter.is_flag:
                term += f" \\fI{_escaped(parameter.metavar or value_name(types[parameter.name].annotation))}\\fR"
        panels.setdefault(parameter.rich_help_panel or "", []).append((term, _help(parameter)))
    panels[""].append((f"{_bold('-h')}, {_bold('--help')}", "Show the options and exit."))
    return panels


def _help(parameter: Any) -> str:
    more = [f"environment: {parameter.envvar}"] if parameter.envvar else []
    if not (parameter.default is None or parameter.default is False):
        more.append(f"default: {parameter.default}")
    return parameter.help + (f" ({'; '.join(more)})" if more else "")


def _dashed(name: str) -> str:
    return name.replace(" ", "-")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return _entries((_bold(name), about) for name, about in rows)


def _entries(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f".TP\n{term}\n{_text(about)}" for term, about in entries)


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _text(text: str) -> str:
    """Running text; what is between backticks is bold."""
    escaped = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", _escaped(" ".join(text.split())))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti")
    return "".join(character if character.isascii() else f"\\[u{ord(character):04X}]" for character in escaped)


if __name__ == "__main__":
    DIRECTORY.mkdir(exist_ok=True)
    for name, page in pages().items():
        (DIRECTORY / name).write_text(page, encoding="ascii")
