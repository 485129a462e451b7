"""Finds where to cut a text so that its chunks encode to the ids of the whole. Knows tokenizer.json, and no files.

A border is before a space, `word| next`, or after a single newline, `word\\n|next`, between characters that no
normalizer changes. It is safe if two checks pass:

- `border_kinds`, of the tokenizer's description: no match of a pattern, however long, can lie across such a border.
- `Borders.find`, of the text around it: the pre-tokenizer cuts there, or no token of the vocabulary can lie across; and
  the ids on the left are the same with and without the text on the right.

A chunk is encoded after its left context, so that it gets nothing that tokenizers do at the beginning of a text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from itertools import islice
from typing import Any

from gptcli.text.hf_tokenizers import description, steps
from gptcli.text.long_text.patterns import VISIBLE, WORD, CharKind, Matches, Unclear, matches_of, matches_of_text
from gptcli.text.tokenizer import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LAST = r"[^\W_]|[.,;:!?)\]}\"'>。，、；：！？）」』】》”’]"  # of the characters before a border
_BEFORE_SPACE = re.compile(rf"(?<={_LAST})(?= )")
_AFTER_NEWLINE = re.compile(rf"(?<=(?:{_LAST})\n)(?=[^\W_])")

_HARMLESS = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Prepend"}
_REWRITES_NEWLINES = {"BertNormalizer", "Nmt", "Precompiled", "Strip"}
_SPLITS_AT_WHITESPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPLITS_ANYWHERE = {"Metaspace", "Punctuation", "Digits", "CharDelimiterSplit"}

CONTEXT = 128  # the fewest characters that are examined on each side of a border
_MOST_TRIED = 64  # borders of a kind


def border_kinds(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> CharKind:
    """The borders that no pattern of a tokenizer can match across: before a SPACE, after a NEWLINE.

    The arguments are sections of tokenizer.json. No border is safe if they have anything unknown.
    """
    splitters = steps(pre_tokenizer, "pretokenizers")
    kinds = CharKind.SPACE | CharKind.NEWLINE
    try:
        spaces, newlines = _after_normalizers(steps(normalizer, "normalizers"))
        splits = bool(splitters) and splitters[0]["type"] in _SPLITS_AT_WHITESPACE
        if not newlines and not splits:
            kinds &= ~CharKind.NEWLINE
        for splitter in splitters:
            if splits and spaces == {" "}:
                break
            for space in spaces:
                kinds &= _kept_apart(_matches_of_splitter(splitter, space))
        return kinds
    except (Unclear, KeyError, TypeError):
        return CharKind(0)


def _after_normalizers(normalizers: list[dict[str, Any]]) -> tuple[set[str], bool]:
    """The characters that a space may become, and whether newlines stay newlines. Raises Unclear."""
    spaces, newlines = {" "}, True
    for step in normalizers:
        if step["type"] in _REWRITES_NEWLINES:
            newlines = False
        elif step["type"] == "Replace":
            content, whole = step["content"], step["pattern"] == {"String": " "}
            found = [_matches_of_pattern(step["pattern"], space) for space in spaces]
            if any(CharKind.NEWLINE in match.kinds for match in found):
                newlines = False
            if any(CharKind.SPACE in match.kinds for match in found):
                if content not in (" ", "▁") or any(match.kinds != CharKind.SPACE for match in found):
                    raise Unclear
                spaces = {content} if whole and spaces == {" "} else spaces | {content}
            elif not content or content[0].isspace() or content[-1].isspace():
                raise Unclear
        elif step["type"] not in _HARMLESS:
            raise Unclear
    return spaces, newlines


def _matches_of_splitter(splitter: dict[str, Any], space: str) -> Matches:
    if splitter["type"] == "Split":
        return _matches_of_pattern(splitter["pattern"], space)
    if splitter["type"] == "ByteLevel":
        return matches_of(_GPT2, space) if splitter.get("use_regex", True) else Matches()
    if splitter["type"] in _SPLITS_ANYWHERE | _SPLITS_AT_WHITESPACE:
        return Matches()
    raise Unclear


def _matches_of_pattern(pattern: dict[str, str], space: str) -> Matches:
    return matches_of_text(pattern["String"], space) if "String" in pattern else matches_of(pattern["Regex"], space)


def _kept_apart(matches: Matches) -> CharKind:
    kinds = CharKind.SPACE | CharKind.NEWLINE
    if matches.joins(VISIBLE, CharKind.SPACE):
        kinds &= ~CharKind.SPACE
    if matches.joins(CharKind.NEWLINE, WORD):
        kinds &= ~CharKind.NEWLINE
    return kinds


class Borders:
    """Finds safe borders for one tokenizer. special: as for `Tokenizer.encode`."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool) -> None:
        self._tokenizer = tokenizer
        self._special = special
        library = tokenizer.library
        self._normalizer, self._pre_tokenizer, self._model = library.normalizer, library.pre_tokenizer, library.model
        self.kinds = border_kinds(description(self._normalizer), description(self._pre_tokenizer))
        contents = [token.content for token in library.get_added_tokens_decoder().values()]
        self.context = max(CONTEXT, 4 * max(map(len, contents), default=0))

    def find(self, text: str, start: int) -> tuple[int, list[int]] | None:
        """A safe border at or after `start`, and the ids of the `context` on its left; None without one.

        Newlines are tried first. At least `context` characters must follow the border.
        """
        last = len(text) - self.context
        for kind, pattern in ((CharKind.NEWLINE, _AFTER_NEWLINE), (CharKind.SPACE, _BEFORE_SPACE)):
            if kind not in self.kinds:
                continue
            candidates = (match.start() for match in pattern.finditer(text, max(1, start), max(0, last)))
            for border in islice(candidates, _MOST_TRIED):
                left, right = text[max(0, border - self.context) : border], text[border : border + self.context]
                if ids := self._ids_if_safe(kind, left, right):
                    return border, ids
        return None

    def _ids_if_safe(self, kind: CharKind, left: str, right: str) -> list[int]:
        """The ids of the left side; empty if the right side changes them."""
        if not _is_plain(left[-1]) or not _is_plain(right[0]):
            return []
        if not self._splits(left, right) and kind not in self._never_merged:
            return []
        ids = self._ids(left)
        safe = (
            ids and not self._tokenizer.takes_whitespace_after(ids[-1]) and self._ids(left + right)[: len(ids)] == ids
        )
        return ids if safe else []

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, special=self._special, add_special=False)

    def _splits(self, left: str, right: str) -> bool:
        """Whether the pre-tokenizer cuts into words, none of them across the border."""
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
    def _never_merged(self) -> CharKind:
        """The borders that no token of a BPE vocabulary can lie across, whatever the words."""
        model, tokenizer = self._model, self._tokenizer
        if type(model).__name__ != "BPE" or model.ignore_merges or not tokenizer.spelling.exact:
            return CharKind(0)
        if model.continuing_subword_prefix or model.end_of_word_suffix:
            return CharKind(0)
        surfaces = [tokenizer.surface(id) for id in range(tokenizer.size) if not tokenizer.is_added(id)]
        across = {CharKind.SPACE: re.compile(rb"\S "), CharKind.NEWLINE: re.compile(rb"\n\S")}
        return CharKind(sum(kind for kind, pattern in across.items() if not any(map(pattern.search, surfaces))))


def _is_plain(char: str) -> bool:
    """Whether each normal form leaves a character alone, or makes text of it that begins and ends alphanumerically."""
    form = unicodedata.normalize("NFKC", char)
    return form == char or (form[0].isalnum() and form[-1].isalnum())
