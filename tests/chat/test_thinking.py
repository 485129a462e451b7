"""Thoughts separated from answers, and how the prompt shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.chat.thinking import Thoughts, without_thoughts
from tests.cli.chat_terminal import Chat
from tests.cli.scripted import Script


def split(*pieces: str, inside: bool = False) -> tuple[str, str]:
    """The thoughts and the answer."""
    thoughts = Thoughts(inside=inside)
    texts = [text for piece in pieces for text in thoughts.push(piece)] + list(thoughts.flush())
    return "".join(text for text, thought in texts if thought), "".join(text for text, thought in texts if not thought)


REPLY = "\n<think>\nhm, </thin k>?\n</think>\n\nAn *answer*.\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_tags_are_found_however_the_text_is_split(size: int) -> None:
    pieces = [REPLY[start : start + size] for start in range(0, len(REPLY), size)]
    assert split(*pieces) == ("hm, </thin k>?\n", "An *answer*.\n")


@pytest.mark.parametrize(
    ("pieces", "inside", "thoughts", "answer"),
    [
        (["The <think> tag", " opens </think> it."], False, "", "The <think> tag opens </think> it."),
        (["hm</th", "ink>\nyes"], True, "hm", "yes"),
        (["<think>hm</thi"], False, "hm</thi", ""),
        (["<thi"], False, "", "<thi"),
        (["    code"], False, "", "    code"),
    ],
)
def test_only_a_tag_at_the_start_opens_thoughts(pieces: list[str], inside: bool, thoughts: str, answer: str) -> None:
    assert split(*pieces, inside=inside) == (thoughts, answer)


def test_an_answer_follows_thoughts_that_the_prompt_opened() -> None:
    assert without_thoughts("so\n</think>\n\nAnswer", inside=True) == "Answer"
    assert without_thoughts("Answer", inside=True) == "Answer"


def test_thoughts_are_dimmed_and_can_be_hidden(tiny_model: Path) -> None:
    script = Script(pieces=["<th", "ink>", "hm", "</think>", "\n\nyes"], piece_s=0.3)
    chat = Chat(script, GPTCLI_MODEL=str(tiny_model)).ready()
    chat.ask("go")
    assert chat.lines[2:5] == ["hm", "", "yes"] and b"\x1b[2mhm" in chat.raw
    chat.ask("/set show_thinking off")
    chat.type("on\r", "thinking", chat.text.count("thinking") + 1)
    chat.ready(4)
    assert chat.lines[chat.lines.index("> on") + 1] == "yes" and chat.lines.count("hm") == 1
