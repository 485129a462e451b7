"""Draws Markdown as lines that copy well: nothing is padded, cut or centred."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from rich.console import Console
from rich.style import Style
from rich.syntax import PygmentsSyntaxTheme, Syntax
from rich.text import Text

from gptcli.cli.terminal.background_colour import Rgb, readable
from gptcli.cli.terminal.markdown_mathematics import keep_mathematics

_COLUMNS = 100  # at most: longer lines are hard to read
_GAP = 2  # columns between those of a table
_TASK = re.compile(r"\[([ xX])\] ")
_URL = re.compile(r"\S*://\S+")
_WORD = re.compile("[\u2e80-\U0003ffff]|[^\\s\u2e80-\U0003ffff]+")  # lines may break beside a wide character
_PLAIN = Style.null()
_HEADINGS = {"h1": Style(bold=True, underline=True), "h2": Style(bold=True)}
_INLINE = {"em": Style(italic=True), "strong": Style(bold=True), "s": Style(strike=True)}


class _CodeTheme(PygmentsSyntaxTheme):
    """A theme's hues in a lightness that suits the background. Plain text has the terminal's own colour."""

    def __init__(self, background: Rgb | None) -> None:
        super().__init__("github-dark")
        self._background = background
        self._plain = self._pygments_style_class.style_for_token(())["color"]

    def get_style_for_token(self, token_type: tuple[str, ...]) -> Style:
        look = self._pygments_style_class.style_for_token(token_type)
        colour = None if look["color"] in (None, self._plain) else readable(f"#{look['color']}", self._background)
        return Style(color=colour, bold=look["bold"] or None, italic=look["italic"] or None)

    def get_background_style(self) -> Style:
        return _PLAIN


class Blocks:
    """Parses Markdown and draws its blocks for the width that the console has then.

    background: the terminal's; None if it is unknown.
    """

    def __init__(self, console: Console, background: Rgb | None) -> None:
        self._console = console
        # HTML stays text: a model's <think> would vanish with everything inside.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        self._parser.use(keep_mathematics)
        self._theme = _CodeTheme(background)
        self._code = Style(bold=True, color=readable("#56d4dd", background))
        self._faint = Style(color=readable("#8b949e", background))

    def parse(self, text: str) -> list[SyntaxTreeNode]:
        """The top-level blocks of a text, with the lines of each in `map`."""
        return SyntaxTreeNode(self._parser.parse(text)).children

    def draw(self, nodes: Iterable[SyntaxTreeNode]) -> list[Text]:
        """The lines of blocks, blank lines between them. Only code, formulas and URLs may be wider than the console."""
        return self._stacked(nodes, min(_COLUMNS, self._console.width))

    def faint(self, text: str) -> Text:
        """A text in a faint but readable colour."""
        return Text().append(text, self._faint)

    def _stacked(self, nodes: Iterable[SyntaxTreeNode], columns: int, *, spaced: bool = True) -> list[Text]:
        lines: list[Text] = []
        for node in nodes:
            drawn = self._block(node, max(1, columns))
            lines += [Text()] * bool(spaced and lines and drawn) + drawn
        return lines

    def _block(self, node: SyntaxTreeNode, columns: int) -> list[Text]:
        match node.type:
            case "paragraph":
                return self._wrapped(self._inline(node.children), columns)
            case "heading":
                style = _HEADINGS.get(node.tag, Style(bold=True, italic=True))
                return self._wrapped(self._inline(node.children, style), columns)
            case "fence" | "code_block":
                return self._lines_of_code(node)
            case "bullet_list" | "ordered_list":
                return self._list(node, columns)
            case "blockquote":
                bar = self.faint("▌ ")
                return [_joined(bar, line) for line in self._stacked(node.children, columns - len(bar))]
            case "table":
                return self._table(node, columns)
            case "hr":
                return [self.faint("─" * columns)]
        return [Text(line) for line in node.content.splitlines()]

    def _wrapped(self, text: Text, columns: int) -> list[Text]:
        """Lines of at most so many columns, but for a URL that is longer: the terminal wraps it, so that it works."""
        long = [url.span() for url in _URL.finditer(text.plain) if text[url.start() : url.end()].cell_len > columns]
        lines: list[Text] = []
        for number, part in enumerate(text.divide([border for span in long for border in span])):
            if number % 2:
                lines.append(part)
                continue
            if number:
                part = part[len(part.plain) - len(part.plain.lstrip(" ")) :]
            if part or not long:
                lines += part.wrap(self._console, columns, overflow="fold")
        for line in lines:
            line.rstrip()
        return lines

    def _inline(self, nodes: Iterable[SyntaxTreeNode], style: Style = _PLAIN) -> Text:
        text = Text()
        for node in nodes:
            match node.type:
                case "softbreak" | "hardbreak":
                    text.append("\n" if node.type == "hardbreak" else " ", style)
                case "code_inline":
                    text.append(node.content, style + self._code)
                case "link" | "image":
                    target = str(node.attrs.get("href") or node.attrs.get("src") or "")
                    shown = self._inline(node.children, style)
                    text.append_text(shown)
                    if target and shown.plain != target:
                        text.append_text(self.faint(f" ({target})" if shown else target))
                case _ if node.children:
                    text.append_text(self._inline(node.children, style + _INLINE.get(node.type, _PLAIN)))
                case _:
                    text.append(node.content.replace("\t", " "), style)
        return text

    def _lines_of_code(self, node: SyntaxTreeNode) -> list[Text]:
        code = node.content.expandtabs(4).rstrip()
        language = next(iter(node.info.split()), "text")
        lines = list(Syntax(code, language, theme=self._theme).highlight(code).split()) if code else []
        for line in lines:
            line.rstrip()
        return lines

    def _list(self, node: SyntaxTreeNode, columns: int) -> list[Text]:
        first = int(node.attrs.get("start", 1)) if node.type == "ordered_list" else None
        last = f"{(first or 0) + len(node.children) - 1}. " if first is not None else "• "
        loose = any(child.type == "paragraph" and not child.hidden for item in node.children for child in item.children)
        lines: list[Text] = []
        for number, item in enumerate(node.children, first or 0):
            drawn = self._stacked(item.children, columns - len(last), spaced=loose) or [Text()]
            marker = "• " if first is None else f"{number}. ".rjust(len(last))
            if task := _TASK.match(drawn[0].plain):
                drawn[0] = drawn[0][task.end() :]
                box = "☐ " if task[1] == " " else "☑ "
                marker = box if first is None else marker + box
            indent = Text(" " * len(last))
            lines += [Text()] * bool(loose and lines)
            lines += [_joined(Text(marker) if not index else indent, line) for index, line in enumerate(drawn)]
        return lines

    def _table(self, node: SyntaxTreeNode, columns: int) -> list[Text]:
        rows = [
            [self._inline(cell.children) for cell in row.children] for part in node.children for row in part.children
        ]
        widths = _column_widths(rows, columns)
        if widths is None:
            return self._records(rows, columns)
        sides = [_side(cell) for cell in node.children[0].children[0].children]
        for cell in rows[0]:
            cell.stylize("bold")
        lines: list[Text] = []
        drawn = [[self._wrapped(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        folded = any(len(cell) > 1 for row in drawn for cell in row)
        for number, row in enumerate(drawn):
            lines += [Text()] * (folded and number > 1)
            for pieces in zip_longest(*row, fillvalue=Text()):
                lines.append(_aligned(pieces, widths, sides))
            if not number:
                lines.append(self.faint((" " * _GAP).join("─" * width for width in widths)))
        return lines

    def _records(self, rows: Sequence[Sequence[Text]], columns: int) -> list[Text]:
        """A table that is too wide, as `heading: cell` lines."""
        headings, *records = rows
        lines: list[Text] = []
        for record in records:
            lines += [Text()] * bool(lines)
            for heading, cell in zip(headings, record, strict=True):
                label = Text.assemble((f"{heading.plain}: ", "bold")) if heading else Text()
                lines += self._wrapped(label + cell, columns)
        return lines or self._wrapped(Text(", ").join(headings), columns)


def _joined(prefix: Text, line: Text) -> Text:
    joined = prefix + line
    joined.rstrip()
    return joined


def _column_widths(rows: Sequence[Sequence[Text]], columns: int) -> list[int] | None:
    """Widths of a table's columns, each at least as wide as its longest word; None if there is no room for that."""
    room = columns - _GAP * (len(rows[0]) - 1)
    cells = list(zip(*rows, strict=True))
    whole = [max([1, *(cell.cell_len for cell in column)]) for column in cells]
    words = [[word for cell in column for word in _WORD.findall(cell.plain)] for column in cells]
    least = [max([1, *(Text(word).cell_len for word in column)]) for column in words]
    if sum(whole) <= room:
        return whole
    if sum(least) > room:
        return None
    spare = room - sum(least)
    for shared, column in enumerate(sorted(range(len(whole)), key=lambda column: whole[column] - least[column])):
        more = min(whole[column] - least[column], spare // (len(whole) - shared))
        least[column] += more
        spare -= more
    return least


def _side(cell: SyntaxTreeNode) -> str:
    return str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left"


def _aligned(cells: Sequence[Text], widths: Sequence[int], sides: Sequence[str]) -> Text:
    line = Text()
    for cell, width, side in zip(cells, widths, sides, strict=True):
        blank = width - cell.cell_len
        before = {"right": blank, "center": blank // 2}.get(side, 0)
        line.append_text(Text(" " * _GAP * bool(line)) + Text(" " * before) + cell + Text(" " * (blank - before)))
    line.rstrip()
    return line
