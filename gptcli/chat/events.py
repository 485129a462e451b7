"""What a session's events add up to. Knows nothing of models, and so nothing of what a reply costs.

An event is a plain record that JSON can spell: a message, a setting, a truncation. Applying them one by one again gives
the same conversation again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptcli.errors import UsageError
from gptcli.settings import ChatSettings
from gptcli.text.messages import Message, Role

FORMAT_VERSION = 1

Record = Mapping[str, Any]


class History:
    """A conversation as its events left it.

    turns: the events of the user's and the assistant's messages, in turn. unanswered: the last question, if it was
    taken back or its reply was lost. replies: how many there ever were, those taken back too.
    """

    def __init__(self) -> None:
        self.system: str | None = None
        self.settings = ChatSettings()
        self.turns: list[Record] = []
        self.unanswered: Record | None = None
        self.replies = 0
        self._replaced: list[Record] = []  # the turn in whose place the last question was asked

    @property
    def asks(self) -> bool:
        """Whether the last message is a question, whose reply is still to come."""
        return len(self.turns) % 2 == 1

    @property
    def hidden(self) -> int:
        """How many of the messages the model did not see when it spoke last."""
        replies = self.turns[1::2]
        return replies[-1]["hidden"] if replies else 0

    def messages(self, hidden: int = 0) -> list[Message]:
        """The system message, if there is one, and all others but the first `hidden`."""
        head = [] if self.system is None else [Message("system", self.system)]
        return head + [
            Message(event["role"], event["content"], bool(event.get("interrupted"))) for event in self.turns[hidden:]
        ]

    def apply(self, event: Record) -> None:
        """Does what an event says. Raises KeyError, TypeError, ValueError or UsageError for what is none."""
        match event["type"]:
            case "session":
                if event["version"] != FORMAT_VERSION:
                    raise ValueError(f"version {event['version']} is not known; it was written by another gptcli")
            case "system":
                self.system = None if event["content"] is None else _text(event["content"])
            case "settings":
                self.settings = ChatSettings.from_record(event["settings"])
            case "message":
                role: Role = "assistant" if self.asks else "user"
                if event["role"] != role:
                    raise ValueError(f"a message of the {role} was expected")
                _text(event["content"])
                if role == "assistant":
                    if event["hidden"] not in range(0, len(self.turns), 2):
                        raise ValueError(f"{event['hidden']} hidden messages are none that there could be")
                    self.replies += 1
                    self._replaced = []
                elif event.get("instead"):
                    if not self.turns:
                        raise ValueError("there is nothing in whose place it could be asked")
                    self.turns, self._replaced = self.turns[:-2], self.turns[-2:]
                self.turns.append(event)
                self.unanswered = None
            case "truncate":
                if event["messages"] not in range(len(self.turns) + 1):
                    raise ValueError(f"there are no {event['messages']} messages to keep")
                taken_back = self.turns[event["messages"] :]
                self.unanswered = taken_back[0] if len(taken_back) == 1 else None
                self.turns[event["messages"] :] = self._replaced
                self._replaced = []
            case unknown:
                raise ValueError(f"there is no event {unknown!r}")


def _text(content: Any) -> str:
    """What may be said. Raises TypeError and UsageError for what may not."""
    if not isinstance(content, str):
        raise TypeError("a message must be a text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"a message must be a text, which has no lone surrogates: character {error.start}") from None
    return content
