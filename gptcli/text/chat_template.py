"""Renders a conversation with a model's own Jinja template, in a sandbox. Knows nothing of models."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gptcli.errors import InputError, NoTemplate, TemplateError
from gptcli.files import open_regular, read_json
from gptcli.text.conversation import Message
from gptcli.text.tokenizer import Tokenizer

_LIMIT = 1 << 20  # bytes of a template


class ChatTemplate:
    """A model's chat template; `where` names it in errors."""

    def __init__(self, source: str, where: str) -> None:
        # Jinja takes 30 ms to import, which a plain prompt need not pay.
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.source = source
        self.where = where
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_blocks()]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        self._failure = jinja2.TemplateError
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"chat template: {where}: line {error.lineno}: {error.message}") from None

    @classmethod
    def of_model(cls, path: Path, tokenizer: Tokenizer) -> ChatTemplate:
        """The template that comes with a model: chat_template.jinja, or the one in its JSON files.

        Raises NoTemplate where there is none.
        """
        file = path / "chat_template.jinja"
        if file.exists():
            return cls.from_file(file)
        source, where = tokenizer.settings.get("chat_template"), path / "tokenizer_config.json"
        if source is None and (older := path / "chat_template.json").exists():
            source, where = read_json(older).get("chat_template"), older
        if isinstance(source, list):  # named templates, one of them the default
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        if not isinstance(source, str):
            raise NoTemplate(
                f"no chat template: {path}: this looks like a base model, not one for chats",
                hint="give one with --chat-template FILE, or continue raw text without --chat",
            )
        return cls(source, str(where))

    @classmethod
    def from_file(cls, file: Path) -> ChatTemplate:
        """A template from a file. Raises InputError where it cannot be read or is not text."""
        with open_regular(file) as stream:
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
        return "enable_thinking" in self.source

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
        guarded = [{"role": message.role, "content": tokenizer.guard(message.content)} for message in messages]
        try:
            return self._template.render(
                messages=guarded, add_generation_prompt=True, tools=None, **switches, **tokenizer.named_tokens
            )
        except self._failure as error:
            raise TemplateError(f"chat template: {self.where}: {error.message}") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise TemplateError(f"chat template: {self.where}: {error}") from None


def _generation_blocks() -> type[Any]:
    """An extension that accepts `{% generation %}` blocks, which mark the assistant's text for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationBlocks(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlocks


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which models have never seen.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
