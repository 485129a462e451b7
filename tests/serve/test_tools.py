"""Tools through the official clients: what the model calls comes as each API has it, and answers are taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import gptcli
from tests.cli.scripted import Script, follow
from tests.serve.conftest import CHAT, Running, serving
from tests.tiny import make_model
from tests.tools.templates import HERMES

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": PARAMETERS}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
HI: Any = [{"role": "user", "content": "Oslo?"}]
SAID = ["Let me look.", '\n<tool_call>\n{"name": "weather", "argum', 'ents": {"city": "Oslo"}}\n</tool_call>']


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> gptcli.LanguageModel:
    path = make_model(tmp_path_factory.mktemp("models") / "caller", template=HERMES, max_position_embeddings=1024)
    return gptcli.load(path, device="cpu", dtype="fp32")


@pytest.fixture
def client(caller: Running) -> Iterator[openai.OpenAI]:
    with caller.openai() as client:
        yield client


@pytest.fixture
def caller(model: gptcli.LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server of a model that calls a tool."""
    follow(Script(pieces=SAID), monkeypatch.setattr)
    with serving(model) as running:
        yield running


def test_openai_is_told_of_a_call_and_tells_of_its_answer(client: openai.OpenAI) -> None:
    [choice] = client.chat.completions.create(model="caller", messages=HI, tools=TOOLS).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
    [call] = choice.message.tool_calls
    function = call.type, call.function.name, json.loads(call.function.arguments)
    assert function == ("function", "weather", {"city": "Oslo"})
    more: Any = [*HI, choice.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "3 degrees"}]
    assert client.chat.completions.create(model="caller", messages=more, tools=TOOLS).choices
    chunks = client.chat.completions.create(model="caller", messages=HI, tools=TOOLS, stream=True)
    [streamed] = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
    assert (streamed.index, streamed.function.name) == (0, "weather")
    assert json.loads(streamed.function.arguments) == {"city": "Oslo"}


def test_openais_responses_have_calls_as_items(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **FUNCTION}]
    response = client.responses.create(model="caller", input="Oslo?", tools=tools)
    said, call = response.output
    assert (response.status, said.type, call.type) == ("completed", "message", "function_call")
    assert json.loads(call.arguments) == {"city": "Oslo"}
    answer: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "3 degrees"}]
    again = client.responses.create(model="caller", input=answer, tools=tools, previous_response_id=response.id)
    by_hand: Any = [{"role": "user", "content": "Oslo?"}, *(item.model_dump() for item in response.output), *answer]
    assert client.responses.create(model="caller", input=by_hand, tools=tools).usage == again.usage
    with client.responses.stream(model="caller", input="Oslo?", tools=tools) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output[1].type == "function_call"
    assert kinds.count("response.output_item.done") == 2


def test_anthropic_is_told_of_a_call_and_tells_of_its_answer(caller: Running) -> None:
    tools: Any = [{"name": "weather", "description": "The weather", "input_schema": PARAMETERS}]
    given: Any = {"model": "caller", "max_tokens": 50, "tools": tools}
    with caller.anthropic() as claude:
        message = claude.messages.create(messages=HI, **given)
        said, call = message.content
        assert (message.stop_reason, said.type, call.type) == ("tool_use", "text", "tool_use")
        assert (call.name, call.input) == ("weather", {"city": "Oslo"})
        result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "3"}]}
        turn: Any = {"role": "assistant", "content": [block.model_dump() for block in message.content]}
        assert claude.messages.create(messages=[*HI, turn, result], **given).content
        with claude.messages.stream(messages=HI, **given) as stream:
            assert stream.get_final_message().content[1].input == {"city": "Oslo"}


def test_a_call_that_is_required_is_written(model: gptcli.LanguageModel) -> None:
    with serving(model) as server:
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            [answer] = server.post(CHAT, messages=HI, tools=TOOLS, tool_choice=choice, max_tokens=200).json["choices"]
            if answer["finish_reason"] == "tool_calls":  # the tiny model may talk to the end
                assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"]).keys() == {"city"}
        wrong = {"tools": [{"type": "web_search"}]}, {"tools": 1}, {"tools": TOOLS, "tool_choice": "other"}
        no_schema: Any = {"name": "weather", "strict": True, "parameters": {"required": None}}
        unheld = {"tools": [{"type": "function", "function": no_schema}]}
        for body in (*wrong, unheld, {"messages": [*HI, {"role": "tool", "tool_call_id": "a", "content": "b"}]}):
            assert server.post(CHAT, **{"messages": HI, **body}).status == 400
