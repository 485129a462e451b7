"""Encoded sequences in flat files, which a run maps instead of holding them in memory.

A token is 4 bytes: its id, and a bit, set if it is not learned. A second file has each sequence's end, in 8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gptcli.errors import ContextOverflow, InputError
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.text.tokenizer import Tokenizer
from gptcli.training.documents import Conversation, Document, PromptCompletion, Text, example_tokens, text_tokens

_NOT_LEARNED = 1 << 31
TRAIN, HELD_OUT = "train", "held-out"


class Corpus:
    """The sequences of a pair of files; each has at least 2 tokens."""

    def __init__(self, directory: Path, name: str) -> None:
        self._ends = _mapped(directory / f"{name}.ends", np.int64)
        self._tokens = _mapped(directory / f"{name}.tokens", np.uint32)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return len(self._tokens)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids (B, T), and which are learned (B, T) bool; shorter sequences are padded with 0 at their end."""
        rows = [self._sequence(index) for index in indices]
        shape = len(rows), max(map(len, rows))
        tokens, learned = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.from_numpy((row & (_NOT_LEARNED - 1)).astype(np.int64))
            learned[index, : len(row)] = torch.from_numpy(row < _NOT_LEARNED)
        return tokens, learned

    def _sequence(self, index: int) -> np.ndarray:
        start = int(self._ends[index - 1]) if index else 0
        return np.asarray(self._tokens[start : int(self._ends[index])])


def _mapped(path: Path, kind: type) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


class CorpusWriter:
    """Writes one pair of files, `name`.tokens and `name`.ends, in a directory."""

    def __init__(self, directory: Path, name: str, files: ExitStack) -> None:
        self._tokens = files.enter_context((directory / f"{name}.tokens").open("wb"))
        self._ends = files.enter_context((directory / f"{name}.ends").open("wb"))
        self.sequences = self._end = 0

    def add(self, ids: Sequence[int], learned: Sequence[bool] | None = None) -> None:
        """Adds a sequence. learned: which tokens are learned; None: all. Raises OSError."""
        row = np.asarray(ids, np.uint32)
        if learned is not None:
            row |= np.where(np.asarray(learned), 0, _NOT_LEARNED).astype(np.uint32)
        self._end += len(row)
        self._tokens.write(row.tobytes())
        self._ends.write(np.int64(self._end).tobytes())
        self.sequences += 1


class Encoder:
    """Encodes documents into sequences of at most `block_size` tokens.

    end: the ids that end a text. truncate: cuts longer examples, which are refused otherwise.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, end: Sequence[int], block_size: int, truncate: bool
    ) -> None:
        self._tokenizer, self._template, self._end = tokenizer, template, end
        self._block_size, self._truncate = block_size, truncate
        self.cut = 0  # examples that were longer than a block
        self.left_out: list[str] = []  # locations of examples with nothing left to learn
        self._too_long: list[tuple[str, int]] = []  # location, tokens

    def write(self, documents: Iterable[Document], train: CorpusWriter, held_out: CorpusWriter, every: int) -> None:
        """Writes every document; holds out one of `every` sequences, none if that is 0.

        Raises InputError, ContextOverflow for an example that is too long, and OSError.
        """
        last: tuple[Sequence[int], Sequence[bool] | None] | None = None
        for index, sequence in enumerate(self._sequences(documents)):
            if last is not None:
                (held_out if every and index % every == 0 else train).add(*last)
            last = sequence
        if last is not None:  # held out if nothing else is
            (held_out if every and train.sequences and not held_out.sequences else train).add(*last)
        if self._too_long:
            (where, count), number = self._too_long[0], len(self._too_long)
            most = max(count for _, count in self._too_long)
            raise ContextOverflow(
                f"{where}: {count} tokens do not fit in a block of {self._block_size}"
                + (f"; of {number} such examples the longest has {most}" if number > 1 else ""),
                f"--block-size {most} holds all, --truncate cuts them",
            )

    def _sequences(self, documents: Iterable[Document]) -> Iterator[tuple[Sequence[int], Sequence[bool] | None]]:
        packed = list[int]()
        for document in documents:
            if not isinstance(document, Text):
                if (example := self._example(document)) is not None:
                    yield example
                continue
            for ids in text_tokens(document, self._tokenizer, self._end):
                packed += ids
                while len(packed) >= self._block_size:
                    yield packed[: self._block_size], None
                    del packed[: self._block_size]
        if len(packed) > 1:
            yield packed, None

    def _example(self, document: PromptCompletion | Conversation) -> tuple[list[int], list[bool]] | None:
        ids, learned = example_tokens(document, self._tokenizer, self._template, self._end)
        if len(ids) > self._block_size:
            if not self._truncate:
                self._too_long.append((document.where, len(ids)))
                return None
            if not any(learned[1 : self._block_size]):
                self.left_out.append(document.where)
                return None
            self.cut += 1
            ids, learned = ids[: self._block_size], learned[: self._block_size]
        if not any(learned[1:]):
            raise InputError(f"{document.where}: there is nothing to learn")
        return ids, learned
