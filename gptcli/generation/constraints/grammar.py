"""Makes a grammar of a constraint, and refuses one that cannot be met. Needs neither a model nor its tokenizer.

Only functions import llguidance: most texts need none.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

from gptcli.errors import UsageError
from gptcli.generation.constraints.endless_schemas import endless_reference, parts
from gptcli.generation.constraints.schema_rewrites import BOUNDS, LARGEST_BOUND, original_path, rewritten
from gptcli.settings import ConstraintConfig
from gptcli.tools.call_grammar import MOST_CHOICES

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_LONGEST = 256 << 10  # characters; llguidance takes seconds, or a gigabyte, only for more
_MOST_PAIRS = 1500**2  # of properties or choices beside each other, which llguidance compares: a second
_EXACT, _LARGEST = 2**53, 10**300  # all integers up to the first are doubles
_MOST_EXPANDED = 250_000  # characters
_MOST_STATES = 250_000  # for multipleOf: a second
_PROBED = 1 << 18  # characters of schemas that are tried to find the path of an error
_STACK = 256 << 20  # bytes, most of them never touched; llguidance recurses into each reference
_STACK_LOCK = threading.Lock()
# JSON on one line, spelled as Python's json does: this forces more tokens, and whitespace cannot go on for ever.
_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": False,  # a text may meet two of its choices
    "lenient": False,  # would ignore keywords
}
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_LARK_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|/(?:[^/\\\n]|\\.)+/|(?://|#).*|(<[^\s<>]+>)')
_REGEX_PART = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<counts>[0-9]{1,18}(?:,[0-9]{0,18})?)\}|.", re.DOTALL)
_REASONS = (
    (r".*lookarounds not supported yet; Word.*", r"not supported: \\b"),
    (r".*lookarounds not supported yet.*", "not supported: ^ or $ amid an expression"),
    (r'Unimplemented keys: \["(.*)"\]', r"not supported: \1"),
    (r"oneOf constraints are not supported.*", "not supported: oneOf where a value may meet two of its schemas"),
    (r"Resource '(.*?)' is not present.*", r"$ref: another document: \1"),
    (r"Pointer '(.*?)' does not exist", r"$ref: there is nothing at #\1"),
    (r"Unsatisfiable schema.*|NoExtension.*", "no text can meet it"),
    (r".*(?:too big|too large|TooComplex|limit exceeded).*|ParserTooComplex.*", "too large"),
    (r"Parser Error: token .*", "the model's tokens cannot spell what must come next"),
    (r"(?:at )?(\d+)\((\d+)\): (.*)", r"line \1, column \2: \3"),
    (r"Unable to determine if regex is empty.*|fuel exhausted.*", "too complex"),
    (r"panic.*", "llguidance fails on it"),
)


@dataclass(frozen=True)
class CallGrammar:
    """The grammar of a tool's call.

    format: the name of how calls are written. schemas: each tool's name, and the JSON schema of its arguments. after:
    the marks that a call follows, each time, while the rest of the text is free; none if the whole text is one call.
    write: gives the grammar in llguidance's Lark, for one tokenizer; its argument rewrites each schema, all valid.
    """

    format: str
    schemas: tuple[tuple[str, str], ...]
    after: tuple[str, ...]
    write: Callable[[Callable[[Mapping[str, Any]], Mapping[str, Any]]], str] = field(compare=False)


class _Bytes:
    """A tokenizer of single bytes, with llguidance's interface, for checks."""

    is_tokenizer_wrapper = True
    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"")

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def checked_grammar(config: ConstraintConfig | CallGrammar) -> str:
    """A constraint's grammar for llguidance.

    Raises UsageError, with the path in a schema, if it is not valid, not supported, too large, or cannot be met.
    """
    try:
        return _of_calls(config) if isinstance(config, CallGrammar) else _of_constraint(config)
    except UsageError as error:
        error.setting = "tools" if isinstance(config, CallGrammar) else config.form
        raise


def _of_constraint(config: ConstraintConfig) -> str:
    match config:
        case ConstraintConfig(json_schema=str(text)):
            return _of_schema(text)
        case ConstraintConfig(json_object=True):
            return _schema_grammar({"type": "object"})
        case ConstraintConfig(regex=str(text)):
            return _of_regex(text)
        case ConstraintConfig(grammar=str(text)):
            return _of_grammar(text)
    if len(config.choices) > MOST_CHOICES:
        raise UsageError(f"choice: too large: {len(config.choices)} choices, of {MOST_CHOICES} at most")
    return _checked("choice", "start: " + " | ".join(map(json.dumps, config.choices)))


