"""Constraints without a model: the texts that they allow, the forms that are refused, and how a text is followed."""

from __future__ import annotations

import json
import random
import re
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from gptcli.errors import UsageError
from gptcli.generation.constraints.grammar import checked_grammar
from gptcli.generation.constraints.matcher import AfterThoughts, Compiler
from gptcli.generation.sampling.constraint import Constraint, TokenMask
from gptcli.settings import ConstraintConfig
from gptcli.text.tokenizer import Tokenizer
from tests.text.tokenizer_kinds import KINDS, made

SPELL_ALL = [name for name in KINDS if name not in ("unigram", "wordpiece")]


def ids_in(mask: TokenMask | None, size: int) -> list[int]:
    """The tokens that a mask allows."""
    assert mask is not None
    words = array("I", bytes(memoryview(mask)))
    return [id for id in range(size) if words[id // 32] >> id % 32 & 1]


def walk(
    tokenizer: Tokenizer,
    constraint: Constraint,
    end: int,
    seed: int = 0,
    most: int = 300,
    until: Callable[[], bool] = lambda: False,
) -> bytes:
    """The text of tokens chosen at random among those that are allowed, until one ends it or nothing may follow."""
    chance, ids = random.Random(seed), list[int]()
    while not constraint.finished and not until() and len(ids) < most:
        forced = constraint.forced()
        token = forced[0] if forced else chance.choice(ids_in(constraint.allowed(), tokenizer.size))
        constraint.accept(token)
        if token == end:
            break
        ids.append(token)
    return b"".join(map(tokenizer.token_bytes, ids))


def refusal(**form: Any) -> str:
    with pytest.raises(UsageError) as caught:
        checked_grammar(ConstraintConfig(**form))
    return caught.value.message


CHOICES = [
    "a small town", " a small town", 'say "hi"\n', "früher", "<|end|>", "小さな\t町", "back\\slash", "a/b", "\x7f",
]  # fmt: skip


@pytest.mark.parametrize("kind", SPELL_ALL)
def test_every_tokenizer_spells_what_is_asked_for(kind: str) -> None:
    tokenizer = made(kind)[1]
    compiler = Compiler(tokenizer, frozenset({0}))
    for choice in CHOICES:
        assert walk(tokenizer, compiler.constraint(ConstraintConfig(choices=(choice,))), 0).decode() == choice
    several = ConstraintConfig(choices=tuple(CHOICES))
    assert {walk(tokenizer, compiler.constraint(several), 0, seed).decode() for seed in range(20)} <= set(CHOICES)


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_a_text_that_the_vocabulary_cannot_spell_is_refused(kind: str) -> None:
    tokenizer = made(kind)[1]
    with pytest.raises(UsageError, match="cannot be followed"):
        walk(tokenizer, Compiler(tokenizer, frozenset({0})).constraint(ConstraintConfig(choices=("back\\slash",))), 0)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(made("llama3")[1], frozenset({0}))


def all_texts(compiler: Compiler, seeds: int = 40, **form: Any) -> set[str]:
    tokenizer = made("llama3")[1]
    config = ConstraintConfig(**form)
    return {walk(tokenizer, compiler.constraint(config), 0, seed).decode() for seed in range(seeds)}


@pytest.mark.parametrize(("form", "texts"), [
    ({"regex": "^(a|bc)$"}, {"a", "bc"}),
    ({"regex": r"[^\s\S]?x/y"}, {"x/y"}),
    ({"regex": ""}, {""}),
    ({"grammar": 'start: "a" b\nb: "c" | "d"'}, {"ac", "ad"}),
    ({"grammar": 'root ::= "a" b\nb ::= "c" | "d"'}, {"ac", "ad"}),
    ({"grammar": "start: /<x>/ // <|end|>"}, {"<x>"}),
    ({"grammar": '?start: A\nA: "a"'}, {"a"}),
    ({"grammar": '// A grammar\n\n%import common.DIGIT\nstart: DIGIT "::=" /[b-c]/'}, None),
    ({"grammar": '# A grammar\n\nroot ::= a-b\na-b ::= "c" | "d"'}, {"c", "d"}),
    ({"choices": ["yes", "no"]}, {"yes", "no"}),
    ({"json_schema": True}, None),
    ({"json_schema": {"enum": [[1, {"a": None}], "x"]}}, {'[1, {"a": null}]', '"x"'}),
    ({"json_schema": {"pattern": "^[[a]$", "type": "string"}}, {'"a"', '"["'}),
    ({"json_schema": {"pattern": r"^\[[a&&~]]$", "type": "string"}}, {'"[a]"', '"[&]"', '"[~]"'}),
    ({"json_schema": {"oneOf": [{"const": 1}, {"const": 2}]}}, {"1", "2"}),
    ({"json_schema": {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "null"}], "$defs": {"a": {"const": 1}}}},
         {"1", "null"}),
    ({"json_schema": {"oneOf": [{"type": "integer", "minimum": 5}, {"maximum": 4, "minimum": 4, "type": "integer"}],
         "maximum": 5}}, {"4", "5"}),
    ({"json_schema": {"type": "object", "propertyNames": {"enum": ["a"]}, "maxProperties": 1,
         "additionalProperties": {"const": 1}}}, {"{}", '{"a": 1}'}),
    ({"json_schema": {"type": "array", "prefixItems": [{"const": 1}], "additionalItems": {"const": 3},
         "items": {"const": 2}, "maxItems": 2}}, {"[]", "[1]", "[1, 2]"}),
    ({"json_schema": {"type": "array", "uniqueItems": False, "items": {"const": 1}, "maxItems": 1}}, {"[]", "[1]"}),
    ({"json_schema": {"type": "integer", "format": "int32", "minimum": 2**31 - 2}}, {"2147483646", "2147483647"}),
])  # fmt: skip
def test_a_form_describes_these_texts(compiler: Compiler, form: dict[str, Any], texts: set[str] | None) -> None:
    got = all_texts(compiler, **form)
    assert len(got) > 10 if texts is None else got == texts


