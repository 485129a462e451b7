"""Rewrites a JSON schema with keywords and formats that llguidance knows: the same texts, or fewer, meet it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from gptcli.generation.constraints.endless_schemas import target

_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    rf"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:{_LEAP})-02-29"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_IPV6 = r"(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}|(?:[0-9a-f]{1,4}:){1,6}:[0-9a-f]{1,4}|::(?:[0-9a-f]{1,4})?"
_URI_CHAR = r"(?:[a-zA-Z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
_PATH = rf"(?:/{_URI_CHAR}+)*/?"
_URI_TAIL = rf"(?:\?(?:{_URI_CHAR}|[/?])*)?(?:#(?:{_URI_CHAR}|[/?])*)?"
_KEY = r"/(?:[^/~]|~[01])*"
_VARIABLE = r"(?:[a-zA-Z0-9_]|%[0-9a-fA-F]{2})+(?:\.(?:[a-zA-Z0-9_]|%[0-9a-fA-F]{2})+)*(?::[1-9][0-9]{0,3}|\*)?"
_BITS4, _BITS6 = r"/(?:3[0-2]|[12]?[0-9])", r"/(?:12[0-8]|1[01][0-9]|[1-9]?[0-9])"
# Formats that llguidance does not know, or knows too loosely: it takes the 29th of every February.
_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"(?:{_DATE})T{_TIME}",
    "uri-reference": rf"(?:(?:https?://[a-zA-Z0-9.-]+)?{_PATH}|[a-zA-Z0-9._~-]+{_PATH}){_URI_TAIL}",
    "uri-template": rf"(?:[/?#]|{_URI_CHAR}|\{{[+#./;?&]?{_VARIABLE}(?:,{_VARIABLE})*\}})*",
    "json-pointer": f"(?:{_KEY})*",
    "relative-json-pointer": rf"(?:0|[1-9][0-9]?)(?:#|(?:{_KEY})+)",
    "ipvanyaddress": f"{_IPV4}|{_IPV6}",
    "ipv4network": rf"{_OCTET}(?:\.0){{3}}/8|{_OCTET}\.{_OCTET}\.0\.0/16|(?:{_OCTET}\.){{3}}0/24|{_IPV4}/32",
    "ipv6network": rf"(?:{_IPV6})/128",
    "ipv4interface": f"(?:{_IPV4}){_BITS4}",
    "ipv6interface": f"(?:{_IPV6}){_BITS6}",
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "base64url": r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?",
    "color": r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})",
}
_PATTERNS |= {
    "ipvanynetwork": f"{_PATTERNS['ipv4network']}|{_PATTERNS['ipv6network']}",
    "ipvanyinterface": f"{_PATTERNS['ipv4interface']}|{_PATTERNS['ipv6interface']}",
    "iri-reference": _PATTERNS["uri-reference"],
    "byte": _PATTERNS["base64"],
}
_SAME = {
    **dict.fromkeys(("url", "iri"), "uri"),
    "idn-email": "email",
    **dict.fromkeys(("idn-hostname", "host-name"), "hostname"),
    "ip-address": "ipv4",
    **dict.fromkeys(("uuid1", "uuid3", "uuid4", "uuid5"), "uuid"),
}
# Pydantic's and OpenAPI's hints to forms and type checkers, which any text meets.
_ANY_TEXT = frozenset({"path", "file-path", "directory-path", "binary", "password", "textarea", "multi-line", "string"})
LARGEST_BOUND = 2**63 - 1024  # a double
BOUNDS = {"minimum": 1, "exclusiveMinimum": 1, "maximum": -1, "exclusiveMaximum": -1}  # the sign of numbers within
_FORMAT_BOUNDS = {
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": {"minimum": -LARGEST_BOUND, "maximum": LARGEST_BOUND},
}
_CLASS = re.compile(r"\\.|\.|\[(?:\\.|[^\]\\])*", re.DOTALL)  # or, outside, an escape or any character
_SET_SIGN = re.compile(r"\\.|[\[&~]", re.DOTALL)  # or an escape
# Signs whose characters differ between JavaScript, Python and Rust: those that all three mean, or in a class that
# excludes characters, those that any of them means.
_MEANT = {
    ".": r"[^\n\r\u2028\u2029]",
    r"\s": r"[\s--\x85]",
    r"\S": r"[^\s\x1c-\x1f\ufeff]",
    r"\D": r"[^\p{Nd}]",
    r"\W": r"[^\p{L}\p{N}_]",
}
_EXCLUDED = {
    r"\s": r"[\s\x1c-\x1f\ufeff]",
    r"\S": r"[^[\s--\x85]]",
    r"\d": r"\p{Nd}",
    r"\w": r"[\p{L}\p{N}_]",
}
_MOST_COMPARED, _DEEPEST = 20_000, 12  # pairs of schemas, and levels of nesting
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_ONE = ("items", "additionalItems", "additionalProperties")


def rewritten(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema for llguidance. Unknown keywords stay, for llguidance to refuse."""
    return _rewritten(schema, _Comparison(schema))


