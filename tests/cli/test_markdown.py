"""MarkdownStream: in the end the screen shows what rendering the whole document at once would."""

from __future__ import annotations

import io
import random

import pyte
import pytest
from rich.console import Console
from rich.markdown import Markdown

from gptcli.cli.terminal import markdown
from gptcli.cli.terminal.markdown import MarkdownStream

DOCUMENTS = {
    "paragraphs": "One\n\nTwo\ntwo\n\nThree *em* `code`",
    "headings": "# Title\n\nText\n\n## Sub\nmore\n\n### Subsub\n",
    "underlined headings": "Title\n===\n\nSub\n---\ntext\n",
    "lists": "Intro:\n\n- a\n- b\n  - c\n\nAfter\n\n1. x\n2. y\n\nEnd\n\n- loose\n\n- loose too\n",
    "a list first": "- a\n- b\n\nText\n\n- c\n",
    "code": "Code:\n\n```python\nx = 1\n\n\nprint(x)\n```\n\nDone\n",
    "open code": "Text\n\n```\nno end\n\n# no heading",
    "indented code": "x\n\n    indented\n\n    more\n\ny",
    "a table": "T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nEnd",
    "quotes": "> q\n> r\n>\n> s\n\nx\n\n> t",
    "rules": "a\n\n---\n\nb\n\n***\n\n- x\n\n---\n",
    "a rule first": "---\n\nb",
    "links": "[a]: http://x.example\n\nsee [b](http://y.example) and ~~c~~\n\nd",
    "a long paragraph": "word " * 100 + "\n\nend",
    "a block taller than the screen": "a\n\n```\n" + "\n".join(f"line {n}" for n in range(40)) + "\n```\n\nend",
    "blank lines": "\n\n\n",
    "nothing": "",
}


def console(width: int = 40, *, height: int = 10) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(output: str, *, height: int = 10) -> list[str]:
    """All lines of a terminal of 40 columns, scrolled off or not, up to the last that is not blank."""
    screen = pyte.HistoryScreen(40, height, history=1000)
    pyte.Stream(screen).feed(output.replace("\n", "\r\n"))
    assert not screen.cursor.hidden
    above = ["".join(line[column].data for column in range(40)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*above, *screen.display]).rstrip().split("\n")


def streamed(pieces: list[str]) -> list[str]:
    shown = console()
    with MarkdownStream(shown) as stream:
        for piece in pieces:
            stream.write(piece)
    return lines(written(shown))


def at_once(document: str) -> list[str]:
    shown = console()
    shown.print(Markdown(document, hyperlinks=False))
    return lines(written(shown))


@pytest.mark.parametrize("frame_s", [-1, 1e9], ids=["every frame", "no frame"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_streamed_document_looks_as_if_it_came_at_once(
    name: str, frame_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markdown, "_FRAME_S", frame_s)
    document = DOCUMENTS[name]
    assert streamed(list(document)) == at_once(document)


def test_the_pieces_make_no_difference() -> None:
    document = "\n\n".join(DOCUMENTS.values())
    for seed in range(5):
        cut = random.Random(seed)
        borders = sorted(cut.sample(range(len(document)), 60))
        pieces = [document[start:end] for start, end in zip([0, *borders], [*borders, len(document)], strict=True)]
        assert streamed(pieces) == at_once(document)


def test_finished_blocks_are_printed_once() -> None:
    shown = console()
    with MarkdownStream(shown) as stream:
        for paragraph in range(60):
            for word in f"paragraph {paragraph}\n\n".split(" "):
                stream.write(f"{word} ")
    assert len(lines(written(shown))) == 119


def test_the_newest_lines_of_a_tall_block_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_FRAME_S", -1)
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write("```\n" + "\n".join(f"line {number}" for number in range(30)))
        screen = pyte.Screen(40, 10)
        pyte.Stream(screen).feed(written(shown).replace("\n", "\r\n"))
        assert any("line 29" in line for line in screen.display)


def test_html_is_shown_as_text() -> None:
    assert streamed(["<think>\nwhat\n</think>\n\nSo <b>bold</b>"]) == ["<think> what </think>", "", "So <b>bold</b>"]


@pytest.mark.parametrize("text", ["\x1b[2Ja\x9b\u202eb", "&#8238;a &#12; &#x85; &rlm;b", "```\n\x1b]0;x\x07\n```"])
def test_no_text_drives_the_terminal(text: str) -> None:
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write(text)
    for forbidden in ("\x1b[2J", "\x1b]", "\x07", "\x0c", "\x85", "\x9b", "\u202e", "\u200f"):
        assert forbidden not in written(shown)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_a_narrow_terminal_works(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(markdown, "_FRAME_S", -1)
    for document in DOCUMENTS.values():
        with MarkdownStream(console(width, height=1)) as stream:
            stream.write(document)


def test_an_interrupted_stream_prints_its_open_block() -> None:
    shown = console()
    with pytest.raises(KeyboardInterrupt), MarkdownStream(shown) as stream:
        stream.write("# Title\n\nhalf a para")
        raise KeyboardInterrupt
    assert lines(written(shown))[-1] == "half a para"
