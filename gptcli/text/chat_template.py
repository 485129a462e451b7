"""Renders a conversation with a model's own Jinja template, in a sandboxed process unless the template is trusted.

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
from gptcli.text.sandbox.client import SandboxClient, SandboxFailure
from gptcli.text.sandbox.trusted import TRUSTED_TEMPLATES
from gptcli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gptcli.text.jinja_template import JinjaTemplate

_FILE_LIMIT = 1 << 20  # bytes of a template
# A variable that is read, not one that the template itself sets.
_THINKING_SWITCH = re.compile(r"(?<![\w.])enable_thinking\b(?!\s*=(?!=))")
_PROBE = "7193046582"  # digits, which filters such as `upper` leave alone


class ChatTemplate:
    """A model's chat template; `where` names it in errors."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        # An untrusted template may never end, or fill the memory.
        trusted = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest() in TRUSTED_TEMPLATES
        self._sandbox = None if trusted else SandboxClient("template", json.dumps(source).encode())

    @classmethod
    def of_model(cls, path: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that comes with a model, in chat_template.jinja or a JSON file. Raises NoTemplate."""
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
            data = stream.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise InputError(f"cannot read: {file}: larger than {_FILE_LIMIT >> 20} MB")
        try:
            return cls(data.decode("utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise InputError(f"cannot read: {file}: byte {error.start} is not UTF-8") from None

    @property
    def knows_thinking(self) -> bool:
        """Whether the template can be asked for an answer with or without thinking first."""
        return _THINKING_SWITCH.search(self.source) is not None

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool | None = None) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks next.

        Only the template makes control tokens. Those that messages spell are text.
        thinking: the template's `enable_thinking`; None leaves it undefined.
        Raises TemplateError where the template fails or refuses the conversation.
        """
        return tokenizer.encode_rendered(self._text(messages, tokenizer, thinking))

    def render_text(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool | None = None) -> str:
        """The text that `render` gives the ids of. Raises as it does."""
        return tokenizer.control_tokens.unguard(self._text(messages, tokenizer, thinking))

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
            text = self._render(variables)
            if not text.strip():
                raise TemplateError("it makes nothing of the conversation")
            if not self._includes_last_question(variables, text):
                raise TemplateError("it leaves out what the user says: it may be one for images beside texts")
            return self._without_forged_controls(text, variables, messages, tokenizer)
        except (TemplateError, SandboxFailure) as error:
            raise TemplateError(f"chat template: {self.where}: {error}") from None

    def _without_forged_controls(
        self, text: str, variables: dict[str, Any], messages: Sequence[Message], tokenizer: Tokenizer
    ) -> str:
        """A rendered chat in which no message makes a control token.

        A template that removes `/no_think` from messages, say, can make one of the rest. So the chat is rendered again
        with each possible beginning marked. The model gets that only if it has other control tokens than the first
        rendering, because marks may mislead a template as well.
        """
        guarded = _guarded(messages, tokenizer, beginnings=True)
        if guarded == variables["messages"]:
            return text
        marked = self._render(variables | {"messages": guarded})
        unmarked = tokenizer.control_tokens.unmarked
        return text if unmarked(marked) == unmarked(text) else marked

    def _includes_last_question(self, variables: dict[str, Any], text: str) -> bool:
        """Whether a rendered chat has what the user said last, in whatever form.

        A template that expects a message to be a list of components silently drops a text.
        """
        match variables["messages"]:
            case [*before, {"role": "user", "content": said}] if said.strip() not in text:
                probed = [*before, {"role": "user", "content": _PROBE}]
                return _PROBE in self._render(variables | {"messages": probed})
        return True

    def _render(self, variables: dict[str, Any]) -> str:
        return self._template.render(variables) if self._sandbox is None else str(self._sandbox.ask(variables))

    @cached_property
    def _template(self) -> JinjaTemplate:
        from gptcli.text.jinja_template import JinjaTemplate  # takes 30 ms, which a plain prompt need not pay

        return JinjaTemplate(self.source)


def _guarded(messages: Sequence[Message], tokenizer: Tokenizer, *, beginnings: bool = False) -> list[dict[str, str]]:
    guard = tokenizer.control_tokens.guard
    return [{"role": message.role, "content": guard(message.content, beginnings=beginnings)} for message in messages]
