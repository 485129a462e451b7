"""After a streamed document, the screen shows what rendering the whole document at once would show."""

from __future__ import annotations

import io
import random
import re

import pyte
import pytest
from rich.cells import cell_len
from rich.console import Console

from gptcli.cli.terminal import markdown_stream
from gptcli.cli.terminal.markdown_blocks import Blocks
from gptcli.cli.terminal.markdown_stream import MarkdownStream
from gptcli.cli.terminal.stderr import STOP_HINT

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


def console(width: int = 40, height: int = 10) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard")


def written(console: Console) -> str:
    return console.file.getvalue()


def lines(output: str) -> list[str]:
    """All lines of a terminal of 40 columns, scrolled off or not, up to the last that is not blank."""
    screen = pyte.HistoryScreen(40, 10, history=1000)
    pyte.Stream(screen).feed(output.replace("\n", "\r\n"))
    assert not screen.cursor.hidden
    above = ["".join(line[column].data for column in range(40)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*above, *screen.display]).rstrip().split("\n")


def written_of(*pieces: str, width: int = 40, height: int = 10) -> str:
    """What a stream of Markdown writes."""
    shown = console(width, height)
    with MarkdownStream(shown) as stream:
        for piece in pieces:
            stream.write(piece)
    return written(shown)


def streamed(*pieces: str) -> list[str]:
    return lines(written_of(*pieces))


def at_once(document: str) -> list[str]:
    return lines("\n".join(drawn(document)))


def drawn(document: str, width: int = 40) -> list[str]:
    blocks = Blocks(console(width), None)
    return [line.plain for line in blocks.draw(blocks.parse(document))]


def draw_at_every_text(monkeypatch: pytest.MonkeyPatch, frame_s: float = -1) -> None:
    monkeypatch.setattr(markdown_stream, "_FRAME_S", frame_s)
    monkeypatch.setattr(markdown_stream, "_REST", 0)


