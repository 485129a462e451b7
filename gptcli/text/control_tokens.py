"""Control tokens, such as `<|im_end|>`, and how typed ones stay text.

- A text that spells one: `renamed_backend` encodes it, in which control tokens have names that nobody can type.
- A chat: `guard` marks control tokens in messages, the template writes its own, and `resolve` renames the unmarked ones
  and drops the marks, for `renamed_backend` to encode.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

from gptcli.errors import BrokenTokenizer
from gptcli.text.backend import BackendTokenizer
from gptcli.text.fast_start.partial_tokenizer import PartialTokenizer
from gptcli.text.hf_tokenizers import description, steps
from gptcli.text.literal_regex import regex_for_any

# Looks like a control token: some vocabularies do not mark theirs as special.
_BARRED = re.compile(r"<[|｜].*[|｜]>")


class ControlTokens:
    """The control tokens of one tokenizer. ids: by spelling.

    Raises BrokenTokenizer for a text if hundreds of them begin with one another.
    """

    def __init__(self, backend: BackendTokenizer, added: Mapping[int, AddedToken]) -> None:
        """added: the tokenizer's added tokens by id."""
        self._backend = backend
        self._added = added
        self.ids = {
            token.content: id for id, token in added.items() if token.special or _BARRED.fullmatch(token.content)
        }
        self._mark = os.urandom(16).hex()  # occurs in no text

    def spelled_in(self, text: str) -> tuple[str, ...]:
        """The control tokens that a text spells."""
        return tuple(content for content in self.ids if content in text)

    def guard(self, text: str, *, beginnings: bool = False) -> str:
        """Marks, after its first letter, each control token that a text spells, so that `resolve` takes it for text.

        beginnings: marks every first letter of a control token, which guards against letters removed later.
        """
        if not self.ids:
            return text
        pattern = self._first_letters if beginnings else self._pattern
        return pattern.sub(lambda match: match[0][0] + self._mark + match[0][1:], text)

    def unguard(self, text: str) -> str:
        """A text without the marks of `guard`."""
        return text.replace(self._mark, "")

    def unmarked(self, text: str) -> list[str]:
        """The control tokens in a rendered chat, in order, except those that `guard` marked."""
        return self._pattern.findall(text) if self.ids else []

    def resolve(self, text: str) -> tuple[BackendTokenizer, str]:
        """The backend for a rendered chat, and the text to encode, in which marked control tokens are plain text."""
        unmarked = self.unmarked(text)
        between = self._pattern.split(text) if unmarked else [text]
        if self._mark not in text and not any(map(self.may_be_in, between)):
            return self._backend, text
        resolved = self.unguard(between[0])
        for control, plain in zip(unmarked, between[1:], strict=True):
            resolved += self._renamed[control] + self.unguard(plain)
        return self.renamed_backend, resolved

    def may_be_in(self, text: str) -> bool:
        """Whether a text spells a control token, or may do so once it is normalized."""
        if not self.ids:
            return False
        if self._is_in(text):
            return True
        if not self._normalizer_spells_control:
            return False
        normalizer = self._backend.library.normalizer
        assert normalizer is not None
        # An untrusted normalizer is not run in this process.
        return self._backend.is_sandboxed or self._is_in(normalizer.normalize_str(text))

    def _is_in(self, text: str) -> bool:
        # Compiling a pattern of thousands of tokens takes longer than most texts.
        return not self._letters.isdisjoint(text) and self._pattern.search(text) is not None

    @cached_property
    def renamed_backend(self) -> BackendTokenizer:
        """The same tokenizer, except that control tokens have names that nobody can type."""
        renamed, library = self._renamed, self._backend.library
        if isinstance(library, PartialTokenizer):
            return BackendTokenizer.trusted(library.renamed(renamed), self._backend.where)
        state = json.loads(self._backend.library.to_str())
        for token in state["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(piece, piece): id for piece, id in model["vocab"].items()}
        else:  # Unigram: [piece, score] in order of ids
            model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        return BackendTokenizer(state, self._backend.where)

    @cached_property
    def _renamed(self) -> dict[str, str]:
        return {content: f"<{self._mark}-{id}>" for content, id in self.ids.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        try:
            return re.compile(regex_for_any(sorted(self.ids)))
        except RecursionError:
            where = self._backend.where
            raise BrokenTokenizer(f"cannot read: {where}: its control tokens begin with one another") from None

    @cached_property
    def _first_letters(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self._letters))))

    @cached_property
    def _letters(self) -> set[str]:
        """The first letters of control tokens."""
        return {content[0] for content in self.ids}

    @cached_property
    def _normalizer_spells_control(self) -> bool:
        """Whether normalizing may spell a control token, for example from capitals or wide letters."""
        library = self._backend.library
        # The library searches for the others before it normalizes, and the model has no pieces for them.
        found_after = [
            content
            for content, id in self.ids.items()
            if self._added[id].normalized or library.model.token_to_id(content) is not None
        ]
        if library.normalizer is None or not found_after:
            return False
        letters = "".join(found_after)
        return not all(_spells_nothing(step, letters) for step in steps(description(library.normalizer), "normalizers"))


def _spells_nothing(step: Mapping[str, Any], letters: str) -> bool:
    """Whether a step of a normalizer only inserts or substitutes text without these letters.

    Such a step makes no new words of the letters.
    """
    match step:
        case {"type": "Prepend", "prepend": str(inserted)}:
            return not set(inserted) & set(letters)
        case {"type": "Replace", "pattern": {"String": str()}, "content": str(inserted)}:
            return inserted != "" and not set(inserted) & set(letters)
    return False
