"""`generate --lines` and `chat --lines`: a prompt a line, a JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

pytestmark = pytest.mark.usefixtures("tiny_by_default")
GREEDY = ("-t", "0", "-n", "4", "--ignore-eos")


def records(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_each_line_is_answered_as_it_would_be_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"one\r\ntwo \x0c three\n\nfour")
    together = records(cli("generate", "good {}, {}", "--lines", "-f", tmp_path / "lines", *GREEDY).out)
    texts = ["one", "two \x0c three", "", "four"]
    alone = [records(cli("generate", f"good {text}, {text}", "--json", *GREEDY).out)[0] for text in texts]
    assert [record["line"] for record in together] == [1, 2, 3, 4]
    assert [record["ids"] for record in together] == [record["ids"] for record in alone]


def test_stdin_has_the_lines_and_each_may_have_samples(cli: Cli) -> None:
    found = records(cli("generate", "--lines", "--samples", "2", "-s", "5", "-n", "2", stdin=b"a\nb\n").out)
    assert [(record["line"], record["seed"]) for record in found] == [(1, 5), (1, 6), (2, 5), (2, 6)]


def test_chat_asks_each_line_in_a_conversation_of_its_own(cli: Cli) -> None:
    together = records(cli("chat", "--lines", "--system", "Be brief.", *GREEDY, stdin=b"one\ntwo\n").out)
    alone = [
        records(cli("chat", text, "--system", "Be brief.", "--json", *GREEDY, stdin=b"").out)[0]
        for text in ("one", "two")
    ]
    assert [record["ids"] for record in together] == [record["ids"] for record in alone]


def test_a_line_that_does_not_fit_has_its_error_and_the_others_their_answers(cli: Cli) -> None:
    result = cli("generate", "--lines", *GREEDY, stdin=b"one\n" + b"long " * 400 + b"\ntwo\n")
    first, failed, last = records(result.out)
    assert "does not fit" in failed["error"] and (first["line"], failed["line"], last["line"]) == (1, 2, 3)
    assert result.code == 6 and "line 2: " in result.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate --lines here", "must have {} where the line goes"),
        ("generate --lines --echo", "--lines writes JSON alone"),
        ("chat --lines --session s", "a conversation of its own"),
        ("chat --lines --prompt-report", "--lines writes JSON alone"),
        ("generate --lines --logit-bias 999999=1", "999999"),
    ],
)
def test_what_means_nothing_with_lines_is_refused(cli: Cli, arguments: str, says: str) -> None:
    result = cli(*arguments.split(), stdin=b"a\n")
    assert (result.code, result.out) == (2, b"") and says in result.err