@pytest.mark.parametrize("frame_s", [-1, 1e9], ids=["every frame", "no frame"])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_streamed_document_looks_as_at_once(name: str, frame_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_at_every_text(monkeypatch, frame_s)
    document = DOCUMENTS[name]
    assert streamed(*document) == at_once(document)


def test_the_pieces_make_no_difference() -> None:
    document = "\n\n".join(DOCUMENTS.values())
    for seed in range(5):
        cut = random.Random(seed)
        borders = sorted(cut.sample(range(len(document)), 60))
        pieces = [document[start:end] for start, end in zip([0, *borders], [*borders, len(document)], strict=True)]
        assert streamed(*pieces) == at_once(document)


def test_html_is_shown_as_text() -> None:
    assert streamed("<think>\nwhat\n</think>\n\nSo <b>bold</b>") == ["<think> what </think>", "", "So <b>bold</b>"]


@pytest.mark.parametrize("text", ["\x1b[2Ja\x9b\u202eb", "&#8238;a &#12; &#x85; &rlm;b", "```\n\x1b]0;x\x07\n```"])
def test_no_text_drives_the_terminal(text: str) -> None:
    driving = ("\x1b[2J", "\x1b]", "\x07", "\x0c", "\x85", "\x9b", "\u202e", "\u200f")
    assert not any(each in written_of(text) for each in driving)


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_a_narrow_terminal_works(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_at_every_text(monkeypatch)
    for document in DOCUMENTS.values():
        written_of(document, width=width, height=1)


def test_a_window_that_shrinks_just_after_a_drawing_keeps_what_is_above(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_at_every_text(monkeypatch)

    class Shrinking(io.StringIO):
        def write(self, text: str) -> int:
            shown.width = 10
            return super().write(text)

    shown = Console(file=Shrinking(), force_terminal=True, width=40, height=10)
    with MarkdownStream(shown) as stream:
        stream.write("a line of more than ten columns")
        drawn_first = len(written(shown))
        stream.write(".")
    last_redrawing = written(shown)[drawn_first:].split(".")[0]
    assert last_redrawing.count("\x1b[1A") == 1  # the text's one line, and the hint's


def test_an_interrupted_stream_prints_its_open_block() -> None:
    shown = console()
    with pytest.raises(KeyboardInterrupt), MarkdownStream(shown) as stream:
        stream.write("# Title\n\nhalf a para")
        raise KeyboardInterrupt
    assert lines(written(shown))[-1] == "half a para"


TALL = "```\n" + "\n".join(f"line {number}" for number in range(30))


def test_the_beginning_of_a_tall_block_of_code_is_above_the_screen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_at_every_text(monkeypatch)
    shown = console()
    with MarkdownStream(shown) as stream:
        for char in TALL:
            stream.write(char)
        assert lines(written(shown)) == [f"line {number}" for number in range(30)] + [STOP_HINT]


def test_nothing_is_drawn_while_a_window_is_dragged(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_at_every_text(monkeypatch)
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write("some")
        before = written(shown)
        shown.width = 20
        stream.write(" words")
        assert written(shown) == before
    assert lines(written(shown)) == ["some words"]


def test_the_stop_hint_is_shown_while_an_answer_comes_and_then_vanishes() -> None:
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write("some")
        assert lines(written(shown)) == ["some", STOP_HINT]
    assert lines(written(shown)) == ["some"]


def test_code_is_not_padded_filled_or_cut() -> None:
    code = ["if x:", "    " + "y = 1; " * 12 + "z", "", "end"]
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write("```python\n" + "\n".join(code) + "\n```\n")
        assert stream._rows_shown() == 7  # of code; the longest line takes three, the hint one
    raw = re.sub(r"\x1b\[[\d;]*m", "", written(shown))
    assert raw.split(STOP_HINT)[1].split("\x1b[2K")[-1].removeprefix("\n").split("\n")[-5:-1] == code
    assert not re.search(r"\x1b\[[\d;]*4\d[;m]", written(shown))


@pytest.mark.parametrize("before", ["", "- ", "> ", "| a |\n|---|\n| see "])
def test_a_long_url_is_not_cut(before: str) -> None:
    url = "https://example.org/" + "a/long/path/" * 4 + "end."
    shown = console()
    with MarkdownStream(shown) as stream:
        stream.write(f"{before}It is at {url} and more is said behind it.")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", written(shown))
    assert {line.strip(" •▌") for line in plain.split("\n") if "://" in line} == {url}


def test_a_word_that_is_no_url_is_folded() -> None:
    assert [line.strip() for line in streamed("An " + "a" * 90)] == ["An", "a" * 40, "a" * 40, "a" * 10]


def test_text_is_at_most_100_columns_wide_and_at_the_left() -> None:
    words = "word " * 100
    document = f"# Title\n\n{words}\n\n- {words}\n\n| a | b |\n|-|-|\n| x | {words}|"
    shown = drawn(document, 200)
    assert shown[0] == "Title"
    assert 95 < max(map(len, shown)) <= 100
    assert not any(line.endswith(" ") for line in shown)


def test_tasks_have_boxes() -> None:
    document = "- [ ] open\n- [x] done\n  1. [X] *nested* one\n- [y] no task\n- [ ]no task"
    assert drawn(document) == ["☐ open", "☑ done", "  1. ☑ nested one", "• [y] no task", "• [ ]no task"]


@pytest.mark.parametrize(
    "text",
    [
        r"$a_1*b*c_1$",
        r"$$x_1 *y* z_1$$",
        r"\(a_i * b_i\) and \(c*d*e\)",
        r"\[ x_1 = *y* \]",
        "\\[\nx\n- y_1\n= *z*\n\\]",
        "$$\n# a\n\\\\\n$$",
        "it costs $5 and $10",
    ],
)
def test_mathematics_is_left_as_written(text: str) -> None:
    assert drawn(text) == text.split("\n")
    assert drawn("- " + text.replace("\n", "\n  ")) == ("• " + text.replace("\n", "\n  ")).split("\n")


def test_what_only_looks_like_mathematics_is_markdown() -> None:
    assert drawn("$5 for *one* and $6 for *two*") == ["$5 for one and $6 for two"]
    assert drawn("$$ *much*\n\n*more*") == ["$$ much", "", "more"]
    assert drawn(r"\*a\* `$x$`") == ["*a* $x$"]


TABLE = """\
| Algorithm | Worst case | Notes                |
|:----------|-----------:|----------------------|
| Quicksort | n²         | in place, not stable |
| Heapsort  | 排序       | none                 |
"""


@pytest.mark.parametrize("width", range(14, 60, 3))
def test_no_word_of_a_table_is_cut(width: int) -> None:
    shown = drawn(TABLE, width)
    assert max(map(cell_len, shown)) <= width
    assert set(re.findall(r"\w+", TABLE)) <= set(re.findall(r"\w+", "\n".join(shown)))


def test_a_table_is_aligned_and_becomes_a_list_where_it_has_no_room() -> None:
    assert drawn(TABLE)[:3] == [
        "Algorithm  Worst case  Notes",
        "─────────  ──────────  ─────────────────",
        "Quicksort          n²  in place, not",
    ]
    assert drawn(TABLE, 20)[:3] == ["Algorithm: Quicksort", "Worst case: n²", "Notes: in place, not"]


@pytest.mark.parametrize("row", ["|  |  |", "| a |  |", "|  | b |", "| a |", "||"])
@pytest.mark.parametrize("heading", ["|  |  |", "| A |  |", "|  | B |"])
def test_a_table_may_have_empty_cells_rows_and_columns(heading: str, row: str) -> None:
    table = f"{heading}\n|---|---|\n{row}\n"
    for width in (1, 5, 40):
        assert set(re.findall(r"\w", "".join(drawn(table, width)))) == set(re.findall(r"\w", table))
