"""Renders a conversation with a model's own Jinja template, in a sandbox and a process of its own.

Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import InputError, NoTemplate, TemplateError
from gptcli.files import is_there, open_within, read_json
from gptcli.text.messages import Message
from gptcli.text.sandbox.client import Isolated, Misbehaved
from gptcli.text.sandbox.trusted import KNOWN_TEMPLATES
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptcli.text.jinja_template import Template

_LIMIT = 1 << 20  # bytes of a template
# The variable that is asked for; some templates have but one of their own by that name, which nobody can set.
_SWITCH = re.compile(r"(?<![\w.])enable_thinking\b(?!\s*=(?!=))")
_PROBE = "7193046582"


class ChatTemplate:
    """A model's chat template; `where` names it in errors."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        # One that nobody has vouched for may never end, or fill the memory.
        known = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest() in KNOWN_TEMPLATES
        self._isolated = None if known else Isolated("template", json.dumps(source).encode())

    @classmethod
    def of_model(cls, path: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that comes with a model: chat_template.jinja, or the one in its JSON files.

        Raises NoTemplate where there is none.
        """
        file = path / "chat_template.jinja"
        if is_there(file):
            return cls.from_file(file)
        source, where = tokenizer.settings.get("chat_template"), path / "tokenizer_config.json"
        if source is None and is_there(older := path / "chat_template.json"):
            source, where = read_json(older).get("chat_template"), older
        if isinstance(source, list):  # named templates, one of them the default
            defaults = (e.get("template") for e in source if isinstance(e, dict) and e.get("name") == "default")
            source = next(defaults, None)
        if source is not None and not isinstance(source, str):
            raise TemplateError(f"chat template: {where}: chat_template must be text, not {str(source)[:40]!r}")
        if source is None:
            raise NoTemplate(
                f"no chat template: {path}: this looks like a base model, not one for chats",
                hint="give one with --chat-template FILE, or continue raw text without --chat",
            )
        return cls(source, str(where))

    @classmethod
    def from_file(cls, file: Path) -> ChatTemplate:
        """A template from a file. Raises InputError where it cannot be read or is not text."""
        with open_within(file) as stream:
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise InputError(f"cannot read: {file}: larger than {_LIMIT >> 20} MB")
        try:
            return cls(data.decode("utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise InputError(f"cannot read: {file}: byte {error.start} is not UTF-8") from None

    @property
    def knows_thinking(self) -> bool:
        """Whether the template can be asked for an answer with or without thinking first."""
        return _SWITCH.search(self.source) is not None

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks next.

        What the messages spell is text, whatever it looks like; control tokens come from the template alone.
        thinking: the template's `enable_thinking`, which stays undefined where it is None.
        Raises TemplateError where the template fails or refuses the conversation.
        """
        return tokenizer.encode_rendered(self._text(messages, tokenizer, thinking))

    def render_text(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool | None = None) -> str:
        """The text that `render` gives the ids of. Raises as it does."""
        return tokenizer.unguard(self._text(messages, tokenizer, thinking))

    def _text(self, messages: Sequence[Message], tokenizer: Tokenizer, thinking: bool | None) -> str:
        switches = {} if thinking is None else {"enable_thinking": thinking}
        variables = {
            "messages": _guarded(messages, tokenizer),
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **switches,
            **tokenizer.named_tokens,
        }
        try:
            text = self._rendered(variables)
            if not text.strip():
                raise TemplateError("it makes nothing of the conversation")
            if not self._hears_the_user(variables, text):
                raise TemplateError("it leaves out what the user says: it may be one for images beside texts")
            return self._without_forgeries(text, variables, _guarded(messages, tokenizer, wholly=True), tokenizer)
        except (TemplateError, Misbehaved) as error:
            raise TemplateError(f"chat template: {self.where}: {error}") from None

    def _without_forgeries(
        self, text: str, variables: dict[str, Any], guarded: list[dict[str, str]], tokenizer: Tokenizer
    ) -> str:
        """A rendered chat in which no control token is of the messages' making.

        A template that takes something out of them, such as `/no_think`, can make one of what is left. Where fewer
        are left when their first letters are marked, that is what the model gets: marks may mislead a template, too.
        """
        if guarded == variables["messages"]:
            return text
        marked = self._rendered(variables | {"messages": guarded})
        return text if tokenizer.written_controls(marked) == tokenizer.written_controls(text) else marked

    def _hears_the_user(self, variables: dict[str, Any], text: str) -> bool:
        """Whether what the user said last is in a rendered chat, whatever the template makes of it.

        Templates that take a message for a list of parts drop a text without a word.
        """
        match variables["messages"]:
            case [*before, {"role": "user", "content": said}] if said.strip() not in text:
                probed = [*before, {"role": "user", "content": _PROBE}]
                return _PROBE in self._rendered(variables | {"messages": probed})
        return True

    def _rendered(self, variables: dict[str, Any]) -> str:
        if self._isolated is None:
            return self._template.render(variables)
        return str(self._isolated.ask(variables))

    @cached_property
    def _template(self) -> Template:
        from gptcli.text.jinja_template import (
            Template,  # Jinja takes 30 ms to import, which a plain prompt need not pay
        )

        return Template(self.source)


def _guarded(messages: Sequence[Message], tokenizer: Tokenizer, *, wholly: bool = False) -> list[dict[str, str]]:
    return [{"role": message.role, "content": tokenizer.guard(message.content, wholly=wholly)} for message in messages]
