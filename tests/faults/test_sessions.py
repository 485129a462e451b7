"""Sessions that a stranger wrote or edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.chat.state_files import state_directory
from tests.cli.conftest import Cli


def stored(*events: dict[str, Any]) -> None:
    """Writes a session called `odd`."""
    directory = state_directory() / "sessions"
    directory.mkdir()
    begin = {"type": "session", "version": 1, "created": "2026-01-01T00:00:00+00:00"}
    (directory / "odd.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (begin, *events)))


@pytest.mark.parametrize(
    "settings",
    [{"stop": [7]}, {"stop": 7}, {"stop": [""]}, {"temperature": "hot"}, {"logit_bias": [[1, 2], [3]]}, {"mood": 1}]
    + [{"stop": ["\ud800"]}],
    ids=str,
)
def test_settings_of_another_type_are_refused_with_their_event(cli: Cli, model: Path, settings: object) -> None:
    stored({"type": "settings", "settings": settings})
    cli("chat", "-m", model, "--session", "odd", "-n", "2", "hello").fails(4, "gptcli: error: not a session: event 2: ")


def test_a_number_of_another_type_is_refused_with_its_event(cli: Cli, model: Path) -> None:
    question = {"type": "message", "role": "user", "content": "hi"}
    stored(question, {"type": "message", "role": "assistant", "content": "ho", "hidden": 0.0})
    cli("chat", "-m", model, "--session", "odd", "-n", "2", "hello").fails(4, "gptcli: error: not a session: event 3: ")


@pytest.mark.parametrize("option", [[], ["--json"]], ids=str)
def test_half_a_surrogate_pair_does_not_keep_a_session_from_the_list(cli: Cli, option: list[str]) -> None:
    stored({"type": "message", "role": "user", "content": "a \ud800 b"})
    result = cli("chat", "--list", *option)
    assert (result.code, result.err) == (0, "")
    assert b"odd" in result.out and b"a ? b" in result.out
