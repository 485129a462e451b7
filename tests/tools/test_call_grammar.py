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
from gptcli.tools.splitter import split
from gptcli.tools.syntaxes import Braced, Tagged
from tests.generation.test_grammar import ids_in, walk
from tests.tiny import make_tokenizer

END = 2
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
    return tokenizer_with(tmp_path_factory.mktemp("marks"), MARKS)


def grammar_of(use: ToolUse, tokenizer: Tokenizer) -> CallGrammar:
    write = partial(use.grammar, tokenizer.control_tokens.ids)
    return CallGrammar(use.format.name, use.schemas, use.held_after, write)


def text_of(use: ToolUse, tokenizer: Tokenizer, seed: int) -> str:
    assert use.holds and not use.held_after
    constraint = Compiler(tokenizer, frozenset([END])).constraint(grammar_of(use, tokenizer))
    return walk(tokenizer, constraint, END, seed).decode()


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_text_of_tokens_drawn_at_random_is_a_call_that_meets_its_schema(
    format: CallFormat, tokenizer: Tokenizer
) -> None:
    use = ToolUse(TOOLS, "required", format)
    for seed in range(3):
        text = text_of(use, tokenizer, seed)
        content, (call,), _ = split(text, use)
        assert content == ""
        parameters = next(tool_parameters(tool) for tool in TOOLS if tool_name(tool) == call.name)
        jsonschema.validate(call.arguments, parameters)


