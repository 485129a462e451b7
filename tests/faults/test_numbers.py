"""Sampling options at the edges of their ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.tiny import make_model


def ids(cli: Cli, model: Path, *options: str) -> list[int]:
    given = ("-m", model, "--json", "-n", "8", "-s", "7", "--ignore-eos", *options)
    return cli("generate", *given, "In a small town").json["ids"]


@pytest.mark.parametrize("temperature", ["0", "1e-45", "9.9e-6"])
def test_a_temperature_below_a_hundred_thousandth_is_greedy(cli: Cli, tiny_model: Path, temperature: str) -> None:
    assert ids(cli, tiny_model, "-t", temperature) == ids(cli, tiny_model, "--top-k", "1")


@pytest.mark.parametrize("options", [["--top-p", "1e-300"], ["--top-p", "5e-324", "--top-k", "0"], ["--min-p", "1"]])
def test_the_likeliest_token_always_stays(cli: Cli, tiny_model: Path, options: list[str]) -> None:
    assert ids(cli, tiny_model, *options) == ids(cli, tiny_model, "-t", "0")


def test_a_top_k_above_the_vocabulary_is_all_of_it(cli: Cli, tiny_model: Path) -> None:
    assert ids(cli, tiny_model, "--top-k", str(10**20)) == ids(cli, tiny_model, "--top-k", "0")


def test_a_model_whose_every_token_ends_the_text_is_refused(cli: Cli, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", generation_config={"eos_token_id": list(range(320))})
    cli("generate", "-m", model, "--ignore-eos", "hi").fails(2, "no token is left that may be drawn")


def test_the_same_seed_gives_the_same_text(cli: Cli, tiny_model: Path) -> None:
    assert ids(cli, tiny_model) == ids(cli, tiny_model)


def test_an_unknown_device_is_an_error_with_a_hint(cli: Cli, tiny_model: Path) -> None:
    result = cli("generate", "-m", tiny_model, "--device", "cuda:99", "hi")
    result.fails(5, "no such device: cuda:99", "hint: use --device cpu")
