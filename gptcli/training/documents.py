"""Training data: texts, prompts with completions, conversations; and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.errors import InputError
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.chat_templates.chat_tokens import transcript
from gptcli.text.long_text.chunks import encode_chunks
from gptcli.text.messages import BadMessage, Message, messages_of
from gptcli.text.tokenizer import Tokenizer

_PIECE = 1 << 24  # most characters encoded at once where a text cannot be cut
_NO_TOOLS: tuple[Any, ...] = (None, "", "[]", "null", [], {})
_NO_CALLS = "calls of tools cannot be learned, nor what tools answer"


@dataclass(frozen=True)
class Text:
    """A text in blocks, learned whole. Several texts may share a sequence."""

    blocks: Iterable[str]
    where: str


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and the model's answer; only the answer is learned."""

    prompt: str
    completion: str
    where: str


@dataclass(frozen=True)
class Conversation:
    """Messages. The assistant's are learned, from index `first` on."""

    messages: tuple[Message, ...]
    where: str
    first: int = 0


Document = Text | PromptCompletion | Conversation
Tokens = tuple[list[int], list[bool]]  # ids, and which of them are learned


# Names of fields for a question, its context, and its answer.
_ANSWERED = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", None, "response"),
    ("question", None, "answer"),
)
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
_LEARNED = ("weight", "loss", "train")  # a turn's fields that tell whether it is learned


def document_of(fields: Mapping[str, Any], where: str) -> tuple[Document, frozenset[str]]:
    """The document of a line of JSON or a row of CSV, and the fields that it was made from.

    Raises InputError for anything else.
    """
    if any(fields.get(name) not in _NO_TOOLS for name in ("tools", "functions")):
        raise InputError(f"{where}: {_NO_CALLS}")
    match fields:
        case {"messages": list(messages)}:
            return _conversation(messages, where), frozenset({"messages", "tools"})
        case {"conversations": list(turns)}:
            said = [_said(turn, where) for turn in turns]
            return _conversation(_after_system(fields, said), where), frozenset({"conversations", "system", "tools"})
        case {"prompt": list(asked), "completion": list(answered)}:
            whole = _conversation([*asked, *answered], where)
            return Conversation(whole.messages, where, len(asked)), frozenset({"prompt", "completion"})
        case {"prompt": str(prompt), "completion": str(completion)} if completion:
            return PromptCompletion(prompt, completion, where), frozenset({"prompt", "completion"})
        case {"text": str(text)}:
            return Text((text,), where), frozenset({"text"})
    for question, about, answer in _ANSWERED:
        match fields.get(question), fields.get(about or "") or "", fields.get(answer):
            case str(task), str(context), str(reply) if reply:
                said = [_message("user", f"{task}\n\n{context}" if context else task), _message("assistant", reply)]
                read = frozenset({question, answer, "system"} | ({about} if about else set()))
                return _conversation(_after_system(fields, said), where), read
    for names in (("text",), ("prompt", "completion"), *((question, answer) for question, _, answer in _ANSWERED)):
        if fields.keys() >= set(names):
            wrong = next((name for name in names if not isinstance(fields[name], str)), names[-1])
            raise InputError(f"{where}: its {wrong} is empty, or no text")
    has = ", ".join(fields)[:200] or "nothing"
    known = ["text", "messages", "conversations", "prompt and completion", *(f"{q} and {a}" for q, _, a in _ANSWERED)]
    raise InputError(f"{where}: it has {has}", f"what can be learned is called {', '.join(known)}")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _said(turn: Any, where: str) -> dict[str, Any]:
    """A message from ShareGPT's form of a turn; a turn that is a message already is returned."""
    match turn:
        case {"from": str(speaker), "value": str(value)}:
            refused = {name: turn[name] for name in _LEARNED if turn.get(name) == 0}
            return _message(_SPEAKERS.get(speaker, speaker), value) | refused
        case {"role": _, "content": _}:
            return dict(turn)
    raise InputError(f"{where}: a turn of conversations must have a `from` and a `value`, or a `role` and a `content`")


def _after_system(fields: Mapping[str, Any], messages: Sequence[Any]) -> list[Any]:
    system = fields.get("system")
    return [_message("system", system), *messages] if isinstance(system, str) and system else list(messages)


def _conversation(messages: Sequence[Any], where: str) -> Conversation:
    for each in messages:
        if isinstance(each, dict) and (each.get("role") == "tool" or each.get("tool_calls")):
            raise InputError(f"{where}: {_NO_CALLS}")
        if isinstance(each, dict) and each.get("reasoning_content"):
            raise InputError(f"{where}: thoughts (reasoning_content) cannot be learned")
    try:
        conversation = Conversation(tuple(messages_of(list(messages))), where)
    except BadMessage as error:
        raise InputError(f"{where}: {error.message}", error.hint) from None
    if not any(message.role == "assistant" for message in conversation.messages):
        raise InputError(f"{where}: the assistant says nothing in these messages, so there is nothing to learn")
    return conversation


def text_tokens(text: Text, tokenizer: Tokenizer, end: Sequence[int]) -> Iterator[list[int]]:
    """The ids of a text, in pieces, between the tokenizer's first and last tokens of texts; `end` if it has no last."""
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
    """The ids, and which are learned: in the assistant's turns, those from the first generated to the turn's end."""
    messages = conversation.messages
    tokens = transcript(messages, template, tokenizer)
    ids = [token.id for token in tokens]
    learned = [False] * len(ids)
    last = 0
    for index, message in enumerate(messages):
        own = [token for token in tokens if token.message == index]
        last = max([last, *(token.position + 1 for token in own)])
        if message.role != "assistant" or index < conversation.first:
            continue
        if not own:
            raise InputError(f"{conversation.where}: the chat template hides what the assistant says")
        # Generation starts after the rendered earlier messages, unless the template now renders those differently.
        before = template.render(messages[:index], tokenizer) if index else []
        start = len(before) if ids[: len(before)] == before else own[0].position
        closing = max((token.position for token in own if token.special), default=own[-1].position)
        for position in range(start, closing + 1):
            learned[position] = True
    return ids[:last], learned[:last]
