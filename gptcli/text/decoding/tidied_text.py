"""Drops spaces before punctuation from replies, for models whose settings want that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptcli.text.decoding.detokenizer import TokenDetokenizer

# The replacements of transformers' clean_up_tokenization, in its order: each loses its spaces.
_UNTIDY = (b" .", b" ?", b" !", b" ,", b" ' ", b" n't", b" 'm", b" 's", b" 've", b" 're")


def wants_tidied(settings: Mapping[str, Any], algorithm: str) -> bool:
    """Whether transformers tidies the texts of a tokenizer with these settings. algorithm: such as `BPE`."""
    even_bpe = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    return bool(settings.get("clean_up_tokenization_spaces")) and (algorithm != "BPE" or bool(even_bpe))


class TidyStream:
    """Tidies bytes as they arrive; holds back the possible beginning of a replacement."""

    def __init__(self) -> None:
        self._kept = [b""] * len(_UNTIDY)

    def push(self, data: bytes) -> bytes:
        """Takes more bytes. Returns those that can be shown."""
        return self._through(data, ends=False)

    def flush(self) -> bytes:
        """Ends the text. Returns what is left of it."""
        return self._through(b"", ends=True)

    def _through(self, data: bytes, *, ends: bool) -> bytes:
        for index, untidy in enumerate(_UNTIDY):
            *before, last = (self._kept[index] + data).split(untidy)
            lengths = range(len(untidy) - 1, 0, -1)
            pending = 0 if ends else next((length for length in lengths if last.endswith(untidy[:length])), 0)
            self._kept[index] = last[len(last) - pending :]
            data = untidy.strip().join([*before, last[: len(last) - pending]])
        return data


class TidyDetokenizer:
    """A `TokenDetokenizer` that tidies the text of `inner`."""

    def __init__(self, inner: TokenDetokenizer) -> None:
        self._inner = inner
        self._stream = TidyStream()

    def push(self, id: int) -> bytes:
        """Takes the next token. Returns the bytes that can be shown."""
        return self._stream.push(self._inner.push(id))

    def flush(self) -> bytes:
        """Ends the text. Returns what is left of it."""
        return self._stream.push(self._inner.flush()) + self._stream.flush()
