"""A prompt that begins with BOS twice, because the tokenizer or a template adds one to it, is noted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.chat_terminal import HELLO, Chat
from tests.cli.conftest import Cli
from tests.tiny import TEMPLATE, make_model

NOTE = (
    "gptcli: note: the prompt begins with <|im_start|> twice, which no model was trained on; "
    "--prompt-report shows where from\n"
)
BOS = "<|im_start|>"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose tokenizer adds BOS."""
    return make_model(tmp_path / "model", adds_bos=True)


@pytest.fixture
def repeating(tmp_path: Path) -> Path:
    """A model whose template begins with BOS twice."""
    return make_model(tmp_path / "repeating", template="{{ bos_token }}" + TEMPLATE)


COMMANDS = {
    "generate": ["generate", "-n", "1", "--special", "-f", "-"],
    "score": ["score", "--special"],
    "score --lines": ["score", "--special", "--lines"],
    "score --choices": ["score", "--special", "--choices", "a,b"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_text_with_the_bos_that_the_tokenizer_adds_is_noted_once(what: str, cli: Cli, model: Path) -> None:
    command = [*COMMANDS[what], "-m", model]
    text = f"{BOS}hello\n".encode() * 2
    assert (result := cli(*command, stdin=text)).code == 0 and result.err == NOTE
    assert cli(*command, "-q", stdin=text).err == ""
    assert cli(*command, stdin=b"hello\n" + text).err == (NOTE if "--lines" in command else "")


@pytest.mark.parametrize("what", COMMANDS)
def test_a_single_bos_is_not_noted(what: str, cli: Cli, model: Path, tiny_model: Path) -> None:
    without_special = [argument for argument in COMMANDS[what] if argument != "--special"]
    assert cli(*without_special, "-m", model, stdin=f"{BOS}hello".encode()).err == ""
    assert cli(*COMMANDS[what], "-m", tiny_model, stdin=f"{BOS}hello".encode()).err == ""
    assert cli(*COMMANDS[what], "-m", tiny_model, stdin=f"{BOS * 2}hello".encode()).err == NOTE


@pytest.mark.parametrize("command", [["generate", "--chat"], ["chat"], ["chat", "--system", "Be brief."]])
def test_a_template_that_begins_with_bos_twice_is_noted(command: list[str], cli: Cli, repeating: Path) -> None:
    given = [*command, "-n", "1", "hello"]
    assert cli(*given, "-m", repeating).err == NOTE
    assert cli(*given, "-m", repeating, "-q").err == ""


def test_a_template_that_begins_with_bos_once_is_not_noted(cli: Cli, model: Path) -> None:
    assert cli("chat", "-m", model, "-n", "1", "hello").err == ""


def test_a_doubled_bos_of_the_next_model_is_noted_in_a_conversation(model: Path, repeating: Path) -> None:
    chat = Chat(HELLO, "-m", str(model), width=200).ready()
    assert not any("begins with <|im_start|> twice" in line for line in chat.lines)
    chat.ask(f"/model {repeating}")
    assert any("begins with <|im_start|> twice" in line for line in chat.lines)
    assert chat.leave() == 0
