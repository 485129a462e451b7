"""Draws docs/*.svg: real commands, run in a pseudo-terminal, as Rich exports what they printed.

python docs/draw_terminal.py [terminal | tokens]
"""

from __future__ import annotations

import io
import sys
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH, HEIGHT = 92, 60
GENERATE = [
    'gptcli generate "In a small town" -s 4 -n 40 --stats',
    'echo "Pancakes: mix flour, milk and eggs, fry thin rounds in butter." |'
    ' gptcli generate --chat "Sum this up." -t 0',
    'gptcli generate --chat "Give me a short list of three reasons to drink tea." -s 3 -t 0.5 --markdown',
    'gptcli generate "In a small town" --top-p 1.5',
]
CHAT = '[{"role": "user", "content": "Is <|im_end|> text?"}, {"role": "assistant", "content": "Typed: yes."}]'
TOKENIZE = [
    r"printf 'In 1984 the clockmaker of Köln,\n\tnaïve 😀, wrote antidisestablishmentarianism.\n' | gptcli tokenize",
    f"gptcli tokenize --chat <<< '{CHAT}'",
    'gptcli tokenize --table --text "Köln 😀"',
]
PICTURES = {"terminal": GENERATE, "tokens": TOKENIZE}


def run(command: str) -> pyte.Screen:
    """A terminal's screen once a command has ended."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    child = pexpect.spawn("bash", ["-c", command], dimensions=(HEIGHT, WIDTH), encoding="utf-8", timeout=120)
    child.expect(pexpect.EOF)
    pyte.Stream(screen).feed(child.before)
    return screen


def as_text(screen: pyte.Screen) -> Text:
    """The lines in use, with their colours."""
    lines = []
    for row in range(screen.cursor.y):
        chars = [screen.buffer[row][column] for column in range(WIDTH)]
        runs = [("".join(char.data for char in run), style) for style, run in groupby(chars, key=style_of)]
        line = Text.assemble(*runs)
        line.rstrip()
        lines.append(line)
    return Text("\n").join(lines)


def style_of(char: pyte.screens.Char) -> Style:
    """Rich's style for a cell."""
    color = None if char.fg == "default" else f"#{char.fg}" if len(char.fg) == 6 else char.fg
    bgcolor = None if char.bg == "default" else f"#{char.bg}" if len(char.bg) == 6 else char.bg
    return Style(color=color, bgcolor=bgcolor, bold=char.bold, italic=char.italics)


def main() -> None:
    """Writes the pictures, or those named."""
    for name in sys.argv[1:] or PICTURES:
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        for command in PICTURES[name]:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=False)
            console.print(as_text(run(command)))
            console.print()
        console.save_svg(str(Path(__file__).with_name(f"{name}.svg")), title="gptcli")


if __name__ == "__main__":
    main()
