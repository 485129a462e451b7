"""Reads the fields of a JSON object strictly, typed and within range, and remembers which were read."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from gptcli.errors import BrokenCheckpoint, UnsupportedArchitecture

T = TypeVar("T")

_INFINITY = ("Infinity", "{'__float__': 'Infinity'}", "inf")  # in older and newer files

_MAX_COUNT = 1 << 24  # larger than any known width or vocabulary
MAX_LAYERS = 1024
_MAX_HEADS = 1024


class TypedFields:
    """The fields of an object in a file.

    where: names the object in errors. All methods raise BrokenCheckpoint for a value of another type or out of range.
    """

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self._fields = fields
        self.where = where
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a field is given and not null."""
        return self._get(name) is not None

    def _get(self, name: str) -> Any:
        self._read.add(name)
        return self._fields.get(name)

    def _wrong(self, name: str, expected: str, value: Any) -> BrokenCheckpoint:
        return BrokenCheckpoint(f"{self.where}: {name} must be {expected}, not {str(value)[:60]!r}")

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = _MAX_COUNT) -> int:
        """A whole number in [low, high]. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"a whole number between {low} and {high}", value)
        return value

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.layers_of("num_hidden_layers")

    def layers_of(self, name: str, default: int | None = None, *, low: int = 1) -> int:
        """A number of layers, from this field."""
        return self.integer(name, default, low=low, high=MAX_LAYERS)

    def heads_of(self, name: str, default: int | None = None) -> int:
        """A number of attention heads, from this field."""
        return self.integer(name, default, high=_MAX_HEADS)

    def optional_integer(self, name: str) -> int | None:
        """A whole number of at least 1, or None if absent or null."""
        return None if self._get(name) is None else self.integer(name)

    def number(
        self, name: str, default: float | None = None, *, low: float = 0.0, high: float = sys.float_info.max
    ) -> float:
        """A number above `low`, at most `high`. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not low < value <= high:
            raise self._wrong(name, f"a number above {low:g}", value)
        return float(value)

    def multiple(self, name: str, default: float, size: int) -> int:
        """`size` times a number above 0, rounded down: a width. Absent or null gives `size` times the default."""
        product = self.number(name, default) * size
        if product > _MAX_COUNT:
            raise self._wrong(name, f"a number that makes at most {_MAX_COUNT} of {size}", self._get(name))
        return int(product)

    def flag(self, name: str, default: bool) -> bool:
        """True or false. Absent or null gives the default."""
        return self._typed(name, default, "true or false")

    def switch(self, name: str, default: bool) -> bool:
        """True or false, also as a number. Absent or null gives the default."""
        value = self._get(name)
        return bool(value) if type(value) is int else self.flag(name, default)

    def string(self, name: str, default: str) -> str:
        """A string. Absent or null gives the default."""
        return self._typed(name, default, "a string")

    def _typed(self, name: str, default: T, expected: str) -> T:
        """A value of the default's type."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, type(default)):
            raise self._wrong(name, expected, value)
        return value

    def per_layer(self, name: str, layers: int) -> list[Any] | None:
        """A list with one entry per layer, or None if absent or null. Longer lists are cut."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < layers:
            raise self._wrong(name, f"a list of {layers}", value)
        return value[:layers]

    def shares_per_layer(self, name: str, layers: int) -> list[float] | None:
        """A number from 0 to less than 1 for each layer, or None if absent or null."""
        shares = self.per_layer(name, layers)
        if shares is not None and any(type(share) not in (int, float) or not 0 <= share < 1 for share in shares):
            raise self._wrong(name, "numbers from 0 to less than 1", shares)
        return shares

    def integer_per_layer(self, name: str, layers: int, default: int | None = None) -> list[int]:
        """A whole number of at least 1 for each layer, from a list or from one for all."""
        if isinstance(self._get(name), list):
            return [TypedFields({name: each}, self.where).integer(name) for each in self.per_layer(name, layers) or ()]
        return [self.integer(name, default)] * layers

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers, at most one per layer. Absent or null gives an empty one."""
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self._wrong(name, "a list of whole numbers", value)
        if len(value) > MAX_LAYERS:
            raise self._wrong(name, f"at most {MAX_LAYERS} whole numbers", value)
        return value

    def strings(self, name: str) -> list[str]:
        """A list of strings. Absent or null gives an empty one."""
        value: list[Any] = self._typed(name, [], "a list of strings")
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(name, "a list of strings", value)
        return value

    def numbers(self, name: str, count: int, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """A list of `count` numbers above 0. Absent or null gives the default, or an error if there is none."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(name, f"a list of {count} numbers", value)
        return tuple(TypedFields({name: item}, self.where).number(name) for item in value)

    def limits(self, name: str) -> tuple[float, float]:
        """A least and a largest number, which may be infinite. Absent or null gives 0 and infinity."""
        value = self._get(name)
        if value is None:
            return 0.0, math.inf
        given = value if isinstance(value, list) else []
        limits = [math.inf if str(item) in _INFINITY else item for item in given]
        wrong = len(limits) != 2 or any(type(item) not in (int, float) for item in limits) or limits[0] > limits[1]
        if wrong or any(type(item) is int and abs(item) > sys.float_info.max for item in limits):
            raise self._wrong(name, "a least and a largest number", value)
        return float(limits[0]), float(limits[1])

    def optional_number(self, name: str) -> float | None:
        """A number above 0, or None if absent or null."""
        return None if self._get(name) is None else self.number(name)

    def nonzero(self, name: str, *, low: float = 0.0, high: float = sys.float_info.max) -> float | None:
        """A number above `low`, or None if absent, null or 0, which some settings treat as absent."""
        value = self._get(name)
        if value is None or (type(value) in (int, float) and value == 0):
            return None
        return self.number(name, low=low, high=high)

    def mapping(self, name: str) -> dict[str, Any]:
        """An object. Absent or null gives an empty one."""
        value = self._get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return value or {}

    def expect(self, name: str, *harmless: Any) -> None:
        """Raises UnsupportedArchitecture unless a field is absent, null or one of these values, without an effect."""
        value = self._get(name)
        if value is not None and not any(value == known and type(value) is type(known) for known in harmless):
            raise UnsupportedArchitecture(f"{self.where}: {name} = {str(value)[:60]!r} is not supported")

    def ignore(self, *names: str) -> None:
        """Accepts fields with any value, because they have no effect in this model."""
        self._read.update(names)