def _rewritten(schema: Mapping[str, Any], comparison: _Comparison) -> dict[str, Any]:
    def inner(part: Any) -> Any:
        return _rewritten(part, comparison) if isinstance(part, Mapping) else part

    new = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            new[key] = {name: inner(part) for name, part in value.items()}
        elif key in _LISTS and isinstance(value, list):
            new[key] = list(map(inner, value))
        elif key in _ONE:
            new[key] = inner(value)
    if not isinstance(new.get("items"), list):  # then it has no effect, but llguidance would ignore prefixItems
        new.pop("additionalItems", None)
    _limit_names(new)
    _narrow_bounds(new)
    if isinstance(new.get("pattern"), str):
        new["pattern"] = _pattern(new["pattern"])
    if isinstance(new.get("patternProperties"), dict):
        new["patternProperties"] = {_pattern(name): part for name, part in new["patternProperties"].items()}
    also = list(_conditions(new))
    if also:
        new["allOf"] = [*(new["allOf"] if isinstance(new.get("allOf"), list) else []), *also]
    if new.get("uniqueItems") is False:
        del new["uniqueItems"]
    choices = new.get("oneOf")
    if isinstance(choices, list) and "anyOf" not in new and comparison.exclude_each_other(choices):
        new = {"anyOf" if key == "oneOf" else key: value for key, value in new.items()}
    return new


def _pattern(text: str) -> str:
    """JavaScript's regular expression as Rust's: in a class, brackets and operators of sets are escaped."""
    return _CLASS.sub(_part_of_pattern, text)


def _part_of_pattern(part: re.Match[str]) -> str:
    text = part[0]
    if text[0] != "[":
        return _MEANT.get(text, text)
    signs = set(_SET_SIGN.findall(text[1:]))
    meant = _EXCLUDED if text.startswith("[^") else _MEANT
    meant = {sign: meant.get(sign, sign) for sign in signs if sign.swapcase() not in signs}  # [\s\S] is anything
    return "[" + _SET_SIGN.sub(lambda sign: meant.get(sign[0], sign[0]) if sign[0][1:] else f"\\{sign[0]}", text[1:])


