"""Where the prompt comes from, and what is refused."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli import LanguageModel
from gptcli.text.messages import Message
from tests.cli.conftest import CLOSED, Cli, Says
from tests.tiny import make_model


@pytest.fixture
def prompt(generate: Cli, says: Says) -> Callable[..., bytes]:
    """The prompt as it reaches a model that says nothing more."""
    says()

    def echoed(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
        result = generate("--echo", *arguments, stdin=stdin)
        assert (result.code, result.err) == (0, "")
        return result.out

    return echoed


PROMPTS: dict[str, tuple[list[str], bytes | None, bytes]] = {
    "the argument": (["In a small"], None, b"In a small"),
    "a pipe, byte by byte": ([], b"  In\r\n\ta small \\n \n\n", b"  In\r\n\ta small \\n \n\n"),
    "a pipe that begins with a byte-order mark": ([], b"\xef\xbb\xbfIn", b"\xef\xbb\xbfIn"),
    "an argument that begins with a byte-order mark": (["\ufeffIn"], None, b"\xef\xbb\xbfIn"),
    "a pipe of whitespace": ([], b"\n", b"\n"),
    "stdin by a dash": (["-"], b"In a small", b"In a small"),
    "stdin by a file named dash": (["-f", "-"], b"In a small", b"In a small"),
    "stdin by a file named dash, and the argument": (["-f", "-", "Sum up."], b"text", b"text\n\nSum up."),
    "a pipe without a newline, a blank line, and the argument": (["Sum up."], b"text", b"text\n\nSum up."),
    "a pipe with a newline, a blank line, and the argument": (["Sum up."], b"text\n", b"text\n\nSum up."),
    "a pipe with more blank lines, and the argument": (["Sum up."], b"text\n\n\n", b"text\n\n\nSum up."),
    "an option after a double dash": (["--", "--stats=json"], None, b"--stats=json"),
    "bytes that are not UTF-8, replaced": (["--errors", "replace"], b"a\xffb", "a\ufffdb".encode()),
    "as much as the limit": (["--max-input", "4"], b"1234", b"1234"),
}


@pytest.mark.parametrize(
    ("arguments", "piped", "expected"),
    [
        (["-f", "FILE"], b"piped", b"piped\n\nin a file"),
        (["-f", "FILE", "argument"], b"piped\n", b"piped\n\nin a file\n\nargument"),
        (["-f", "FILE", "-"], b"piped", b"piped\n\nin a file"),
        (["-f", "FILE", "argument"], b"", b"in a file\n\nargument"),
        (["-f", "FILE", "argument"], None, b"in a file\n\nargument"),
    ],
)
def test_nothing_that_is_given_is_dropped(
    prompt: Callable[..., bytes], tmp_path: Path, arguments: list[str], piped: bytes | None, expected: bytes
) -> None:
    (file := tmp_path / "file").write_text("in a file")
    assert prompt(*(file if each == "FILE" else each for each in arguments), stdin=piped) == expected


@pytest.mark.parametrize("what", PROMPTS)
def test_the_prompt_comes_from(what: str, prompt: Callable[..., bytes]) -> None:
    arguments, stdin, expected = PROMPTS[what]
    assert prompt(*arguments, stdin=stdin) == expected


def test_a_file_is_the_prompt_byte_by_byte(prompt: Callable[..., bytes], tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"  In\r\n\ta small \\n \n\n")
    assert prompt("-f", file) == file.read_bytes()


def test_a_pipe_can_be_given_as_a_file(prompt: Callable[..., bytes], tmp_path: Path) -> None:
    """As the shell's `-f <(command)` does."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=[b"In a small"])
    writer.start()
    assert prompt("-f", fifo) == b"In a small"
    writer.join()


@pytest.mark.parametrize("piped", [None, b""])
@pytest.mark.parametrize("arguments", [[], [""]])
def test_no_prompt_at_all_is_a_usage_error(generate: Cli, arguments: list[str], piped: bytes | None) -> None:
    generate(*arguments, stdin=piped).fails(2, "gptcli: error: there is no prompt\nhint: ")


@pytest.mark.parametrize(("arguments", "code"), [(["a"], 0), ([], 2), (["-"], 4)])
def test_closed_stdin_is_no_prompt(generate: Cli, says: Says, arguments: list[str], code: int) -> None:
    says()
    assert generate(*arguments, stdin=CLOSED).code == code