def strict(*tools: dict[str, Any]) -> tuple[Any, ...]:
    return checked_tools([tool | {"strict": True} for tool in tools])


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a model's text: those of a call's marks are control tokens, where there are such."""
    marks = "|".join(re.escape(mark) for mark in MARKS if tokenizer.control_tokens.id_of(mark))
    ids = list[int]()
    for piece in re.split(f"({marks})", text) if marks else [text]:
        mark = tokenizer.control_tokens.id_of(piece)
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


MARKED = [format for format in FORMATS if format.opening]


def begun_call(constraint: Constraint, tokenizer: Tokenizer, seed: int) -> str:
    text = walk(tokenizer, constraint, END, seed, 2000, until=lambda: constraint.allowed() is None)
    return text.decode(errors="replace")


@pytest.mark.parametrize("format", MARKED, ids=lambda format: format.name)
def test_a_call_of_a_strict_tool_meets_its_schema_once_it_has_begun(
    format: CallFormat, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", format)
    for marked in (tokenizer, tokenizer_with(tmp_path, [])):
        compiler = Compiler(marked, frozenset([END]))
        for count in (1, 2) if format.closing else (1, 1):
            constraints = [held(use, marked, format.opening, compiler) for _ in range(count)]
            text = "".join(format.opening + begun_call(each, marked, count) for each in constraints)
            content, calls, _ = split(text, use)
            assert content == "" and len(calls) >= count
            for call in calls:
                assert call.name == "get_weather"
                jsonschema.validate(call.arguments, PARAMETERS)


def test_all_but_a_call_is_free_and_so_are_thoughts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", FORMATS[0])
    for marked in (tokenizer, tokenizer_with(tmp_path, [])):
        assert held(use, marked, "A town, <tool_cal").fitting([END]) == 1
        begun = held(use, marked, "\n<think>Perhaps <tool_call>")
        assert begun.allowed() is None and begun.forced() == () and not begun.finished
        after = held(use, marked, "<think><tool_call></think>ok<tool_call>")
        assert after.fitting([END]) == 0 and after.forced()


def test_thoughts_that_the_prompt_opened_are_free_as_well_as_their_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", FORMATS[0])
    for marked in (tokenizer, tokenizer_with(tmp_path, [])):
        constraint = Compiler(marked, frozenset([END])).constraint(grammar_of(use, marked), in_thoughts=True)
        for token in ids_of("Perhaps <tool_call>", marked):
            assert constraint.allowed() is None and constraint.fitting([END, token]) == 2
            constraint.accept(token)
        for token in ids_of("</think>\n<think>or <tool_call></think>ok", marked):
            assert constraint.allowed() is None and constraint.fitting([END, token]) == 2
            constraint.accept(token)
        for token in ids_of("<tool_call>", marked):
            constraint.accept(token)
        assert constraint.fitting([END]) == 0 and constraint.forced()


def test_a_text_that_must_be_a_call_cannot_end_in_thoughts_that_the_prompt_opened(tokenizer: Tokenizer) -> None:
    use = ToolUse(TOOLS, "required", FORMATS[0])
    constraint = Compiler(tokenizer, frozenset([END])).constraint(grammar_of(use, tokenizer), in_thoughts=True)
    assert END not in ids_in(constraint.allowed(), tokenizer.size) and constraint.fitting([END]) == 0


def test_a_mark_of_several_control_tokens_begins_with_the_last(tokenizer: Tokenizer) -> None:
    internlm = next(format for format in FORMATS if format.name == "internlm")
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", internlm)
    for text in ("<|plugin|>", "<|action_start|>", "<|action_start|> <|plugin|>", "<|plugin|><|action_start|>"):
        assert held(use, tokenizer, text).fitting([END]) == 1
    assert held(use, tokenizer, "<|action_start|><|plugin|>").fitting([END]) == 0


@pytest.mark.parametrize("mark", ["<tool_call>", "[TOOL_CALLS]", "functools[", "aa"])
def test_the_tokens_that_go_beyond_a_mark_are_those_that_complete_it_and_go_on(mark: str) -> None:
    pieces = ["", "x", *(mark[start:end] for start in range(len(mark)) for end in range(start + 1, len(mark) + 1))]
    tokens = sorted({(one + other).encode() for one in pieces for other in (*pieces, mark + "x", mark + mark)})
    for before, ids in enumerate(tokens_beyond(mark.encode(), tokens)):
        for id, token in enumerate(tokens):
            text = mark[:before].encode() + token
            ends = text.find(mark.encode()) + len(mark)
            assert (id in ids) == (len(mark) <= ends < len(text) and (before == 0 or text.startswith(mark.encode())))


def test_the_vocabulary_is_not_read_while_a_text_is_drawn(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", FORMATS[0])
    constraint, read = held(use, tokenizer, "So"), list[int]()
    token_bytes = Tokenizer.token_bytes
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, id: read.append(id) or token_bytes(self, id))
    for token in tokenizer.encode(" <tool_cal"):
        constraint.allowed()
        constraint.accept(token)
    assert len(read) < tokenizer.size


def test_a_token_that_goes_beyond_a_mark_begins_a_call_or_is_not_allowed(tmp_path: Path) -> None:
    plain = tokenizer_with(
        tmp_path, [], [">\n", '>\n{"name', ">\n{'", ">!", ">>", "l>\n{", "<tool_call>?", "a<tool_call>\n{"]
    )
    use = ToolUse(strict({"name": "get_weather", "parameters": PARAMETERS}), "auto", FORMATS[0])
    for before, unfit in (("So: ", {"<tool_call>?"}), ("So: <tool_call", {">\n{'", ">!", ">>", "<tool_call>?"})):
        constraint = held(use, plain, before)
        allowed = set(ids_in(constraint.allowed(), plain.size))
        assert {plain.token_bytes(id).decode() for id in range(plain.size) if id not in allowed} == unfit
        assert allowed == {id for id in range(plain.size) if constraint.fitting([id])}
    for token in (">\n", '>\n{"name'):
        constraint = held(use, plain, "So: <tool_call")
        constraint.accept(plain.library.token_to_id(token))
        calls = split("<tool_call" + token + begun_call(constraint, plain, 0), use).calls
        assert calls
        for call in calls:
            jsonschema.validate(call.arguments, PARAMETERS)


def test_tools_that_are_not_strict_take_any_arguments_beside_one_that_is(tokenizer: Tokenizer) -> None:
    hermes, tagged = FORMATS[:2]
    tools = checked_tools(
        [{"name": "a", "parameters": PARAMETERS, "strict": True}, {"name": "b", "parameters": PARAMETERS}]
    )
    constraint = held(ToolUse(tools, "auto", hermes), tokenizer, "<tool_call>")
    assert constraint.fitting(tokenizer.encode('\n{"name": "b", "arguments": {"x": 1}}')) > 0
    whole = tokenizer.encode('\n{"name": "b", "arguments": {"x": 1}}\n')
    assert constraint.fitting(whole) == len(whole)
    whole = tokenizer.encode('\n{"name": "a", "arguments": {"x": 1}}\n')
    assert constraint.fitting(whole) < len(whole)
    with pytest.raises(UsageError, match="all tools can be strict, or none"):
        grammar_of(ToolUse(tools, "auto", tagged), tokenizer)


def test_without_a_mark_strict_tools_are_said_not_to_be_held() -> None:
    tools = strict({"name": "a", "parameters": PARAMETERS})
    assert [use.unheld for use in (ToolUse(tools, "auto", format) for format in FORMATS)] == [
        not format.opening for format in FORMATS
    ]
    assert not any(ToolUse(tools, "required", format).unheld for format in FORMATS)
    assert all(ToolUse(tools, "auto", format).holds is bool(format.opening) for format in FORMATS)
    assert not ToolUse(TOOLS, "auto", FORMATS[-1]).unheld and not ToolUse(TOOLS, "auto", FORMATS[0]).holds


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_an_integer_is_a_number_among_choices(format: CallFormat, tokenizer: Tokenizer) -> None:
    schema = {"type": "number", "enum": [2, 2.5, "2"]}
    parameters = {"properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    fits = calls_that_fit(
        ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format), tokenizer
    )
    assert all(fits(format.write([ToolCall("", "f", {"a": number})])) for number in (2, 2.5))


NULLS = {"type": "array", "items": {"type": "null"}}
PAIR = {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}}
REWRITTEN: dict[str, dict[str, Any]] = {
    "format": {"type": "string", "format": "byte", "maxLength": 8},
    "date": {"type": "string", "format": "date"},
    "class": {"type": "string", "pattern": "^[a[]$"},
    "names": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-c]$"},
        "additionalProperties": {"type": "null"},
        "maxProperties": 2,
    },
    "choices": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    "bound": {"type": "integer", "minimum": 2**63 - 5000, "maximum": 2**63 - 1},
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_arguments_of_a_call_are_held_to_all_that_json_is(name: str, tokenizer: Tokenizer) -> None:
    parameters = {"properties": {"a": REWRITTEN[name]}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", FORMATS[0])
    validator = jsonschema.Draft202012Validator
    for seed in range(5):
        (call,) = split(text_of(use, tokenizer, seed), use).calls
        validator(parameters, format_checker=validator.FORMAT_CHECKER).validate(call.arguments)


@pytest.mark.parametrize("least", [0, 1, 2])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_lists_in_a_call_have_as_many_items_as_they_may(format: CallFormat, tokenizer: Tokenizer, least: int) -> None:
    numbers = {"type": "array", "items": {"type": "boolean"}, "minItems": least, "maxItems": 2}
    parameters = {"type": "object", "properties": {"numbers": numbers}, "required": ["numbers"]}
    parameters["additionalProperties"] = False
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    for seed in range(3):
        (call,) = split(text_of(use, tokenizer, seed), use).calls
        jsonschema.validate(call.arguments, parameters)


@pytest.mark.parametrize(("bounds", "lengths"), [({}, {0, 1, 3}), ({"maxItems": 0}, {0}), ({"minItems": 1}, {1, 3})])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_list_in_a_call_may_be_empty_or_long_where_its_bounds_say_so(
    format: CallFormat, bounds: dict[str, int], lengths: set[int], tokenizer: Tokenizer
) -> None:
    parameters = {"properties": {"a": NULLS | bounds}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    fits = calls_that_fit(use, tokenizer)
    for length in (0, 1, 3):
        assert fits(format.write([ToolCall("", "f", {"a": [None] * length})])) is (length in lengths)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_choice_that_spells_a_control_token_is_text(format: CallFormat, tokenizer: Tokenizer) -> None:
    parameters = {"type": "object", "properties": {"a": {"enum": ["<|im_end|>"]}}, "required": ["a"]}
    parameters["additionalProperties"] = False
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    assert [dict(call.arguments) for call in split(text_of(use, tokenizer, 0), use).calls] == [{"a": "<|im_end|>"}]


def test_marks_are_control_tokens_where_the_tokenizer_has_them_and_text_where_not(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    use = ToolUse(TOOLS, "required", next(format for format in FORMATS if format.name == "hermes"))
    lark = use.grammar(tokenizer.control_tokens.ids, dict)
    assert f"<[{tokenizer.control_tokens.ids['<tool_call>']}]>" in lark and '"<tool_call>' not in lark
    plain = tokenizer_with(tmp_path, [])
    assert text_of(use, plain, 0).startswith("<tool_call>\n{")


def test_a_tool_that_is_named_is_the_one_that_is_called(tokenizer: Tokenizer) -> None:
    for name in ("get_weather", "no.arguments"):
        use = ToolUse(TOOLS, name, FORMATS[0])
        assert [call.name for seed in range(3) for call in split(text_of(use, tokenizer, seed), use).calls] == [
            name
        ] * 3


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
        (
            {"properties": {"a": {"type": "null"}}, "required": ["a"], "minProperties": 1},
            "pythonic",
            "cannot be held to minProperties",
        ),
        ({"properties": {"a": {"type": "object", "required": ["b"]}}}, "gemma", "cannot be held to required"),
        ({"$defs": {"p": {"required": ["a"]}}, "$ref": "#/$defs/p"}, "glm", r"cannot be held to \$ref"),
        ({"properties": {"a": {"type": "array", "items": True}}}, "gemma", "cannot be held to type .array. alone"),
        ({"properties": {"a": PAIR}}, "gemma", "cannot be held to prefixItems"),
        ({"properties": {"a": NULLS | {"anyOf": [{"minItems": 1}]}}}, "gemma", "cannot be held to anyOf"),
        ({"properties": {"a": {"enum": ["a"], "minLength": 2}}}, "gemma", "cannot be held to minLength"),
        ({"properties": {"a": {"enum": ["a"], "pattern": "a"}}}, "tagged", "cannot be held to pattern"),
    ],
)
def test_a_schema_that_cannot_be_met_is_refused_with_its_place(
    schema: dict[str, Any], format: str, message: str, tokenizer: Tokenizer
) -> None:
    chosen = next(known for known in FORMATS if known.name == format)
    use = ToolUse(checked_tools([{"name": "f", "parameters": schema}]), "required", chosen)
    with pytest.raises(UsageError, match=message) as caught:
        text_of(use, tokenizer, 0)
    assert caught.value.setting == "tools"


NO_SCHEMAS: list[dict[str, Any]] = [
    {"properties": None},
    {"properties": {"a": None}},
    {"required": None},
    {"required": "a"},
    {"properties": {"a": {"type": "object", "properties": None}}},
    {"properties": {"a": {"type": "object", "required": None}}},
    {"properties": {"a": {"type": "array", "items": {}, "minItems": None}}},
    {"properties": {"a": {"type": "string", "minLength": "1,2}./"}}},
]


@pytest.mark.parametrize("schema", NO_SCHEMAS, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_what_is_no_schema_is_refused_however_calls_are_written(
    schema: dict[str, Any], format: CallFormat, tokenizer: Tokenizer
) -> None:
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


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_arguments_that_are_not_required_may_be_missing_and_no_others(format: CallFormat, tokenizer: Tokenizer) -> None:
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


@pytest.mark.parametrize("format", MARKED, ids=lambda format: format.name)
def test_between_the_marks_of_a_group_there_may_be_several_calls_of_strict_tools(
    format: CallFormat, tokenizer: Tokenizer
) -> None:
    parameters = {"properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(strict({"name": "f", "parameters": parameters}), "auto", format)
    compiler = Compiler(tokenizer, frozenset([END]))
    call, wrong = ToolCall("", "f", {"a": None}), ToolCall("", "f", {})
    for calls, fits in ([call], True), ([call] * 3, format.group is not None), ([call, wrong], False):
        constraint = held(use, tokenizer, format.opening, compiler)
        rest = ids_of(format.write(calls).removeprefix(format.opening), tokenizer)
        assert (constraint.fitting(rest) == len(rest)) is fits, calls


def test_json_in_a_call_is_spelled_on_one_line_as_python_does(tokenizer: Tokenizer) -> None:
    parameters = {"properties": {name: {"type": "null"} for name in "ab"}, "required": ["a", "b"]}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", FORMATS[0])
    fits = calls_that_fit(use, tokenizer)
    for arguments, fit in (
        ('{"a": null, "b": null}', True),
        ('{"a":null, "b": null}', False),
        ('{"a": null,"b": null}', False),
        ('{ "a": null, "b": null}', False),
    ):
        assert fits(f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>') is fit


@pytest.mark.parametrize(("bounds", "lengths"), [({"minLength": 2}, {2, 3, 9}), ({"maxLength": 2}, {0, 1, 2})])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_texts_are_as_long_as_they_may_be(
    format: CallFormat, bounds: dict[str, int], lengths: set[int], tokenizer: Tokenizer
) -> None:
    parameters = {"properties": {"a": {"type": "string", **bounds}}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    fits = calls_that_fit(use, tokenizer)
    for length in (0, 1, 2, 3, 9):
        assert fits(format.write([ToolCall("", "f", {"a": "x" * length})])) is (length in lengths)


def test_a_mark_that_begins_with_another_is_the_longer_one() -> None:
    assert Grammar({"<a": 1, "<a>": 2, ">": 3}, dict).text("<a>b<a") == '<[2]> "b" <[1]>'


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_true_and_false_are_schemas_of_arguments(format: CallFormat, tokenizer: Tokenizer) -> None:
    properties = {"a": True, "b": False, "c": {"type": "array", "items": False}, "d": True}
    properties |= {"e": {"type": "string", "enum": [1]}, "f": {"type": "string", "enum": []}}  # which nothing is
    parameters = {"properties": properties, "required": ["a", "c"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    fitting = calls_that_fit(use, tokenizer)
    for arguments, fits in (
        ({"a": "x", "c": []}, True),
        ({"a": "x", "c": [], "d": "y"}, True),
        ({"a": "x", "b": "y", "c": []}, False),
        ({"a": "x", "c": [], "e": 1}, False),
        ({"a": "x", "c": [], "e": ""}, False),
        ({"a": "x", "c": [], "f": ""}, False),
        ({"a": "x", "c": ["y"]}, False),
        ({"c": []}, False),
    ):
        assert fitting(written(use, arguments)) is fits, arguments


@pytest.mark.parametrize("schema", [False, {"type": "string", "enum": [1]}], ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_an_argument_that_nothing_can_be_is_refused_where_it_is_required(
    schema: Any, format: CallFormat, tokenizer: Tokenizer
) -> None:
    parameters = {"properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    with pytest.raises(UsageError):
        Compiler(tokenizer, frozenset([END])).constraint(grammar_of(use, tokenizer))


def written(use: ToolUse, arguments: dict[str, Any]) -> str:
    """A call as the model would write it: texts that have no type of their own are JSON between tags."""
    quoted = isinstance(use.format.syntax, Tagged)
    spelled = {key: json.dumps(value) if quoted else value for key, value in arguments.items()}
    return use.format.write([ToolCall("", tool_name(use.tools[0]), spelled)])


CHOICES: list[dict[str, Any]] = [
    {"enum": ["1", "2"]},
    {"enum": ["true", "null", "x"]},
    {"type": "string", "enum": ["1", 2, None]},
    {"type": ["string", "null"], "enum": ["1", "2", None, 3]},
    {"type": "number", "enum": ["1", 2, 2.5, True]},
    {"type": "integer", "enum": ["1", 2, 3.0, 2.5, True]},
    {"type": ["string", "null"], "maxLength": 1},
    {"type": ["string"], "maxLength": 2},
]


@pytest.mark.parametrize("schema", CHOICES, ids=str)
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_choice_has_its_type_and_is_read_as_such(
    schema: dict[str, Any], format: CallFormat, tokenizer: Tokenizer
) -> None:
    parameters = {"properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    use = ToolUse(checked_tools([{"name": "f", "parameters": parameters}]), "required", format)
    compiler = Compiler(tokenizer, frozenset([END]))
    for seed in range(4):
        text = walk(tokenizer, compiler.constraint(grammar_of(use, tokenizer)), END, seed).decode()
        (call,) = split(text, use).calls
        jsonschema.validate(call.arguments, parameters)
