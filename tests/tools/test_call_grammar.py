"""A text that must be a call is one, in each family's own format, and meets its tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptcli.errors import UsageError
from gptcli.generation.constraints.grammar import CallGrammar, checked_grammar
from gptcli.generation.constraints.matcher import Compiler, tokens_beyond
from gptcli.generation.sampling.constraint import Constraint
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.call_grammar import Grammar
from gptcli.tools.definitions import ToolCall, checked_tools, tool_name, tool_parameters
from gptcli.tools.formats import FORMATS, CallFormat, ToolUse
from gptcli.tools.syntaxes import Braced, Tagged
from tests.generation.constraints.test_grammar import ids_in, walk
from tests.tiny import make_tokenizer
from tests.tools.whole_text import split

END = 2
each_format = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
each_marked_format = pytest.mark.parametrize(
    "format", [format for format in FORMATS if format.opening], ids=lambda format: format.name
)
BY_NAME = {format.name: format for format in FORMATS}
HERMES = BY_NAME["hermes"]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = checked_tools([{"name": "get_weather", "parameters": PARAMETERS}, {"name": "no.arguments"}])
MARKS = """<tool_call> </tool_call> [TOOL_CALLS] [ARGS] <|channel|> <|message|> <|constrain|> <|"|> <|tool_call>
<tool_call|> <｜tool▁sep｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜>
<|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|> <|START_ACTION|> <|END_ACTION|> <escape>
<|action_start|> <|plugin|> <|action_end|>""".split()


def tokenizer_with(directory: Path, marks: list[str], words: Sequence[str] = ()) -> Tokenizer:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(marks)
    tokenizer.add_tokens(list(words))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    return Tokenizer.open(directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One whose control tokens are the marks of calls."""
    return tokenizer_with(tmp_path_factory.mktemp("marks"), MARKS)


