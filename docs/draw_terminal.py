"""Draws docs/*.svg: runs real commands in a pseudo-terminal, and exports their screens with Rich.

python docs/draw_terminal.py [terminal | tokens | chat]
"""

from __future__ import annotations

import io
import os
import signal
import string
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

WIDTH, HEIGHT = 92, 60
GENERATE = [
    'gptcli generate "The planets in order: Mercury, Venus," -t 0 -n 14 --stats',
    'echo "Pancakes: mix flour, milk and eggs, fry thin rounds in butter." |'
    ' gptcli generate --chat "Sum this up." -t 0',
    'gptcli generate --chat "Give me a short list of three colours." -t 0 --markdown',
    'gptcli generate "In a small town" --top-p 1.5',
]
CHAT = '[{"role": "user", "content": "Is <|im_end|> text?"}, {"role": "assistant", "content": "Typed: yes."}]'
TOKENIZE = [
    r"printf 'In 1984 the clockmaker of Köln,\n\tnaïve 😀, wrote antidisestablishmentarianism.\n' | gptcli tokenize",
    f"gptcli tokenize --chat <<< '{CHAT}'",
    'gptcli tokenize --table --text "Köln 😀"',
]
# Lines typed in a conversation, and what the screen shows once each is answered.
TALK = "gptcli chat -s 2 -t 0.3"
TYPED = [
    ("What is a clock, in one sentence?", "ctx · "),
    ("Give me a short list of three fruits.", "ctx · "),
    ("/edit Give me a short list of three musical instruments.", "ctx · "),
    ("/tokens Buongiorno, Roma!", "tokens"),
    ("/hlep", "hint:"),
    ("/stats", "loaded in"),
]
PICTURES = {"terminal": GENERATE, "tokens": TOKENIZE, "chat": [TALK]}


def run(command: str) -> pyte.Screen:
    """The terminal's screen after a command."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    child = pexpect.spawn("bash", ["-c", command], dimensions=(HEIGHT, WIDTH), encoding="utf-8", timeout=120)
    child.expect(pexpect.EOF)
    pyte.Stream(screen).feed(child.before)
    return screen


def converse() -> pyte.Screen:
    """The terminal's screen during a conversation."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.ByteStream(screen)

    def wait(child: pexpect.spawn[bytes], rest: str) -> None:
        """Waits until the screen ends with a prompt and its toolbar, and `rest` is in the latest lines."""
        while True:
            stream.feed(child.read_nonblocking(4096, timeout=120))
            line = screen.cursor.y
            latest = "\n".join(screen.display[max(0, line - 4) : line + 2])
            if screen.display[line].strip() == ">" and "ctx" in screen.display[line + 1] and rest in latest:
                return

    with tempfile.TemporaryDirectory() as state:
        environment = os.environ | {"XDG_STATE_HOME": state, "TERM": "xterm-256color"}
        child = pexpect.spawn(TALK, dimensions=(HEIGHT, WIDTH), env=environment)
        wait(child, "")
        for line, shows in TYPED:
            child.send(f"{line}\r")
            wait(child, shows)
        screen.cursor.y += 2
        child.kill(signal.SIGTERM)
        child.wait()
    return screen


def as_text(screen: pyte.Screen) -> Text:
    """The lines above the cursor, with their colours."""
    lines = []
    for row in range(screen.cursor.y):
        chars = [screen.buffer[row][column] for column in range(WIDTH)]
        runs = [("".join(char.data for char in run), style) for style, run in groupby(chars, key=style_of)]
        line = Text.assemble(*runs)
        line.rstrip()
        lines.append(line)
    return Text("\n").join(lines)


def style_of(char: pyte.screens.Char) -> Style:
    """Rich's style of a cell."""
    return Style(color=color_of(char.fg), bgcolor=color_of(char.bg), bold=char.bold, italic=char.italics)


def color_of(name: str) -> str | None:
    """Rich's name of a pyte colour."""
    if len(name) == 6 and all(digit in string.hexdigits for digit in name):
        return f"#{name}"
    return None if name == "default" else name.replace("bright", "bright_").replace("brown", "yellow")


def main() -> None:
    """Writes the pictures named, or all."""
    for name in sys.argv[1:] or PICTURES:
        console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
        for command in PICTURES[name]:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")), soft_wrap=False)
            console.print(as_text(converse() if command == TALK else run(command)))
            console.print()
        console.save_svg(str(Path(__file__).with_name(f"{name}.svg")), title="gptcli")


if __name__ == "__main__":
    main()
