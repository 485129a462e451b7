"""Writes grammars of calls in llguidance's Lark. Of a tokenizer it knows only the control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from gptcli.errors import UsageError

Rewrite = Callable[[Mapping[str, Any]], Mapping[str, Any]]
# JSON on one line, spelled as Python's json does.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LEFT_TO_THE_MODEL = "--tool-choice auto, and no tool that is strict, leave the call to the model"


MOST_CHOICES = 1900  # outside of JSON: llguidance follows 2,000 rules at once, and takes seconds to refuse more
# Keywords that limit values of every type.
OF_VALUES = frozenset("$ref allOf anyOf const enum oneOf".split())


def refuse(keywords: Set[str]) -> None:
    """Raises UsageError for keywords, if there are any, that only JSON can be held to."""
    if keywords:
        raise UsageError(
            f"tools: this model's calls cannot be held to {min(keywords)}, as their texts are not JSON",
            hint=LEFT_TO_THE_MODEL,
        )


class Grammar:
    """A grammar that is being written. control_ids: the ids of control tokens by name. rewrite: prepares a schema."""

    def __init__(self, control_ids: Mapping[str, int], rewrite: Rewrite) -> None:
        self._ids, self._rewrite = control_ids, rewrite
        names = sorted(control_ids, key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None
        self._rules: list[str] = []

    def text(self, text: str) -> str:
        """The expression of a text, in which names of control tokens are those tokens."""
        pieces = self._controls.split(text) if self._controls else [text]
        spelled = [f"<[{self._ids[piece]}]>" if piece in self._ids else json.dumps(piece) for piece in pieces if piece]
        return " ".join(spelled) or '""'

    def until(self, closer: str, schema: Mapping[str, Any]) -> str:
        """A text that meets a schema and does not contain `closer`, then `closer`.

        Raises UsageError for a keyword that only JSON can be held to.
        """
        refuse((OF_VALUES | {"pattern", "format"}) & schema.keys())
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        any_text = f"/(?s:.{{{least},{most}}})/" if least or most != "" else "/(?s:.*)/"
        if closer in self._ids:
            return f"{any_text} {self.text(closer)}"
        end = json.dumps(closer)
        if least:  # a suffix may come before the least length is reached
            early = f"/(?s:.{{0,{least - 1}}})/ {end} /(?s:.*)/"
            any_text, text = f"T{len(self._rules)}", any_text
            self._rules.append(f"{any_text}: {text} & ~({early})")
        return self.rule(any_text, f"[suffix={end}]")

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON that meets a schema."""
        return self.rule(f"%json {json.dumps({**self._rewrite(schema), 'x-guidance': _STYLE})}")

    def any_of(self, expressions: Iterable[str]) -> str:
        """One of these expressions. Raises UsageError for more than llguidance follows."""
        listed = list(expressions)
        if len(listed) > MOST_CHOICES:
            raise UsageError(
                f"tools: too large: {len(listed)} choices, of {MOST_CHOICES} at most", hint=LEFT_TO_THE_MODEL
            )
        return self.rule(" | ".join(listed))

    def members(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Items in this order, separated; items that are not required may be missing."""
        first = rest = '""'
        for item, required in reversed(items):
            first, rest = (
                self.rule(f"{item} {rest}" + ("" if required else f" | {first}")),
                self.rule(f"{self.text(separator)} {item} {rest}" + ("" if required else f" | {rest}")),
            )
        return first

    def rule(self, expression: str, options: str = "") -> str:
        """Adds a rule for an expression; returns its name."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression}")
        return name

    def whole(self, expression: str) -> str:
        """The whole grammar, with this expression as its start."""
        return "\n".join([f"start: {expression}", *self._rules])


def resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """A subschema that can stand alone, with the definitions of the root."""
    return {**{name: root[name] for name in ("$defs", "definitions") if name in root}, **schema}
