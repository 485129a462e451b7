"""The colour of the terminal's background, and colours that are readable on it."""

from __future__ import annotations

import colorsys
import contextlib
import os
import re
import select
import sys
import time
from functools import cache, lru_cache

from gptcli.cli.terminal.capabilities import uses_colour
from gptcli.errors import UsageError

Rgb = tuple[float, float, float]  # each from 0 to 1

# Themes differ: these greyish ones are the least favourable dark and light backgrounds.
_DARK: Rgb = (0.18, 0.2, 0.25)
_LIGHT: Rgb = (0.92, 0.92, 0.92)
_BLACK: Rgb = (0, 0, 0)
_WHITE: Rgb = (1, 1, 1)
_LEVELS = tuple(level / 255 for level in (0, 95, 135, 175, 215, 255))
_CONTRAST = 5.0  # WCAG AA asks for 4.5; rich rounds greys
_ANSWER_S = 0.1
_LATE_S = 3.0
# Asks for the background (OSC 11), then for the terminal's kind (DA1). Nearly all terminals answer the second: once
# they have, no answer to the first will come.
_QUESTION = b"\x1b]11;?\x1b\\\x1b[c"
_ANSWER = re.compile(
    r"\x1b\]11;(?:rgba?:([0-9a-f]+)/([0-9a-f]+)/([0-9a-f]+)[^\x07\x1b]*)?(?:\x07|\x1b\\)|(\x1b\[\?[\d;]*c)",
    re.IGNORECASE,
)
_BEGINNING = re.compile(r"\x1b(?:\](?:1(?:1[^\x07\x1b]*\x1b?)?)?|\[(?:\?[\d;]*)?)?\Z")


class BackgroundAnswers:
    """Takes the terminal's answers out of its input, whenever they come.

    colour: the background, None while it is unknown. done: whether no more answers will come.
    """

    def __init__(self) -> None:
        self.colour: Rgb | None = None
        self.done = False
        self._began = time.monotonic()
        self._pending = ""

    def without(self, text: str) -> str:
        """The next input less answers. A possible beginning of one at its end waits for more input."""
        text = _ANSWER.sub(self._take, self._pending + text)
        self._pending = ""
        if not self.done and self.age < _LATE_S and (beginning := _BEGINNING.search(text)):
            self._pending = beginning[0]
            text = text[: beginning.start()]
        return text

    @property
    def age(self) -> float:
        """Seconds since the question."""
        return time.monotonic() - self._began

    def _take(self, answer: re.Match[str]) -> str:
        *channels, self_description = answer.groups()
        if self_description:
            self.done = True
        elif channels[0]:
            red, green, blue = (int(channel, 16) / (16 ** len(channel) - 1) for channel in channels)
            self.colour = (red, green, blue)
        return ""


@cache
def terminal_background() -> Rgb | None:
    """The background that the environment or the terminal tells; None if neither does.

    Waits a tenth of a second at most. Raises UsageError for an unknown GPTCLI_THEME.
    """
    # A late answer would be typed into the shell, and over SSH it can be late.
    asks = chosen_background() is None and may_ask() and "SSH_CONNECTION" not in os.environ
    answers = BackgroundAnswers()
    if asks:
        _await_answers(sys.stdin.fileno(), answers)
    return chosen_background() or answers.colour or background_of_environment()


def chosen_background() -> Rgb | None:
    """The background that GPTCLI_THEME chooses; None for `auto`. Raises UsageError for an unknown theme."""
    theme = os.environ.get("GPTCLI_THEME") or "auto"
    if theme not in ("auto", "dark", "light"):
        raise UsageError(f"GPTCLI_THEME is auto, dark or light, not {theme}")
    return {"dark": _DARK, "light": _LIGHT}.get(theme)


def background_of_environment() -> Rgb | None:
    """The background that COLORFGBG names by its ANSI number. It may be inherited from another terminal."""
    number = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    if not number.isdecimal():
        return None
    return _LIGHT if int(number) == 7 or int(number) > 8 else _DARK


def may_ask() -> bool:
    """Whether a terminal in the foreground answers on stdin, and colours are wanted."""
    if sys.platform == "win32":
        return False
    streams = (sys.stdin, sys.stdout)
    if not uses_colour(all(stream is not None and stream.isatty() for stream in streams)):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # not the terminal of this session
        return False


def ask_background() -> None:
    """Sends the question. From here on the terminal must not echo its input."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(sys.stdout.fileno(), _QUESTION)


def _await_answers(descriptor: int, answers: BackgroundAnswers) -> None:
    """Asks, and reads answers unechoed. Asks nothing if keys were typed: they are for the shell."""
    import termios  # not on Windows, where nothing is asked

    with contextlib.suppress(OSError, termios.error):
        modes = termios.tcgetattr(descriptor)
        if select.select([descriptor], [], [], 0)[0]:
            return
        unechoed = [*modes[:3], modes[3] & ~(termios.ICANON | termios.ECHO), *modes[4:]]
        termios.tcsetattr(descriptor, termios.TCSANOW, unechoed)
        try:
            ask_background()
            while not answers.done and (left := _ANSWER_S - answers.age) > 0:
                if select.select([descriptor], [], [], left)[0]:
                    answers.without(os.read(descriptor, 1024).decode("latin-1"))
        finally:
            # TCSAFLUSH: an answer that comes just now is dropped.
            termios.tcsetattr(descriptor, termios.TCSANOW if answers.done else termios.TCSAFLUSH, modes)


@lru_cache(maxsize=256)
def readable(colour: str, background: Rgb | None) -> str:
    """A colour in the nearest lightness that reads well on a background; on black and white if it is unknown.

    colour: `#rrggbb`.
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)))
    backgrounds = (background,) if background else (_BLACK, _WHITE)

    def worst_contrast(candidate: Rgb) -> float:
        return min(contrast(candidate, other) for other in backgrounds)

    nearest_first = sorted((step / 100 for step in range(101)), key=lambda other: abs(other - lightness))
    candidates = [_among_256(colorsys.hls_to_rgb(hue, other, saturation)) for other in nearest_first]
    passing = (candidate for candidate in candidates if worst_contrast(candidate) >= _CONTRAST)
    best = next(passing, None) or max(candidates, key=worst_contrast)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in best)


def _among_256(colour: Rgb) -> Rgb:
    """The nearest of the colours that a terminal of 256 colours has, apart from its greys."""
    red, green, blue = (min(_LEVELS, key=lambda level: abs(level - channel)) for channel in colour)
    return red, green, blue


def contrast(one: Rgb, other: Rgb) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: Rgb) -> float:
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
