"""Renders a conversation with a model's own Jinja template, in a sandboxed process unless the template is trusted.

Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from gptcli.errors import InputError, NoTemplate, TemplateError, UsageError
from gptcli.files import is_there, read_json, read_within
from gptcli.text.messages import Message
from gptcli.text.sandbox.allowlist import TRUSTED_TEMPLATES
from gptcli.text.sandbox.client import SandboxClient, SandboxFailure
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import NONE, Definition, checked_choice
from gptcli.tools.thought_tags import OPENING

if TYPE_CHECKING:
    from gptcli.text.chat_templates.tool_call_style import CallStyle
    from gptcli.text.jinja_template import JinjaTemplate
    from gptcli.tools.formats import ToolUse

_FILE_LIMIT = 1 << 20  # bytes of a template
_VARIABLES = {"thinking": ("enable_thinking", "thinking"), "reasoning_effort": ("reasoning_effort",)}  # by switch
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_PROBE = "7193046582"  # digits, which filters such as `upper` leave alone


class Switches(TypedDict, total=False):
    """Variables of a template that callers set. None leaves one undefined.

    thinking: `enable_thinking` or `thinking`, whichever it reads. reasoning_effort: the variable of that name. tools:
    those that the model may call.
    """

    thinking: bool | None
    reasoning_effort: str | None
    tools: Sequence[Definition] | None


class ChatTemplate:
    """A model's chat template. where: names it in errors. with_tools: the template that renders if there are tools."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        self.with_tools: ChatTemplate | None = None
        self._style: CallStyle | None = None
        # An untrusted template may never end, or fill the memory.
        trusted = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest() in TRUSTED_TEMPLATES
        self._sandbox = None if trusted else SandboxClient("template", json.dumps(source).encode())

    @classmethod
    def of_model(cls, path: Path, tokenizer: Tokenizer, name: str | None = None) -> ChatTemplate:
        """A template of a model by its name; None: the default one.

        Raises NoTemplate if it is missing, TemplateError if it is not a text, and as `from_file`.
        """
        templates = _templates(path, tokenizer)
        if template := templates.get(name or _DEFAULT):
            if name is None:
                template.with_tools = templates.get(_WITH_TOOLS)
            return template
        if not templates:
            raise NoTemplate(
                f"no chat template: {path}: this looks like a base model, not one for chats",
                hint="give one with --chat-template FILE, or continue raw text without --chat",
            )
        missing = "none of its templates is the default one" if name is None else f"there is no template {name}"
        raise NoTemplate(
            f"no chat template: {path}: {missing}; there are: {', '.join(sorted(templates))}",
            hint="choose one with --chat-template NAME",
        )

    @classmethod
    def from_file(cls, file: Path) -> ChatTemplate:
        """A template from a file. Raises InputError if it cannot be read or is not UTF-8."""
        try:
            return cls(read_within(file, _FILE_LIMIT, InputError).decode("utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise InputError(f"cannot read: {file}: byte {error.start} is not UTF-8") from None

    @cached_property
    def missing_switches(self) -> frozenset[str]:
        """The names of the switches that the template does not read."""
        read = {name for name, variables in _VARIABLES.items() if any(_reads(self.source, each) for each in variables)}
        return frozenset(_VARIABLES.keys() - read)

    def check_switches(self, **switches: Unpack[Switches]) -> None:
        """Raises UsageError for a switch that is set and that the template does not read."""
        for name, value in switches.items():
            if value is not None and name in self.missing_switches:
                what = "thinking" if name == "thinking" else "the reasoning effort"
                raise UsageError(f"this model's chat template has no switch for {what}", setting=name)

    def tool_use(
        self, tools: Sequence[Definition], choice: object, tokenizer: Tokenizer, *, parallel: bool = True
    ) -> ToolUse | None:
        """How to find the calls in the text after a rendered conversation; None if nothing may be called.

        tools: as `checked_tools` returns them. choice: as `checked_choice` takes it. parallel: whether there may be
        several calls. Raises UsageError for another choice, and as `call_style` does.
        """
        choice = checked_choice(choice, tools)
        if choice == NONE or not tools:
            return None
        from gptcli.tools.formats import ToolUse

        return ToolUse(tuple(tools), choice, (self.with_tools or self)._call_style(tokenizer).format, parallel)

    def _call_style(self, tokenizer: Tokenizer) -> CallStyle:
        if self._style is None:
            from gptcli.text.chat_templates.tool_call_style import call_style  # takes 25 ms, and only tools need it

            def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Definition] | None) -> str:
                base = {"add_generation_prompt": True, "documents": None, **tokenizer.named_tokens}
                try:
                    return self._render({**base, "messages": messages, "tools": tools})
                except (TemplateError, SandboxFailure) as error:
                    raise TemplateError(f"chat template: {self.where}: {error}") from None

            self._style = call_style(render, tokenizer.control_tokens.ids.__contains__)
        return self._style

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer, **switches: Unpack[Switches]) -> list[int]:
        """Token ids of a conversation, up to the assistant's next turn.

        Only the template writes control tokens; those that messages spell are text. Raises TemplateError if the
        template fails or refuses the conversation.
        """
        return tokenizer.encode_rendered(self._text(messages, tokenizer, switches))

    def render_text(self, messages: Sequence[Message], tokenizer: Tokenizer, **switches: Unpack[Switches]) -> str:
        """The text whose ids `render` returns. Raises as it does."""
        return tokenizer.control_tokens.unguard(self._text(messages, tokenizer, switches))

    def _text(self, messages: Sequence[Message], tokenizer: Tokenizer, switches: Switches) -> str:
        if switches.get("tools") and self.with_tools is not None:
            return self.with_tools._text(messages, tokenizer, switches)
        given = {name: value for name, value in switches.items() if value is not None and name != "tools"}
        tools = switches.get("tools") or None
        said = self._messages(messages, tools, tokenizer)
        variables = {
            **_guarded(said, tools, tokenizer),
            "add_generation_prompt": True,
            "documents": None,
            **{variable: value for name, value in given.items() for variable in _VARIABLES[name]},
            **tokenizer.named_tokens,
        }
        try:
            variables, text, parts = self._with_last_question(variables)
            guarded = _guarded(said, tools, tokenizer, beginnings=True)
            if parts:
                guarded["messages"] = _in_parts(guarded["messages"])
            return self._without_forged_controls(text, variables, guarded, tokenizer)
        except (TemplateError, SandboxFailure) as error:
            raise TemplateError(f"chat template: {self.where}: {error}") from None

    def _messages(
        self, messages: Sequence[Message], tools: Sequence[Definition] | None, tokenizer: Tokenizer
    ) -> list[dict[str, Any]]:
        """Messages as the template takes them."""
        said = list[dict[str, Any]]()
        calls = tools or any(message.calls for message in messages)
        style = self._call_style(tokenizer) if calls else None
        for message in messages:
            taken: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.role == "tool":
                taken |= {"tool_call_id": message.call_id, "name": message.name}
            if message.role == "assistant" and style is not None:
                taken |= style.variables(message.content, message.calls)
            said.append(taken)
        return said

    def _without_forged_controls(
        self, text: str, variables: dict[str, Any], guarded: dict[str, Any], tokenizer: Tokenizer
    ) -> str:
        """A rendered chat in which no message makes a control token.

        A template that removes text from messages, such as `/no_think`, can make one of the rest. So the chat is
        rendered again with each possible beginning marked. That rendering is used only if its control tokens differ,
        because marks may mislead a template.
        """
        if all(variables[name] == value for name, value in guarded.items()):
            return text
        marked = self._render(variables | guarded)
        unmarked = tokenizer.control_tokens.unmarked
        return text if unmarked(marked) == unmarked(text) else marked

    def _with_last_question(self, variables: dict[str, Any]) -> tuple[dict[str, Any], str, bool]:
        """A rendered chat with the last message in it: variables, text, and whether messages are lists of parts.

        A template that expects parts, for texts and images, silently drops a plain text. Raises TemplateError.
        """
        text = self._render(variables)
        if text.strip() and self._includes_last_question(variables, text):
            return variables, text, False
        in_parts = variables | {"messages": _in_parts(variables["messages"])}
        try:
            of_parts = self._render(in_parts)
        except (TemplateError, SandboxFailure):  # takes no parts, either
            of_parts = ""
        if of_parts.strip() and self._includes_last_question(in_parts, of_parts):
            return in_parts, of_parts, True
        if not text.strip():
            raise TemplateError("it makes nothing of the conversation")
        answers = variables["messages"][-1]["role"] == "tool"
        raise TemplateError(f"it leaves out what {'a tool answers' if answers else 'the user says'}")

    def _includes_last_question(self, variables: dict[str, Any], text: str) -> bool:
        """Whether a rendered chat includes the last message of a user or tool, in whatever form."""
        match variables["messages"]:
            case [*before, {"role": "user" | "tool", "content": str(said)} as last]:
                probed = variables | {"messages": [*before, {**last, "content": _PROBE}]}
                return said.strip() in text or _PROBE in self._render(probed)
            case [*before, {"role": "user" | "tool", "content": list()} as last]:
                parts = [{"type": "text", "text": _PROBE}]
                probe = self._render(variables | {"messages": [*before, {**last, "content": parts}]})
                return _PROBE in probe and str(parts[0]) not in probe  # Python's repr of the list
        return True

    def _render(self, variables: dict[str, Any]) -> str:
        return self._template.render(variables) if self._sandbox is None else str(self._sandbox.ask(variables))

    @cached_property
    def _template(self) -> JinjaTemplate:
        from gptcli.text.jinja_template import JinjaTemplate  # takes 30 ms, and plain prompts do without

        return JinjaTemplate(self.source)


