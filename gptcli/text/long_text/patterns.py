"""Which characters a regular expression can match next to each other. Knows nothing of tokenizers.

A long text may be cut where no match can lie across: so it must be known of a pattern, whatever the text. Sets of
characters are over-estimated, repetitions are endless, and what looks around itself is refused, but for `(?!\\S)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag


class Kind(IntFlag):
    """Kinds of characters."""

    SPACE = 1  # the one that stands for a space, `▁` behind some normalizers
    NEWLINE = 2  # \\n alone
    BLANK = 4  # other whitespace
    LETTER = 8
    DIGIT = 16
    MARK = 32  # whatever else


NOTHING = Kind(0)
WORD = Kind.LETTER | Kind.DIGIT
VISIBLE = WORD | Kind.MARK
ANYTHING = Kind.SPACE | Kind.NEWLINE | Kind.BLANK | VISIBLE


_SUBSETS = "Lu Ll Lt Lm Lo Nd Nl No M Mn Mc Me P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So".split()


class Unclear(Exception):
    """A pattern says something that is not understood here."""


@dataclass(frozen=True)
class Matches:
    """What texts a pattern, or a part of one, can match.

    pairs: kinds of characters that can be neighbours in a match. looks: whether it ends only before whitespace.
    """

    empty: bool = True
    first: Kind = NOTHING
    last: Kind = NOTHING
    pairs: frozenset[tuple[Kind, Kind]] = frozenset()
    looks: bool = False

    @property
    def kinds(self) -> Kind:
        """Kinds of characters that can be in a match."""
        kinds = self.first | self.last
        for pair in self.pairs:
            kinds |= pair[0] | pair[1]
        return kinds

    def joins(self, left: Kind, right: Kind) -> bool:
        """Whether a match can hold a character of some kinds, and one of the others behind it."""
        return not self.pairs.isdisjoint(_pairs(left, right))

    def then(self, other: Matches) -> Matches:
        """What this and the other behind it match."""
        return Matches(
            self.empty and other.empty,
            self.first | (other.first if self.empty else NOTHING),
            other.last | (self.last if other.empty else NOTHING),
            self.pairs | other.pairs | _pairs(self.last, other.first),
            self.looks or other.looks,
        )

    def either(self, other: Matches) -> Matches:
        """What this or the other matches."""
        return Matches(
            self.empty or other.empty,
            self.first | other.first,
            self.last | other.last,
            self.pairs | other.pairs,
            self.looks or other.looks,
        )


@dataclass(frozen=True)
class _Set:
    """A set of characters: kinds of which some may be in it, and those of which all are."""

    some: Kind
    all: Kind = NOTHING

    def __or__(self, other: _Set) -> _Set:
        return _Set(self.some | other.some, self.all | other.all)

    def __invert__(self) -> _Set:
        return _Set(ANYTHING & ~self.all, ANYTHING & ~self.some)

    def matches(self) -> Matches:
        return Matches(False, self.some, self.some)


def _pairs(left: Kind, right: Kind) -> frozenset[tuple[Kind, Kind]]:
    return frozenset((a, b) for a in left for b in right)


def matches_of_text(text: str, space: str) -> Matches:
    """What a pattern that is a plain text matches."""
    found = Matches()
    for char in text:
        found = found.then(_literal(char, space).matches())
    return found


def matches_of(pattern: str, space: str) -> Matches:
    """What a regular expression matches, where `space` is the character that stands for a space.

    Raises Unclear for what is not understood, and for alternatives that match a line's end and look beyond it.
    """
    reader = _Reader(pattern, space)
    found = reader.alternatives()
    if reader.at < len(pattern):
        raise Unclear(pattern)
    return found


def _literal(char: str, space: str) -> _Set:
    if char == space:
        return _Set(Kind.SPACE, Kind.SPACE)
    if char == "\n":
        return _Set(Kind.NEWLINE, Kind.NEWLINE)
    if char.isspace():
        return _Set(Kind.BLANK)
    return _Set(Kind.LETTER if char.isalpha() else Kind.DIGIT if char.isnumeric() else Kind.MARK)


class _Reader:
    """Reads the syntax of Oniguruma that tokenizers use."""

    def __init__(self, pattern: str, space: str) -> None:
        self.pattern = pattern
        self.at = 0
        self._space = space
        whitespace = Kind.NEWLINE | Kind.BLANK | (Kind.SPACE if space.isspace() else NOTHING)
        self._whitespace = _Set(whitespace, whitespace)

    def alternatives(self) -> Matches:
        found = self._sequence()
        while self._take("|"):
            found = found.either(self._sequence())
        return found

    def _sequence(self) -> Matches:
        found = Matches()
        while self.at < len(self.pattern) and self._peek() not in "|)":
            found = found.then(self._repeated(self._atom()))
        if found.looks and found.joins(VISIBLE, Kind.NEWLINE):
            raise Unclear(self.pattern)
        return found

    def _atom(self) -> Matches:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class().matches()
        if char == "\\":
            return self._escape().matches()
        if char == ".":
            return _Set(ANYTHING).matches()
        if char in "^$*+?{":
            raise Unclear(self.pattern)
        return _literal(char, self._space).matches()

    def _group(self) -> Matches:
        if self._take("?!\\S)"):  # the same before a space as at the end
            return Matches(looks=True)
        if self._take("?"):
            for opening in (":", ">", "i:", "s:", "m:"):
                if self._take(opening):
                    break
            else:
                raise Unclear(self.pattern)
        found = self.alternatives()
        if not self._take(")"):
            raise Unclear(self.pattern)
        return found

    def _repeated(self, found: Matches) -> Matches:
        while self.at < len(self.pattern) and self._peek() in "?*+{":
            mark = self._next()
            if mark in "?*+" and not self._take("+"):  # possessive
                self._take("?")  # or lazy
            if mark == "{":
                bounds, closed, _ = self.pattern[self.at :].partition("}")
                if not closed or not all(bound.isdecimal() or not bound for bound in bounds.split(",")):
                    raise Unclear(self.pattern)
                self.at += len(bounds) + 1
                mark = "*"  # perhaps never
            found = replace(found, empty=found.empty or mark != "+")
            if mark != "?":
                found = replace(found, pairs=found.pairs | _pairs(found.last, found.first))
        return found

    def _class(self) -> _Set:
        negated, found = self._take("^"), _Set(NOTHING)
        if self._peek() == "]":
            raise Unclear(self.pattern)
        while not self._take("]"):
            char = self._next()
            if char == "[" or (char == "&" and self._peek() == "&"):
                raise Unclear(self.pattern)
            if self.at + 1 < len(self.pattern) and self._peek() == "-" and self.pattern[self.at + 1] not in "]\\[":
                self.at += 1
                found |= self._range(self._escaped_char() if char == "\\" else char, self._next())
            else:
                found |= self._escape() if char == "\\" else _literal(char, self._space)
        return ~found if negated else found

    def _range(self, first: str, last: str) -> _Set:
        found = _Set(VISIBLE | Kind.BLANK)
        for char in (self._space, "\n"):
            if first <= char <= last:
                found |= _literal(char, self._space)
        return found

    def _escaped_char(self) -> str:
        raise Unclear(self.pattern)  # a range that begins with an escape

    def _escape(self) -> _Set:
        char = self._next()
        if char in "sS":
            return self._whitespace if char == "s" else ~self._whitespace
        if char in "dw":
            return _Set(VISIBLE)
        if char in "DW":
            return _Set(ANYTHING)
        if char in "pP":
            return self._property(negated=char == "P")
        if char in "nrtfv":
            return _literal({"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}[char], self._space)
        if char.isalnum():
            raise Unclear(self.pattern)
        return _literal(char, self._space)

    def _property(self, negated: bool) -> _Set:
        if not self._take("{"):
            raise Unclear(self.pattern)
        name, closed, _ = self.pattern[self.at :].partition("}")
        if not closed:
            raise Unclear(self.pattern)
        self.at += len(name) + 1
        marks = Kind.MARK if self._space.isspace() else Kind.MARK | Kind.SPACE
        if name in ("L", "N"):
            kind = Kind.LETTER if name == "L" else Kind.DIGIT
            found = _Set(kind, kind)
        elif name in _SUBSETS:
            found = _Set({"L": Kind.LETTER, "N": Kind.DIGIT}.get(name[0], marks))
        else:
            found = _Set(ANYTHING)
        return ~found if negated else found

    def _peek(self) -> str:
        if self.at >= len(self.pattern):
            raise Unclear(self.pattern)
        return self.pattern[self.at]

    def _next(self) -> str:
        char = self._peek()
        self.at += 1
        return char

    def _take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.at):
            self.at += len(text)
            return True
        return False
