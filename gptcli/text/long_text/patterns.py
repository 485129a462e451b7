"""The kinds of characters that a regular expression can match side by side. Knows nothing of tokenizers.

A text may be cut where no match of a pattern can lie across. So this over-estimates: sets of characters may be larger
than the pattern's, repetitions are endless, and lookarounds are refused, except for `(?!\\S)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag


class CharKind(IntFlag):
    """Kinds of characters."""

    SPACE = 1  # the character for a space; some normalizers make it `▁`
    NEWLINE = 2  # \\n alone
    BLANK = 4  # any other whitespace
    LETTER = 8
    DIGIT = 16
    OTHER = 32  # not whitespace, letter or digit


NOTHING = CharKind(0)
WORD = CharKind.LETTER | CharKind.DIGIT
VISIBLE = WORD | CharKind.OTHER
ANYTHING = CharKind.SPACE | CharKind.NEWLINE | CharKind.BLANK | VISIBLE


_SUBCATEGORIES = "Lu Ll Lt Lm Lo Nd Nl No M Mn Mc Me P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So".split()


class Unclear(Exception):
    """A pattern has something that this module does not understand."""


@dataclass(frozen=True)
class Matches:
    """The texts that a pattern, or a piece of one, can match.

    empty: whether it can match nothing. first, last: kinds at the ends of a match. pairs: kinds that can be neighbours
    in it. looks: whether a `(?!\\S)` must hold.
    """

    empty: bool = True
    first: CharKind = NOTHING
    last: CharKind = NOTHING
    pairs: frozenset[tuple[CharKind, CharKind]] = frozenset()
    looks: bool = False

    @property
    def kinds(self) -> CharKind:
        """The kinds of characters in a match."""
        kinds = self.first | self.last
        for pair in self.pairs:
            kinds |= pair[0] | pair[1]
        return kinds

    def joins(self, left: CharKind, right: CharKind) -> bool:
        """Whether a match can have a character of the left kinds followed by one of the right kinds."""
        return not self.pairs.isdisjoint(_pairs(left, right))

    def then(self, other: Matches) -> Matches:
        """The matches of this followed by the other."""
        return Matches(
            self.empty and other.empty,
            self.first | (other.first if self.empty else NOTHING),
            other.last | (self.last if other.empty else NOTHING),
            self.pairs | other.pairs | _pairs(self.last, other.first),
            self.looks or other.looks,
        )

    def either(self, other: Matches) -> Matches:
        """The matches of this or the other."""
        return Matches(
            self.empty or other.empty,
            self.first | other.first,
            self.last | other.last,
            self.pairs | other.pairs,
            self.looks or other.looks,
        )


@dataclass(frozen=True)
class _Set:
    """A set of characters. some: kinds of which it may have some. all: kinds of which it has all."""

    some: CharKind
    all: CharKind = NOTHING

    def __or__(self, other: _Set) -> _Set:
        return _Set(self.some | other.some, self.all | other.all)

    def __invert__(self) -> _Set:
        return _Set(ANYTHING & ~self.all, ANYTHING & ~self.some)

    def matches(self) -> Matches:
        return Matches(False, self.some, self.some)


def _pairs(left: CharKind, right: CharKind) -> frozenset[tuple[CharKind, CharKind]]:
    return frozenset((a, b) for a in left for b in right)


def matches_of_text(text: str, space: str) -> Matches:
    """The matches of a plain text. space: the character for a space."""
    found = Matches()
    for char in text:
        found = found.then(_literal(char, space).matches())
    return found


def matches_of(pattern: str, space: str) -> Matches:
    """The matches of a regular expression. space: the character for a space.

    Raises Unclear for syntax that this module does not understand, and for an alternative that looks beyond the match
    and has a newline after a visible character.
    """
    reader = _Reader(pattern, space)
    found = reader.alternatives()
    if reader.index < len(pattern):
        raise Unclear(pattern)
    return found


def _literal(char: str, space: str) -> _Set:
    if char == space:
        return _Set(CharKind.SPACE, CharKind.SPACE)
    if char == "\n":
        return _Set(CharKind.NEWLINE, CharKind.NEWLINE)
    if char.isspace():
        return _Set(CharKind.BLANK)
    return _Set(CharKind.LETTER if char.isalpha() else CharKind.DIGIT if char.isnumeric() else CharKind.OTHER)


class _Reader:
    """Reads the syntax of Oniguruma that tokenizers use."""

    def __init__(self, pattern: str, space: str) -> None:
        self.pattern = pattern
        self.index = 0
        self._space = space
        whitespace = CharKind.NEWLINE | CharKind.BLANK | (CharKind.SPACE if space.isspace() else NOTHING)
        self._whitespace = _Set(whitespace, whitespace)

    def alternatives(self) -> Matches:
        found = self._sequence()
        while self._take("|"):
            found = found.either(self._sequence())
        return found

    def _sequence(self) -> Matches:
        found = Matches()
        while self.index < len(self.pattern) and self._peek() not in "|)":
            found = found.then(self._repeated(self._atom()))
        if found.looks and found.joins(VISIBLE, CharKind.NEWLINE):
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
        if self._take("?!\\S)"):  # holds before whitespace and at the end
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
        while self.index < len(self.pattern) and self._peek() in "?*+{":
            mark = self._next()
            if mark in "?*+" and not self._take("+"):  # possessive, or lazy
                self._take("?")
            if mark == "{":
                if not all(bound.isdecimal() or not bound for bound in self._until_brace().split(",")):
                    raise Unclear(self.pattern)
                mark = "*"  # as if from none to any number
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
            begins_range = self._peek() == "-" and self.pattern[self.index + 1 : self.index + 2] not in ("", *"]\\[")
            if char == "[" or (char == "&" and self._peek() == "&") or (char == "\\" and begins_range):
                raise Unclear(self.pattern)
            if begins_range:
                self._take("-")
                found |= self._range(char, self._next())
            else:
                found |= self._escape() if char == "\\" else _literal(char, self._space)
        return ~found if negated else found

    def _range(self, first: str, last: str) -> _Set:
        found = _Set(VISIBLE | CharKind.BLANK)
        for char in (self._space, "\n"):
            if first <= char <= last:
                found |= _literal(char, self._space)
        return found

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
        name = self._until_brace()
        others = CharKind.OTHER if self._space.isspace() else CharKind.OTHER | CharKind.SPACE
        if name in ("L", "N"):
            kind = CharKind.LETTER if name == "L" else CharKind.DIGIT
            found = _Set(kind, kind)
        elif name in _SUBCATEGORIES:
            found = _Set({"L": CharKind.LETTER, "N": CharKind.DIGIT}.get(name[0], others))
        else:
            found = _Set(ANYTHING)
        return ~found if negated else found

    def _peek(self) -> str:
        if self.index >= len(self.pattern):
            raise Unclear(self.pattern)
        return self.pattern[self.index]

    def _next(self) -> str:
        char = self._peek()
        self.index += 1
        return char

    def _until_brace(self) -> str:
        text, found, _ = self.pattern[self.index :].partition("}")
        if not found:
            raise Unclear(self.pattern)
        self.index += len(text) + 1
        return text

    def _take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.index):
            self.index += len(text)
            return True
        return False
