"""The tokens of a rendered conversation, each with its message. Knows only a template's output."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.located_tokens import Token
from gptcli.text.messages import Message
from gptcli.text.tokenizer import Tokenizer


def transcript(messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of a conversation as the model gets it, up to the assistant's next turn.

    Text that a template writes between two messages belongs to the first up to its control token, then to the second.
    Text elsewhere, and a message that is not found in the rendered text, belongs to none.
    """
    tokens = list(_tokens_of_rendered(tokenizer, template.render(messages, tokenizer)))
    text = b"".join(token.data for token in tokens)
    contents = _contents(messages, template, tokenizer, text)
    starts = [_first(tokens, (token.end > start for token in tokens)) for start, _ in contents]
    ends = [_first(tokens, (token.start >= end for token in tokens)) for _, end in contents]
    owned: list[Token] = []
    limits = [*starts[1:], len(tokens)][: len(starts)]
    for number, (start, end, limit) in enumerate(zip(starts, ends, limits, strict=True)):
        closing = next((token for token in tokens[end:limit] if token.special), None)
        header = len(owned) + _after_last(closing, tokens[len(owned) : start])
        owned += tokens[len(owned) : header]
        if closing is not None:
            end = _skip_whitespace(tokens, closing.position + 1)
        elif limit < len(tokens):
            end = limit
        role = messages[number].role
        owned += [token._replace(message=number, role=role) for token in tokens[header:end]]
    return owned + tokens[len(owned) :]


def _tokens_of_rendered(tokenizer: Tokenizer, ids: Sequence[int]) -> Iterator[Token]:
    """Tokens located in the text that they spell. A byte that continues a character counts as that character."""
    pieces = list(map(tokenizer.surface, ids))
    chars = 0  # begun so far
    for position, (id, piece, end) in enumerate(zip(ids, pieces, accumulate(map(len, pieces)), strict=True)):
        continues = bool(piece) and _is_continuation(piece[0]) and chars > 0
        first = chars - continues
        chars += sum(not _is_continuation(byte) for byte in piece)
        yield Token(position, id, piece, end - len(piece), end, first, chars, tokenizer.is_control(id), in_chat=True)


def _is_continuation(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _first(tokens: Sequence[Token], fits: Iterable[bool]) -> int:
    return next((position for position, fit in enumerate(fits) if fit), len(tokens))


def _after_last(closing: Token | None, tokens: Sequence[Token]) -> int:
    """The index of the next turn among tokens: after the last with the closing token's id, or 0."""
    if closing is None:
        return 0
    last = max((index for index, token in enumerate(tokens) if token.id == closing.id), default=None)
    return 0 if last is None else _skip_whitespace(tokens, last + 1)


def _skip_whitespace(tokens: Sequence[Token], index: int) -> int:
    while index < len(tokens) and not tokens[index].special and tokens[index].data.isspace():
        index += 1
    return index


def _contents(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, text: bytes
) -> list[tuple[int, int]]:
    """The byte ranges of the messages' contents in the rendered text, up to the first that is not found.

    Marks in place of the contents show what the template writes around them.
    """
    marks = [f"x{secrets.token_hex(8)}x" for _ in messages]
    others = [Message(message.role, mark) for message, mark in zip(messages, marks, strict=True)]
    around = tokenizer.decode(template.render(others, tokenizer))
    found: list[tuple[int, int]] = []
    end = 0
    for message, mark in zip(messages, marks, strict=True):
        before, seen, around = around.partition(mark.encode())
        if not seen or not text.startswith(before, end):
            return found
        start = end + len(before)
        content = message.content.encode("utf-8", "replace")
        for spelled in (content, content.strip()):
            if text.startswith(spelled, start):
                end = start + len(spelled)
                found.append((start, end))
                break
        else:
            return found
    return found
