"""Adds up a session's events. Knows nothing of models.

An event is a JSON object: a message, a setting, a truncation. The same events in the same order give the same
conversation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gptcli.errors import UsageError
from gptcli.settings import ChatSettings
from gptcli.text.messages import Message, Role
from gptcli.tools.definitions import ToolCall, checked_call

FORMAT_VERSION = 1

Record = Mapping[str, Any]


class History:
    """A conversation as its events left it.

    turns: the events of questions and of the assistant's messages, alternating. A question is a message of the user, or
    the answers of the tools that the assistant called, as one event. unanswered: the last question, if it was taken
    back or its reply was lost. replies: how many there were, including those taken back. seeded: how
    many of them when the seed was set.
    """

    def __init__(self) -> None:
        self.system: str | None = None
        self.settings = ChatSettings()
        self.turns: list[Record] = []
        self.unanswered: Record | None = None
        self.replies = 0
        self.seeded = 0
        self._replaced: list[Record] = []  # the turn that the open question replaces

    @property
    def asks(self) -> bool:
        """Whether the last message is a question without a reply."""
        return len(self.turns) % 2 == 1

    @property
    def hidden(self) -> int:
        """The number of messages that the model did not see for its last reply."""
        replies = self.turns[1::2]
        return replies[-1]["hidden"] if replies else 0

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the last message."""
        return _calls(self.turns[-1]) if self.turns and not self.asks else ()

    def messages(self, hidden: int = 0) -> list[Message]:
        """The system message, if there is one, and all messages after the first `hidden` events."""
        messages = [] if self.system is None else [Message("system", self.system)]
        calls: tuple[ToolCall, ...] = ()
        for event in self.turns[hidden:]:
            if event["role"] == "tool":
                answers = zip(calls, event["content"], strict=True)
                messages += [Message("tool", text, call_id=call.id, name=call.name) for call, text in answers]
            else:
                calls = _calls(event)
                messages.append(Message(event["role"], event["content"], bool(event.get("interrupted")), calls))
        return messages

    def apply(self, event: Record) -> None:
        """Checks and applies an event. Raises KeyError, TypeError, ValueError or UsageError for a bad one."""
        match event["type"]:
            case "session":
                if event["version"] != FORMAT_VERSION:
                    raise ValueError(f"version {event['version']} is not known; it was written by another gptcli")
            case "system":
                self.system = None if event["content"] is None else _text(event["content"])
            case "settings":
                _text(json.dumps(event["settings"], ensure_ascii=False))
                self.settings = ChatSettings.from_record(event["settings"])
                if event.get("seeds"):
                    self.seeded = self.replies
            case "message":
                self._check_message(event)
                self.add_message(event)
            case "truncate":
                if event["messages"] not in range(len(self.turns) + 1):
                    raise ValueError(f"there are no {event['messages']} messages to keep")
                self.truncate(event["messages"])
            case unknown:
                raise ValueError(f"there is no event {unknown!r}")

    def add_message(self, event: Record) -> None:
        """Adds a message unchecked. A question with `instead` takes the last turn away until its reply comes."""
        if self.asks:
            self.replies += 1
            self._replaced = []
        elif event.get("instead"):
            self.turns, self._replaced = self.turns[:-2], self.turns[-2:]
        self.turns.append(event)
        self.unanswered = None

    def truncate(self, messages: int) -> None:
        """Keeps this many messages, unchecked. The turn that an unanswered question replaced comes back."""
        taken_back = self.turns[messages:]
        self.unanswered = taken_back[0] if len(taken_back) == 1 else None
        self.turns[messages:] = self._replaced
        self._replaced = []

    def _check_message(self, event: Record) -> None:
        role: Role = "assistant" if self.asks else "user"
        if event["role"] == "tool" and not self.asks:
            asking = self.turns[:-2] if event.get("instead") else self.turns
            calls = _calls(asking[-1]) if asking else ()
            if isinstance(event["content"], str) or len(event["content"]) != len(calls):
                raise ValueError(f"answers to {len(calls)} calls were expected")
            for content in event["content"]:
                _text(content)
        elif event["role"] != role:
            raise ValueError(f"a message of the {role} was expected")
        else:
            _text(event["content"])
            _calls(event)
        hidden = event["hidden"] if self.asks else 0
        if type(hidden) is not int or hidden not in range(0, len(self.turns) + 1, 2):
            raise ValueError(f"{hidden} hidden messages are none that there could be")
        if role == "user" and event.get("instead") and not self.turns:
            raise ValueError("there is nothing in whose place it could be asked")


def question_text(event: Record) -> str:
    """The text of a question, or of tools' answers, for a person to read."""
    content: str | list[str] = event["content"]
    return content if isinstance(content, str) else "\n".join(content)


def _calls(event: Record) -> tuple[ToolCall, ...]:
    """The calls of a message. Raises UsageError if they are none."""
    return tuple(checked_call(call, "tool_calls") for call in event.get("tool_calls", ()))


def _text(content: Any) -> str:
    """The text of a message. Raises TypeError for another type and UsageError for lone surrogates."""
    if not isinstance(content, str):
        raise TypeError("a message must be a text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a message must be a text, which has no lone surrogates: character {error.start}") from None
    return content
