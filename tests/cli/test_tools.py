"""Tools on the command line: offered, called, answered, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import gptcli
from gptcli import ChatSettings, LanguageModel, Request
from gptcli.errors import UsageError
from gptcli.tools.definitions import checked_tools
from tests.cli.chat_terminal import Chat, sessions
from tests.cli.conftest import Cli, Says
from tests.cli.scripted import Script
from tests.tiny import make_model
from tests.tools.templates import HERMES, TEMPLATES, trust_templates

CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
BARE = [{"name": "weather", "parameters": {**CITY, "additionalProperties": False}}, {"name": "now"}]
TOOLS = checked_tools(BARE)
ROME = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
IN_ROME = {"name": "weather", "arguments": '{"city": "Rome"}'}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose template takes tools, and whose context holds them."""
    return make_model(tmp_path_factory.mktemp("models") / "caller", template=HERMES, max_position_embeddings=4096)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return tmp_path / "tools.json"


@pytest.fixture(autouse=True)
def by_default(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTCLI_MODEL", str(model))
    trust_templates(monkeypatch)


def functions(record: dict[str, Any]) -> list[dict[str, Any]]:
    assert all(len(call["id"]) == 9 and call["type"] == "function" for call in record["tool_calls"])
    return [call["function"] for call in record["tool_calls"]]


@pytest.mark.parametrize("command", [("generate", "--chat"), ("chat",)])
def test_a_required_call_meets_its_schema(cli: Cli, tools: Path, command: tuple[str, ...]) -> None:
    ask = (*command, "Weather?", "--tools", tools)
    call = cli(*ask, "--tool-choice", "weather", stdin=b"").json
    assert call["name"] == "weather" and call["arguments"]["city"] in ("Rome", "Oslo")
    record = cli(*ask, "--tool-choice", "required", "--json", stdin=b"").json
    assert (record["text"], record["finish_reason"], len(functions(record))) == ("", "tool_calls", 1)


def test_text_comes_before_calls_each_a_line_of_json(cli: Cli, tools: Path, says: Says) -> None:
    says("Let me", " see.\n<tool", f"_call>{ROME.removeprefix('<tool_call>')}\n", NOW)
    done = cli("generate", "--chat", "Weather?", "--tools", tools)
    assert done.out == (
        b'Let me see.\n{"name": "weather", "arguments": {"city": "Rome"}}\n{"name": "now", "arguments": {}}\n'
    )
    record = cli("generate", "--chat", "Weather?", "--tools", tools, "--json").json
    assert record["text"] == "Let me see."
    assert functions(record) == [IN_ROME, {"name": "now", "arguments": "{}"}]
    assert record["finish_reason"] == "tool_calls"


def test_an_answer_without_a_call_is_as_without_tools(cli: Cli, tools: Path, says: Says) -> None:
    says("Hi <b", ">.\n")
    assert cli("generate", "--chat", "Hi", "--tools", tools).out == b"Hi <b>.\n"
    record = cli("generate", "--chat", "Hi", "--tools", tools, "--json").json
    assert (record["text"], record["tool_calls"], record["finish_reason"]) == ("Hi <b>.\n", [], "stop")


def test_where_no_tool_may_be_called_nothing_is_a_call(cli: Cli, tools: Path, says: Says) -> None:
    says(ROME)
    for options in ((), ("--tools", tools, "--tool-choice", "none")):
        done = cli("generate", "--chat", "Weather?", *options)
        assert (done.code, done.out) == (0, ROME.encode())
        assert "tool_calls" not in cli("generate", "--chat", "Weather?", *options, "--json").json


def test_a_call_that_is_cut_is_left_out_and_a_note_says_so(cli: Cli, tools: Path, says: Says) -> None:
    says("Let me see.\n", ROME[:30], reason="length")
    done = cli("generate", "--chat", "Weather?", "--tools", tools)
    assert done.out == b"Let me see."
    assert "cut amid a call of a tool" in done.err
    record = cli("generate", "--chat", "Weather?", "--tools", tools, "--json").json
    assert (record["text"], record["tool_calls"], record["finish_reason"]) == ("Let me see.", [], "length")


def test_a_conversation_from_a_file_brings_calls_and_their_answers(cli: Cli, tools: Path, tmp_path: Path) -> None:
    call = {"id": "call00001", "type": "function", "function": IN_ROME}
    said = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "18 degrees"},
    ]
    (tmp_path / "said.json").write_text(json.dumps(said))
    options = ("--chat", "--tools", tools, "--messages", tmp_path / "said.json", "--prompt-report", "--json")
    text = cli("generate", *options).json["text"]
    assert f"<|im_start|>assistant\n{ROME}<|im_end|>" in text
    assert text.endswith("18 degrees\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert '"name": "weather"' in text.partition("</tools>")[0]
    text = cli("generate", *options, "And now?", "--system", "Be brief.").json["text"]
    assert "Be brief." in text and text.endswith("And now?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "not JSON"),
        ("[]", "messages must be a list"),
        ('[{"role": "king"}]', "messages[0] must have a role"),
        ('[{"role": "tool", "tool_call_id": "x", "content": ""}]', "messages[0].tool_call_id must be the id of a call"),
        ('[{"role": "assistant", "tool_calls": [{}]}]', "messages[0].tool_calls[0]: a function with a name"),
        ('[{"role": "assistant", "tool_calls": 5}]', "messages[0].tool_calls must be a list"),
        ('[{"role": "assistant"}]', "messages[0].content must be a text"),
        ('[{"role": "user", "content": "x", "tool_calls": [{}]}]', "unknown or unsupported: messages[0].tool_calls"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_place(cli: Cli, tmp_path: Path, said: str, message: str) -> None:
    (tmp_path / "said.json").write_text(said)
    cli("generate", "--chat", "--messages", tmp_path / "said.json").fails(2, f"{tmp_path / 'said.json'}: ", message)


def test_options_that_mean_nothing_are_refused(cli: Cli, tools: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"name": "a b"}]')
    chat = ("generate", "--chat", "x")
    for options, code, message in (
        (("generate", "x", "--tools", tools), 2, "need --chat"),
        ((*chat, "--tools", tmp_path / "bad.json"), 2, f"{tmp_path / 'bad.json'}: #/0/function/name"),
        ((*chat, "--tools", tmp_path / "none.json"), 4, "none.json"),
        ((*chat, "--tool-choice", "required"), 2, "needs tools"),
        ((*chat, "--tools", tools, "--tool-choice", "then"), 2, "auto, none, required, weather, now"),
        ((*chat, "--tools", tools, "--regex", "a"), 2, "cannot call tools"),
        (("chat", "x", "--tools", tools, "--json-object"), 2, "cannot call tools"),
    ):  # fmt: skip
        cli(*options, stdin=b"").fails(code, message)


def test_tools_of_the_configuration_file_are_for_chats(
    cli: Cli, tools: Path, says: Says, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text(f'tools = "{tools}"\n')
    monkeypatch.setenv("GPTCLI_CONFIG", str(tmp_path / "config.toml"))
    says(ROME)
    assert cli("generate", "Weather?").out == ROME.encode()
    assert "tool_calls" not in cli("generate", "Weather?", "--json").json
    for ask in (("generate", "--chat"), ("chat",)):
        record = cli(*ask, "Weather?", "--json", stdin=b"").json
        assert functions(record) == [IN_ROME]


def test_strict_tools_that_cannot_be_held_are_noted_everywhere(cli: Cli, tmp_path: Path) -> None:
    llama = make_model(tmp_path / "llama", template=TEMPLATES["llama"], max_position_embeddings=4096)
    (strict := tmp_path / "strict.json").write_text(json.dumps([{**BARE[0], "strict": True}]))
    note = "note: strict tools are not held to their schemas"
    ask = ("Hi", "-n", "1", "-m", llama)
    for command in (("generate", "--chat"), ("chat",), ("chat", "--session", "s")):
        assert cli(*command, *ask, "--tools", strict, stdin=b"").err.count(note) == 1
    assert cli("chat", *ask, "--session", "s", stdin=b"").err.count(note) == 1
    for command in (("generate", "--chat", "--lines"), ("chat", "--lines")):
        assert cli(*command, "{}", *ask[1:], "--tools", strict, stdin=b"Hi\nHo\n").err.count(note) == 1
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode() + b"\n"
    done = cli("batch", "-", "-n", "1", "-m", llama, "--tools", strict, stdin=body * 2)
    assert (done.code, done.err.count(note)) == (0, 1)
    chat = Chat(Script(pieces=["Hi"]), "-m", str(llama)).ready()
    chat.type(f"/tools {strict}\r", note)
    assert chat.leave() == 0


@pytest.mark.parametrize("family", ["hermes", "tagged"])
@pytest.mark.parametrize("parameters", [{"properties": None}, {"required": None}], ids=str)
def test_parameters_that_are_no_schema_are_refused_where_calls_are_held(
    cli: Cli, tmp_path: Path, says: Says, family: str, parameters: dict[str, Any]
) -> None:
    model = make_model(tmp_path / "model", template=TEMPLATES[family], max_position_embeddings=4096)
    (file := tmp_path / "tools.json").write_text(json.dumps([{"name": "f", "parameters": parameters}]))
    refusal = "error: the parameters of tool f: #: "
    ask = ("Hi", "-m", model, "--tools", file)
    held = ("--tool-choice", "required")
    for command in (("generate", "--chat"), ("chat",)):
        cli(*command, *ask, *held, stdin=b"").fails(2, refusal)
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    done = cli("batch", "-", *ask[1:], *held, stdin=json.dumps(body).encode())
    assert done.code == 9
    error = done.json["response"]["body"]["error"]
    assert refusal.removeprefix("error: ") in error["message"] and error["param"] == "tools"
    chat = Chat(Script(pieces=["Hello"]), "-m", str(model)).ready()
    chat.type(f"/tools {file}\r", "f()")
    chat.type("Hi\r", "Hello")
    assert chat.leave() == 0
    says("Hello")
    assert cli("generate", "--chat", *ask).out == b"Hello"


def test_a_session_takes_what_is_said_after_calls_as_their_answers(cli: Cli, tools: Path, says: Says) -> None:
    says(ROME, NOW)
    cli("chat", "Weather?", "--session", "s", "--tools", tools, stdin=b"")
    says("18, and noon.")
    cli("chat", "18", "--session", "s", stdin=b"").fails(2, "called 2 tools: weather, now; there are 1 answers")
    (tools.parent / "answers.txt").write_text("18\nnoon\nThanks\n")
    done = cli("chat", "--script", tools.parent / "answers.txt", "--session", "s", stdin=b"")
    assert (done.code, done.out) == (0, b"18, and noon.\n18, and noon.")
    (events,) = sessions()
    messages = [event for event in events if event["type"] == "message"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert functions(messages[1]) == [IN_ROME, {"name": "now", "arguments": "{}"}]
    assert messages[2]["content"] == ["18", "noon"]
    text = cli("chat", "So?", "--session", "s", "--prompt-report", "--json", stdin=b"").json["text"]
    assert f"<|im_start|>assistant\n{ROME}\n{NOW}<|im_end|>" in text
    assert "<tool_response>\n18\n</tool_response>\n<tool_response>\nnoon\n</tool_response><|im_end|>" in text
    assert '"name": "weather"' in text.partition("</tools>")[0]


def test_a_batch_offers_tools_and_writes_calls_as_openai_does(cli: Cli, tools: Path, says: Says) -> None:
    call = {"id": "call00001", "type": "function", "function": IN_ROME}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "18"},
    ]
    body = {"model": "x", "messages": messages, "tools": list(TOOLS), "parallel_tool_calls": False}
    head = {"method": "POST", "url": "/v1/chat/completions"}
    choice = {"type": "function", "function": {"name": "weather"}}
    lines = [
        {"custom_id": "called", **head, "body": body | {"tool_choice": choice}},
        {"custom_id": "none", **head, "body": body | {"tool_choice": "none", "max_tokens": 1}},
        {"custom_id": "unknown", **head, "body": body | {"tool_choice": "then"}},
        {"messages": messages[:1], "tool_choice": "now"},
    ]
    done = cli("batch", "-", "-q", "--tools", tools, stdin="\n".join(map(json.dumps, lines)).encode())
    called, none, unknown, plain = (json.loads(line)["response"]["body"] for line in done.out.splitlines())
    (first,) = called["choices"]
    assert (first["finish_reason"], first["message"]["content"]) == ("tool_calls", None)
    assert [function["name"] for function in functions(first["message"])] == ["weather"]
    assert "tool_calls" not in none["choices"][0]["message"]
    assert unknown["error"]["param"] == "tool_choice"
    assert [function["name"] for function in functions(plain["choices"][0]["message"])] == ["now"]


def test_at_the_prompt_a_call_is_shown_and_what_is_typed_next_is_its_answer(tools: Path) -> None:
    chat = Chat(Script(pieces=[ROME]), "--tools", str(tools)).ready()
    chat.type("Weather?\r", 'calls weather {"city": "Rome"}')
    chat.expect("weather>")
    chat.type("/tools\r", "weather(city)")
    chat.type("18 degrees\r")
    chat.wait_for(lambda: chat.raw.count(b"calls weather") == 2, "the next call")
    chat.type("\x04", "not answered")
    chat.type("/tools none\r", "no tools; /tools FILE")
    assert chat.leave() == 0
    (events,) = sessions()
    said = [event["content"] for event in events if event["type"] == "message"]
    assert said == ["Weather?", "", ["18 degrees"], ""]
    again = Chat(Script(pieces=[ROME]), "--continue")
    again.expect("weather>", times=2)
    call = 'calls weather {"city": "Rome"}'
    assert [line for line in again.lines if line.strip()][1:5] == ["> Weather?", call, "weather> 18 degrees", call]
    again.type("\x04", "not answered")
    assert again.leave() == 0


def test_a_session_with_tools_opens_with_a_model_that_takes_none(cli: Cli, tools: Path, tmp_path: Path) -> None:
    cli("chat", "Weather?", "-n", "1", "--session", "s", "--tools", tools, stdin=b"")
    plain = make_model(tmp_path / "plain")
    chat = Chat(Script(pieces=["Hi"]), "--session", "s", "-m", str(plain)).ready()
    chat.type("/tools none\r", "no tools; /tools FILE")
    assert chat.leave() == 0


@pytest.fixture(scope="module")
def lm(model: Path) -> LanguageModel:
    return gptcli.load(model, device="cpu", dtype="fp32")


def test_from_python_a_reply_ends_with_its_calls_and_answers_go_back(lm: LanguageModel) -> None:
    settings = ChatSettings(temperature=0.0, max_tokens=150, tools=BARE, tool_choice="weather")
    chat = lm.session(settings=settings)
    *deltas, finished = chat.send("Weather?")
    assert (deltas, finished.reason, chat.open_calls) == ([], "tool_calls", finished.tool_calls)
    (call,) = finished.tool_calls
    assert call.name == "weather" and call.arguments["city"] in ("Rome", "Oslo")
    with pytest.raises(UsageError, match="called 1 tools: weather; there are 2 answers"):
        next(chat.answer(["18", "19"]))
    chat.settings = ChatSettings(temperature=0.0, max_tokens=3, tools=TOOLS)
    list(chat.answer(["18"]))
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.undo() == "18" and chat.open_calls == (call,)
    with pytest.raises(UsageError, match="called no tool"):
        next(lm.session(settings=settings).answer(["18"]))


def test_a_stop_text_within_a_call_cuts_it(lm: LanguageModel) -> None:
    use = lm.template.tool_use(TOOLS, "weather", lm.tokenizer)
    *deltas, finished = lm.generate("In", tools=use, temperature=0.0, stop='"arguments"')
    assert (deltas, finished.reason, finished.tool_calls, finished.cut_call) == ([], "stop", (), True)


def test_many_requests_have_tools_of_their_own(lm: LanguageModel) -> None:
    uses = [lm.template.tool_use(TOOLS, choice, lm.tokenizer) for choice in ("weather", "now")]
    requests = [Request("In", tools=use, temperature=0.0, max_tokens=150) for use in uses]
    answers = dict(lm.complete_many([*requests, Request("In", temperature=0.0, max_tokens=2)]))
    called = {index: [call.name for call in answer.finished.tool_calls] for index, answer in answers.items()}
    assert called == {0: ["weather"], 1: ["now"], 2: []}


def test_marks_that_are_control_tokens_are_seen_and_never_shown(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m", template=HERMES, max_position_embeddings=4096, vocab_size=322)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.save(str(path / "tokenizer.json"))
    lm = gptcli.load(path, device="cpu", dtype="fp32")
    use = lm.template.tool_use(TOOLS, "weather", lm.tokenizer)
    *deltas, finished = lm.generate("In", tools=use, temperature=0.0, max_tokens=150)
    mark = lm.tokenizer.control_tokens.ids.get("<tool_call>")
    assert finished.ids[0] == mark and [call.name for call in finished.tool_calls] == ["weather"]
    assert b"".join(delta.data for delta in deltas) == b""


def test_an_answer_of_a_tool_can_be_given_again_after_a_reply_without_calls(lm: LanguageModel) -> None:
    chat = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=150, tools=TOOLS, tool_choice="now"))
    list(chat.send("When?"))
    chat.settings = ChatSettings(max_tokens=1)
    list(chat.answer(["noon"]))
    assert not chat.open_calls
    list(chat.retry())
    list(chat.retry("midnight"))
    again = gptcli.Session.restored(lm, chat.events)
    assert [message.content for message in again.messages if message.role == "tool"] == ["midnight"]


def test_only_the_answer_of_a_single_call_can_be_changed(lm: LanguageModel) -> None:
    chat = lm.session(settings=ChatSettings(temperature=0.0, max_tokens=150, tools=TOOLS, tool_choice="now"))
    list(chat.send("When?"))
    assert chat.question == "When?"
    list(chat.answer(["noon"]))
    assert chat.question == "noon"
    list(chat.retry("midnight"))
    assert [message.content for message in chat.messages if message.role == "tool"] == ["midnight"]
    events = [*chat.events]
    calls = [{"id": id, "type": "function", "function": {"name": "now"}} for id in "ab"]
    events[3] = {**events[3], "tool_calls": calls}
    events[4:] = [{"type": "message", "role": "tool", "content": ["1", "2"]}, events[-1]]
    both = gptcli.Session.restored(lm, events)
    with pytest.raises(UsageError, match="several tools"):
        both.retry("3")