def test_digits_are_ascii(compiler: Compiler) -> None:
    assert all(text.isascii() and text.isdigit() and len(text) == 3 for text in all_texts(compiler, regex=r"\d{3}"))


def test_no_grammar_allows_a_control_token(compiler: Compiler) -> None:
    allowed = ids_in(compiler.constraint(ConstraintConfig(regex="(?s).+")).allowed(), made("llama3")[1].size)
    assert allowed and 0 not in allowed


def test_every_end_is_allowed_where_a_text_may_end() -> None:
    tokenizer = made("llama3")[1]
    ends = frozenset({0, 70, tokenizer.size + 5})  # one that is text elsewhere, and one that the model lacks
    constraint = Compiler(tokenizer, ends).constraint(ConstraintConfig(regex="a*"))
    allowed = ids_in(constraint.allowed(), tokenizer.size)
    assert {0, 70} < set(allowed)
    assert all(set(tokenizer.token_bytes(id)) == set(b"a") for id in allowed if id not in ends)


def test_without_an_end_a_text_ends_where_nothing_may_follow() -> None:
    tokenizer = made("llama3")[1]
    constraint = Compiler(tokenizer, frozenset()).constraint(ConstraintConfig(regex="a{3,5}"))
    assert re.fullmatch("a{3,5}", walk(tokenizer, constraint, -1).decode())


