from __future__ import annotations

import json
from typing import Any

import pytest

from gptcli.errors import UsageError
from gptcli.tools.definitions import checked_call, checked_choice, checked_tools, parse_tools, tool_name

TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}


def test_tools_in_openais_format_are_taken_as_they_are() -> None:
    for text in (json.dumps([TOOL]), json.dumps({"tools": [TOOL]})):
        assert parse_tools(text, "x.json") == (TOOL,)


def test_bare_functions_are_put_into_openais_format() -> None:
    assert checked_tools([TOOL["function"]]) == (TOOL,)
    assert checked_tools([{"type": "function", "name": "now"}]) == ({"type": "function", "function": {"name": "now"}},)


@pytest.mark.parametrize("name", ["get_weather", "früh", "mcp/files.read", "a-b:c", "天気"])
def test_names_are_words_of_any_script(name: str) -> None:
    assert tool_name(checked_tools([{"name": name}])[0]) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json: not JSON: "),
        ("[1, 2] x", "x.json: not JSON: more than one value"),
        ("[" * 100_000, "x.json: not JSON: too deeply nested"),
        ("[]", "x.json: a list of 1 to"),
        ("5", "x.json: a list of"),
        ('{"tools": 5}', "x.json: a list of"),
        ("[5]", "x.json: #/0: a tool is an object, not 5"),
        ("[{}]", "x.json: #/0/function: an object with a name is wanted, not none"),
        ('[{"type": "web_search"}]', '#/0/type: only functions can be called, not "web_search"'),
        ('[{"function": {}}]', "#/0/function/name"),
        ('[{"name": "a b"}]', '#/0/function/name: .* not "a b"'),
        ('[{"name": "a\\"b"}]', "#/0/function/name"),
        ('[{"name": "<|im_end|>"}]', "#/0/function/name"),
        ('[{"name": ""}]', "#/0/function/name"),
        ('[{"name": "auto"}]', "#/0/function/name: auto is a word of tool-choice"),
        ('[{"name": "a", "parameters": {"x": ' + "[" * 500 + "]" * 500 + "}}]", "too deeply nested"),
        ('[{"name": "a", "description": 5}]', "#/0/function/description"),
        ('[{"name": "a", "parameters": []}]', "#/0/function/parameters: a JSON schema is wanted"),
        ('[{"name": "a", "parameters": {"type": "array"}}]', "#/0/function/parameters/type"),
        ('[{"name": "a"}, {"name": "b"}, {"name": "a"}]', "#/2: there are two tools a"),
    ],
)
def test_what_is_no_list_of_tools_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_tools(text, "x.json")


def test_a_choice_is_a_word_or_a_tool() -> None:
    for choice in ("auto", "required", "now"):
        assert checked_choice(choice, [TOOL]) == choice
    assert checked_choice({"type": "function", "function": {"name": "now"}}, [TOOL]) == "now"


@pytest.mark.parametrize("choice", ["then", "", 5, None, {"type": "function"}])
def test_another_choice_is_refused(choice: object) -> None:
    with pytest.raises(UsageError, match="tool-choice must be"):
        checked_choice(choice, [TOOL])


@pytest.mark.parametrize("arguments", ["{}", {}, "", None])
def test_the_arguments_of_a_call_may_be_text_or_an_object(arguments: object) -> None:
    call = checked_call({"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}, "x")
    assert (call.id, call.name, call.arguments) == ("a", "f", {})


def test_half_a_surrogate_pair_in_a_call_becomes_a_replacement_character() -> None:
    call = checked_call({"id": "a\ud800", "function": {"name": "f\ud800", "arguments": '{"\\ud800": 1}'}}, "x")
    assert (call.id, call.name, call.arguments) == ("a\ufffd", "f\ufffd", {"\ufffd": 1})


@pytest.mark.parametrize(
    "call",
    [5, {}, {"function": {}}, {"function": {"name": "f", "arguments": "{"}}]
    + [{"function": {"name": "f", "arguments": "[]"}}, {"id": 5, "function": {"name": "f"}}],
)
def test_what_is_no_call_is_refused(call: Any) -> None:
    with pytest.raises(UsageError, match=r"^x"):
        checked_call(call, "x")
