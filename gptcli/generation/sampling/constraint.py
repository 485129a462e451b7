"""The protocol of constraints, which limit the next token; a grammar is one. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from gptcli.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TokenMask: TypeAlias = "WriteableBuffer"
"""A bit for each token, set if it may be drawn: bit `id % 32` of the 32-bit word `id // 32`, in native byte order.

Any writable buffer of at least `mask_words(vocabulary)` words, as llguidance and xgrammar fill it.
"""


class Constraint(Protocol):
    """Limits one text as it grows."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow, so that the text ends."""

    def allowed(self) -> TokenMask | None:
        """The tokens that may come next, None for all. `accept` may overwrite the buffer."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, as far as they are known; empty if there is a choice."""

    def fitting(self, tokens: Sequence[int]) -> int:
        """The number of leading tokens that may come next, one after another."""

    def accept(self, token: int) -> None:
        """Takes the next token, even one that ends the text."""


def mask_words(vocabulary: int) -> int:
    """The number of 32-bit words in a mask of a vocabulary."""
    return (vocabulary + 31) // 32


def nothing_allowed() -> UsageError:
    """The error of a sampler if mask, bans and biases leave no token."""
    return UsageError("no token is left that may be drawn")
