"""The tokenizers library, whose every way to fail becomes BrokenTokenizer. Knows nothing of files or processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from gptcli.errors import BrokenTokenizer


def parse(data: bytes) -> tokenizers.Tokenizer:
    """A tokenizer from the bytes of a tokenizer.json. Raises BrokenTokenizer, whose message is the reason alone."""
    try:
        inner = tokenizers.Tokenizer.from_buffer(data)
        # What training or another program left switched on has no place at inference.
        inner.no_truncation()
        inner.no_padding()
        if getattr(inner.model, "dropout", None):
            inner.model.dropout = None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and PanicException, which is not even one
        raise BrokenTokenizer(_reason(error)) from None
    return inner


@dataclass(frozen=True)
class Encoded:
    """What of an encoding is used, where it comes out of another process."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    special_tokens_mask: list[int]


def encode(inner: tokenizers.Tokenizer, text: str, add_special: bool) -> tokenizers.Encoding:
    """The encoding of a text. Raises BrokenTokenizer as `parse` does."""
    try:
        return inner.encode(text, add_special_tokens=add_special)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BrokenTokenizer(_reason(error)) from None


def encode_batch(inner: tokenizers.Tokenizer, texts: Sequence[str], offsets: bool) -> list[tokenizers.Encoding]:
    """The encodings of texts, with nothing around them, side by side. Raises BrokenTokenizer as `parse` does."""
    side_by_side = inner.encode_batch if offsets else inner.encode_batch_fast
    try:
        return list(side_by_side(list(texts), add_special_tokens=False))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BrokenTokenizer(_reason(error)) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return str(error)[:200] or type(error).__name__
