"""What a model learns from: texts, prompts with completions, conversations; and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.errors import InputError
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.chat_tokens import transcript
from gptcli.text.long_text.chunks import encode_chunks
from gptcli.text.messages import Message
from gptcli.text.tokenizer import Tokenizer

_PIECE = 1 << 24  # characters without a place to cut that are encoded at once
_NO_CALLS = "calls of tools cannot be learned, nor what tools answer"


@dataclass(frozen=True)
class Text:
    """A text that comes in blocks; every token of it is learned. Texts are packed, several in a sequence."""

    blocks: Iterable[str]
    where: str


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt, and what the model is to answer: only that is learned."""

    prompt: str
    completion: str
    where: str


@dataclass(frozen=True)
class Conversation:
    """Messages. What the assistant says is learned."""

    messages: tuple[Message, ...]
    where: str


Document = Text | PromptCompletion | Conversation
Tokens = tuple[list[int], list[bool]]  # ids, and which of them are learned


def document_of(fields: Mapping[str, Any], where: str) -> Document:
    """The document that a line of JSON, or a row of CSV, holds. Raises InputError for anything else."""
    match fields:
        case {"messages": list(), "tools": [_, *_]}:
            raise InputError(f"{where}: {_NO_CALLS}")
        case {"messages": list(messages)} if messages:
            conversation = Conversation(tuple(_message(each, where) for each in messages), where)
            if not any(message.role == "assistant" for message in conversation.messages):
                raise InputError(f"{where}: the assistant says nothing in these messages, so there is nothing to learn")
            return conversation
        case {"prompt": str(prompt), "completion": str(completion)} if completion:
            return PromptCompletion(prompt, completion, where)
        case {"text": str(text)}:
            return Text((text,), where)
    has = ", ".join(fields)[:200] or "nothing"
    raise InputError(f"{where}: neither `text`, nor `prompt` and `completion`, nor `messages`: it has {has}")


def _message(fields: Any, where: str) -> Message:
    match fields:
        case {"role": "tool"} | {"tool_calls": [_, *_]}:
            raise InputError(f"{where}: {_NO_CALLS}")
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return Message(role, content)
    raise InputError(f"{where}: a message must have a role, of system, user, assistant, and a text as its content")


def text_tokens(text: Text, tokenizer: Tokenizer, end: Sequence[int]) -> Iterator[list[int]]:
    """The ids of a text in pieces, with what the tokenizer puts before a text, and `end` after it."""
    yield list(tokenizer.surroundings[0])
    for chunk in encode_chunks(tokenizer, text.blocks, special=False, largest=_PIECE, where=text.where):
        yield chunk.ids
    yield list(tokenizer.surroundings[1] or end)


def example_tokens(
    document: PromptCompletion | Conversation, tokenizer: Tokenizer, template: ChatTemplate | None, end: Sequence[int]
) -> Tokens:
    """The ids of an example, and which are learned. Raises InputError, and TemplateError where the template fails."""
    if isinstance(document, PromptCompletion):
        before, after = tokenizer.surroundings
        prompt = [*before, *tokenizer.encode(document.prompt, add_special=False)]
        completion = [*tokenizer.encode(document.completion, add_special=False), *(after or end)]
        return prompt + completion, [False] * len(prompt) + [True] * len(completion)
    if template is None:
        raise InputError(f"{document.where}: the model has no chat template for these messages")
    return _conversation_tokens(document, tokenizer, template)


def _conversation_tokens(conversation: Conversation, tokenizer: Tokenizer, template: ChatTemplate) -> Tokens:
    """Learned of a turn of the assistant's: from where the model begins to speak to the token that ends the turn."""
    messages = conversation.messages
    tokens = transcript(messages, template, tokenizer)
    ids = [token.id for token in tokens]
    learned = [False] * len(ids)
    last = 0
    for index, message in enumerate(messages):
        own = [token for token in tokens if token.message == index]
        last = max([last, *(token.position + 1 for token in own)])
        if message.role != "assistant":
            continue
        if not own:
            raise InputError(f"{conversation.where}: the chat template hides what the assistant says")
        # The model speaks after what the template renders of the messages before. Some templates shorten earlier turns.
        before = template.render(messages[:index], tokenizer) if index else []
        start = len(before) if ids[: len(before)] == before else own[0].position
        closing = max((token.position for token in own if token.special), default=own[-1].position)
        for position in range(start, closing + 1):
            learned[position] = True
    return ids[:last], learned[:last]
