"""Decodes with the library, for decoders in which a token's bytes depend on its neighbours.

Text that a later token might change is held back, so that the pieces join to the library's whole text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from gptcli.errors import BrokenTokenizer
from gptcli.text.backend import BackendTokenizer
from gptcli.text.hf_tokenizers import description, steps

_BYTE_PIECE = re.compile(r"<0x.{2}>", re.DOTALL)
_MOST_IDS, _KEPT_IDS = 96, 32  # decoded together; if there are more, all but the last few are forgotten
_CONTEXT = 16  # ids before the text that its first token's bytes may depend on
# Steps whose result for a token depends at most on the token before it.
_LOCAL = frozenset({"Replace", "Strip", "Metaspace", "WordPiece", "CTC", "ByteFallback", "ByteLevel", "Fuse"})


class LibraryDetokenizer:
    """Releases text once no later token can change it; all at the end if that is not known."""

    def __init__(self, backend: BackendTokenizer, before: Sequence[int] = ()) -> None:
        """before: the ids that the text follows."""
        self._decode = partial(_decoded, backend)
        self._decode_or_raise = backend.decode
        self._rules = _Rules(backend)
        self._ids = list(before[-_CONTEXT:])
        text = self._decode(self._ids)
        self._released = self._rules.stable_length(self._ids, text)  # characters of the text of `_ids`
        if not self._rules.are_local:
            self._released = len(text)

    def push(self, id: int) -> bytes:
        """Takes the next token. Returns the bytes that can be shown."""
        self._ids.append(id)
        if not self._rules.are_local:
            return b""
        text = self._decode(self._ids)
        stable = self._rules.stable_length(self._ids, text)
        released = text[self._released : stable]
        self._released = max(self._released, stable)
        if len(self._ids) > _MOST_IDS:
            self._forget(text)
        return released.encode()

    def flush(self) -> bytes:
        """Ends the text. Returns the rest of it."""
        return self._decode_or_raise(self._ids)[self._released :].encode()

    def _forget(self, text: str) -> None:
        """Forgets the older ids unless that changes the end of the text."""
        kept = self._decode(self._ids[-_KEPT_IDS:])
        same = len(kept) // 2  # the beginning may differ, by a lost space for example
        pending = len(text) - self._released
        if pending < same and text.endswith(kept[-same:]):
            self._ids = self._ids[-_KEPT_IDS:]
            self._released = len(kept) - pending


class _Rules:
    """Which characters later tokens can change. are_local: whether that is known."""

    def __init__(self, backend: BackendTokenizer) -> None:
        self._piece, self._decode = backend.library.id_to_token, partial(_decoded, backend)
        described = steps(description(backend.library.decoder), "decoders")
        names = [step["type"] for step in described]
        # These join all tokens to one for the steps after them.
        joined_at = next((index for index, name in enumerate(names) if name in ("Fuse", "ByteLevel")), len(names))
        whole = [step for step in described[joined_at + 1 :] if step["type"] != "Fuse"]
        self.are_local = set(names) <= _LOCAL and [step["type"] for step in whole] in ([], ["Strip"])
        self._stripped = "".join(step["content"] for step in whole if step["stop"]) if self.are_local else ""
        self._has_bytes = "ByteFallback" in names[:joined_at]
        if self._has_bytes:
            at = names.index("ByteFallback")
            self.are_local &= all(map(_keeps_byte_pieces, described[:at]))
            self.are_local &= {*names[at + 1 : joined_at]} <= {"Replace", "Strip"}

    def stable_length(self, ids: Sequence[int], text: str) -> int:
        """The number of characters that no later token can change, of the text of ids."""
        if not self.are_local or not ids:
            return 0
        if self._has_bytes and self._may_be_byte(ids[-1]):
            # One invalid byte changes the text of all adjacent bytes.
            count = len(ids) - 1
            while count and self._may_be_byte(ids[count - 1]):
                count -= 1
            return self.stable_length(ids[:count], self._decode(ids[:count]))
        text = text.rstrip("\ufffd")
        return len(text.rstrip(self._stripped) if self._stripped else text)

    def _may_be_byte(self, id: int) -> bool:
        piece = self._piece(id)
        return piece is None or _BYTE_PIECE.fullmatch(piece) is not None


def _decoded(backend: BackendTokenizer, ids: Sequence[int]) -> str:
    """The text of ids, empty if the library fails: it does on text shorter than what it strips, for example."""
    try:
        return backend.decode(ids)
    except BrokenTokenizer:
        return ""


def _keeps_byte_pieces(step: Mapping[str, Any]) -> bool:
    """Whether a step neither makes nor changes a piece of a byte, such as `<0x0A>`."""
    match step:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return bool(pattern) and not (set(pattern) | set(content)) & set("<0x>ABCDEFabcdef123456789+")
    return False
