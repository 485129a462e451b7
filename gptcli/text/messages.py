"""Messages of a conversation, and a conversation as JSON or Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def as_json(messages: Sequence[Message], about: Mapping[str, Any]) -> str:
    """A conversation as JSON: what it is about, such as the model, and its messages."""
    whole = {**about, "messages": [message_record(message) for message in messages]}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def as_markdown(messages: Sequence[Message], about: Mapping[str, Any]) -> str:
    """A conversation as Markdown: a list of what it is about; for each message a heading, and its text unchanged."""
    sections = ["".join(f"- {name}: {value}\n" for name, value in about.items())] if about else []
    for message in messages:
        heading = message.role.capitalize() + (" (interrupted)" if message.interrupted else "")
        sections.append(f"## {heading}\n\n{message.content.strip()}\n")
    return "\n".join(sections)


def code_blocks(text: str) -> str:
    """The contents of a Markdown text's fenced code blocks (CommonMark), with a blank line between two; or empty."""
    from markdown_it import MarkdownIt  # not needed to start

    blocks = MarkdownIt("commonmark", {"html": False}).disable("inline").parse(text)
    return "\n\n".join(block.content.removesuffix("\n") for block in blocks if block.type == "fence")