def _in_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose texts are lists of one part each."""
    return [
        {**message, "content": [{"type": "text", "text": content}]}
        if isinstance(content := message["content"], str)
        else dict(message)
        for message in messages
    ]


def _guarded(
    said: Sequence[Mapping[str, Any]],
    tools: Sequence[Definition] | None,
    tokenizer: Tokenizer,
    *,
    beginnings: bool = False,
) -> dict[str, Any]:
    """The variables `messages` and `tools` with guarded texts; see `ControlTokens.guard`.

    Texts that templates compare stay as they are: roles, kinds, ids, and names within tools.
    """
    guard = tokenizer.control_tokens.guard

    def guarded(value: Any, beginnings: bool) -> Any:
        match value:
            case str():
                return guard(value, beginnings=beginnings)
            case list() | tuple():
                return [guarded(each, beginnings) for each in value]
            case Mapping():
                return {guard(name): guarded(each, beginnings) for name, each in value.items()}
        return value

    def guarded_call(call: Mapping[str, Any]) -> dict[str, Any]:
        return {**call, "function": guarded(call["function"], beginnings)}

    messages = []
    for message in said:
        made = {**message, "content": guarded(message["content"], beginnings)}
        if calls := message.get("tool_calls"):
            made["tool_calls"] = list(map(guarded_call, calls))
        messages.append(made)
    return {"messages": messages, "tools": None if tools is None else guarded(tools, False)}


def _templates(path: Path, tokenizer: Tokenizer) -> dict[str, ChatTemplate]:
    """A model's templates by name. As in transformers, Jinja files replace those in JSON files."""
    files = {file.stem: file for file in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if is_there(file := path / "chat_template.jinja"):
        files[_DEFAULT] = file
    if files:
        return {name: ChatTemplate.from_file(file) for name, file in files.items()}
    source = tokenizer.settings.get("chat_template")
    where = path if path.is_file() else path / "tokenizer_config.json"  # a GGUF file has its own
    if source is None and is_there(older := path / "chat_template.json"):
        source, where = read_json(older).get("chat_template"), older
    match source:
        case None:
            named = {}
        case list() if all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in source):
            named = {str(entry["name"]): entry["template"] for entry in source}
        case dict():
            named = source
        case _:
            named = {_DEFAULT: source}
    for template in named.values():
        if not isinstance(template, str):
            raise TemplateError(f"chat template: {where}: chat_template must be text, not {str(template)[:40]!r}")
    return {name: ChatTemplate(template, str(where)) for name, template in named.items()}


_CODE = re.compile(r"{#.*?#}|{[{%][-+]?(.*?)[-+]?[%}]}", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def _reads(source: str, variable: str) -> bool:
    """Whether a template reads a variable before it sets one of that name."""
    read = re.compile(rf"(?<![\w.]){variable}\b(?!\s*=(?!=))")
    for tag in _CODE.finditer(source):
        code = _QUOTED.sub("''", tag.group(1) or "").strip()
        made = re.match(rf"(set|for)\s+{variable}\b|macro\b[^(]*\(.*?\b{variable}\b", code)
        if read.search(code, made.end() if made else 0):
            return True
        if made:
            return False
    return False


def prompt_opens_thoughts(prompt: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends with the tag that opens thoughts, so that the answer begins inside them."""
    return b"".join(map(tokenizer.token_bytes, prompt[-8:])).rstrip().endswith(OPENING.encode())
