"""Which tokens of a rendered conversation belong to which message. Knows a template only by what it renders."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence

from gptcli.text.chat_template import ChatTemplate
from gptcli.text.messages import Message
from gptcli.text.token_spans import Token, tokens_of_chat
from gptcli.text.tokenizer import Tokenizer


def transcript(messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of a conversation as the model gets it, up to where the assistant speaks next.

    What a template writes between two messages belongs to the first up to its control token, to the second from there
    on. What it writes of its own accord, and a message that cannot be found again, belongs to none.
    """
    tokens = list(tokens_of_chat(tokenizer, template.render(messages, tokenizer)))
    text = b"".join(token.data for token in tokens)
    contents = _contents(messages, template, tokenizer, text)
    starts = [_first(tokens, (token.end > start for token in tokens)) for start, _ in contents]
    ends = [_first(tokens, (token.start >= end for token in tokens)) for _, end in contents]
    owned: list[Token] = []
    limits = [*starts[1:], len(tokens)][: len(starts)]
    for number, (start, end, limit) in enumerate(zip(starts, ends, limits, strict=True)):
        closing = next((token for token in tokens[end:limit] if token.special), None)
        header = _behind(tokens[len(owned) : start], closing) + len(owned)
        owned += tokens[len(owned) : header]
        if closing is not None:
            end = _past_whitespace(tokens, closing.number + 1)
        elif limit < len(tokens):
            end = limit
        role = messages[number].role
        owned += [token._replace(message=number, role=role) for token in tokens[header:end]]
    return owned + tokens[len(owned) :]


def _first(tokens: Sequence[Token], fits: Iterable[bool]) -> int:
    return next((number for number, fit in enumerate(fits) if fit), len(tokens))


def _behind(tokens: Sequence[Token], closing: Token | None) -> int:
    """Where a turn begins in what is before it: behind the last token that closes turns, if there is one."""
    if closing is None:
        return 0
    last = max((index for index, token in enumerate(tokens) if token.id == closing.id), default=None)
    return 0 if last is None else _past_whitespace(tokens, last + 1)


def _past_whitespace(tokens: Sequence[Token], at: int) -> int:
    while at < len(tokens) and not tokens[at].special and tokens[at].data.isspace():
        at += 1
    return at


def _contents(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, text: bytes
) -> list[tuple[int, int]]:
    """Where each message's content is in the rendered text: between what the template writes around other contents."""
    marks = [f"x{secrets.token_hex(8)}x" for _ in messages]
    others = [Message(message.role, mark) for message, mark in zip(messages, marks, strict=True)]
    around = tokenizer.decode(template.render(others, tokenizer))
    found: list[tuple[int, int]] = []
    at = 0
    for message, mark in zip(messages, marks, strict=True):
        before, seen, around = around.partition(mark.encode())
        if not seen or not text.startswith(before, at):
            return found
        at += len(before)
        content = message.content.encode("utf-8", "replace")
        for spelled in (content, content.strip()):
            if text.startswith(spelled, at):
                found.append((at, at + len(spelled)))
                at += len(spelled)
                break
        else:
            return found
    return found