def compiled(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher of a grammar, which may have failed. Its errors do not repeat the grammar."""
    from llguidance import LLMatcher, LLParserLimits

    made = Future[LLMatcher]()

    def make() -> None:
        try:
            made.set_result(LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False)))
        except BaseException as error:  # raised by `result`
            made.set_exception(error)

    with _STACK_LOCK:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=make, daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    return made.result()


def reason_of(error: str) -> str:
    """llguidance's error in a line."""
    line = error.strip().partition("\n")[0]
    if regex_error := re.search(r"^error: (.*)$", error, re.MULTILINE):
        return regex_error[1]
    for pattern, reason in _REASONS:
        if match := re.fullmatch(pattern, line):
            return match.expand(reason).replace('", "', ", ")  # a list of keywords
    return line


def _of_regex(text: str) -> str:
    from llguidance import regex_to_lark

    _check_length("regex", text)
    if (size := _expanded(text)) > _MOST_EXPANDED:
        raise UsageError(f"regex: too large: {size} characters, once it is spelled out")
    # \d is 0-9, as in JSON Schema. An empty expression cannot be spelled.
    return _checked("regex", f"start: /{regex_to_lark(text, 'd')}/" if text else 'start: ""')


def _of_grammar(text: str) -> str:
    _check_length("grammar", text)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        lark = gbnf_to_lark(text) if _GBNF_RULE.search(text) else text
    except RecursionError:
        raise UsageError("grammar: too deeply nested") from None
    except Exception as error:  # its classes are not promised
        raise UsageError(f"grammar: {error}") from None
    for match in _LARK_TOKEN.finditer(lark):
        if match[1]:
            raise UsageError(f"grammar: {match[1]} is a token, and a grammar can describe text alone")
    return _checked("grammar", lark)


def _checked(form: str, lark: str) -> str:
    from llguidance import LLMatcher

    _check_length(form, lark)
    grammar = LLMatcher.grammar_from_lark(lark)
    if error := _error_of(grammar):
        raise UsageError(f"{form}: {reason_of(error)}")
    return grammar


def _of_calls(calls: CallGrammar) -> str:
    from llguidance import LLMatcher

    for name, schema in calls.schemas:
        try:
            _of_schema(schema)
        except UsageError as error:
            raise UsageError(f"the parameters of tool {name}: {error.message.removeprefix('json-schema: ')}") from None
    lark = calls.write(rewritten)
    _check_length("tools", lark)
    return LLMatcher.grammar_from_lark(lark)


def _of_schema(text: str) -> str:
    _check_length("json-schema", text)
    try:
        schema = json.loads(text)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise UsageError(f"json-schema: a schema is an object, not {json.dumps(schema)[:40]}")
        _check_costs(schema)
        _check_numbers(schema)
        new = rewritten(schema)
        grammar = _schema_grammar(new)
    except RecursionError:
        raise UsageError("json-schema: too deeply nested") from None
    except ValueError as error:  # of json, or of llguidance, which nests less deeply
        deep = "recursion limit" in str(error)
        raise UsageError(f"json-schema: {'too deeply nested' if deep else f'not JSON: {error}'}") from None
    if failure := _error_of(grammar):
        raise UsageError(f"json-schema: #{original_path(_path_of(failure, new), schema)}: {reason_of(failure)}")
    if (endless := endless_reference(schema)) is not None:
        raise UsageError(f"json-schema: {endless}: no text can meet it: it requires itself, and never ends")
    return grammar


def _schema_grammar(schema: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON)


def _path_of(error: str, schema: dict[str, Any]) -> str:
    """The path of the innermost schema that fails for the same reason by itself."""
    if len(places := list(_places_of(error, schema))) == 1:
        return places[0]
    named = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    path, found, probed = "", True, 0
    while found:
        found = False
        for step, inner in _inner_schemas(schema):
            probe = named | inner
            probed += len(json.dumps(probe))
            if probed > _PROBED:
                return path
            if _error_of(_schema_grammar(probe)) == error:
                path, schema, found = f"{path}/{step}", inner, True
                break
    return path


def _places_of(error: str, schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths of the schemas with the keywords, or the format, that an error names."""
    if match := re.match(r'Unimplemented keys: \["(.*)"\]|Unknown format: (.*)', error):
        if schema.keys() >= set(match[1].split('", "')) if match[1] else schema.get("format") == match[2]:
            yield path
        for step, inner in _inner_schemas(schema):
            yield from _places_of(error, inner, f"{path}/{step}")


def _inner_schemas(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in schema.items():
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            inner = value.items()
        elif isinstance(value, list):
            inner = dict(enumerate(value)).items()
        elif isinstance(value, dict):
            yield key, value
            continue
        else:
            continue
        yield from ((f"{key}/{name}", each) for name, each in inner if isinstance(each, dict))


def _check_numbers(schema: dict[str, Any], path: str = "") -> None:
    """Raises UsageError for numbers that llguidance rounds, and for counts of members that it does not support."""
    for key in ("const", "enum"):
        for number in _numbers_in(schema.get(key)):
            if abs(number) > _EXACT and not (abs(number) < _LARGEST and Fraction(str(number)) == float(number)):
                raise UsageError(f"json-schema: #{path}: not supported: {key} {str(number)[:40]}, which is no double")
    for key, within in BOUNDS.items():
        for bound in _numbers_in(schema.get(key)):
            if bound * within > LARGEST_BOUND:
                what = f"{key} {str(bound)[:40]}, which is no double below 2**63"
                raise UsageError(f"json-schema: #{path}: not supported: {what}")
    least, required = schema.get("minProperties", 0), schema.get("required", ())
    if isinstance(least, int) and least > max(1, len(required) if isinstance(required, list) else 0):
        raise UsageError(f"json-schema: #{path}: not supported: minProperties {least} with fewer required")
    for step, inner in _inner_schemas(schema):
        _check_numbers(inner, f"{path}/{step}")


def _numbers_in(value: object) -> Iterator[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(each)


def _check_costs(schema: dict[str, Any]) -> None:
    """Raises UsageError for a short schema that would take long to compile."""
    everything = list(parts(schema))
    pairs, divisors = len({str(part.get("$ref")) for part in everything}) ** 2, [1]
    for part in everything:
        if isinstance(patterns := part.get("patternProperties"), dict):
            pairs += 1000 * len(patterns) ** 2
        if (size := _expanded(part.get("pattern"))) > _MOST_EXPANDED:
            raise UsageError(f"json-schema: too large: a pattern of {size} characters, once it is spelled out")
        for key in ("properties", "anyOf", "oneOf", "enum"):
            group = part.get(key)
            if isinstance(group, dict) or (
                isinstance(group, list) and not all(isinstance(each, str) for each in group)
            ):
                pairs += len(group) ** 2
        divisor = part.get("multipleOf")
        if isinstance(divisor, int | float) and 0 < divisor < math.inf:
            divisors.append(Fraction(str(divisor)).numerator)
    if pairs > _MOST_PAIRS:
        raise UsageError("json-schema: too large: too many properties, choices or references")
    divisor = math.lcm(*divisors) if any("allOf" in part for part in everything) else max(divisors, key=_states)
    if max(_states(divisor), sum(map(_states, set(divisors)))) > _MOST_STATES:
        raise UsageError(f"json-schema: not supported: multipleOf {divisor}")


def _expanded(pattern: object) -> int:
    """The rough length of a regular expression with its counts spelled out."""
    sizes, last = [0], 0  # of the open groups, and of the last item, which a count repeats
    for part in _REGEX_PART.finditer(pattern if isinstance(pattern, str) else ""):
        if part[0] == "(":
            sizes.append(0)
        elif part[0] == ")":
            last = sizes.pop() if len(sizes) > 1 else 0
            sizes[-1] += last
        elif part["counts"]:
            sizes[-1] += last * (max(map(int, re.findall("[0-9]+", part["counts"]))) - 1)
        else:
            last = 1
            sizes[-1] += last
    return sum(sizes)


def _states(divisor: int) -> int:
    """The rough number of llguidance's states for the multiples of an integer; powers of ten need one."""
    twos_and_fives = math.gcd(divisor, 10 ** divisor.bit_length())
    return 1 if str(divisor).strip("0") == "1" else divisor // twos_and_fives * 8 + divisor


def _check_length(form: str, text: str) -> None:
    if len(text) > _LONGEST:
        raise UsageError(f"{form}: too large: {len(text)} characters, of at most {_LONGEST}")


def _error_of(grammar: str) -> str:
    """The error of a grammar, empty if there is none."""
    matcher = compiled(_byte_tokenizer(), grammar)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


@cache
def _byte_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer(_Bytes())  # type: ignore[arg-type]  # has what a TokenizerWrapper is asked for
