"""A text that must be a call is one, in each family's own format, and meets its tool's schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptcli.errors import UsageError
from gptcli.generation.constraints.grammar import CallGrammar
from gptcli.generation.constraints.matcher import Compiler
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import checked_tools, tool_name, tool_parameters
from gptcli.tools.formats import FORMATS, CallFormat, ToolUse
from gptcli.tools.splitter import split
from tests.generation.test_grammar import walk
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
<|tool_call_begin|> <|tool_call_end|> <|tool_call_argument_begin|> <|START_ACTION|> <|END_ACTION|> <escape>""".split()


def tokenizer_with(directory: Path, marks: list[str]) -> Tokenizer:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(marks)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text("{}")
    return Tokenizer.open(directory)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with(tmp_path_factory.mktemp("marks"), MARKS)


def text_of(use: ToolUse, tokenizer: Tokenizer, seed: int) -> str:
    lark = use.grammar(tokenizer.control_tokens.ids)
    assert lark is not None
    constraint = Compiler(tokenizer, frozenset([END])).constraint(CallGrammar(lark, use.schemas))
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
    lark = use.grammar(tokenizer.control_tokens.ids) or ""
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
    ],
)
def test_a_schema_that_cannot_be_met_is_refused_with_its_place(
    schema: dict[str, Any], format: str, message: str, tokenizer: Tokenizer
) -> None:
    chosen = next(known for known in FORMATS if known.name == format)
    use = ToolUse(checked_tools([{"name": "f", "parameters": schema}]), "required", chosen)
    with pytest.raises(UsageError, match=message):
        text_of(use, tokenizer, 0)