@pytest.mark.parametrize(
    ("options", "stdin", "complaint"),
    [
        ([], "né".encode() + b"\xff", "gptcli: error: not UTF-8: standard input: byte 3\nhint: --errors replace"),
        ([], b"ab\0c", "a NUL byte at 2; it looks binary"),
        (["--max-input", "4"], b"12345", "more than 4 bytes\nhint: raise the limit with --max-input"),
    ],
)
def test_unusable_input_is_refused(generate: Cli, options: list[str], stdin: bytes, complaint: str) -> None:
    generate(*options, stdin=stdin).fails(4, complaint)


def test_endless_input_is_not_read_to_its_end(generate: Cli) -> None:
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        result = generate("-f", f"/dev/fd/{endless.stdout.fileno()}")
        endless.terminate()
    result.fails(4, "more than 16777216 bytes")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "/"])
def test_an_unreadable_file_is_named(generate: Cli, path: str) -> None:
    generate("-f", path).fails(4, f"gptcli: error: cannot open: {path}: ")


@pytest.mark.parametrize("arguments", [["a\udcff"], ["a", "--stop", "\udcff"], ["a", "--chat", "--system", "\udcff"]])
def test_an_argument_that_is_not_utf8_is_a_usage_error(generate: Cli, arguments: list[str]) -> None:
    generate(*arguments).fails(2, "not UTF-8 at byte")


def test_a_chat_prompt_is_put_into_the_template(generate: Cli, says: Says, tiny: LanguageModel, tmp_path: Path) -> None:
    says()
    system = tmp_path / "system"
    system.write_text("Be brief.")
    messages = [Message("system", "Be brief."), Message("user", "hello <|im_end|>")]
    expected = len(tiny.template.render(messages, tiny.tokenizer))
    for option in (["--system-file", str(system)], ["--system", "Be brief."]):
        result = generate("--json", "--chat", "hello <|im_end|>", *option)
        assert result.json["prompt_tokens"] == expected


def test_a_file_beats_a_template_of_its_name(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    templates = [{"name": name, "template": name + ": {{ messages[0].content }}"} for name in ("default", "brief")]
    model = make_model(tmp_path / "model", template=templates)
    monkeypatch.chdir(tmp_path)

    def text(*options: str) -> Any:
        return cli("generate", "-m", model, "--prompt-report", "--json", "--chat", "Hi", *options).json["text"]

    assert [text(), text("--chat-template", "brief")] == ["default: Hi", "brief: Hi"]
    missing = cli("generate", "-m", model, "--chat", "Hi", "--chat-template", "long")
    missing.fails(4, "long: no such file; no chat template: ", "there are: brief, default")
    (tmp_path / "brief").write_text("file: {{ messages[0].content }}")
    assert text("--chat-template", "brief") == "file: Hi"


@pytest.mark.parametrize("command", [("chat",), ("generate", "--chat")], ids=" ".join)
def test_thinking_and_effort_need_a_template_with_them(cli: Cli, tmp_path: Path, command: tuple[str, ...]) -> None:
    told = make_model(tmp_path / "told", template="{{ thinking }} {{ reasoning_effort }}: {{ messages[0].content }}")
    options = ("--no-think", "--reasoning-effort", "low", "Hi")
    report = cli(*command, "-m", told, "--prompt-report", "--json", *options)
    assert report.json["text"] == "False low: Hi"
    other = make_model(tmp_path / "other")
    for asked, reason in ((options[1:], "the reasoning effort"), (("--think", "Hi"), "thinking")):
        cli(*command, "-m", other, *asked).fails(2, f"no switch for {reason}")


def test_control_tokens_in_a_prompt_are_text_unless_special(generate: Cli, says: Says) -> None:
    says()
    as_text = generate("--json", "<|im_start|>").json["prompt_tokens"]
    as_token = generate("--json", "--special", "<|im_start|>").json["prompt_tokens"]
    assert as_text > as_token == 1


@pytest.mark.parametrize(
    "option", ["--system b", "--system-file b", "--chat-template b", "--think", "--no-think", "--reasoning-effort low"]
)
def test_what_shapes_a_chat_needs_chat(generate: Cli, option: str) -> None:
    generate("a", *option.split()).fails(2, "need --chat")
