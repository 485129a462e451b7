"""Tells what a model thinks, between `<think>` and `</think>`, from what it answers. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Iterator

from gptcli.chat.session import Model, Session

OPENING, CLOSING = "<think>", "</think>"


def opens_thoughts(session: Session[Model]) -> bool:
    """Whether the template begins a reply with the tag that opens thoughts, so that the reply does not."""
    if OPENING not in session.template.source:
        return False
    end = session.prompt()[-8:]
    return b"".join(map(session.lm.tokenizer.token_bytes, end)).rstrip().endswith(OPENING.encode())


class Thoughts:
    """Splits a reply as it comes. Only a reply that begins with the tag thinks: later it is a word like any other.

    inside: whether the prompt itself has opened the thoughts, as some templates do.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._tag = CLOSING if inside else OPENING  # what is looked for next; empty when nothing is
        self._behind_tag = inside  # where line breaks belong to the tag
        self._held = ""

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        """The next text as (text, whether it is a thought); held back is what may be the beginning of a tag."""
        self._held += text
        if self._tag == OPENING:
            start = self._held.lstrip()
            if start.startswith(OPENING):
                self._held, self._tag, self._behind_tag = start.removeprefix(OPENING), CLOSING, True
            elif OPENING.startswith(start):
                return
            else:
                self._tag = ""
        if self._tag == CLOSING:
            thought, closed, answer = self._held.partition(CLOSING)
            border = len(thought) if closed else len(thought) - _overlap(thought, CLOSING)
            yield from self._released(thought[:border], True)
            if not closed:
                self._held = thought[border:]
                return
            self._held, self._tag, self._behind_tag = answer, "", True
        yield from self._released(self._held, False)
        self._held = ""

    def flush(self) -> Iterator[tuple[str, bool]]:
        """What was held back, once nothing more comes."""
        yield from self._released(self._held, self._tag == CLOSING)
        self._held = ""

    def _released(self, text: str, thought: bool) -> Iterator[tuple[str, bool]]:
        if self._behind_tag:
            text = text.lstrip("\n")
        if text:
            self._behind_tag = False
            yield text, thought


def without_thoughts(reply: str, *, inside: bool = False) -> str:
    """The answer alone; `inside` as in `Thoughts`, for a reply that leaves its thoughts."""
    thoughts = Thoughts(inside=inside and CLOSING in reply)
    return "".join(text for text, thought in [*thoughts.push(reply), *thoughts.flush()] if not thought)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the text's end may be the beginning of the tag."""
    return max((count for count in range(1, len(tag)) if text.endswith(tag[:count])), default=0)
