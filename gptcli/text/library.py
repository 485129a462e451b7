"""The tokenizers library, whose every way to fail becomes BrokenTokenizer. Knows nothing of files or processes."""

from __future__ import annotations

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


def encode(inner: tokenizers.Tokenizer, text: str, add_special: bool) -> list[int]:
    """Token ids of a text. Raises BrokenTokenizer as `parse` does."""
    try:
        return list(inner.encode(text, add_special_tokens=add_special).ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise BrokenTokenizer(_reason(error)) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    return str(error)[:200] or type(error).__name__
