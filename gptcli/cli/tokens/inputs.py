"""Reads the input of `gptcli tokenize`: texts of any length, conversations, ids, and the tokenizer."""

from __future__ import annotations

import json
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from gptcli.cli.options import MAX_INPUT
from gptcli.cli.prompt_input import Decoding, TextBlocks, argument_text, read_text, unless_dash
from gptcli.cli.template_choice import chosen_template
from gptcli.errors import InputError, ModelNotFound, UsageError
from gptcli.files import is_gguf
from gptcli.models.catalog import FetchProgress
from gptcli.models.locate import locate
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.chat_templates.chat_tokens import transcript
from gptcli.text.located_tokens import Token, tokens_of
from gptcli.text.long_text.chunks import Chunk, encode_chunks
from gptcli.text.messages import Message, Role
from gptcli.text.tokenizer import Tokenizer

_SEPARATOR = re.compile(r"[\s,]+")


def open_tokenizer(name: str, offline: bool, on_fetch: FetchProgress) -> tuple[Tokenizer, Path]:
    """A tokenizer and its directory. name: a model's, its directory or GGUF file, or the tokenizer.json in it.

    Raises ModelNotFound and BrokenTokenizer.
    """
    path = locate(name, offline=offline, on_progress=on_fetch)
    if not path.is_dir() and not is_gguf(path):
        if path.name != "tokenizer.json":
            raise ModelNotFound(f"no tokenizer: {path}: not a directory, a GGUF file or a tokenizer.json")
        path = path.parent
    return Tokenizer.open(path), path


@dataclass(frozen=True)
class TextReader:
    """Reads and encodes texts. A text's name is its file, `-` for stdin, or None for the one in `text`."""

    decoding: Decoding
    special: bool
    add_special: bool
    text: str | None = None

    def names(self, files: Sequence[str] | None) -> list[str | None]:
        """The names of the texts to read. Raises UsageError if there are none, and for stdin twice."""
        if self.text is not None:
            return [None]
        if not files and sys.stdin is not None and sys.stdin.isatty():
            raise UsageError("there is no text", hint="name a file, give one with --text, or pipe one in")
        if files and files.count("-") > 1:
            raise UsageError("stdin can be read once")
        return list(files or ["-"])

    def blocks(self, name: str | None) -> Iterator[str]:
        """A text in blocks. Raises InputError."""
        return iter([self.text or ""]) if name is None else TextBlocks(unless_dash(Path(name)), self.decoding)

    def chunks(self, tokenizer: Tokenizer, name: str | None, blocks: Iterable[str] | None = None) -> Iterator[Chunk]:
        """A text's encoded chunks, without the tokens added around it. blocks: the text, if read already."""
        text, where = self.blocks(name) if blocks is None else blocks, input_name(name)
        return encode_chunks(tokenizer, text, special=self.special, largest=self._largest, where=where)

    def tokens(self, tokenizer: Tokenizer, name: str | None, blocks: Iterable[str] | None = None) -> Iterator[Token]:
        """A text's tokens. blocks: the text, if read already."""
        text, where, special = self.blocks(name) if blocks is None else blocks, input_name(name), self.special
        return tokens_of(
            tokenizer, text, special=special, add_special=self.add_special, largest=self._largest, where=where
        )

    @property
    def _largest(self) -> int:
        """The most bytes that are encoded in one piece."""
        return self.decoding.max_input or MAX_INPUT


def bytes_before(blocks: Iterator[str]) -> int:
    """The bytes of a file before its text, those of a byte-order mark; known once the first block is read."""
    return blocks.start if isinstance(blocks, TextBlocks) else 0


def from_start_of_file(tokens: Iterable[Token], blocks: Iterator[str]) -> Iterator[Token]:
    """Tokens whose ranges count from the first byte and character of the file. tokens: those of the blocks."""
    for token in tokens:
        if before := bytes_before(blocks):
            token = token._replace(
                start=token.start + before,
                end=token.end + before,
                first_char=token.first_char + 1,
                end_char=token.end_char + 1,
            )
        yield token


def input_name(name: str | None) -> str:
    """A text's name in messages."""
    return "standard input" if name == "-" else name or "--text"


