"""A BPE vocabulary in flat arrays, parsed piece by piece as needed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

_ABSENT = 0xFFFFFFFF
_AFTER = b"\xff"  # greater than any byte of UTF-8


def flatten(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> list[bytes]:
    """The arrays of a `FlatVocabulary`, from a tokenizer.json's vocabulary and merges."""
    pieces = sorted((piece.encode(), id) for piece, id in vocab.items())
    at = {piece.decode(): index for index, (piece, _) in enumerate(pieces)}
    index_of = array("I", [_ABSENT]) * (max(vocab.values(), default=-1) + 1)
    for index, (_, id) in enumerate(pieces):
        index_of[id] = index
    made = [at[left + right] for left, right in merges]
    counts = Counter(made)
    ranks = sorted(range(len(made)), key=made.__getitem__)
    arrays = (
        array("I", accumulate((len(piece) for piece, _ in pieces), initial=0)),
        array("I", [id for _, id in pieces]),
        index_of,
        array("I", accumulate((counts[index] for index in range(len(pieces))), initial=0)),
        array("I", ranks),
        array("I", [len(merges[rank][0]) for rank in ranks]),
    )
    return [b"".join(piece for piece, _ in pieces), *map(bytes, arrays)]


class FlatVocabulary:
    """Pieces in the order of their UTF-8, each with its id and the merges that make it.

    parts: of `flatten`: the pieces' bytes; the offset of each piece; their ids; the index of each id; the offset of
    each piece's merges; the merges' ranks; the characters in their left halves.
    """

    def __init__(self, parts: Sequence[memoryview]) -> None:
        self._bytes = parts[0]
        self._begins, self._ids, self._index_of, self._merges, self._ranks, self._left = (
            part.cast("I") for part in parts[1:]
        )

    def __len__(self) -> int:
        return len(self._ids)

    def piece(self, id: int) -> str | None:
        """The piece with an id."""
        index = self._index_of[id] if 0 <= id < len(self._index_of) else _ABSENT
        return None if index == _ABSENT else self._at(index).decode()

    def id_of(self, piece: str) -> int | None:
        """The id of a piece."""
        index = self._find(piece)
        return None if index is None else self._ids[index]

    def within(self, word: str) -> set[str]:
        """Every piece that occurs in a word."""
        found = set()
        for start in range(len(word)):
            low, high, prefix = 0, len(self._ids), b""
            for end in range(start, len(word)):
                prefix += word[end].encode()
                low = bisect_left(range(high), prefix, low, key=self._at)
                if low == high or not self._at(low).startswith(prefix):
                    break
                if self._at(low) == prefix:
                    found.add(word[start : end + 1])
                high = bisect_left(range(high), prefix + _AFTER, low, key=self._at)
        return found

    def part(self, pieces: Iterable[str] | None) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """The ids of the pieces that exist, and the merges that make them, by rank. None: of all pieces."""
        vocab, merges = {}, []
        indexes: Iterable[int] = range(len(self))
        if pieces is not None:
            indexes = {index for index in map(self._find, pieces) if index is not None}
        for index in indexes:
            piece = self._at(index).decode()
            vocab[piece] = self._ids[index]
            for merge in range(self._merges[index], self._merges[index + 1]):
                left = self._left[merge]
                merges.append((self._ranks[merge], piece[:left], piece[left:]))
        return vocab, [(left, right) for _, left, right in sorted(merges)]

    def _at(self, index: int) -> bytes:
        return bytes(self._bytes[self._begins[index] : self._begins[index + 1]])

    def _find(self, piece: str) -> int | None:
        data = piece.encode()
        index = bisect_left(range(len(self._ids)), data, key=self._at)
        return index if index < len(self._ids) and self._at(index) == data else None