@pytest.mark.parametrize(("form", "message"), [
    ({"regex": "(abc"}, "regex: unclosed group"),
    ({"regex": r"(a)\1"}, "regex: backreferences are not supported"),
    ({"regex": r"[^\s\S]"}, "regex: no text can meet it"),
    ({"regex": r"\ba\b"}, "regex: not supported: \\b"),
    ({"regex": "^a$\n^b$"}, "regex: not supported: ^ or $ amid an expression"),
    ({"grammar": "start: other"}, 'grammar: line 1, column 8: unknown name: "other"'),
    ({"grammar": "start: <|end|>"}, "grammar: <|end|> is a token, and a grammar can describe text alone"),
    ({"grammar": "start: <[0]>"}, "grammar: <[0]> is a token, and a grammar can describe text alone"),
    ({"json_schema": "{"}, "json-schema: not JSON: Expecting property name"),
    ({"json_schema": "[]"}, "json-schema: a schema is an object, not []"),
    ({"json_schema": "false"}, "json-schema: a schema is an object, not false"),
    ({"json_schema": {"type": "strin"}}, "json-schema: #: Invalid type: strin"),
    ({"json_schema": {"type": "string", "enum": [1]}}, "json-schema: #: no text can meet it"),
    ({"json_schema": {"$ref": "#/$defs/x"}}, "json-schema: #: $ref: there is nothing at #/$defs/x"),
    ({"json_schema": {"$ref": "https://a.b/c"}}, "json-schema: #: $ref: another document: https://a.b/c"),
    ({"json_schema": {"$ref": "#"}}, "json-schema: #: no text can meet it"),
    ({"json_schema": {"properties": {"a": {"items": {"not": {}}}}}},
         "json-schema: #/properties/a/items: not supported: not"),
    ({"json_schema": {"if": {}, "then": {}}}, "json-schema: #: not supported: if, then"),
    ({"json_schema": {"items": {"format": ""}}}, "json-schema: #/items: Unknown format:"),
    ({"json_schema": {"$defs": {"s": {"format": "x"}}, "anyOf": [{"type": "null"}, {"$ref": "#/$defs/s"}]}},
         "json-schema: #/$defs/s: Unknown format: x"),
    ({"json_schema": {"prefixItems": [{}, {"oneOf": [{"type": "number"}, {"type": "integer"}]}]}},
         "json-schema: #/prefixItems/1: not supported: oneOf where a value may meet two of its schemas"),
    ({"json_schema": {"enum": [2**53 + 1]}},
         "json-schema: #: not supported: enum 9007199254740993, which is no double"),
    ({"json_schema": {"items": {"minimum": 1e300}}},
         "json-schema: #/items: not supported: minimum 1e+300, which is no double"),
    ({"json_schema": {"type": "integer", "minimum": 2**63, "maximum": 2**64}},
         "json-schema: #: not supported: minimum 9223372036854775808, which is no double below 2**63"),
    ({"json_schema": {"type": "object", "minProperties": 2, "required": ["a"]}},
         "json-schema: #: not supported: minProperties 2 with fewer required"),
    ({"json_schema": {"x-guidance": {"lenient": True}, "items": {"not": {}}}},
         "json-schema: #/items: not supported: not"),
])  # fmt: skip
def test_what_cannot_be_met_is_refused_with_the_reason_and_its_place(form: dict[str, Any], message: str) -> None:
    assert refusal(**form).startswith(message)


