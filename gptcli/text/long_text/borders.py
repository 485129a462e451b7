"""Where a text may be cut so that its parts encode to the ids of the whole. Knows tokenizer.json, and no files.

A border is one of two kinds, between characters that no normalizer touches: before a space, `word| next`, and behind a
single newline, `word\\n|next`. Two things make one safe. `kinds_of` shows from the tokenizer's description that no
match of a pattern, however long, can lie across such a border. `Borders.find` then looks at the text around each one:
there must be a cut in what the model gets as words, or no token that could lie across, and the ids on the left must be
the same with what follows as without. What follows is always encoded behind what is on the left, so that nothing that
tokenizers do at a text's beginning is done to it.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cached_property
from itertools import islice
from typing import Any

from gptcli.text.long_text.patterns import VISIBLE, WORD, Kind, Matches, Unclear, matches_of, matches_of_text
from gptcli.text.tokenizer import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_END = r"[^\W_]|[.,;:!?)\]}\"'>。，、；：！？）」』】》”’]"  # of what comes before a border
_BEFORE_SPACE = re.compile(rf"(?<={_END})(?= )")
_BEHIND_NEWLINE = re.compile(rf"(?<=(?:{_END})\n)(?=[^\W_])")

_HARMLESS = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Prepend"}
_REWRITES_NEWLINES = {"BertNormalizer", "Nmt", "Precompiled", "Strip"}
_SPLITS_AT_WHITESPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPLITS_ANYWHERE = {"Metaspace", "Punctuation", "Digits", "CharDelimiterSplit"}

CONTEXT = 128  # characters that are looked at on each side of a border, at least


def kinds_of(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> Kind:
    """Which borders no pattern of a tokenizer can match across: before a SPACE, behind a NEWLINE.

    The arguments are from tokenizer.json. What is not known has no borders.
    """
    parts = _flat(pre_tokenizer, "pretokenizers")
    kinds = Kind.SPACE | Kind.NEWLINE
    try:
        spaces, newlines = _normalized(_flat(normalizer, "normalizers"))
        splits = bool(parts) and parts[0]["type"] in _SPLITS_AT_WHITESPACE
        if not newlines and not splits:
            kinds &= ~Kind.NEWLINE
        for part in parts:
            if splits and spaces == {" "}:
                break
            for space in spaces:
                kinds &= _kept_apart(_matches_of_part(part, space))
        return kinds
    except (Unclear, KeyError, TypeError):
        return Kind(0)


def _flat(state: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if state is None:
        return []
    if state.get("type") != "Sequence":
        return [state]
    return [part for member in state[members] for part in _flat(member, members)]


def _normalized(parts: list[dict[str, Any]]) -> tuple[set[str], bool]:
    """What may stand for a space behind the normalizers, and whether newlines are still newlines there."""
    spaces, newlines = {" "}, True
    for part in parts:
        if part["type"] in _REWRITES_NEWLINES:
            newlines = False
        elif part["type"] == "Replace":
            content, whole = part["content"], part["pattern"] == {"String": " "}
            found = [_matches_of_pattern(part["pattern"], space) for space in spaces]
            if any(Kind.NEWLINE in match.kinds for match in found):
                newlines = False
            if any(Kind.SPACE in match.kinds for match in found):
                if content not in (" ", "▁") or any(match.kinds != Kind.SPACE for match in found):
                    raise Unclear
                spaces = {content} if whole and spaces == {" "} else spaces | {content}
            elif not content or content[0].isspace() or content[-1].isspace():
                raise Unclear
        elif part["type"] not in _HARMLESS:
            raise Unclear
    return spaces, newlines


def _matches_of_part(part: dict[str, Any], space: str) -> Matches:
    if part["type"] == "Split":
        return _matches_of_pattern(part["pattern"], space)
    if part["type"] == "ByteLevel":
        return matches_of(_GPT2, space) if part.get("use_regex", True) else Matches()
    if part["type"] in _SPLITS_ANYWHERE | _SPLITS_AT_WHITESPACE:
        return Matches()
    raise Unclear


def _matches_of_pattern(pattern: dict[str, str], space: str) -> Matches:
    return matches_of_text(pattern["String"], space) if "String" in pattern else matches_of(pattern["Regex"], space)


def _kept_apart(matches: Matches) -> Kind:
    kinds = Kind.SPACE | Kind.NEWLINE
    if matches.joins(VISIBLE, Kind.SPACE):
        kinds &= ~Kind.SPACE
    if matches.joins(Kind.NEWLINE, WORD):
        kinds &= ~Kind.NEWLINE
    return kinds


class Borders:
    """Finds safe borders for one tokenizer; `special` as for `Tokenizer.encode`."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        inner = tokenizer.library
        self._normalizer, self._pre_tokenizer, self._model = inner.normalizer, inner.pre_tokenizer, inner.model
        self.kinds = kinds_of(
            None if self._normalizer is None else json.loads(self._normalizer.__getstate__()),
            None if self._pre_tokenizer is None else json.loads(self._pre_tokenizer.__getstate__()),
        )
        contents = [token.content for token in inner.get_added_tokens_decoder().values()]
        self.context = max(CONTEXT, 4 * max(map(len, contents), default=0))

    def find(self, text: str, start: int) -> tuple[int, list[int]] | None:
        """A safe border at or behind `start`, and the ids of the `context` on its left; None for none.

        The text must go on for `context` characters behind the border. Of each kind, 64 places are tried.
        """
        last = len(text) - self.context
        for kind, pattern in ((Kind.NEWLINE, _BEHIND_NEWLINE), (Kind.SPACE, _BEFORE_SPACE)):
            if kind not in self.kinds:
                continue
            places = (match.start() for match in pattern.finditer(text, max(1, start), max(0, last)))
            for border in islice(places, 64):
                left, right = text[max(0, border - self.context) : border], text[border : border + self.context]
                if ids := self._ids_before(kind, left, right):
                    return border, ids
        return None

    def _ids_before(self, kind: Kind, left: str, right: str) -> list[int]:
        """The ids of the left side, which what follows does not change; none where the border is not safe."""
        if not _is_plain(left[-1]) or not _is_plain(right[0]):
            return []
        if not self._splits(left, right) and kind not in self._unmerged:
            return []
        ids = self._ids(left)
        safe = ids and not self._tokenizer.swallows(ids[-1]) and self._ids(left + right)[: len(ids)] == ids
        return ids if safe else []

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=self._special, add_special=False)

    def _splits(self, left: str, right: str) -> bool:
        """Whether what the model gets are words, of which none lies across the border."""
        if self._pre_tokenizer is None:
            return False
        whole = left + right
        if self._normalizer is not None:
            left, whole = self._normalizer.normalize_str(left), self._normalizer.normalize_str(whole)
        if not whole.startswith(left):
            return False
        words = self._pre_tokenizer.pre_tokenize_str(whole)
        return any(len(left) in extent for _, extent in words)

    @cached_property
    def _unmerged(self) -> Kind:
        """Borders across which no token of the vocabulary could lie: there, BPE needs no words."""
        model, tokenizer = self._model, self._tokenizer
        if type(model).__name__ != "BPE" or model.ignore_merges:
            return Kind(0)
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return Kind(0)
        surfaces = [tokenizer.surface(id) for id in range(tokenizer.size) if not tokenizer.is_added(id)]
        across = {Kind.SPACE: re.compile(rb"\S "), Kind.NEWLINE: re.compile(rb"\n\S")}
        unmerged = Kind(0)
        for kind, pattern in across.items():
            if not any(map(pattern.search, surfaces)):
                unmerged |= kind
        return unmerged


def _is_plain(char: str) -> bool:
    """Whether no normal form begins or ends otherwise than this character itself does."""
    form = unicodedata.normalize("NFKC", char)
    return form == char or (form[0].isalnum() and form[-1].isalnum())
