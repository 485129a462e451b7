"""The configuration file: which value an option has, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration file is to be; `tiny` names the tiny model."""
    monkeypatch.setenv("GPTCLI_WEIGHTS", str(tiny_model.parent))
    path = tmp_path / "config" / "gptcli" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("content", "arguments", "seed"),
    [
        ("seed = 1", "", 1),
        ("seed = 1\n[generate]\nseed = 2", "", 2),
        ("seed = 1\n[generate]\nseed = 2\n[models.tiny]\nseed = 3", "", 3),
        ("[generate]\nseed = 2\n[models.other]\nseed = 3", "", 2),
        ("[generate]\nseed = 2\n[models.tiny]\nseed = 3", "--seed 4", 4),
        ("[chat]\nseed = 2\n[generate]\nseed = 5", "", 5),
    ],
)
def test_the_nearest_value_wins(cli: Cli, config: Path, content: str, arguments: str, seed: int) -> None:
    config.write_text(content)
    result = cli("generate", "good morning", "-m", "tiny", "-n", "1", "--json", *arguments.split())
    assert result.json["seed"] == seed


def test_an_option_may_have_several_values_or_be_a_switch(cli: Cli, config: Path) -> None:
    config.write_text('json = true\nquiet = true\n[generate]\nmodel = "tiny"\nstop = ["one", "two"]\nmax-tokens = 1')
    answer = cli("generate", "good morning").json
    assert (answer["settings"]["stop"], answer["completion_tokens"]) == (["one", "two"], 1)


def test_the_environment_wins_over_the_file(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('model = "nowhere"')
    monkeypatch.setenv("GPTCLI_MODEL", "tiny")
    assert cli("generate", "good morning", "-n", "1").code == 0


def test_a_path_may_begin_with_a_tilde(cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config.write_text('system-file = "~/system.txt"')
    result = cli("generate", "--chat", "good morning", "-m", "tiny")
    assert f"cannot open: {tmp_path}/system.txt" in result.err


def test_an_option_that_only_another_command_has_is_no_error(cli: Cli, config: Path) -> None:
    config.write_text("samples = 2\n[models.tiny]\nmax-tokens = 5")
    assert cli("tokenize", "-m", "tiny", "--text", "good morning").code == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("temprature = 1", "there is no option temprature\nhint: did you mean temperature?"),
        ("[models.tiny]\ntemprature = 1", "there is no option temprature\nhint: did you mean temperature?"),
        ("[generate]\nstride = 1", "there is no option stride"),
        ("[generat]", "there is no table generat\nhint: did you mean generate?"),
        ("[qwen3-0_6b]", "there is no table qwen3-0_6b\nhint: a model's options go in [models.NAME]"),
        ("[models]\ntiny = 1", "options of a model go in [models.NAME]"),
        ('[models.tiny]\nmodel = "other"', "`model` cannot be one"),
        ('[generate]\ntemperature = "hot"', "temperature must be a number, not hot"),
        ("[generate]\ntemperature = true", "temperature must be a value"),
        ('[generate]\nchat = "yes"', "chat must be true or false"),
        ("[generate]\nsamples = 0", "samples must be at least 1, not 0"),
        ("[generate]\nspeculate = 99", "speculate must be between 0 and 64"),
        ("[generate", "not TOML"),
        ('[generate]\nstop = "x"', "stop must be a list"),
        ("[generate]\ntemperature = [1, 2]", "temperature must be one value"),
        ('[generate]\nfile = "x"', "file is for one call"),
        ('a = "\\ud800"', "not TOML"),
    ],
)
def test_what_cannot_be_meant_is_refused(cli: Cli, config: Path, content: str, says: str) -> None:
    config.write_text(content)
    cli("generate", "good morning", "-m", "tiny", "-n", "1").fails(2, says)


def test_a_file_that_is_not_utf_8_is_refused(cli: Cli, config: Path) -> None:
    config.write_bytes(b'stop = ["\xff"]')
    assert cli("generate", "good morning", "-m", "tiny").err == f"gptcli: error: {config}: not UTF-8 at byte 9\n"


def test_a_file_or_none_can_be_named(cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("samples = 0")
    monkeypatch.setenv("GPTCLI_CONFIG", "off")
    assert cli("generate", "good morning", "-m", "tiny", "-n", "1").code == 0
    monkeypatch.setenv("GPTCLI_CONFIG", str(tmp_path / "missing.toml"))
    assert cli("generate", "good morning", "-m", "tiny", "-n", "1").code == 4
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("GPTCLI_CONFIG", str(tmp_path / "pipe"))
    assert cli("generate", "good morning", "-m", "tiny", "-n", "1").code == 4


def test_what_means_nothing_in_a_call_is_left_out(cli: Cli, config: Path, tmp_path: Path) -> None:
    config.write_text('system = "Be brief."\nthink = true')
    (tmp_path / "system").write_text("Be long.")
    for arguments in (["generate"], ["generate", "--chat", "--system-file", tmp_path / "system"], ["chat"]):
        result = cli(*arguments, "good morning", "-m", "tiny", "-n", "1", stdin=b"")
        assert (result.code, result.err) == (0, "")


def test_a_default_model_and_tables_of_models_go_together(cli: Cli, config: Path) -> None:
    config.write_text('\ufeffmodel = "tiny"\n[models.tiny]\nseed = 7')
    result = cli("generate", "good morning", "-n", "1", "--json")
    assert result.json["seed"] == 7
    assert "byte-order mark dropped" in result.err