def nested(depth: int) -> str:
    return '{"properties":{"a":' * depth + "{}" + "}}" * depth


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a deep schema": ({"json_schema": nested(10_000)}, "too deeply nested"),
    "a schema too deep for its compiler": ({"json_schema": nested(100)}, "too deeply nested"),
    "a deep list": ({"json_schema": '{"enum": ' + "[" * 100_000}, "too deeply nested"),
    "a large schema": ({"json_schema": {"description": "x" * 10_000_000}}, "too large"),
    "a large pattern": ({"json_schema": {"pattern": "x" * 10_000_000}}, "too large"),
    "a large enum": ({"json_schema": {"enum": [str(number) for number in range(200_000)]}}, "too large"),
    "many properties": ({"json_schema": {"properties": {f"p{i}": {} for i in range(20_000)}}}, "too large"),
    "products of choices": (
         {"json_schema": {"allOf": [{"anyOf": [{"properties": {f"{c}{i}": {}}} for c in "ab"]} for i in range(20)]}},
         "too large"),
    "properties beside each other": ({"json_schema": {"properties": {f"p{i}": {} for i in range(5000)}}}, "too large"),
    "lists to choose from": ({"json_schema": {"enum": [[number] for number in range(12_000)]}}, "too large"),
    "a chain of references": (
         {"json_schema": {"$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(5000)}}},
         "too large"),
    "a large prime": ({"json_schema": {"type": "integer", "multipleOf": 99_991}}, "not supported: multipleOf"),
    "a product of primes": (
         {"json_schema": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (9973, 9967)]}},
         "not supported: multipleOf"),
    "many primes": ({"json_schema": {"anyOf": [{"type": "integer", "multipleOf": 20_011 + 2 * i} for i in range(50)]}},
         "not supported: multipleOf"),
    "many patterns of names": ({"json_schema": {"patternProperties": {f"^a{i}x": {} for i in range(400)}}},
         "too large"),
    "a pattern that counts far": ({"json_schema": {"pattern": "^a{1000000}$"}}, "too large"),
    "a regex that counts far": ({"regex": "(a{1000}){1000}"}, "too large"),
    "choices to compare": (
         {"json_schema": {"anyOf": [{"oneOf": [{"const": i} for i in range(100)]} for _ in range(90)]}},
         "not supported: oneOf"),
    "choices that go round": ({"json_schema": {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}},
         "oneOf": [{"$ref": "#/$defs/a"}] * 2}}, "not supported: oneOf"),
    "patterns that exclude each other": (
         {"json_schema": {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(8, 20)]}},
         "too complex"),
    "an error among many schemas": (
         {"json_schema": {"$defs": {str(i): {"minLength": i} for i in range(5000)}, "items": {"items": {"not": {}}}}},
         "not supported: not"),
    "a deep grammar": ({"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000}, "nested"),
    "a deep GBNF": ({"grammar": "root ::= " + "(" * 5000}, ""),
    "a large regex": ({"regex": "x" * 10_000_000}, "too large"),
    "many choices": ({"choices": [str(number) for number in range(200_000)]}, "too large"),
    "choices beyond its rules": ({"choices": [str(number) for number in range(2_000)]}, "too large: 2000 choices"),
}  # fmt: skip


@pytest.mark.parametrize("choices", [
    [{"const": 1}, {"const": 1.0}],
    [{"type": "integer", "maximum": 4}, {"type": "number", "minimum": 4}],
    [{"enum": ["a"]}, {"type": "string", "pattern": "^a"}],
    [{"$ref": "#/$defs/missing"}, {"type": "null"}],
    [{"required": ["a"]}, {"required": ["b"]}],
    [{"anyOf": [{"type": "null"}, {"type": "string"}]}, {"type": "null"}],
    [{"type": "object", "required": ["a"], "properties": {"b": {"const": 1}}}, {"type": "object",
         "properties": {"b": {"const": 2}}}],
])  # fmt: skip
def test_choices_that_a_value_may_both_meet_are_refused(choices: list[Any]) -> None:
    schema = {"$defs": {"missing": True}, "oneOf": choices}
    assert refusal(json_schema=schema).endswith("not supported: oneOf where a value may meet two of its schemas")


SIGNS = [
    ".",
    *(rf"\{letter}" for letter in "sSdDwW"),
    *(rf"[{no}\{letter}]" for letter in "sSdDwW" for no in ("", "^")),
]
LETTERS = "a_5- \x1c\x1f\x85\xa0\xe9\u0660\u2028\ufeff\n"


@pytest.mark.parametrize("sign", [*SIGNS, r"[\s\S]", r"[^\W]", r"[\w.-]", r"[^\d.]"])
def test_what_stands_for_several_characters_allows_those_that_every_checker_takes(
    compiler: Compiler, sign: str
) -> None:
    tokenizer, config = made("llama3")[1], ConstraintConfig(json_schema={"type": "string", "pattern": f"^{sign}$"})
    taken = [letter for letter in LETTERS if json_text_fits(tokenizer, compiler.constraint(config), letter)]
    assert taken and all(re.search(f"^{sign}$", letter) for letter in taken)
    in_javascript = {r"\s": "5\x85_a", r"\S": " \xa0\u2028\ufeff\n", r"\w": "\xe9\u0660", r"\W": "a_5", r"\d": "\u0660"}
    assert not set(in_javascript.get(sign, "")) & set(taken)
    assert sign != r"[\s\S]" or taken == list(LETTERS)


def json_text_fits(tokenizer: Tokenizer, constraint: Constraint, text: str) -> bool:
    ids = tokenizer.encode(json.dumps(text, ensure_ascii=False), add_special=False)
    return constraint.fitting(ids) == len(ids)


def test_bounds_that_are_no_doubles_are_met(compiler: Compiler) -> None:
    bounds = {"type": "integer", "exclusiveMinimum": 2**53 + 1, "maximum": 2**53 + 5}
    assert {int(text) for text in all_texts(compiler, json_schema=bounds)} <= set(range(2**53 + 2, 2**53 + 6))
    wide = {"type": "number", "minimum": -1e308, "maximum": 2**63 - 1}
    assert all(-1e308 <= float(text) <= 2**63 - 1 for text in all_texts(compiler, json_schema=wide))


FORMATS = {
    "date": ("2024-02-29 2000-02-29 0001-01-31", "2023-02-29 1900-02-29 0000-01-01 2024-04-31 2024-13-01"),
    "time": ("23:59:59Z 00:00:00.5+01:30", "24:00:00Z 12:00:00 12:60:00Z"),
    "date-time": ("2024-02-29T10:00:00Z", "2023-02-29T10:00:00Z 2024-02-29"),
    "uri-reference": ("http://a.b/c?d#e /a/b a/b?c #d ../a", "http://[ a:b//c:// %zz a|b"),
    "uri-template": ("http://a.b/{c}{?d,e*} {+a:3} a", "{ {a {a:0} }"),
    "json-pointer": ("/a/~0b~1/0 /", "a /~2"),
    "relative-json-pointer": ("0# 1/a 12/b/c", "/a 01/a #"),
    "ipvanyaddress": ("1.2.3.4 ::1 fe80::1 1:2:3:4:5:6:7:8", "1.2.3.256 1:2:3 1::2::3"),
    "ipv4network": ("10.0.0.0/8 1.2.3.4/32", "10.0.0.1/8 1.2.3.4"),
    "ipv6interface": ("::1/128", "::1/129"),
    "base64": ("YWJj YWI= YQ==", "YWJ Y==="),
    "hostname": ("a.b-c.d localhost", "-a a..b a_b a--b xn--X.org " + "a." * 127 + "a"),
    "url": ("https://a.b/c", "a b"),
    "uuid4": ("123e4567-e89b-42d3-a456-426614174000", "123"),
    "path": ("/a/b.txt anything", ""),
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_allows_its_texts(compiler: Compiler, format: str) -> None:
    tokenizer = made("llama3")[1]
    good, bad = FORMATS[format]
    for text in (good + " " + bad).split():
        constraint = compiler.constraint(ConstraintConfig(json_schema={"type": "string", "format": format}))
        tokens = tokenizer.encode(f'"{text}"', add_special=False)
        assert (constraint.fitting(tokens) == len(tokens)) == (text in good.split()), text


NODE = {"type": "object", "properties": {"next": {"$ref": "#"}}}
LEAF = {"type": "object", "properties": {"node": {"$ref": "#/$defs/a~1b"}}, "required": ["node"]}
ENDLESS: dict[str, tuple[dict[str, Any], str]] = {
    "itself": (NODE | {"required": ["next"]}, "#"),
    "a cycle": ({"$defs": {"a/b": {"$ref": "#/$defs/c"}, "c": LEAF}, "$ref": "#/$defs/c"}, "#/$defs/c"),
    "a list": ({"type": "array", "minItems": 1, "items": {"$ref": "#"}}, "#"),
    "a first item": ({"type": "array", "minItems": 1, "prefixItems": [{"$ref": "#"}]}, "#"),
    "a type in a list": (NODE | {"type": ["object"], "required": ["next"]}, "#"),
    "every choice": ({"anyOf": [NODE | {"required": ["next"]}, {"allOf": [{"$ref": "#"}]}]}, "#"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_schema_that_only_an_endless_text_could_meet_is_refused(name: str) -> None:
    schema, place = ENDLESS[name]
    assert refusal(json_schema=schema) == (
        f"json-schema: {place}: no text can meet it: it requires itself, and never ends"
    )


@pytest.mark.parametrize("schema", [
    NODE,
    {"anyOf": [NODE | {"required": ["next"]}, {"type": "null"}]},
    {"type": "array", "minItems": 1, "items": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}},
    {"type": "array", "prefixItems": [{"type": "null"}], "minItems": 1, "items": {"$ref": "#"}},
    {"$defs": {"a": {"enum": [1]}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
    {"$ref": "#foo", "$defs": {"A": {"$anchor": "foo", "type": "integer"}}},
    {"$id": "http://x/r", "type": "object", "required": ["a"], "properties": {"a": {"$id": "http://x/a",
         "type": "object", "properties": {"n": {"$ref": "#/$defs/I"}}, "required": ["n"],
         "$defs": {"I": {"type": "integer"}}}}, "$defs": {"I": {"$ref": "#"}}},
])  # fmt: skip
def test_recursion_with_a_way_out_is_no_endless_text(schema: dict[str, Any]) -> None:
    assert checked_grammar(ConstraintConfig(json_schema=schema))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_is_refused(name: str) -> None:
    form, reason = HOSTILE[name]
    assert reason in refusal(**form)


@pytest.mark.parametrize("form", [
    {"json_schema": {"type": "array", "items": {"type": "null"}, "minItems": 10**9}},
    {"json_schema": {"type": "string", "minLength": 10**9}},
    {"json_schema": {"type": "integer", "minimum": 0, "maximum": 10**18}},
    {"json_schema": {"enum": [f"v{number}" for number in range(10_000)]}},
    {"json_schema": {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}},
    {"json_schema": {"$defs": {str(i): {"properties": {"a": {"$ref": f"#/$defs/{i + 1}"}}} for i in range(1400)}
         | {"1400": {}}, "$ref": "#/$defs/0"}},
    {"json_schema": {"type": "integer", "multipleOf": 86_400}},
    {"regex": "(a+)+$"},
    {"regex": "(a?){10000}a{10000}"},
    {"regex": "((((a{1,100}){1,100}){1,100}){1,100})"},
    {"regex": "(.*a.{1000})"},
    {"grammar": 'start: start start | "a"'},
])  # fmt: skip
def test_a_costly_constraint_is_followed_for_a_while_or_refused(compiler: Compiler, form: dict[str, Any]) -> None:
    tokenizer = made("llama3")[1]
    try:
        constraint = compiler.constraint(ConstraintConfig(**form))
        assert walk(tokenizer, constraint, 0, most=20)
    except UsageError as error:
        assert "cannot be followed" in error.message or "too large" in error.message


def test_forced_tokens_are_those_of_the_tokenizer(compiler: Compiler) -> None:
    tokenizer = made("llama3")[1]
    constraint = compiler.constraint(ConstraintConfig(regex="In a small town (there|here)"))
    wanted = tokenizer.encode("In a small town", add_special=False)
    assert list(constraint.forced())[: len(wanted)] == wanted
    for token in wanted:
        assert constraint.forced()[0] == token
        constraint.accept(token)


def test_what_fits_is_the_beginning_that_is_allowed(compiler: Compiler) -> None:
    tokenizer = made("llama3")[1]
    constraint = compiler.constraint(ConstraintConfig(regex="[0-9]+"))
    digits, letters = (tokenizer.encode(text, add_special=False) for text in ("12345", "abc"))
    assert constraint.fitting([*digits, *letters]) == len(digits)
    assert constraint.fitting(letters) == 0
    constraint.accept(digits[0])  # which asking has not changed


def test_a_constraint_after_thoughts_begins_where_they_end(compiler: Compiler) -> None:
    tokenizer = made("llama3")[1]
    inner = compiler.constraint(ConstraintConfig(choices=("yes",)))
    constraint = AfterThoughts(inner, tokenizer, frozenset({0}))
    thoughts = tokenizer.encode("hm, yes or no</think>", add_special=False)
    answer = tokenizer.encode("yes", add_special=False)
    for count, token in enumerate(thoughts):
        assert ids_in(constraint.allowed(), tokenizer.size) == list(range(1, tokenizer.size))
        assert not constraint.forced()
        assert constraint.fitting([*thoughts[count:], *answer]) == len(thoughts) - count
        constraint.accept(token)
    assert list(constraint.forced()) == answer
    for token in answer:
        assert not constraint.finished
        constraint.accept(token)
    assert constraint.finished


def test_constraints_of_one_compiler_do_not_disturb_each_other(compiler: Compiler) -> None:
    tokenizer = made("llama3")[1]
    config = ConstraintConfig(json_schema={"enum": ["a", "b"]})
    one, other = compiler.constraint(config), compiler.constraint(config)
    for token in tokenizer.encode('"a"', add_special=False):
        one.accept(token)
    assert one.finished and not other.finished
    assert json.loads(walk(tokenizer, other, 0)) in ("a", "b")