def _conditions(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Takes a format that llguidance lacks out of a schema; yields what a text must meet instead, or besides."""
    format = schema.get("format")
    if not isinstance(format, str):
        return
    if format in _SAME:
        format = schema["format"] = _SAME[format]
    if format == "hostname":
        yield {"maxLength": 253, "pattern": "^[^-]+(?:-[^-]+)*$"}  # "--" is punycode's, which not every text decodes
    if format in _PATTERNS:
        del schema["format"]
        yield {"pattern": f"^(?:{_PATTERNS[format]})$"}
    elif format in _ANY_TEXT:
        del schema["format"]
    elif format in _FORMAT_BOUNDS:
        yield _FORMAT_BOUNDS[format]


def _narrow_bounds(schema: dict[str, Any]) -> None:
    """Moves bounds that llguidance would round inwards, to doubles within 64 bits."""
    for key, within in BOUNDS.items():
        bound = schema.get(key)
        if not isinstance(bound, int | float) or isinstance(bound, bool):
            continue
        if bound * within < -LARGEST_BOUND:
            schema[key] = -LARGEST_BOUND * within
        elif isinstance(bound, int) and abs(bound) <= LARGEST_BOUND:
            rounded = float(bound)
            schema[key] = int(
                rounded if rounded * within >= bound * within else math.nextafter(rounded, within * math.inf)
            )


def _limit_names(schema: dict[str, Any]) -> None:
    """Spells `propertyNames` as `patternProperties`, if nothing else limits the names."""
    names = schema.get("propertyNames")
    if not isinstance(names, Mapping) or {"properties", "patternProperties", "required"} & schema.keys():
        return
    names = {key: value for key, value in names.items() if (key, value) != ("type", "string")}
    choices = names.get("enum")
    if not names:
        del schema["propertyNames"]
        return
    if len(names) > 1:
        return
    if isinstance(names.get("pattern"), str):
        pattern = names["pattern"]
    elif isinstance(choices, list) and all(isinstance(each, str) for each in choices):
        pattern = f"^(?:{'|'.join(map(re.escape, choices))})$"
    else:
        return
    del schema["propertyNames"]
    schema["patternProperties"] = {pattern: schema.get("additionalProperties", True)}
    schema["additionalProperties"] = False


def original_path(path: str, schema: object) -> str:
    """The path in the original schema of a path in the rewritten one."""
    kept, steps = list[str](), path.split("/")[1:]
    for step in steps:
        if isinstance(schema, Mapping) and step == "anyOf" and step not in schema:
            step = "oneOf"
        if isinstance(schema, list) and step.isdigit() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, Mapping) and step in schema:
            schema = schema[step]
        else:
            break
        kept.append(step)
    return "".join(f"/{step}" for step in kept)


class _Comparison:
    """Finds pairs of schemas that no value meets both of. root: the document of their references."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root, self._left, self._depth = root, _MOST_COMPARED, 0

    def exclude_each_other(self, choices: list[Any]) -> bool:
        """Whether it is certain that no value meets two of the schemas; then `oneOf` is `anyOf`."""
        return all(self._disjoint(*pair) for pair in combinations(choices, 2))

    def _disjoint(self, one: Any, other: Any) -> bool:
        self._left -= 1
        if self._left < 0 or self._depth == _DEEPEST:
            return False
        self._depth += 1
        try:
            return one is False or other is False or self._differ(one, other)
        finally:
            self._depth -= 1

    def _differ(self, one: Any, other: Any) -> bool:
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            return False
        for part, rest in ((one, other), (other, one)):
            reference = part.get("$ref")
            if isinstance(reference, str) and self._disjoint(target(self._root, reference), rest):
                return True
            for key, holds in (("anyOf", all), ("oneOf", all), ("allOf", any)):
                inner = part.get(key)
                if isinstance(inner, list) and inner and holds(self._disjoint(each, rest) for each in inner):
                    return True
            values = _values(part)
            if values is not None and not any(_may_be(value, rest) for value in values):
                return True
        types = _types(one) & _types(other)
        if not types or (types == {"number"} and (_below(one, other) or _below(other, one))):
            return True
        names = {*_required(one), *_required(other)}
        return types == {"object"} and any(self._disjoint(_member(one, name), _member(other, name)) for name in names)


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def _may_be(value: Any, schema: Mapping[str, Any]) -> bool:
    values = _values(schema)
    if values is not None and json.dumps(value, sort_keys=True) not in {json.dumps(v, sort_keys=True) for v in values}:
        # 1 and 1.0 are the same number
        return isinstance(value, int | float) and value in [each for each in values if isinstance(each, int | float)]
    return _type_of(value) in _types(schema)


def _type_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (str, "string"), (list, "array"), (dict, "object"), (int | float, "number")):
        if isinstance(value, kind):
            return name
    return "null"


def _types(schema: Mapping[str, Any]) -> set[str]:
    every = {"null", "boolean", "number", "string", "array", "object"}
    given = schema.get("type")
    if given is None:
        values = _values(schema)
        return every if values is None else set(map(_type_of, values))
    names = given if isinstance(given, list) else [given]
    return {"number" if name == "integer" else name for name in names if isinstance(name, str)}


def _below(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether all numbers of one are smaller than those of the other."""
    highest, lowest = one.get("maximum"), other.get("minimum")
    below, above = one.get("exclusiveMaximum"), other.get("exclusiveMinimum")
    if isinstance(highest, int | float) and isinstance(lowest, int | float) and highest < lowest:
        return True
    return any(
        isinstance(high, int | float) and isinstance(low, int | float) and not isinstance(high, bool) and high <= low
        for high, low in ((below, lowest), (highest, above), (below, above))
        if not isinstance(low, bool)
    )


def _required(schema: Mapping[str, Any]) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _member(schema: Mapping[str, Any], name: str) -> Any:
    """The schema of a member, True if it may be anything, False if it may not exist."""
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        return properties[name]
    if "patternProperties" not in schema and schema.get("additionalProperties") is False:
        return False
    return True
