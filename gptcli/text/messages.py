"""Messages of a conversation, and a conversation as JSON or Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """What one side said. interrupted: whether it was cut off."""

    role: Role
    content: str
    interrupted: bool = False


def message_record(message: Message) -> dict[str, Any]:
    """A message as chat APIs have it, `{"role", "content"}`, with `"interrupted": true` if it was."""
    record: dict[str, Any] = {"role": message.role, "content": message.content}
    return record | {"interrupted": True} if message.interrupted else record


def as_json(messages: Sequence[Message]) -> str:
    """A conversation as a JSON list of messages."""
    return json.dumps([message_record(message) for message in messages], ensure_ascii=False, indent=2) + "\n"


def as_markdown(messages: Sequence[Message]) -> str:
    """A conversation as Markdown: for each message a heading, and its text unchanged."""
    sections = []
    for message in messages:
        heading = message.role.capitalize() + (" (interrupted)" if message.interrupted else "")
        sections.append(f"## {heading}\n\n{message.content.strip()}\n")
    return "\n".join(sections)