@pytest.fixture(scope="module", params=[MARKS, []], ids=["marks are control tokens", "marks are text"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with(tmp_path_factory.mktemp("either"), request.param)


def grammar_of(use: ToolUse, tokenizer: Tokenizer) -> CallGrammar:
    write = partial(use.grammar, tokenizer.control_tokens.ids)
    return CallGrammar(use.format.name, use.schemas, use.held_after, write)


def text_of(use: ToolUse, tokenizer: Tokenizer, seed: int) -> str:
    assert use.holds and not use.held_after
    constraint = Compiler(tokenizer, frozenset([END])).constraint(grammar_of(use, tokenizer))
    return walk(tokenizer, constraint, END, seed).decode()


@each_format
def test_a_random_text_is_a_call_that_meets_its_schema(format: CallFormat, tokenizer: Tokenizer) -> None:
    use = ToolUse(TOOLS, "required", format)
    for seed in range(3):
        text = text_of(use, tokenizer, seed)
        content, (call,), _ = split(text, use)
        assert content == ""
        parameters = next(tool_parameters(tool) for tool in TOOLS if tool_name(tool) == call.name)
        jsonschema.validate(call.arguments, parameters)


def strict(*tools: dict[str, Any]) -> tuple[Any, ...]:
    return checked_tools([tool | {"strict": True} for tool in tools])


STRICT = strict({"name": "get_weather", "parameters": PARAMETERS})


def must_call(format: CallFormat, optional: str = "", **properties: Any) -> ToolUse:
    """A text must be a call of tool `f` with these properties, of which some are optional."""
    required = [name for name in properties if name not in optional]
    parameters = {"properties": properties, "required": required, "additionalProperties": False}
    return ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a model's text: those of a call's marks are control tokens, where there are such."""
    marks = "|".join(re.escape(mark) for mark in MARKS if tokenizer.control_tokens.ids.get(mark))
    ids = list[int]()
    for piece in re.split(f"({marks})", text) if marks else [text]:
        mark = tokenizer.control_tokens.ids.get(piece)
        ids += tokenizer.encode(piece) if mark is None else [mark]
    return ids


def held(use: ToolUse, tokenizer: Tokenizer, text: str, compiler: Compiler | None = None) -> Constraint:
    """The constraint of calls that the model may choose to make, after a text."""
    assert use.holds and use.held_after
    compiler = compiler or Compiler(tokenizer, frozenset([END]))
    constraint = compiler.constraint(grammar_of(use, tokenizer))
    for token in ids_of(text, tokenizer):
        assert constraint.fitting([token]) == 1
        constraint.accept(token)
    return constraint


def begun_call(constraint: Constraint, tokenizer: Tokenizer, seed: int) -> str:
    text = walk(tokenizer, constraint, END, seed, 2000, until=lambda: constraint.allowed() is None)
    return text.decode(errors="replace")


@each_marked_format
def test_a_call_of_a_strict_tool_meets_its_schema_once_it_has_begun(format: CallFormat, either: Tokenizer) -> None:
    use = ToolUse(STRICT, "auto", format)
    compiler = Compiler(either, frozenset([END]))
    for count in (1, 2) if format.closing else (1, 1):
        constraints = [held(use, either, format.opening, compiler) for _ in range(count)]
        text = "".join(format.opening + begun_call(each, either, count) for each in constraints)
        content, calls, _ = split(text, use)
        assert content == "" and len(calls) >= count
        for call in calls:
            assert call.name == "get_weather"
            jsonschema.validate(call.arguments, PARAMETERS)


def test_all_but_a_call_is_free_and_so_are_thoughts(either: Tokenizer) -> None:
    use = ToolUse(STRICT, "auto", HERMES)
    assert held(use, either, "A town, <tool_cal").fitting([END]) == 1
    begun = held(use, either, "\n<think>Perhaps <tool_call>")
    assert begun.allowed() is None and begun.forced() == () and not begun.finished
    after = held(use, either, "<think><tool_call></think>ok<tool_call>")
    assert after.fitting([END]) == 0 and after.forced()


def test_thoughts_that_the_prompt_opened_and_their_end_are_free(either: Tokenizer) -> None:
    grammar = grammar_of(ToolUse(STRICT, "auto", HERMES), either)
    constraint = Compiler(either, frozenset([END])).constraint(grammar, in_thoughts=True)
    for token in ids_of("Perhaps <tool_call></think>\n<think>or <tool_call></think>ok", either):
        assert constraint.allowed() is None and constraint.fitting([END, token]) == 2
        constraint.accept(token)
    for token in ids_of("<tool_call>", either):
        constraint.accept(token)
    assert constraint.fitting([END]) == 0 and constraint.forced()


def test_a_required_call_cannot_end_in_thoughts(tokenizer: Tokenizer) -> None:
    use = ToolUse(TOOLS, "required", HERMES)
    constraint = Compiler(tokenizer, frozenset([END])).constraint(grammar_of(use, tokenizer), in_thoughts=True)
    assert END not in ids_in(constraint.allowed(), tokenizer.size) and constraint.fitting([END]) == 0


def test_a_mark_of_several_control_tokens_begins_with_the_last(tokenizer: Tokenizer) -> None:
    use = ToolUse(STRICT, "auto", BY_NAME["internlm"])
    for text in ("<|plugin|>", "<|action_start|>", "<|action_start|> <|plugin|>", "<|plugin|><|action_start|>"):
        assert held(use, tokenizer, text).fitting([END]) == 1
    assert held(use, tokenizer, "<|action_start|><|plugin|>").fitting([END]) == 0


@pytest.mark.parametrize("mark", ["<tool_call>", "[TOOL_CALLS]", "functools[", "aa"])
def test_tokens_beyond_a_mark_complete_it_and_go_on(mark: str) -> None:
    pieces = ["", "x", *(mark[start:end] for start in range(len(mark)) for end in range(start + 1, len(mark) + 1))]
    tokens = sorted({(one + other).encode() for one in pieces for other in (*pieces, mark + "x", mark + mark)})
    for before, ids in enumerate(tokens_beyond(mark.encode(), tokens)):
        for id, token in enumerate(tokens):
            text = mark[:before].encode() + token
            ends = text.find(mark.encode()) + len(mark)
            assert (id in ids) == (len(mark) <= ends < len(text) and (before == 0 or text.startswith(mark.encode())))


def test_the_vocabulary_is_not_read_for_each_token(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    use = ToolUse(STRICT, "auto", HERMES)
    constraint, read = held(use, tokenizer, "So"), list[int]()
    token_bytes = Tokenizer.token_bytes
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, id: read.append(id) or token_bytes(self, id))
    for token in tokenizer.encode(" <tool_cal"):
        constraint.allowed()
        constraint.accept(token)
    assert len(read) < tokenizer.size


def test_a_token_beyond_a_mark_begins_a_call_or_is_not_allowed(tmp_path: Path) -> None:
    words = [">\n", '>\n{"name', ">\n{'", ">!", ">>", "l>\n{", "<tool_call>?", "a<tool_call>\n{"]
    plain = tokenizer_with(tmp_path, [], words)
    use = ToolUse(STRICT, "auto", HERMES)
    for before, unfit in (("So: ", {"<tool_call>?"}), ("So: <tool_call", {">\n{'", ">!", ">>", "<tool_call>?"})):
        constraint = held(use, plain, before)
        allowed = set(ids_in(constraint.allowed(), plain.size))
        assert {plain.token_bytes(id).decode() for id in range(plain.size) if id not in allowed} == unfit
        assert allowed == {id for id in range(plain.size) if constraint.fitting([id])}
    for token in (">\n", '>\n{"name'):
        constraint = held(use, plain, "So: <tool_call")
        constraint.accept(plain.library.token_to_id(token))
        first, *rest = split("<tool_call" + token + begun_call(constraint, plain, 0), use).calls
        for call in (first, *rest):
            jsonschema.validate(call.arguments, PARAMETERS)


def test_strict_and_free_tools_may_stand_side_by_side(tokenizer: Tokenizer) -> None:
    free = {"name": "b", "parameters": PARAMETERS}
    tools = checked_tools([{"name": "a", "parameters": PARAMETERS, "strict": True}, free])
    constraint = held(ToolUse(tools, "auto", HERMES), tokenizer, "<tool_call>")
    for name in "ab":
        whole = tokenizer.encode(f'\n{{"name": "{name}", "arguments": {{"x": 1}}}}\n')
        assert (constraint.fitting(whole) == len(whole)) is (name == "b")
    with pytest.raises(UsageError, match="all tools can be strict, or none"):
        grammar_of(ToolUse(tools, "auto", BY_NAME["tagged"]), tokenizer)


def test_without_a_mark_strict_tools_are_said_not_to_be_held() -> None:
    for format in FORMATS:
        use = ToolUse(STRICT, "auto", format)
        assert (use.holds, use.unheld) == (bool(format.opening), not format.opening)
        assert not ToolUse(STRICT, "required", format).unheld
    assert not ToolUse(TOOLS, "auto", FORMATS[-1]).unheld and not ToolUse(TOOLS, "auto", FORMATS[0]).holds


NEEDS_A = {"properties": {"a": {"type": "null"}}, "required": ["a"]}
NULLS = {"type": "array", "items": {"type": "null"}}
PAIR = {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}}
ANY_NULLS = {"additionalProperties": {"type": "null"}}
REWRITTEN: dict[str, dict[str, Any]] = {
    "format": {"type": "string", "format": "byte", "maxLength": 8},
    "date": {"type": "string", "format": "date"},
    "class": {"type": "string", "pattern": "^[a[]$"},
    "names": {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}, "maxProperties": 2} | ANY_NULLS,
    "choices": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    "bound": {"type": "integer", "minimum": 2**63 - 5000, "maximum": 2**63 - 1},
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_arguments_of_a_call_are_held_to_all_that_json_is(name: str, tokenizer: Tokenizer) -> None:
    use, validator = must_call(HERMES, a=REWRITTEN[name]), jsonschema.Draft202012Validator
    for seed in range(5):
        (call,) = split(text_of(use, tokenizer, seed), use).calls
        validator(tool_parameters(use.tools[0]), format_checker=validator.FORMAT_CHECKER).validate(call.arguments)


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({"type": "number", "enum": [2, 2.5, "2"]}, [2, 2.5], []),
        (NULLS, [[], [None], [None] * 3], []),
        (NULLS | {"maxItems": 0}, [[]], [[None], [None] * 3]),
        (NULLS | {"minItems": 1}, [[None], [None] * 3], [[]]),
        ({"type": "string", "minLength": 2}, ["xx", "xxx", "x" * 9], ["", "x"]),
        ({"type": "string", "maxLength": 2}, ["", "x", "xx"], ["xxx", "x" * 9]),
    ],
    ids=str,
)
@each_format
def test_an_argument_may_be_what_fits_its_schema_and_nothing_else(
    format: CallFormat, schema: dict[str, Any], fitting: list[Any], others: list[Any], tokenizer: Tokenizer
) -> None:
    fits = calls_that_fit(must_call(format, a=schema), tokenizer)
    for value in (*fitting, *others):
        assert fits(format.write([ToolCall("", "f", {"a": value})])) is (value in fitting)


def test_marks_are_control_tokens_or_else_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    use = ToolUse(TOOLS, "required", HERMES)
    lark = use.grammar(tokenizer.control_tokens.ids, dict)
    assert f"<[{tokenizer.control_tokens.ids['<tool_call>']}]>" in lark and '"<tool_call>' not in lark
    plain = tokenizer_with(tmp_path, [])
    assert text_of(use, plain, 0).startswith("<tool_call>\n{")


def test_a_tool_that_is_named_is_the_one_that_is_called(tokenizer: Tokenizer) -> None:
    for name in ("get_weather", "no.arguments"):
        use = ToolUse(TOOLS, name, HERMES)
        called = [call.name for seed in range(3) for call in split(text_of(use, tokenizer, seed), use).calls]
        assert called == [name] * 3


@pytest.mark.parametrize(
    ("schema", "format", "message"),
    [
        ({"properties": {"a": {"type": "string", "format": "month"}}}, "hermes", "f: #/properties/a: Unknown format"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, "hermes", "f: #.*there is nothing at"),
        ({"properties": {"a": {"type": "string", "pattern": "x"}}}, "tagged", "cannot be held to pattern"),
        ({"properties": {"a": {"anyOf": [{"type": "string"}]}}}, "gemma", "cannot be held to anyOf"),
        ({"properties": {"a": {"type": "array"}}}, "gemma", "cannot be held to type .array. alone"),
        ({"properties": {'a"b': {"type": "null"}}}, "gemma", "cannot spell the argument"),
        ({"properties": {'a"b': {"type": "null"}}}, "minimax", "cannot spell the argument"),
        ({"properties": {"a-b": {"type": "null"}}}, "pythonic", "cannot spell the argument"),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "tagged", "cannot be held to anyOf"),
        (NEEDS_A | {"minProperties": 1}, "pythonic", "cannot be held to minProperties"),
        ({"properties": {"a": {"type": "object", "required": ["b"]}}}, "gemma", "cannot be held to required"),
        ({"$defs": {"p": {"required": ["a"]}}, "$ref": "#/$defs/p"}, "glm", r"cannot be held to \$ref"),
        ({"properties": {"a": {"type": "array", "items": True}}}, "gemma", "cannot be held to type .array. alone"),
        ({"properties": {"a": PAIR}}, "gemma", "cannot be held to prefixItems"),
        ({"properties": {"a": NULLS | {"anyOf": [{"minItems": 1}]}}}, "gemma", "cannot be held to anyOf"),
        ({"properties": {"a": {"enum": ["a"], "minLength": 2}}}, "gemma", "cannot be held to minLength"),
        ({"properties": {"a": {"enum": ["a"], "pattern": "a"}}}, "tagged", "cannot be held to pattern"),
        ({"properties": {"a": {"enum": [*map(str, range(2000))]}}}, "tagged", "too large: 2000 choices"),
    ],
)
def test_a_schema_that_calls_cannot_be_held_to_is_refused(
    schema: dict[str, Any], format: str, message: str, tokenizer: Tokenizer
) -> None:
    use = ToolUse(checked_tools([{"name": "f", "parameters": schema}]), "required", BY_NAME[format])
    with pytest.raises(UsageError, match=message) as caught:
        text_of(use, tokenizer, 0)
    assert caught.value.setting == "tools"


NO_SCHEMAS: list[dict[str, Any]] = [{"properties": None}, {"required": None}, {"required": "a"}] + [
    {"properties": {"a": schema}}
    for schema in (
        None, {"type": "object", "properties": None}, {"type": "object", "required": None},
        {"type": "array", "items": {}, "minItems": None}, {"type": "string", "minLength": "1,2}./"},
    )
]  # fmt: skip


@pytest.mark.parametrize("schema", NO_SCHEMAS, ids=str)
@each_format
def test_no_format_takes_what_is_no_schema(schema: dict[str, Any], format: CallFormat, tokenizer: Tokenizer) -> None:
    tool = {"name": "f", "parameters": schema, "strict": True}
    for choice in ("required", "auto") if format.opening else ("required",):
        grammar = grammar_of(ToolUse(checked_tools([tool]), choice, format), tokenizer)
        with pytest.raises(UsageError, match="the parameters of tool f: #") as caught:
            checked_grammar(grammar)
        assert caught.value.setting == "tools"


def calls_that_fit(use: ToolUse, tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Whether a text may come, from its beginning."""
    compiler = Compiler(tokenizer, frozenset([END]))

    def fits(text: str) -> bool:
        ids = ids_of(text, tokenizer)
        return compiler.constraint(grammar_of(use, tokenizer)).fitting(ids) == len(ids)

    return fits


@each_format
def test_only_optional_arguments_may_be_missing(format: CallFormat, tokenizer: Tokenizer) -> None:
    braced = isinstance(format.syntax, Braced)  # in which members are in alphabetical order
    referred = {"type": "null"} if braced else {"$ref": "#/definitions/n"}
    properties = {name: referred if name == "c" else {"type": "null"} for name in ("dcba" if braced else "abcd")}
    parameters = {"properties": properties, "required": ["b", "d"], "additionalProperties": False}
    parameters["definitions"] = {"n": {"type": "null"}}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    fits = calls_that_fit(use, tokenizer)
    for names in ("bd", "abd", "bcd", "abcd", "", "a", "b", "d", "ab", "ad", "bc", "acd", "abc"):
        call = format.write([ToolCall("", "f", dict.fromkeys(names))])
        assert fits(call) is ({"b", "d"} <= set(names)), names


@each_marked_format
def test_a_group_of_marks_may_hold_several_calls_of_strict_tools(format: CallFormat, tokenizer: Tokenizer) -> None:
    parameters = tool_parameters(must_call(format, a={"type": "null"}).tools[0])
    use = ToolUse(strict({"name": "f", "parameters": parameters}), "auto", format)
    compiler = Compiler(tokenizer, frozenset([END]))
    call, wrong = ToolCall("", "f", {"a": None}), ToolCall("", "f", {})
    for calls, fits in ([call], True), ([call] * 3, format.group is not None), ([call, wrong], False):
        constraint = held(use, tokenizer, format.opening, compiler)
        rest = ids_of(format.write(calls).removeprefix(format.opening), tokenizer)
        assert (constraint.fitting(rest) == len(rest)) is fits, calls


def test_json_in_a_call_is_spelled_on_one_line_as_python_does(tokenizer: Tokenizer) -> None:
    fits = calls_that_fit(must_call(HERMES, a={"type": "null"}, b={"type": "null"}), tokenizer)
    as_python = '{"a": null, "b": null}'
    for arguments in (as_python, '{"a":null, "b": null}', '{"a": null,"b": null}', '{ "a": null, "b": null}'):
        fit = fits(f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>')
        assert fit is (arguments == as_python)


def test_a_mark_that_begins_with_another_is_the_longer_one() -> None:
    assert Grammar({"<a": 1, "<a>": 2, ">": 3}, dict).text("<a>b<a") == '<[2]> "b" <[1]>'


@each_format
def test_true_and_false_are_schemas_of_arguments(format: CallFormat, tokenizer: Tokenizer) -> None:
    properties = {"a": True, "b": False, "c": {"type": "array", "items": False}, "d": True}
    properties |= {"e": {"type": "string", "enum": [1]}, "f": {"type": "string", "enum": []}}  # which nothing is
    use = must_call(format, optional="bdef", **properties)
    fitting = calls_that_fit(use, tokenizer)
    least = {"a": "x", "c": []}
    for arguments in (least, least | {"d": "y"}):
        assert fitting(written(use, arguments)), arguments
    for more in ({"b": "y"}, {"e": 1}, {"e": ""}, {"f": ""}, {"c": ["y"]}):
        assert not fitting(written(use, dict(sorted((least | more).items())))), more
    assert not fitting(written(use, {"c": []}))


@pytest.mark.parametrize("schema", [False, {"type": "string", "enum": [1]}], ids=str)
@each_format
def test_a_required_argument_must_be_possible(schema: Any, format: CallFormat, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError):
        Compiler(tokenizer, frozenset([END])).constraint(grammar_of(must_call(format, a=schema), tokenizer))


def written(use: ToolUse, arguments: dict[str, Any]) -> str:
    """A call as the model would write it: texts that have no type of their own are JSON between tags."""
    quoted = isinstance(use.format.syntax, Tagged)
    spelled = {key: json.dumps(value) if quoted else value for key, value in arguments.items()}
    return use.format.write([ToolCall("", tool_name(use.tools[0]), spelled)])


DRAWN: list[dict[str, Any]] = [
    {"enum": ["1", "2"]},
    {"enum": ["true", "null", "x"]},
    {"enum": ["<|im_end|>"]},  # as text
    {"type": "string", "enum": ["1", 2, None]},
    {"type": ["string", "null"], "enum": ["1", "2", None, 3]},
    {"type": "number", "enum": ["1", 2, 2.5, True]},
    {"type": "integer", "enum": ["1", 2, 3.0, 2.5, True]},
    {"type": ["string", "null"], "maxLength": 1},
    {"type": ["string"], "maxLength": 2},
    *({"type": "array", "items": {"type": "boolean"}, "minItems": least, "maxItems": 2} for least in range(3)),
]


@pytest.mark.parametrize("schema", DRAWN, ids=str)
@each_format
def test_an_argument_that_is_drawn_has_its_type_and_is_read_as_such(
    schema: dict[str, Any], format: CallFormat, tokenizer: Tokenizer
) -> None:
    use, compiler = must_call(format, a=schema), Compiler(tokenizer, frozenset([END]))
    for seed in range(4):
        text = walk(tokenizer, compiler.constraint(grammar_of(use, tokenizer)), END, seed).decode()
        (call,) = split(text, use).calls
        jsonschema.validate(call.arguments, tool_parameters(use.tools[0]))
