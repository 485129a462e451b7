"""Wrong arguments and help: exit codes, one line of error, no traceback, nothing slow imported."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import gptcli
from gptcli.cli.app import program
from gptcli.cli.options import RuntimeOptions, SamplingOptions
from gptcli.language_model import LanguageModel
from gptcli.settings import RuntimeConfig, SamplingConfig
from tests.cli.conftest import GPTCLI, ROOT, Cli, Result

BAD_VALUES = {
    "-t nan": "temperature must be at least 0",
    "-t -1": "temperature must be at least 0",
    "-t inf": "temperature must be at least 0",
    "-t warm": "--temperature must be a number, not warm",
    "--top-k -1": "top-k must be at least 0",
    "--top-k 1.5": "--top-k must be a whole number, not 1.5",
    "--top-p 0": "top-p must be above 0 and at most 1",
    "--top-p 1.5": "top-p must be above 0 and at most 1",
    "--top-p nan": "top-p must be above 0 and at most 1",
    "--min-p 2": "min-p must be between 0 and 1",
    "--repeat-penalty 0": "repeat-penalty must be between 0.01 and 100",
    "--repeat-last-n -2": "repeat-last-n must be at least -1",
    "--presence-penalty 101": "presence-penalty must be between -100 and 100",
    "--frequency-penalty nan": "frequency-penalty must be between -100 and 100",
    "--logit-bias 5": "logit-bias must be ID=BIAS",
    "--logit-bias a=1": "logit-bias must be ID=BIAS",
    "--logit-bias 5=nan": "logit-bias of token 5 must be between",
    "--logit-bias -5=1": "logit-bias id must be at least 0",
    "-s -1": "seed must be between 0 and",
    "-s 18446744073709551616": "seed must be between 0 and",
    "--samples 0": "--samples must be at least 1, not 0",
    "-n -2": "max-tokens must be at least -1",
    "-n many": "--max-tokens must be a whole number, not many",
    "--stop=": "a stop text must not be empty",
    "--overflow wrap": "--overflow must be one of error, stop, shift, not wrap",
    "-c 0": "ctx-size must be at least 1",
    "--threads 0": "threads must be between 1 and 1024",
    "--dtype fp64": "--dtype must be one of auto, fp32, bf16, fp16, not fp64",
    "--quantize int2": "--quantize must be one of auto, none, int8, int4, not int2",
    "--errors ignore": "--errors must be one of strict, replace, not ignore",
    "--max-input 0": "--max-input must be at least 1, not 0",
    "--json --logprobs -1": "--logprobs must be at least 0, not -1",
    "--markdown --logprobs 3": "--markdown and --logprobs exclude each other",
    "--json --markdown": "exclude each other",
    "--stats=xml": "--stats takes no value",
    "--nonsense": "there is no option --nonsense",
    "small town": "too many arguments: small town",
    "-m": "-m needs a value",
}


def outcome(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
    )


@pytest.mark.parametrize("options", BAD_VALUES)
def test_a_bad_value_is_one_line_that_names_the_range(cli: Cli, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    monkeypatch.setattr(LanguageModel, "open", None)  # would be an internal error
    result = cli("generate", "In a", *options.split())
    result.fails(2)
    assert BAD_VALUES[options] in result.err.splitlines()[0]


def test_bad_values_and_help_import_nothing_slow() -> None:
    check = (
        "import sys; from gptcli.cli.app import run\n"
        f"for options in {list(BAD_VALUES)!r}: assert run(['generate', 'In a', *options.split()]) == 2, options\n"
        "for command in [], ['generate'], ['score'], ['models']: assert run([*command, '--help']) == 0\n"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'gguf', 'numpy'} & set(sys.modules)"
    )
    assert outcome(sys.executable, "-c", check).returncode == 0


def test_help_of_generate_mentions_every_option(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help = cli("generate", "--help").out.decode()
    command = typer.main.get_command(program()).commands["generate"]
    options = [name for parameter in command.params if not parameter.hidden for name in parameter.opts]
    assert len(options) > 40
    assert [name for name in options if name.startswith("-") and not re.search(rf"{name}\b", help)] == []
    assert "--stats=json" in help


@pytest.mark.parametrize("command", ["", "generate", "models"])
def test_help_on_a_narrow_terminal_cuts_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    help = cli(*command.split(), "--help").out.decode()
    assert max(map(len, help.split("\n"))) <= 40 and "…" not in help and not re.search(r"\w\.\.\.", help)


@pytest.mark.parametrize(
    "command", ["", "generate", "chat", "score", "tokenize", "bench", "models", "models pull", "models import", "help"]
)
def test_help_names_values_and_not_types(cli: Cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help = cli(*command.split(), "--help").out.decode()
    assert "Show this message and exit" in help
    assert re.findall(r"<(?!\|im_end)[^>]*>|\bint\b|\bstr\b", help) == []


def test_every_setting_has_an_option_of_its_name() -> None:
    for group, settings in (SamplingOptions, SamplingConfig), (RuntimeOptions, RuntimeConfig):
        options = {field.name for field in fields(group)} - {"offline"}
        assert options == {field.name for field in fields(settings)}


@pytest.mark.parametrize("command", [[], ["generate"], ["models", "show"]])
def test_help_shows_the_help_of_a_command(cli: Cli, command: list[str]) -> None:
    assert cli("help", *command) == cli(*command, "--help")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("generate nope", "gptcli help generate"),
        ("models show a b", "gptcli help models show"),
        ("nonsense", "gptcli --help"),
        ("models nonsense", "gptcli models --help"),
    ],
)
def test_help_of_what_is_no_command_is_a_usage_error(cli: Cli, command: str, hint: str) -> None:
    error = f"gptcli: error: there is no command {command}\nhint: run `{hint}`\n"
    assert cli("help", *command.split()) == Result(2, b"", error)


def test_the_version_is_told(cli: Cli) -> None:
    assert cli("--version").out == f"gptcli {gptcli.__version__}\n".encode()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            "why is the sky blue?",
            "to ask it, run `gptcli chat 'why is the sky blue?'`; to have it continued, `gptcli generate",
        ),
        ("chatt", "did you mean chat? run `gptcli --help`"),
        ("hello", "did you mean help? run `gptcli --help`; to ask it, run `gptcli chat hello`; to have it continued"),
        ("perhaps", "run `gptcli --help`; to ask it, run `gptcli chat perhaps`; to have it continued, `gptcli gen"),
        ("tokenise --text a", "did you mean tokenize? run `gptcli --help`\n"),
        ("sing of rain -n 5", "to ask it, run `gptcli chat 'sing of rain' -n 5`; to have it continued"),
        ("generate --temprature 1", "did you mean --temperature? run `gptcli generate --help`"),
        ("models shwo", "did you mean show? run `gptcli models --help`"),
        ("models rm", "NAME is missing\nhint: run `gptcli models rm --help`"),
        ("generate -n", "-n needs a value\nhint: run `gptcli generate --help`"),
        ("generate --temp 1", "did you mean --temperature?"),
        ("pull a/b", "did you mean `gptcli models pull a/b`?"),
        ("ls", "did you mean `gptcli models`?"),
        ("models list", "did you mean `gptcli models`?"),
        ("run tiny", "did you mean `gptcli chat -m tiny`?"),
        ("show me a poem", "to ask it, run `gptcli chat 'show me a poem'`"),
        ("-m tiny hello", "options follow a command, as in `gptcli generate -m ...`"),
        ("bench 1", "too many arguments: 1\nhint: run `gptcli bench --help`"),
    ],
)
def test_what_was_meant_is_proposed(cli: Cli, arguments: str, hint: str) -> None:
    cli(*arguments.split()).fails(2, hint)


def test_the_help_says_how_to_begin(cli: Cli) -> None:
    assert 'To begin: gptcli chat, or gptcli generate "In a small town"' in cli("--help").out.decode()


@pytest.mark.parametrize(
    "command", ["generate --file=~/a", "generate --chat --system-file=~/a b", "score ~/a", "tokenize ~/a"]
)
def test_a_tilde_in_a_path_is_the_users_directory(
    cli: Cli, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"cannot open: {tmp_path}/a: No such file" in cli(*command.split()).err


def test_the_shell_completes_commands() -> None:
    completed = outcome(*GPTCLI, _GPTCLI_COMPLETE="complete_bash", COMP_WORDS="gptcli gen", COMP_CWORD="1")
    assert completed.stdout == "generate\n"


def completions(line: str, shell: str, **environment: str) -> subprocess.CompletedProcess[str]:
    asked = {"_GPTCLI_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return outcome(*GPTCLI, _TYPER_COMPLETE_ARGS=line, **asked, **environment)


def test_the_shell_completes_devices() -> None:
    assert completions("gptcli generate --device c", "fish").stdout.split() == ["cpu", "cuda"]


def test_zsh_shows_apostrophes() -> None:
    _, described = shlex.split(completions("gptcli generate --presence", "zsh").stdout)
    assert "each recent token's logit" in described


def test_a_completion_that_fails_says_why_in_a_line() -> None:
    completed = completions("gptcli generate -m t", "fish", GPTCLI_STORES="no")
    assert completed.stderr == "gptcli: error: GPTCLI_STORES is on or off, not no\n"


def test_a_prompt_beyond_the_context_is_refused_with_the_counts(generate: Cli) -> None:
    result = generate("-c", "4", "abcdefgh")
    result.fails(6)
    assert re.search(r"[5-8] tokens, and at least one to come, in a context of 4\n", result.err)


def test_a_context_beyond_the_models_is_refused(generate: Cli) -> None:
    generate("-c", "9999", "In a").fails(2, "ctx-size 9999 is beyond the model's context of 256")


def test_a_bug_is_a_line_too(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "open", lambda *given, **named: 1 / 0)
    error = "gptcli: error: internal error: ZeroDivisionError: division by zero\nhint: "
    cli("generate", "In a").fails(1, error)


def test_exhausted_memory_is_no_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*given: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(LanguageModel, "open", exhaust)
    assert cli("generate", "In a") == Result(5, b"", "gptcli: error: out of memory\n")


@pytest.mark.parametrize("arguments", [["-m", "nonsense"], ["-t", "nan"], ["--nonsense"]])
def test_debugging_adds_the_traceback_alone(cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    code = cli("generate", "In a", *arguments).code
    monkeypatch.setenv("GPTCLI_DEBUG", "1")
    result = cli("generate", "In a", *arguments)
    assert result.err.startswith("Traceback (most recent call last):")
    assert "\ngptcli: error: " in result.err
    assert result.code == code


def test_an_error_that_holds_control_characters_shows_them(cli: Cli) -> None:
    result = cli("generate", "-m", "a\x1b[31m\nb\u202e", "In a")
    assert result.err.startswith("gptcli: error: no such model: a\u241b[31m b<U+202E>\n")
