"""Messages of a conversation, as chat APIs write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptcli.errors import UsageError
from gptcli.tools.definitions import ToolCall, checked_call

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip


class BadMessage(UsageError):
    """The field `name` of a message is unknown, unsupported or wrong."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Message:
    """A message. interrupted: whether Ctrl-C cut it off.

    calls: the assistant's calls of tools. call_id: of the call that a tool answers. name: of that tool.
    """

    role: Role
    content: str
    interrupted: bool = False
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


def message_record(message: Message) -> dict[str, Any]:
    """A message as chat APIs write it, with `"interrupted": true` if it was."""
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.interrupted:
        record["interrupted"] = True
    if message.calls:
        record["tool_calls"] = [call.record for call in message.calls]
    if message.role == "tool":
        record |= {"tool_call_id": message.call_id, "name": message.name}
    return record


def messages_of(value: object) -> list[Message]:
    """Reads messages as chat APIs write them. A tool's answer names a call before it. Raises BadMessage."""
    if not isinstance(value, list) or not value:
        raise BadMessage("messages", "messages must be a list of messages")
    messages, names = list[Message](), dict[str, str]()
    for number, turn in enumerate(value):
        message = _message(f"messages[{number}]", turn, names)
        names |= {call.id: call.name for call in message.calls}
        messages.append(message)
    return messages


def _message(where: str, turn: object, names: Mapping[str, str]) -> Message:
    role = _ROLES.get(str(turn.get("role"))) if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or role is None:
        raise BadMessage(where, f"{where} must have a role: {', '.join(_ROLES)}")
    # Templates drop the thoughts of earlier answers.
    known = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}.get(role, ())
    for name, value in turn.items():
        if name not in ("role", "content", *known) and value not in (None, []):
            raise BadMessage(f"{where}.{name}", f"unknown or unsupported: {where}.{name}")
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadMessage(f"{where}.tool_calls", f"{where}.tool_calls must be a list of calls")
    try:
        made = tuple(checked_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls))
    except UsageError as error:
        raise BadMessage(f"{where}.tool_calls", error.message) from None
    content = _content(where, "" if calls and turn.get("content") is None else turn.get("content"))
    if role != "tool":
        return Message(role, content, calls=made)
    id = turn.get("tool_call_id")
    if not isinstance(id, str) or id not in names:
        raise BadMessage(f"{where}.tool_call_id", f"{where}.tool_call_id must be the id of a call before it")
    return Message(role, content, call_id=id, name=names[id])


def _content(where: str, content: object) -> str:
    if isinstance(content, list):
        content = "".join(_part(where, part) for part in content)
    if not isinstance(content, str):
        raise BadMessage(f"{where}.content", f"{where}.content must be a text")
    return content


def _part(where: str, part: object) -> str:
    match part:
        case {"type": "text", "text": str(text), **rest} if not rest.keys() - {"cache_control"}:  # changes no text
            return text
    raise BadMessage(f"{where}.content", f"not supported: parts of {where}.content that are no text")


def code_blocks(text: str) -> str:
    """The contents of a Markdown text's fenced code blocks, with blank lines between them (CommonMark)."""
    from markdown_it import MarkdownIt  # not needed to start

    blocks = MarkdownIt("commonmark", {"html": False}).disable("inline").parse(text)
    return "\n\n".join(block.content.removesuffix("\n") for block in blocks if block.type == "fence")
