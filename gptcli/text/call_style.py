"""How a chat template writes calls of tools, found by rendering a probe: no template says so itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.errors import TemplateError, UsageError
from gptcli.tools.definitions import AUTO, Definition, ToolCall
from gptcli.tools.formats import FORMATS, HARMONY, CallFormat, ToolUse
from gptcli.tools.splitter import splitter_of
from gptcli.tools.syntaxes import Pythonic
from gptcli.tools.thought_tags import CLOSING, OPENING

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Definition] | None], str]

_QUESTION, _ANSWER = "a7193046582", "b7193046582"
_CALL = ToolCall("c71930465", "probe_tool", {"text": "a b", "number": 7})
_TOOL: Definition = {
    "type": "function",
    "function": {
        "name": _CALL.name,
        "description": "Probes.",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "A text."},
                "number": {"type": "integer", "description": "A number."},
            },
            "required": ["text"],
        },
    },
}
_USER = {"role": "user", "content": _QUESTION}
_SYSTEM = {"role": "system", "content": "Be brief."}


@dataclass(frozen=True)
class CallStyle:
    """How a template writes calls.

    written: whether it writes them at all; else it gets them as text. text_arguments: whether it takes a call's
    arguments as JSON text.
    """

    format: CallFormat
    written: bool = True
    text_arguments: bool = False

    def variables(self, content: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
        """The template's variables for an assistant's message. Calls that it would leave out become text."""
        variables: dict[str, Any] = {"content": content}
        if self.format is HARMONY and content.startswith(OPENING) and CLOSING in content:
            thoughts, _, answer = content.removeprefix(OPENING).partition(CLOSING)
            # The template takes thoughts with calls, and drops them with an answer.
            variables = {"content": "", "thinking": thoughts} if calls else {"content": answer.lstrip("\n")}
        if calls and not self.written:
            variables["content"] = f"{content}\n{self.format.write(calls)}".strip()
        elif calls:
            variables["tool_calls"] = [call.record if self.text_arguments else call.variables for call in calls]
        return variables


def call_style(render: Render, is_token: Callable[[str], bool]) -> CallStyle:
    """The style of a template, found by rendering a tool, a call and its answer.

    render: returns the text of messages and tools, or raises TemplateError. is_token: whether the tokenizer has a
    control token of this name. Raises UsageError if the template takes no tools, or writes calls in an unknown format.
    """
    instructions = _instructions(render)
    marked = [format for format in FORMATS if format.opening and format.opening in instructions]
    turns = [_rendered_call(render, text_arguments) for text_arguments in (False, True)]
    for text_arguments, turn in enumerate(turns):
        found = [format for format in FORMATS if _reads(format, turn)]
        if not found:
            continue
        if found[0].beginning and marked:  # the call is written without its mark
            found = marked
        own = [format for format in found if _blank_free(format.write([_CALL])) in _blank_free(turn)]
        return CallStyle((own or found)[0], text_arguments=bool(text_arguments))
    if not any(_CALL.name in turn for turn in turns):
        marked += [format for format in FORMATS if format.opening and is_token(format.opening)]
        if marked:
            return CallStyle(marked[0], written=False)
    raise UsageError(
        "it is not known how this chat template's calls are written",
        hint="--chat-template gives another one",
        setting="tools",
    )


def _instructions(render: Render) -> str:
    """The rendered text of a tool. Raises UsageError if the template leaves it out, TemplateError if it fails."""
    failures = list[TemplateError]()
    for messages in ([_USER], [_SYSTEM, _USER]):
        try:
            text = render(messages, [_TOOL])
        except TemplateError as error:
            failures.append(error)
            continue
        if _CALL.name in text:
            return text
    if len(failures) == 2:
        raise failures[0]
    raise UsageError(
        "this model's chat template takes no tools",
        hint="--chat-template gives another one; the model itself must have learned to call",
        setting="tools",
    )


def _rendered_call(render: Render, text_arguments: bool) -> str:
    """An assistant's turn with a call, up to the answer of the tool; empty if the template fails."""
    calls = [_CALL.record if text_arguments else _CALL.variables]
    messages: list[dict[str, Any]] = [
        _USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": _ANSWER, "tool_call_id": _CALL.id, "name": _CALL.name},
    ]
    plain = [_USER, {"role": "assistant", "content": _ANSWER}, _USER]
    for end in (3, 2):  # some templates take no answers of tools
        try:
            turn, other = render(messages[:end], [_TOOL]), render(plain[:end], [_TOOL])
        except TemplateError:
            continue
        header = other.rpartition(_ANSWER)[0].rpartition(_QUESTION)[2]
        turn = (turn.rpartition(_ANSWER)[0] or turn).rpartition(_QUESTION)[2]
        written = re.match("".join(rf"\s*{re.escape(letter)}" for letter in _blank_free(header)), turn)
        return turn[written.end() :] if written else turn
    return ""


def _reads(format: CallFormat, turn: str) -> bool:
    """Whether a format reads the call back from a rendered turn.

    For Python's calls the beginning suffices: most templates write values that Python would not read.
    """
    if isinstance(format.syntax, Pythonic) and format.beginning:
        return turn.lstrip().startswith(f"[{_CALL.name}(")
    if format.closing:
        splitter = splitter_of(ToolUse((_TOOL,), AUTO, format))
        splitter.push(turn)
        splitter.flush(ended=True)
        return [(call.name, call.arguments) for call in splitter.calls] == [(_CALL.name, _CALL.arguments)]
    start = 0 if format.beginning else turn.find(format.opening) + len(format.opening)
    if format.opening not in turn:
        return False
    for end in re.finditer(r"[\])}]", turn[start:]):
        try:
            written = format.read(turn[start : start + end.end()], (_TOOL,))
        except ValueError:
            continue
        if [call[:2] for call in written] == [(_CALL.name, _CALL.arguments)]:
            return True
    return False


def _blank_free(text: str) -> str:
    return re.sub(r"\s", "", text)
