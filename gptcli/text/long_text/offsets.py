"""The range of bytes of each token in a text, whatever the tokenizer did to the text.

The library's offsets count characters, and give a token of half a character the whole one. So ranges come from the
tokens' bytes, laid along the normalized text. The library's offsets serve only tokens whose bytes are unknown.

- Text that the normalizer leaves alone: the range is exact to the byte, within characters too.
- Characters that it changes: each token of some of them has the range of all.
- A token without text, such as BOS or an added space: an empty range.
- Text without a token, such as the spaces between WordPiece's words, is in no range.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from unicodedata import combining

import tokenizers

from gptcli.text.backend import Encoding
from gptcli.text.hf_tokenizers import description, steps
from gptcli.text.tokenizer import Tokenizer

Range = tuple[int, int]  # byte offsets: start, end
_CACHED_LENGTH = 32  # characters of a text whose normal form is cached


@dataclass(frozen=True)
class _Run:
    """A stretch of a text and its normal form, as byte offsets. same: whether both have the same bytes."""

    source: int
    source_end: int
    normal: int
    normal_end: int
    same: bool


class Offsets:
    """Finds the byte ranges of tokens for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._normalize = _normalization(tokenizer)

    def of(self, text: str, encoding: Encoding) -> list[Range]:
        """The range of each token in the encoding of a text with nothing added around it."""
        ids, hints = encoding.ids, encoding.offsets
        surfaces = list(map(self._tokenizer.surface, ids))
        added = any(map(self._tokenizer.is_added, set(ids)))
        if not added and b"".join(surfaces) == text.encode():  # nearly always, for most tokenizers
            return _consecutive(surfaces)
        to_byte = _byte_offsets(text)
        ranges: list[Range] = []
        first, char = 0, 0
        for index, (id, (start, end)) in enumerate(zip(ids, hints, strict=True)):
            if char <= start <= end <= len(text) and self._is_added_token(id, text[start:end]):
                own = slice(first, index)
                ranges += self._segment(text[char:start], ids[own], surfaces[own], hints[own], to_byte, char)
                ranges.append((to_byte(start), to_byte(end)))
                first, char = index + 1, end
        return ranges + self._segment(text[char:], ids[first:], surfaces[first:], hints[first:], to_byte, char)

    def _is_added_token(self, id: int, text: str) -> bool:
        """Whether the library found an added token in the text, and did not merge it from pieces."""
        if not self._tokenizer.is_added(id):
            return False
        bare, name = text.strip(), self._tokenizer.added_content(id).strip()
        return bare == name or self._normalize(bare).strip() == self._normalize(name).strip()

    def _segment(
        self,
        text: str,
        ids: Sequence[int],
        surfaces: Sequence[bytes],
        hints: Sequence[Range],
        to_byte: Callable[[int], int],
        char: int,
    ) -> list[Range]:
        """Ranges of the tokens between two added tokens, in a segment that begins at a character of the whole text."""
        if not ids:
            return []
        origin = to_byte(char)
        runs = _runs(text, self._normalize)
        normal = self._normalize(text).encode()
        joined = b"".join(surfaces)
        if joined in (normal, b" " + normal):
            segment = _Segment(joined[: len(joined) - len(normal)], normal, runs, origin)
            return [segment.source_range(*span) for span in _consecutive(surfaces)]
        spans = [(to_byte(start) - origin, to_byte(end) - origin) for start, end in hints]
        unknown = self._tokenizer.unknown_id
        tokens = [None if id == unknown else surface for id, surface in zip(ids, surfaces, strict=True)]
        attempts = (_lay_along(tokens, spans, _Segment(lead, normal, runs, origin)) for lead in (b"", b" "))
        return min(attempts, key=lambda attempt: attempt[0])[1]


class _Segment:
    """The normalized bytes of a segment, after an added space or nothing, and their source in the text."""

    def __init__(self, lead: bytes, normal: bytes, runs: Sequence[_Run], origin: int) -> None:
        self.data = lead + normal
        self._lead = len(lead)
        self._runs = runs
        self._normal_starts = [run.normal for run in runs]
        self._source_starts = [run.source for run in runs]
        self._origin = origin

    def source_range(self, start: int, end: int) -> Range:
        """The bytes of the whole text that the normalized bytes from start to end come from."""
        begin = self._source(max(start, self._lead), first=True)
        if start == end or end <= self._lead:
            return begin, begin
        return begin, self._source(end - 1, first=False)

    def start_of(self, source: int) -> int:
        """Where the normalized bytes for a byte of the segment's text begin."""
        if not self._runs:
            return self._lead
        run = self._runs[max(0, bisect_right(self._source_starts, source) - 1)]
        if source >= run.source_end:
            return self._lead + run.normal_end
        return self._lead + run.normal + (source - run.source if run.same else 0)

    def end_of(self, source_end: int) -> int:
        """Where the normalized bytes for a stretch of the segment's text end, given that stretch's end."""
        run = self._runs[max(0, bisect_left(self._source_starts, source_end) - 1)] if self._runs else None
        if run is None or run.same or source_end <= run.source:
            return self.start_of(source_end)
        return self._lead + run.normal_end

    def _source(self, offset: int, *, first: bool) -> int:
        """Where the source of a normalized byte begins, or without `first` ends."""
        offset -= self._lead
        if not self._runs:
            return self._origin
        run = self._runs[max(0, bisect_right(self._normal_starts, offset) - 1)]
        if offset >= run.normal_end:
            return self._origin + run.source_end
        if run.same:
            return self._origin + run.source + offset - run.normal + (not first)
        return self._origin + (run.source if first else run.source_end)


