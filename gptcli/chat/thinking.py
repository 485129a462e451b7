"""Separates a model's thoughts, between `<think>` and `</think>`, from its answer."""

from __future__ import annotations

from collections.abc import Iterator

from gptcli.chat.session import Model, Session
from gptcli.text.chat_templates.chat_template import prompt_opens_thoughts
from gptcli.tools.thought_tags import CLOSING, OPENING, overlap


def opens_thoughts(session: Session[Model]) -> bool:
    """Whether the template ends the prompt with the opening tag, so that the reply begins in thoughts."""
    if OPENING not in session.template.source:
        return False
    return prompt_opens_thoughts(session.prompt(), session.lm.tokenizer)


class Thoughts:
    """Splits a reply as it comes. Thoughts are at its beginning only; later tags are text.

    inside: whether the prompt has opened the thoughts.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self._next_tag = CLOSING if inside else OPENING  # empty once none is wanted
        self._after_tag = inside  # newlines here belong to the tag
        self._pending = ""

    def push(self, text: str) -> Iterator[tuple[str, bool]]:
        """The next texts, each with whether it is a thought. A possible beginning of a tag stays pending."""
        self._pending += text
        if self._next_tag == OPENING:
            start = self._pending.lstrip()
            if start.startswith(OPENING):
                self._pending, self._next_tag, self._after_tag = start.removeprefix(OPENING), CLOSING, True
            elif OPENING.startswith(start):
                return
            else:
                self._next_tag = ""
        if self._next_tag == CLOSING:
            thought, closed, answer = self._pending.partition(CLOSING)
            border = len(thought) if closed else len(thought) - overlap(thought, CLOSING)
            yield from self._released(thought[:border], True)
            if not closed:
                self._pending = thought[border:]
                return
            self._pending, self._next_tag, self._after_tag = answer, "", True
        yield from self._released(self._pending, False)
        self._pending = ""

    def flush(self) -> Iterator[tuple[str, bool]]:
        """The pending text, at the end of the reply."""
        yield from self._released(self._pending, self._next_tag == CLOSING)
        self._pending = ""

    def _released(self, text: str, thought: bool) -> Iterator[tuple[str, bool]]:
        if self._after_tag:
            text = text.lstrip("\n")
        if text:
            self._after_tag = False
            yield text, thought


def without_thoughts(reply: str, *, inside: bool = False) -> str:
    """The answer alone. inside: as in `Thoughts`, but a reply without the closing tag is all answer."""
    thoughts = Thoughts(inside=inside and CLOSING in reply)
    return "".join(text for text, thought in [*thoughts.push(reply), *thoughts.flush()] if not thought)
