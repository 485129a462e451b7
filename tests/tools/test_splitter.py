"""Calls in a text: found whole, never shown by halves, and left alone where they are none."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from gptcli.tools import syntaxes
from gptcli.tools.definitions import ToolCall, checked_tools
from gptcli.tools.formats import FORMATS, HARMONY, ToolUse
from gptcli.tools.json_reading import read_value
from gptcli.tools.splitter import splitter_of
from tests.tools.whole_text import Split, in_pieces, split

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}, "list": {}}
TOOLS = checked_tools(
    [
        {"name": "get_weather", "parameters": {"type": "object", "properties": PROPERTIES}},
        {"name": "now", "parameters": {"type": "object", "properties": {}}},
    ]
)
BY_NAME = {format.name: format for format in FORMATS}
HARD: dict[str, Any] = {
    "city": 'Par"is\\</x>\n{[früh 天気 🌤]}, it\'s "},{',
    "days": -3,
    "deep": {"a": [1.5, None, True, {"b": "c,d}"}], "é": {}},
    "list": [],
}
WEATHER, NOW = ToolCall("a", "get_weather", HARD), ToolCall("b", "now", {})


def use_of(format: str) -> ToolUse:
    return ToolUse(TOOLS, "auto", BY_NAME[format])


def found(text: str, format: str, *, ended: bool = True) -> Split:
    """A text split at once, which is the same in whatever pieces it comes."""
    use = use_of(format)
    result = split(text, use, ended=ended)
    for seed in range(4 if len(text) < 5000 else 0):
        assert in_pieces(text, use, seed, ended=ended) == result, text
    return result


def named(result: Split) -> list[tuple[str, Any]]:
    return [(call.name, call.arguments) for call in result.calls]


@pytest.mark.parametrize("format", BY_NAME)
def test_calls_are_read_as_they_were_written(format: str) -> None:
    marked = BY_NAME[format].opening
    for calls in ([WEATHER], [NOW], [WEATHER, NOW]):
        if len(calls) > 1 and BY_NAME[format] is HARMONY:
            continue  # calls once a turn
        for words in ("", "Früh…\n\n") if marked else ("",):
            whole = found(words + BY_NAME[format].write(calls), format)
            assert named(whole) == [(call.name, call.arguments) for call in calls]
            assert (whole.content, whole.cut) == (words.rstrip(), False)


@pytest.mark.parametrize("format", BY_NAME)
def test_a_call_that_is_cut_is_neither_shown_nor_made(format: str) -> None:
    text = BY_NAME[format].write([WEATHER])
    closing = BY_NAME[format].closing
    for end in range(1, len(text) - len(closing) - 1):
        result = in_pieces(text[:end], use_of(format), end, ended=False)
        assert not result.calls
        shown = result.content.strip()
        # A mark that is cut itself is a text like any other, and so is JSON that names no tool yet.
        assert shown == "" or (text.startswith(shown) and (len(shown) < len(BY_NAME[format].opening) or not closing))
        assert "Par" not in shown


def test_the_ids_of_calls_differ_within_a_text_and_between_texts() -> None:
    text = BY_NAME["hermes"].write([NOW, NOW])
    ids = [call.id for salt in "ab" for call in split(text, use_of("hermes"), salt).calls]
    assert len(set(ids)) == 4
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert ids[:2] == [call.id for call in split(text, use_of("hermes"), "a").calls]


def test_an_id_that_a_model_gives_once_is_kept() -> None:
    calls = ", ".join(f'{{"name": "now", "arguments": {{}}, "id": "{id}"}}' for id in ("abcdefghi", "abcdefghi", "5"))
    first, second, third = found(f"[TOOL_CALLS][{calls}]", "mistral_list").calls
    assert first.id == "abcdefghi" != second.id
    assert len(third.id) == 9  # of another length, Mistral's templates refuse it
    assert found("<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}"
                 "<|tool_call_end|><|tool_calls_section_end|>", "kimi").calls[0].id == "functions.now:3"  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "now", "arguments": {}',
        '{"name": "now", "arguments": {}}}',
        "{'name': 'now', 'arguments': {}}",
        '{"name": "now", "arguments": [1]}',
        '{"name": "now", "arguments": {"a": NaN}}',
        '{"name": "now", "arguments": {"a": 1e999}}',
        '{"name": "now", "arguments": "x"}',
        '{"name": "", "arguments": {}}',
        '{"arguments": {}}',
        '"now"',
        "",
        '{"name": "now", "arguments": {"a": ' + "[" * 300 + "]" * 300 + "}}",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5000,
    ],
)
def test_a_malformed_call_that_the_model_ended_is_text(body: str) -> None:
    text = f"So: <tool_call>\n{body}\n</tool_call>"
    assert found(text, "hermes") == Split(text, (), False)
    assert found(text[:4999], "hermes") == Split(text[:4999], (), False)


def test_what_follows_a_malformed_call_is_still_read() -> None:
    text = 'a <tool_call>oops</tool_call> b <tool_call>{"name": "now", "arguments": {}}</tool_call> c'
    result = found(text, "hermes")
    assert (result.content, named(result)) == ("a <tool_call>oops</tool_call> b  c", [("now", {})])


def test_a_call_without_its_closing_mark_is_a_call_at_the_end() -> None:
    assert named(found('<tool_call>\n{"name": "now", "arguments": {}}', "hermes")) == [("now", {})]


def test_lone_surrogates_in_a_call_become_replacement_characters() -> None:
    (call,) = found('<tool_call>{"name": "now", "arguments": {"a\\ud800": "\\ud83c x \\ud83c\\udf24"}}', "hermes").calls
    assert call.arguments == {"a\ufffd": "\ufffd x 🌤"}
    json.dumps(call.record, ensure_ascii=False).encode()
    (call,) = found("<tool_call>f\udcff\n<arg_key>a</arg_key><arg_value>\udcff</arg_value></tool_call>", "glm").calls
    assert (call.name, call.arguments) == ("f\ufffd", {"a": "\ufffd"})


def test_arguments_that_are_text_of_json_are_read() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>'
    assert named(found(text, "hermes")) == [("get_weather", {"city": "Rome"})]


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ada", "age": 36}', '{"name": "unknown_tool", "parameters": {}}', '[{"name": "Ada"}]']
    + ['{"name": "now", "parameters": {}} is what I would call.', "{not JSON}", "[1, 2]", " \n ", ""],
)
def test_an_answer_in_json_stays_an_answer_where_calls_have_no_mark(text: str) -> None:
    assert found(text, "llama") == Split(text, (), False)


def test_an_answer_in_json_that_is_cut_is_shown_unless_it_names_a_tool() -> None:
    assert found('{"name": "Ada", "a', "llama", ended=False) == Split('{"name": "Ada", "a', (), False)
    assert found('{"name": "now", "par', "llama", ended=False) == Split("", (), True)


def test_text_is_shown_as_soon_as_it_can_be_no_call() -> None:
    splitter = splitter_of(use_of("hermes"))
    shown = [splitter.push(piece) for piece in ("Hi", " <", "b> <tool", "_box> ", "x")]
    assert shown == ["Hi", "", " <b>", " <tool_box>", " x"]
    assert splitter_of(use_of("llama")).push("Hello") == "Hello"
    assert splitter_of(use_of("phi")).push("Import functools, then") == "Import functools, then"
    assert splitter_of(use_of("llama")).push('{"temperature') == '{"temperature'
    splitter = splitter_of(use_of("harmony"))
    splitter.push("<|channel|>final<|message|>")
    shown = [splitter.push(piece) for piece in ("f <", "| g <|", "> h", "<|retur", "n|>")]
    assert shown == ["f ", "<| g ", "<|> h", "", ""]


@pytest.mark.parametrize("format", BY_NAME)
def test_where_there_may_be_one_call_the_first_ends_the_text(format: str) -> None:
    use = ToolUse(TOOLS, "auto", BY_NAME[format], parallel=False)
    calls = [NOW] if BY_NAME[format] is HARMONY else [NOW, WEATHER]
    text = BY_NAME[format].write(calls)
    result = split(text, use)
    assert (result.content, named(result)) == ("", [("now", {})])
    splitter, read = splitter_of(use), 0
    while read < len(text) and not splitter.done:
        splitter.push(text[read])
        read += 1
    own_marks = BY_NAME[format].closing and BY_NAME[format].group is None
    assert not own_marks or text[:read] == BY_NAME[format].write([NOW])
    assert (splitter.flush(ended=True), len(splitter.calls)) == ("", 1)


def test_blanks_around_calls_are_left_out() -> None:
    call = BY_NAME["hermes"].write([NOW])
    texts = {f"\n{call}\n\nDone. ": "Done.", f"\nHi \n{call}\n Bye": "\nHi \n\n Bye", "\nHi ": "\nHi "}
    for text, content in texts.items():
        assert found(text, "hermes").content == content


def test_marks_within_thoughts_are_text() -> None:
    text = '<think>I could <tool_call>{"name": "now"}</tool_call></think>\n\n<tool_call>{"name": "now"}</tool_call>'
    result = found(text, "hermes")
    assert result.content == '<think>I could <tool_call>{"name": "now"}</tool_call></think>'
    assert named(result) == [("now", {})]
    inside = split(text.removeprefix("<think>"), use_of("hermes"), in_thoughts=True)
    assert (inside.content, named(inside)) == (result.content.removeprefix("<think>"), [("now", {})])


def test_calls_of_phi_end_with_their_list() -> None:
    calls = BY_NAME["phi"].write([WEATHER, NOW])
    text = f"Let me see. {calls}\n\nfunctools.cache[1] is Python's."
    result = found(text, "phi")
    assert named(result) == [("get_weather", HARD), ("now", {})]
    assert result.content == "Let me see. \n\nfunctools.cache[1] is Python's."


def test_a_closing_mark_again_and_again_is_not_read_from_the_beginning_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = list[int]()
    monkeypatch.setattr(syntaxes, "read_value", lambda *where: (read.append(0), read_value(*where))[1])
    text = "functools[" + "[]" * 500
    assert split(text, use_of("phi")).content == text and len(read) < 510


def test_a_call_without_a_mark_may_follow_thoughts() -> None:
    result = found('<think>hm</think>\n\n{"name": "now", "parameters": {}}', "llama")
    assert (result.content, named(result)) == ("<think>hm</think>", [("now", {})])


ANALYSIS = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
OOPS = "<|channel|>commentary to=functions.now<|message|>{oops"
WAIT = "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant"
JSON = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"
HARMONIES = [
    (f"{ANALYSIS}<|channel|>final<|message|>Hi.", "<think>hm</think>\n\nHi.", []),
    (f"{ANALYSIS}{JSON}", "<think>hm</think>\n\n", ["now"]),
    (" to=functions.now<|channel|>commentary json<|message|>{}<|call|>", "", ["now"]),
    (f"{WAIT} to=functions.now<|channel|>x<|message|>{{}}", "Wait.", ["now"]),
    ("<|channel|>final<|message|>a <| b <", "a <| b <", []),
    (f"{WAIT}<|channel|>final<|message|>Hi.", "Wait.\n\nHi.", []),
    ("<|channel|>analysis<|message|>hm", "<think>hm</think>\n\n", []),
    (OOPS, OOPS, []),
]


@pytest.mark.parametrize(("text", "content", "calls"), HARMONIES)
def test_the_channels_of_gpt_oss_are_thoughts_calls_and_answers(text: str, content: str, calls: list[str]) -> None:
    result = found(text, "harmony")
    assert (result.content, [call.name for call in result.calls]) == (content, calls)


FUNCTION_GEMMA = (
    "<start_function_call>call:get_weather{city:<escape>5<escape>,days:<escape>5<escape>}<end_function_call>"
)
ENDS = {"city": "x</tool_call>" * 200}
TAGGED = "<tool_call>\n<function=get_weather>\n{}\n</function>\n</tool_call>"
WRITTEN: list[tuple[str, str, dict[str, Any]]] = [
    ("pythonic", "[get_weather(city='it\\'s', days=3)]", {"city": "it's", "days": 3}),
    ("pythonic", "[get_weather(list=[True, None, -1.5, {'k': (1, 2)}])]", {"list": [True, None, -1.5, {"k": [1, 2]}]}),
    ("lfm", "<|tool_call_start|>[get_weather(list=false)]<|tool_call_end|>", {"list": False}),
    ("gemma", '<|tool_call>call:get_weather{city:<|"|>a,b}"<|"|>}<tool_call|>', {"city": 'a,b}"'}),
    ("gemma", "<|tool_call>call:get_weather{deep:{k:[1,true,null]}}<tool_call|>", {"deep": {"k": [1, True, None]}}),
    ("function_gemma", FUNCTION_GEMMA, {"city": "5", "days": 5}),
    ("hermes", f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(ENDS)}}}</tool_call>', ENDS),
    ("tagged", TAGGED.format("<parameter=city>\n3\n\n</parameter>"), {"city": "3\n"}),
    ("tagged", TAGGED.format("<parameter=list>\nFalse\n</parameter>"), {"list": False}),
    ("glm", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>a</arg_value></tool_call>", {"city": "a"}),
    ("mistral", '[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{"city": "[TOOL_CALLS]x"}', {"city": "[TOOL_CALLS]x"}),
    ("llama", '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"days": 1}}', {"days": 1}),
]


@pytest.mark.parametrize(("format", "text", "arguments"), WRITTEN)
def test_what_models_write_is_read(format: str, text: str, arguments: dict[str, Any]) -> None:
    assert named(found(text, format)) == [("get_weather", arguments)]


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("pythonic", "[get_weather(city=open('x'))]"),
        ("pythonic", "[get_weather('x')]"),
        ("pythonic", "[get_weather(city=__import__('os'))]"),
        ("pythonic", "[get_weather(city='x'"),
        ("pythonic", "[get_weather(city=" + "(" * 10_000 + ")" * 10_000 + ")]"),
        ("pythonic", "[get_weather(days=1e999)]"),
        ("pythonic", "[get_weather(days=-1e999)]"),
        ("pythonic", f"[get_weather(days=0x{'f' * 5000})]"),
        ("gemma", "<|tool_call>call:get_weather{deep:" + "{a:" * 10_000 + "<tool_call|>"),
        ("gemma", "<|tool_call>call:get_weather{city:<tool_call|>"),
        ("gemma", "<|tool_call>get_weather<tool_call|>"),
        ("tagged", "<tool_call>\n<parameter=city>\nx\n</parameter>\n</tool_call>"),
    ],
)
def test_what_is_no_call_is_text(format: str, text: str) -> None:
    assert found(text, format) == Split(text, (), False)


PIECES = """<think> </think> { } [ ] " \\ f( ) call:f < | > , : é null NaN 1e999 ``` {"name":"now" <parameter=a>
</parameter> <arg_key> </arg_key> to=functions.now <|message|> <|channel|> <|end|> <|start|> \ud800 \x00""".split()


@pytest.mark.parametrize("format", BY_NAME)
def test_whatever_a_model_writes_is_split_and_can_be_written_as_json(format: str) -> None:
    known, chance = BY_NAME[format], random.Random(format)
    call = known.write([WEATHER])
    pieces = [*PIECES, "\n", " ", call, call[: len(call) // 2], call[len(call) // 2 :], known.opening, known.closing]
    for _ in range(60):
        text = "".join(chance.choice(pieces) for _ in range(chance.randint(1, 20)))
        for made in found(text, format, ended=chance.random() < 0.5).calls:
            json.dumps(made.record, ensure_ascii=False, allow_nan=False).encode()
