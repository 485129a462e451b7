"""Long pastes, shown as `[pasted 312 lines]` until the message is sent."""

from __future__ import annotations

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

_LINES, _CHARACTERS = 20, 4000  # longer pastes are folded
_FIRST = 0x100000  # the first of the private characters that stand for pastes in the buffer: nobody types them


class Pastes(Processor):
    """The folded pastes. Each is one character in the line, so that keys move over it and delete it whole."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def fold(self, text: str) -> str:
        """What to insert for a paste: the text itself, or a character that stands for it."""
        text = self.expand(text.replace("\r\n", "\n").replace("\r", "\n"))
        if _lines(text) <= _LINES and len(text) <= _CHARACTERS:
            return text
        self._texts.append(text)
        return chr(_FIRST + len(self._texts) - 1)

    def expand(self, text: str) -> str:
        """A text with its pastes unfolded."""
        return text.translate({_FIRST + index: pasted for index, pasted in enumerate(self._texts)})

    def refold(self, text: str) -> str:
        """An earlier message as the line shows it: the first line, then the rest, each folded if long."""
        first, newline, rest = text.partition("\n")
        return self.fold(first) + newline + self.fold(rest)

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Shows each paste as its label."""
        if not any(ord(character) >= _FIRST for _, text, *_ in transformation_input.fragments for character in text):
            return Transformation(transformation_input.fragments)
        fragments: StyleAndTextTuples = []
        positions = [0]  # where each character of the line, and its end, is on the screen
        for style, text, *_ in transformation_input.fragments:
            for character in text:
                index = ord(character) - _FIRST
                known = 0 <= index < len(self._texts)
                shown = _label(self._texts[index]) if known else character
                fragments.append((f"{style} class:pasted" if known else style, shown))
                positions.append(positions[-1] + len(shown))
        return Transformation(
            fragments,
            source_to_display=lambda position: positions[min(position, len(positions) - 1)],
            display_to_source=lambda position: max(
                index for index, shown in enumerate(positions) if shown <= max(0, position)
            ),
        )


def _label(text: str) -> str:
    lines = _lines(text)
    return f"[pasted {lines} lines]" if lines > _LINES else f"[pasted {len(text)} characters]"


def _lines(text: str) -> int:
    return text.rstrip("\n").count("\n") + 1
