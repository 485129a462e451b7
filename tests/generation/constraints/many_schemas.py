"""Texts under many JSON schemas, validated with jsonschema.

`python -m tests.generation.constraints.many_schemas --count 1000 [-m MODEL]` tries the default model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jsonschema

import gptcli
from gptcli import Finished, LanguageModel
from tests.generation.outcomes import completed

_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_SHORT = {"type": "string", "maxLength": 6}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _nested(depth: int) -> dict[str, Any]:
    return _object(inner=_nested(depth - 1)) if depth else {"type": "boolean"}


SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "types": {"type": ["string", "null", "integer"]},
    "anything": {},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "person": _PERSON,
    "optional": {"type": "object", "properties": {"a": _SHORT, "b": _SHORT}, "additionalProperties": False},
    "some required": {"type": "object", "properties": {"a": _SHORT, "b": {"type": "integer"}}, "required": ["b"]},
    "nested": _nested(12),
    "nested arrays": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "people": {"type": "array", "items": _PERSON, "minItems": 1, "maxItems": 3},
    "exactly three": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [_SHORT, {"type": "integer"}], "items": False, "minItems": 2},
    "tuple and rest": {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "maxItems": 4},
    "enum": {"enum": ["red", "green", "blue"]},
    "mixed enum": {"enum": ["red", 3, None, True, 2.5, {"a": [1, "b"]}, []]},
    "const": {"const": {"kind": "circle", "r": 1}},
    "enum in object": _object(colour={"enum": ["red", "green"]}, size={"enum": [1, 2, 3]}),
    "bounds": {"type": "integer", "minimum": -5, "maximum": 17},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 102},
    "number bounds": {"type": "number", "minimum": 0, "maximum": 1},
    "negative": {"type": "number", "exclusiveMaximum": 0},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "loose pattern": {"type": "string", "pattern": "[0-9]", "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "email": {"type": "string", "format": "email"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "ref": {"$defs": {"p": _PERSON}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 2},
    "definitions": {"definitions": {"s": _SHORT}, **_object(a={"$ref": "#/definitions/s"})},
    "ref to a property": _object(a=_SHORT, b={"$ref": "#/properties/a"}),
    "tree": {"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
         "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}, "required": ["value"],
         "additionalProperties": False}}, "$ref": "#/$defs/node"},
    "list": {"$defs": {"l": {"anyOf": [{"type": "null"}, _object(head={"type": "integer"},
         tail={"$ref": "#/$defs/l"})]}}, "$ref": "#/$defs/l"},
    "unicode": _object(**{"größe": {"enum": ["groß", "klein"]}, "町": {"const": "小さな"}, "😀": {"type": "boolean"}}),
    "escapes": _object(**{'a"b\\c\n': {"enum": ["x\ty", 'say "hi"', "back\\slash", "\u2028"]}}),
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "map beside": {"type": "object", "properties": {"a": _SHORT}, "additionalProperties": {"type": "boolean"}},
    "patternProperties": {"type": "object", "patternProperties": {"^n_": {"type": "integer"}},
         "additionalProperties": False},
    "anyOf": {"anyOf": [{"type": "integer"}, _SHORT, _object(a={"type": "null"})]},
    "oneOf": {"oneOf": [{"type": "integer"}, _SHORT, {"type": "array", "items": {"type": "boolean"}}]},
    "oneOf by kind": {"oneOf": [_object(kind={"const": "circle"}, r={"type": "number"}),
         _object(kind={"const": "square"}, side={"type": "number"})]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 9}]},
    "minProperties": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}},
    "nullable": _object(a={"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]}),
}  # fmt: skip


def text_of(lm: LanguageModel, prompt: str, schema: dict[str, Any], **options: Any) -> tuple[str, Finished]:
    """A text under a schema, and how it ended."""
    text, finished = completed(lm.generate(prompt, json_schema=schema, **options))
    return text.decode(), finished


def check(text: str, schema: dict[str, Any]) -> None:
    """Raises ValueError or ValidationError where a text is not what a schema says, formats included."""
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))


def _run(lm: LanguageModel, seeds: Iterable[int]) -> Counter[str]:
    """Tries the schemas in turn, one a seed; prints what fails and counts how the texts end."""
    names, ends = list(SCHEMAS), Counter[str]()
    for seed in seeds:
        name = names[seed % len(names)]
        prompt = f"An example of what this JSON schema describes: {json.dumps(SCHEMAS[name])}\n\n"
        text, finished = text_of(lm, prompt, SCHEMAS[name], temperature=1.5, seed=seed, max_tokens=200)
        ends[finished.reason] += 1
        try:
            if finished.reason == "stop":
                check(text, SCHEMAS[name])
        except (ValueError, jsonschema.ValidationError) as error:
            ends["invalid"] += 1
            print(f"seed {seed}: {name}: {text!r}: {str(error).splitlines()[0]}", flush=True)
    return ends


def main() -> int:
    """Prints how many texts ended by themselves, by length, and invalid; fails if any is invalid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    ends = _run(gptcli.load(options.model), range(options.seed, options.seed + options.count))
    print(", ".join(f"{reason} {count}" for reason, count in sorted(ends.items())))
    return 1 if ends["invalid"] else 0


if __name__ == "__main__":
    sys.exit(main())
