"""A directory without a whole model is an error that says what it is, and what to do."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptcli.checkpoint.folder import ModelFolder
from gptcli.errors import ModelNotFound
from gptcli.models.catalog import local_models
from gptcli.models.pull import pull_hub
from tests.cli.conftest import Cli
from tests.models.fake_hub import FakeHub
from tests.tiny import make_model

LORA = {"peft_type": "LORA", "base_model_name_or_path": "owner/base", "r": 8, "target_modules": ["q_proj"]}


def adapter(directory: Path, config: Any = LORA) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"")
    return directory


@pytest.mark.parametrize(
    ("command", "with_config"),
    [(["generate", "hi"], True), (["models", "show"], False), (["models", "verify"], False), (["chat", "hi"], False)],
)
def test_an_adapter_says_what_it_is_of_which_model_and_how_to_merge_it(
    command: list[str], with_config: bool, cli: Cli, tmp_path: Path
) -> None:
    path = adapter(tmp_path / "adapter")
    if with_config:  # as some trainers leave it beside
        (path / "config.json").write_text((make_model(tmp_path / "base") / "config.json").read_text())
    given = [path] if command[0] == "models" else ["-m", path]
    result = cli(*command[:2], *given, *command[2:], stdin=b"")
    verdict = b"--  no checksums were recorded\nverdict: cannot be used: an adapter, not a whole model\n"
    assert (result.code, result.out) == (3, verdict if command == ["models", "verify"] else b"")
    assert f"an adapter, not a whole model: {path}: of the model owner/base\n" in result.err
    assert "hint: merge the two with PEFT: " in result.err
    code = shlex.split(re.search("python -c (.*); then", result.err)[1])[0]
    assert compile(code, "", "exec") and f'from_pretrained("{path}").merge_and_unload()' in code


@pytest.mark.parametrize(
    ("config", "of", "hint"),
    [
        (LORA | {"peft_type": "PROMPT_TUNING"}, "owner/base", "the kind PROMPT_TUNING cannot be merged"),
        (LORA | {"task_type": "SEQ_2_SEQ_LM"}, "owner/base", "its task is SEQ_2_SEQ_LM"),
        (LORA | {"base_model_name_or_path": "/me/it's/here"}, "/me/it's/here", "where BASE is that model on this"),
        ({"model": "a b", "lora_parameters": {}}, "a b", "mlx_lm.fuse --model 'a b' --adapter-path "),
        ({"rank": 16, "alpha": 32.0}, None, "merge the two with what made it"),
        ({"peft_type": "LORA"}, None, "where BASE is that model on this machine: python -c"),
        (LORA | {"base_model_name_or_path": 7}, None, "merge the two with PEFT"),
        ("{", None, "merge the two with what made it"),
    ],
)
def test_other_adapters_have_other_ways_out(config: Any, of: str | None, hint: str, cli: Cli, tmp_path: Path) -> None:
    result = cli("generate", "-m", adapter(tmp_path / "adapter", config), "hi")
    assert result.code == 3
    message, way_out = result.err.splitlines()
    assert message.endswith(f"of the model {of}" if of else "it does not say of which model") and hint in way_out


def test_an_adapter_is_found_by_name_and_not_listed_as_a_model(cli: Cli, tmp_path: Path) -> None:
    snapshot = adapter(tmp_path / "huggingface/hub/models--owner--lora/snapshots/abc")
    assert f"an adapter, not a whole model: {snapshot}" in cli("generate", "-m", "owner/lora", "hi").err
    assert local_models() == []


def test_a_model_beside_an_adapter_is_a_model(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "adapter_config.json").write_text(json.dumps(LORA))
    assert ModelFolder.open(model).tensors


def test_an_adapter_is_not_fetched(hub: FakeHub) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    with pytest.raises(ModelNotFound, match="owner/tiny: an adapter, not a whole model") as error:
        pull_hub("owner/tiny", None, lambda what, done, total: None)
    assert "hf download owner/tiny" in str(error.value.hint)


def test_the_command_that_converts_pickled_weights_works(
    cli: Cli, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own code is run here, on a model that transformers pickled, and gives the same text."""
    model = make_model(tmp_path / "it's a model")
    expected = cli("generate", "-m", model, "-t", "0", "-n", "4", "hi")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    result = cli("generate", "-m", model, "hi")
    result.fails(3)
    made, _, words = result.err.splitlines()[1].partition(" && ")
    target = shlex.split(made)[-1]
    arguments = shlex.split(words)
    mounted = [arguments[index + 1] for index, word in enumerate(arguments) if word == "-v"]
    assert mounted == [f"{model}:/in:ro", f"{target}:/out"]
    assert arguments[-3:-1] == ["sh", "-c"]
    code, *places = shlex.split(arguments[-1])[-3:]
    assert places == ["/in", "/out"]
    monkeypatch.setattr(sys, "argv", ["-c", str(model), target])
    exec(code, {})
    capfdbinary.readouterr()  # the progress of transformers
    assert cli("generate", "-m", target, "-t", "0", "-n", "4", "hi") == expected
