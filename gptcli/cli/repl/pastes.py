"""Long pastes as one word in the line: `[pasted 312 lines]` stands for them until the message is sent."""

from __future__ import annotations

from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.layout.processors import Processor, Transformation, TransformationInput

_LINES, _CHARACTERS = 20, 4000  # a paste of more is folded
_FIRST = 0x100000  # private characters, which nobody types, stand for pastes in the buffer


class Pastes(Processor):
    """The folded pastes. In a line each is one character, which keys move over and delete whole."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def fold(self, text: str) -> str:
        """What to insert for a paste: itself, or the character that stands for it."""
        text = self.expand(text.replace("\r\n", "\n").replace("\r", "\n"))
        if _lines(text) <= _LINES and len(text) <= _CHARACTERS:
            return text
        self._texts.append(text)
        return chr(_FIRST + len(self._texts) - 1)

    def expand(self, text: str) -> str:
        """A text with every paste whole."""
        return text.translate({_FIRST + index: pasted for index, pasted in enumerate(self._texts)})

    def recalled(self, text: str) -> str:
        """What to show of a message of long ago: its first line, and the rest folded where it is long."""
        first, newline, rest = text.partition("\n")
        return self.fold(first) + newline + self.fold(rest)

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        """Shows the words."""
        if not any(ord(character) >= _FIRST for _, text, *_ in transformation_input.fragments for character in text):
            return Transformation(transformation_input.fragments)
        fragments: StyleAndTextTuples = []
        positions = [0]  # in what is shown, of each character of the line and of its end
        for style, text, *_ in transformation_input.fragments:
            for character in text:
                index = ord(character) - _FIRST
                known = 0 <= index < len(self._texts)
                shown = _word_for(self._texts[index]) if known else character
                fragments.append((f"{style} class:pasted" if known else style, shown))
                positions.append(positions[-1] + len(shown))
        return Transformation(
            fragments,
            source_to_display=lambda position: positions[min(position, len(positions) - 1)],
            display_to_source=lambda position: max(
                index for index, shown in enumerate(positions) if shown <= max(0, position)
            ),
        )


def _word_for(text: str) -> str:
    lines = _lines(text)
    return f"[pasted {lines} lines]" if lines > _LINES else f"[pasted {len(text)} characters]"


def _lines(text: str) -> int:
    return text.rstrip("\n").count("\n") + 1
