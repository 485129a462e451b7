"""Which bytes of a text each token stands for, whatever the tokenizer did to the text.

The ranges are computed from the tokens' own bytes, laid along the text as its normalizer changes it, and never taken
from the library on trust: its offsets count characters, and give a token of half a character all of it. They are used
where a token does not say what it stands for, an unknown one say, and only between tokens that do.

- Text that reached the model as it is: the range is exact to the byte, within characters too.
- Characters that a normalizer changed: the whole of what they were. Tokens that share such characters share the range.
- A token without text of its own, such as BOS or a space that is put in front: an empty range where it stands.
- What a tokenizer drops, such as the blanks between WordPiece's words, is in no range.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any
from unicodedata import combining

import tokenizers

from gptcli.text.backend import Encoding
from gptcli.text.tokenizer import Tokenizer

Range = tuple[int, int]  # byte offsets: start, end
_SHORT = 32  # characters of what comes again and again


@dataclass(frozen=True)
class _Run:
    """A stretch of a text and what normalization made of it: the same bytes, or others."""

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
        """The range of each token of a text's encoding without what a model adds around it."""
        ids, hints = encoding.ids, encoding.offsets
        surfaces = list(map(self._tokenizer.surface, ids))
        if not self._has_added(ids) and b"".join(surfaces) == text.encode():  # nearly always, in most tokenizers
            ends = list(accumulate(map(len, surfaces)))
            return list(zip([0, *ends], ends, strict=False))
        places = _byte_places(text)
        ranges: list[Range] = []
        first, char = 0, 0
        for index, (id, (start, end)) in enumerate(zip(ids, hints, strict=True)):
            if char <= start <= end <= len(text) and self._is_added_token(id, surfaces[index], text[start:end]):
                own = slice(first, index)
                ranges += self._segment(text[char:start], ids[own], surfaces[own], hints[own], places, char)
                ranges.append((places(start), places(end)))
                first, char = index + 1, end
        return ranges + self._segment(text[char:], ids[first:], surfaces[first:], hints[first:], places, char)

    def _has_added(self, ids: Sequence[int]) -> bool:
        return any(map(self._tokenizer.is_added, set(ids)))

    def _is_added_token(self, id: int, content: bytes, text: str) -> bool:
        """Whether a token was found in the text as what it is called, and not made of parts."""
        if not self._tokenizer.is_added(id):
            return False
        bare, name = text.strip(), content.decode().strip()
        return bare == name or self._normalize(bare).strip() == self._normalize(name).strip()

    def _segment(
        self,
        text: str,
        ids: Sequence[int],
        surfaces: Sequence[bytes],
        hints: Sequence[Range],
        places: Callable[[int], int],
        char: int,
    ) -> list[Range]:
        """Ranges of the tokens of text between added tokens, which begins at a character of the whole."""
        if not ids:
            return []
        origin = places(char)
        runs = _runs(text, self._normalize)
        normal = self._normalize(text).encode()
        joined = b"".join(surfaces)
        if joined in (normal, b" " + normal):
            line = _Line(joined[: len(joined) - len(normal)], normal, runs, origin)
            ends = list(accumulate(map(len, surfaces)))
            return [line.range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        spans = [(places(start) - origin, places(end) - origin) for start, end in hints]
        unknown = self._tokenizer.unknown_id
        tokens = [None if id == unknown else surface for id, surface in zip(ids, surfaces, strict=True)]
        walks = (_walk(tokens, spans, _Line(lead, normal, runs, origin)) for lead in (b"", b" "))
        return min(walks, key=lambda walk: walk[0])[1]


class _Line:
    """The normalized bytes of a segment, perhaps with a space in front, and where they come from."""

    def __init__(self, lead: bytes, normal: bytes, runs: Sequence[_Run], origin: int) -> None:
        self.data = lead + normal
        self._lead = len(lead)
        self._runs = runs
        self._normal_starts = [run.normal for run in runs]
        self._source_starts = [run.source for run in runs]
        self._origin = origin

    def range(self, start: int, end: int) -> Range:
        """The bytes of the text that the normalized ones from start to end come from."""
        begin = self._source(max(start, self._lead), first=True)
        if start == end or end <= self._lead:
            return begin, begin
        return begin, self._source(end - 1, first=False)

    def place(self, source: int) -> int:
        """Where the normalized bytes of a place in the text begin."""
        if not self._runs:
            return self._lead
        run = self._runs[max(0, bisect_right(self._source_starts, source) - 1)]
        if source >= run.source_end:
            return self._lead + run.normal_end
        return self._lead + run.normal + (source - run.source if run.same else 0)

    def end_place(self, source: int) -> int:
        """Where the normalized bytes of what ends at a place in the text end."""
        run = self._runs[max(0, bisect_left(self._source_starts, source) - 1)] if self._runs else None
        if run is None or run.same or source <= run.source:
            return self.place(source)
        return self._lead + run.normal_end

    def _source(self, place: int, *, first: bool) -> int:
        place -= self._lead
        if not self._runs:
            return self._origin
        run = self._runs[max(0, bisect_right(self._normal_starts, place) - 1)]
        if place >= run.normal_end:
            return self._origin + run.source_end
        if run.same:
            return self._origin + run.source + place - run.normal + (not first)
        return self._origin + (run.source if first else run.source_end)


def _walk(tokens: Sequence[bytes | None], spans: Sequence[Range], line: _Line) -> tuple[int, list[Range]]:
    """Lays tokens along a line in which some of the bytes are in none, and some tokens (None) are of any bytes.

    spans: where the library has them. Returns how many are not where they could be shown to be, and the ranges; those
    tokens share what is between their neighbours.
    """
    data, at, lost = line.data, 0, 0
    found: list[Range | None] = []  # in the line
    unknown_end = 0  # in the text, of the token before, if it is of any bytes
    for token, (start, end) in zip(tokens, spans, strict=True):
        hint = max(at, line.place(start))
        if token is None:
            at = max(hint, line.end_place(end))
            found.append((hint, at))
            unknown_end = end
            continue
        place = None
        if start < unknown_end and found and found[-1]:
            # What was unknown is a part of the character that this is in, too, and the library says all of it.
            within = data.find(token, found[-1][0] + 1, at + len(token))
            if within >= 0:
                place = within
                found[-1] = found[-1][0], place
        unknown_end = 0
        if place is None:
            place = _place(token, data, at, hint)
        if place is None:
            found.append(None)
            lost += 1
            at = max(hint, line.end_place(end))
        else:
            at = place + len(token)
            found.append((place, at))
    ranges: list[Range] = []
    for index, span in enumerate(found):
        if span is None:
            before = next((span[1] for span in reversed(found[:index]) if span), 0)
            behind = next((span[0] for span in found[index:] if span), len(data))
            span = before, max(before, behind)
        ranges.append(line.range(*span))
    return lost, ranges


def _place(token: bytes, data: bytes, at: int, hint: int) -> int | None:
    """Where a token begins that is at `at`, behind whitespace that is in no token, or where the library has it."""
    if data.startswith(token, at):
        return at
    place = data.find(token, at)
    if place >= 0 and (place == hint or data[at:place].decode("utf-8", "replace").isspace()):
        return place
    return hint if data.startswith(token, hint) else None


def _runs(text: str, normalize: Callable[[str], str]) -> list[_Run]:
    """What became of each stretch of a text, found by halving it until the halves stay as they are or cannot be cut."""
    runs: list[_Run] = []

    def add(part: str, normal: str) -> None:
        source, made = len(part.encode()), len(normal.encode())
        start, at = (runs[-1].source_end, runs[-1].normal_end) if runs else (0, 0)
        if part == normal and runs and runs[-1].same:
            last = runs.pop()
            runs.append(_Run(last.source, start + source, last.normal, at + made, True))
        elif part:
            runs.append(_Run(start, start + source, at, at + made, part == normal))

    def visit(part: str, normal: str) -> None:
        if part == normal or len(part) < 2:
            add(part, normal)
            return
        for cut in _cuts(part):
            left, right = normalize(part[:cut]), normalize(part[cut:])
            if left + right == normal:
                visit(part[:cut], left)
                visit(part[cut:], right)
                return
        add(part, normal)

    visit(text, normalize(text))
    return runs


def _cuts(part: str) -> list[int]:
    """Places to cut a text, those near its middle first; all there are in a short one."""
    middle = len(part) // 2
    cuts = sorted(range(max(1, middle - 16), min(len(part), middle + 17)), key=lambda cut: abs(cut - middle))
    return [cut for cut in cuts if not combining(part[cut])] or cuts


def _byte_places(text: str) -> Callable[[int], int]:
    """The byte offset of a character of a text, by its index."""
    if text.isascii():
        return lambda char: char
    places = [0, *accumulate(len(char.encode()) for char in text)]
    return places.__getitem__


def _normalization(tokenizer: Tokenizer) -> Callable[[str], str]:
    """What a tokenizer does to characters wherever they stand, which is all but what it does at a text's ends."""
    normalizer = tokenizer.library.normalizer
    state = {} if normalizer is None else json.loads(normalizer.__getstate__())
    parts = state.get("normalizers", [state] if state else [])
    local = [part for part in parts if part["type"] not in ("Prepend", "Strip")]
    if not local:
        return tokenizer.as_space
    inner = _tokenizer_with({"type": "Sequence", "normalizers": local}).normalizer

    @lru_cache(maxsize=1 << 16)
    def normalize_short(text: str) -> str:
        return tokenizer.as_space(inner.normalize_str(text))

    def normalize(text: str) -> str:
        return normalize_short(text) if len(text) <= _SHORT else tokenizer.as_space(inner.normalize_str(text))

    return normalize


def _tokenizer_with(normalizer: dict[str, Any]) -> tokenizers.Tokenizer:
    """A tokenizer of nothing but a normalizer: the library reads those from no smaller thing."""
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "normalizer": normalizer, "model": model}))
