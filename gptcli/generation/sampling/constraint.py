"""What limits the tokens that may come next, such as a grammar. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from gptcli.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TokenMask: TypeAlias = "WriteableBuffer"
"""One bit a token, set if it may be drawn: bit `id % 32` of the 32-bit word `id // 32`, in the machine's byte order.

Any writable buffer of at least `mask_words(vocabulary)` words, as llguidance and xgrammar fill it.
"""


class Constraint(Protocol):
    """Limits one text as it grows."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow, so that the text ends."""

    def allowed(self) -> TokenMask | None:
        """The tokens that may come next, None for all. The buffer may be used again after `accept`."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, those that are known; empty where there is a choice."""

    def fitting(self, tokens: Sequence[int]) -> int:
        """How many of the tokens, one after another, may come next."""

    def accept(self, token: int) -> None:
        """Takes the next token; one that ends the text, too."""


def mask_words(vocabulary: int) -> int:
    """How many 32-bit words the mask of so many tokens has."""
    return (vocabulary + 31) // 32


def nothing_allowed() -> UsageError:
    """What a sampler raises if mask, bans and biases leave no token."""
    return UsageError("no token is left that may be drawn")
