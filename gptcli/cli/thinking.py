"""Tells what a model thinks, between `<think>` and `</think>`, from what it answers. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Iterator

OPENING, CLOSING = "<think>", "</think>"


class Thoughts:
    """Splits a reply as it comes. Only a reply that begins with the tag thinks: later it is a word like any other.

    inside: whether the prompt itself has opened the thoughts, as some templates do.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._tag = CLOSING if inside else OPENING  # what is looked for next; empty when nothing is
        self._held = ""

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        """The next text as (text, whether it is a thought); held back is what may be the beginning of a tag."""
        self._held += text
        if self._tag == OPENING:
            start = self._held.lstrip()
            if start.startswith(OPENING):
                self._held, self._tag = start.removeprefix(OPENING).lstrip("\n"), CLOSING
            elif not OPENING.startswith(start):
                self._tag = ""
            else:
                return
        if self._tag == CLOSING:
            thought, closed, answer = self._held.partition(CLOSING)
            keep = 0 if closed else _overlap(thought, CLOSING)
            self._held = thought[len(thought) - keep :]
            if thought := thought[: len(thought) - keep]:
                yield thought, True
            if not closed:
                return
            self._held, self._tag = answer.lstrip("\n"), "" if answer.strip("\n") else "\n"
        if self._tag == "\n":  # blank lines between thoughts and answer may come later
            self._held = self._held.lstrip("\n")
            self._tag = "" if self._held else "\n"
        if self._held:
            yield self._held, False
            self._held = ""

    def flush(self) -> Iterator[tuple[str, bool]]:
        """What was held back, once nothing more comes."""
        if self._held:
            yield self._held, self._tag == CLOSING
        self._held = ""


def without_thoughts(reply: str) -> str:
    """The answer alone."""
    thoughts = Thoughts()
    return "".join(text for text, thought in [*thoughts.push(reply), *thoughts.flush()] if not thought)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the text's end may be the beginning of the tag."""
    return max((count for count in range(1, len(tag)) if text.endswith(tag[:count])), default=0)