def _lay_along(tokens: Sequence[bytes | None], spans: Sequence[Range], segment: _Segment) -> tuple[int, list[Range]]:
    """Lays tokens along a segment, some bytes of which may be in no token. A token of unknown bytes is None.

    spans: the library's offsets. Returns how many tokens are not found, and the range of each; a token that is not
    found gets the bytes between its neighbours.
    """
    data, offset, lost = segment.data, 0, 0
    found: list[Range | None] = []  # in data
    unknown_end = 0  # in the segment's text, of the token before if its bytes are unknown
    for token, (start, end) in zip(tokens, spans, strict=True):
        hint = max(offset, segment.start_of(start))
        if token is None:
            offset = max(hint, segment.end_of(end))
            found.append((hint, offset))
            unknown_end = end
            continue
        begin = None
        if start < unknown_end and found and found[-1]:
            # Both are of one character, and the library gives all of it to the unknown token.
            within = data.find(token, found[-1][0] + 1, offset + len(token))
            if within >= 0:
                begin = within
                found[-1] = found[-1][0], begin
        unknown_end = 0
        if begin is None:
            begin = _find(token, data, offset, hint)
        if begin is None:
            found.append(None)
            lost += 1
            offset = max(hint, segment.end_of(end))
        else:
            offset = begin + len(token)
            found.append((begin, offset))
    ranges: list[Range] = []
    for index, span in enumerate(found):
        if span is None:
            before = next((span[1] for span in reversed(found[:index]) if span), 0)
            after = next((span[0] for span in found[index:] if span), len(data))
            span = before, max(before, after)
        ranges.append(segment.source_range(*span))
    return lost, ranges


def _find(token: bytes, data: bytes, offset: int, hint: int) -> int | None:
    """Where a token begins: at the offset, after whitespace that is in no token, or at the library's offset."""
    if data.startswith(token, offset):
        return offset
    begin = data.find(token, offset)
    if begin >= 0 and (begin == hint or data[offset:begin].decode("utf-8", "replace").isspace()):
        return begin
    return hint if data.startswith(token, hint) else None


def _consecutive(pieces: Sequence[bytes]) -> list[Range]:
    ends = list(accumulate(map(len, pieces)))
    return list(zip([0, *ends], ends, strict=False))


def _runs(text: str, normalize: Callable[[str], str]) -> list[_Run]:
    """The runs of a text, by halving it until a half is unchanged or cannot be cut."""
    runs: list[_Run] = []

    def add(stretch: str, normal: str) -> None:
        size, normal_size = len(stretch.encode()), len(normal.encode())
        start, normal_start = (runs[-1].source_end, runs[-1].normal_end) if runs else (0, 0)
        if stretch == normal and runs and runs[-1].same:
            last = runs.pop()
            runs.append(_Run(last.source, start + size, last.normal, normal_start + normal_size, True))
        elif stretch:
            runs.append(_Run(start, start + size, normal_start, normal_start + normal_size, stretch == normal))

    def visit(stretch: str, normal: str) -> None:
        if stretch == normal or len(stretch) < 2:
            add(stretch, normal)
            return
        for cut in _cuts(stretch):
            left, right = normalize(stretch[:cut]), normalize(stretch[cut:])
            if left + right == normal:
                visit(stretch[:cut], left)
                visit(stretch[cut:], right)
                return
        add(stretch, normal)

    visit(text, normalize(text))
    return runs


def _cuts(text: str) -> list[int]:
    """Where to try to cut a text: near its middle, outwards, and if possible not before combining characters."""
    middle = len(text) // 2
    cuts = sorted(range(max(1, middle - 16), min(len(text), middle + 17)), key=lambda cut: abs(cut - middle))
    return [cut for cut in cuts if not combining(text[cut])] or cuts


def _byte_offsets(text: str) -> Callable[[int], int]:
    """The byte offset of a character of a text, by its index."""
    if text.isascii():
        return lambda char: char
    offsets = [0, *accumulate(len(char.encode()) for char in text)]
    return offsets.__getitem__


def _normalization(tokenizer: Tokenizer) -> Callable[[str], str]:
    """A tokenizer's normalizer, without the steps at the ends of a text."""
    described = steps(description(tokenizer.library.normalizer), "normalizers")
    anywhere = [step for step in described if step["type"] not in ("Prepend", "Strip")]
    plain_spaces = tokenizer.spelling.plain_spaces
    if not anywhere:
        return plain_spaces
    # The library parses no normalizer by itself.
    sequence = {"type": "Sequence", "normalizers": anywhere}
    state = {"version": "1.0", "normalizer": sequence, "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}
    normalizer = tokenizers.Tokenizer.from_str(json.dumps(state)).normalizer

    def normalize(text: str) -> str:
        return plain_spaces(normalizer.normalize_str(text))

    cached = lru_cache(maxsize=1 << 16)(normalize)
    return lambda text: cached(text) if len(text) <= _CACHED_LENGTH else normalize(text)