class BlockWindow:
    """A text in blocks; iterating reads it, and it keeps the blocks that are still needed."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._kept: deque[tuple[int, bytes]] = deque()  # blocks, each after the index of its first byte
        self.size = 0  # bytes read

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            data = block.encode()
            self._kept.append((self.size, data))
            self.size += len(data)
            yield block

    def forget(self, before: int) -> None:
        """Drops blocks that end before a byte."""
        while len(self._kept) > 1 and self._kept[1][0] <= before:
            self._kept.popleft()

    def data(self, start: int, end: int | None) -> bytes:
        """Bytes that were read and not dropped. end: None is all that was read."""
        end = self.size if end is None else end
        return b"".join(
            block[max(0, start - first) : end - first]
            for first, block in self._kept
            if first < end and first + len(block) > start
        )


@dataclass(frozen=True)
class ConversationReader:
    """Reads and renders conversations. path: the model's directory. template: a file; None is the model's own."""

    path: Path
    template: Path | None
    reader: TextReader

    def tokens(self, tokenizer: Tokenizer, name: str | None) -> list[Token]:
        """A conversation's tokens. Raises InputError for anything else, and TemplateError."""
        text = read_text(unless_dash(Path(name or "-")), self._limited)
        return transcript(_messages(text, input_name(name)), self._template(tokenizer), tokenizer)

    def _template(self, tokenizer: Tokenizer) -> ChatTemplate:
        if self.template is None:
            return ChatTemplate.of_model(self.path, tokenizer)
        strict = replace(self._limited, errors="strict", max_input=MAX_INPUT)
        return chosen_template(self.template, self.path, tokenizer, strict)

    @property
    def _limited(self) -> Decoding:
        """How a text is read that must fit in memory."""
        decoding = self.reader.decoding
        return replace(decoding, max_input=decoding.max_input or MAX_INPUT)


def _messages(text: str, where: str) -> list[Message]:
    """Messages from a JSON list, an object with one as `messages`, or a JSON object a line."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise InputError(f"not a conversation: {where}: nested too deeply") from None
    except ValueError:
        if not text.strip():
            raise InputError(f"not a conversation: {where}: there are no messages") from None
        return [_message(_json(line, f"{where}: line {number}"), f"{where}: line {number}")
                for number, line in enumerate(text.split("\n"), 1) if line.strip()]  # fmt: skip
    if isinstance(value, dict):
        value = value["messages"] if "messages" in value else [value]
    if not isinstance(value, list):
        raise InputError(f"not a conversation: {where}: neither a list of messages nor one a line")
    if not value:
        raise InputError(f"not a conversation: {where}: there are no messages")
    return [_message(entry, f"{where}: message {number}") for number, entry in enumerate(value, 1)]


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {where}: {error}") from None


def _message(value: Any, where: str) -> Message:
    match value:
        case {"role": str(role), "content": str(content)}:
            return Message(cast(Role, role), content)  # the template decides which roles there are
    raise InputError(f"not a message: {where}: it must have a role and a content, both texts")


def read_ids(arguments: Sequence[str], decoding: Decoding, size: int) -> Iterator[int]:
    """Ids from arguments, or from stdin for `-` or none: separated by blanks or commas, or a JSON list.

    Raises UsageError, or InputError for stdin, for an id that is not below `size`.
    """
    if arguments and list(arguments) != ["-"]:
        for id in _numbers([" ".join(map(argument_text, arguments))]):
            if not _is_id(id, size):
                raise UsageError(f"{id[:40]} is not an id: they are 0 to {size - 1}")
            yield int(id)
        return
    for id in _numbers(TextBlocks(None, replace(decoding, max_input=None))):
        if not _is_id(id, size):
            raise InputError(f"not an id: standard input: {id[:40]}: they are 0 to {size - 1}")
        yield int(id)


def _is_id(text: str, size: int) -> bool:
    # int() is slow on very long texts.
    return text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) < size


def _numbers(blocks: Iterable[str]) -> Iterator[str]:
    """The fields of a text in blocks, without the brackets of a list around them."""
    pending, last, first = "", "", True
    for block in blocks:
        pending += block
        if first and pending.strip():
            pending, first = pending.lstrip().removeprefix("["), False
        *fields, pending = _SEPARATOR.split(pending)
        for field in filter(None, fields):
            if last:
                yield last
            last = field
    if pending:
        yield from filter(None, [last])
        last = pending
    yield from filter(None, [last.removesuffix("]")])
