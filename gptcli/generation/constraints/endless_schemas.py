"""Finds JSON schemas that only an endless text meets, such as an object that requires one like itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote


def endless_reference(schema: Mapping[str, Any]) -> str | None:
    """The required reference that no text ends, as a JSON pointer with `#`; None if a text can meet the schema.

    Only references make a schema endless. One to nowhere, or of unknown form, counts as one that ends; so do all if a
    part has an `$id`, which changes what they refer to.
    """
    if any(isinstance(part.get("$id"), str) for part in parts(schema) if part is not schema):
        return None
    references = {part["$ref"] for part in parts(schema) if isinstance(part.get("$ref"), str)}
    targets = {reference: found for reference in references if (found := target(schema, reference))}
    endless, unseen = set(targets), list(targets)
    waiting = defaultdict[str, list[str]](list)  # references by their blocker
    while unseen:
        reference = unseen.pop()
        if (blocker := _blocked_by(targets[reference], endless)) is not None:
            waiting[blocker].append(reference)
        else:
            endless.discard(reference)
            unseen += waiting.pop(reference, ())
    return _blocked_by(schema, endless)


def _blocked_by(schema: object, endless: set[str]) -> str | None:
    """The endless reference that a schema requires, if there is one."""
    if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
        return None
    if schema.get("$ref") in endless:
        return str(schema["$ref"])
    required = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
    if schema.get("type") in ("object", ["object"]) and isinstance(schema.get("required"), list):
        properties = schema.get("properties", {})
        required += [properties.get(name) for name in schema["required"]]
    least = schema.get("minItems", 0)
    if schema.get("type") in ("array", ["array"]) and isinstance(least, int | float):
        first = list(schema.get("prefixItems", ()))[: int(least)]
        required += [*first, schema.get("items")] if least > len(first) else first
    for each in required:
        if blocked := _blocked_by(each, endless):
            return blocked
    for key in ("anyOf", "oneOf"):
        choices = schema.get(key)
        if isinstance(choices, list) and choices:
            blocks = [_blocked_by(choice, endless) for choice in choices]
            if all(blocks):
                return blocks[0]
    return None


def parts(schema: object) -> Iterator[Mapping[str, Any]]:
    """A schema and every object within it."""
    if isinstance(schema, Mapping):
        yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from parts(each)


def target(schema: object, reference: str) -> object:
    """The target of a pointer within the document; None without one."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    for step in reference[1:].split("/")[1:]:
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdigit() and int(name) < len(schema):
            schema = schema[int(name)]
        elif isinstance(schema, Mapping):
            schema = schema.get(name)
        else:
            return None
    return schema
