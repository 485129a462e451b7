"""The other endpoints, in their own shapes: echoed prompts, messages, responses, embeddings, tokens."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

import gptcli
from gptcli import LanguageModel
from gptcli.generation.together.continuous_batch import ContinuousBatch
from gptcli.serve.endpoints import responses
from gptcli.text.messages import Message
from tests.cli.scripted import Script, follow
from tests.serve.conftest import CHAT, EMBEDDINGS, HI, MESSAGES, RESPONSES, TEXT, Running, serving
from tests.tiny import TEMPLATE, make_model


def test_an_echoed_prompt_is_scored(server: Running, tiny: LanguageModel) -> None:
    """As lm-eval asks: token ids in, log-probabilities of the whole out."""
    ids = tiny.tokenizer.encode("In a small town")
    [choice] = server.post(TEXT, prompt=[ids], echo=True, logprobs=1, max_tokens=1).json["choices"]
    score = tiny.score("In a small town", top=1)
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("In a small town")
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert "".join(logprobs["tokens"][: len(ids)]) == "In a small town"
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(ids)] == pytest.approx(score.logprobs[1:], abs=1e-4)
    likeliest = [[top[0].data.decode("utf-8", "replace")] for top in score.top[1:]]
    assert [list(top) for top in logprobs["top_logprobs"][1 : len(ids)]] == likeliest
    assert logprobs["text_offset"] == [0, *accumulate(map(len, logprobs["tokens"][:-1]))]


def test_an_echo_needs_no_token_and_streams(server: Running) -> None:
    body = {"prompt": ["In a", "small"], "echo": True, "logprobs": 0, "max_tokens": 0}
    whole = server.post(TEXT, **body).json
    assert [choice["text"] for choice in whole["choices"]] == ["In a", "small"]
    assert whole["usage"]["completion_tokens"] == 0
    chunks = [event["choices"][0] for event in server.post(TEXT, **body, stream=True).events]
    for index, choice in enumerate(whole["choices"]):
        own = [chunk for chunk in chunks if chunk["index"] == index]
        assert "".join(chunk["text"] for chunk in own) == choice["text"]
        assert own[0]["logprobs"]["tokens"] == choice["logprobs"]["tokens"]


def test_a_message_is_answered_as_anthropic_does(server: Running, tiny: LanguageModel) -> None:
    blocks = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    body = {"max_tokens": 7, "system": "Be brief.", "messages": [{"role": "user", "content": blocks}]}
    message = server.post(MESSAGES, **body).json
    chat = server.post(CHAT, max_tokens=7, messages=[{"role": "system", "content": "Be brief."}, *HI]).json
    assert message["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    usage = chat["usage"]
    assert message["usage"] == {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    events = server.post(MESSAGES, **body, stream=True).events
    assert [event["type"] for event in events][:2] == ["message_start", "content_block_start"]
    assert [event["type"] for event in events][-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta["text"] for delta in deltas) == message["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


def test_a_message_goes_on_from_what_the_assistant_began(server: Running, tiny: LanguageModel) -> None:
    begun = server.post(MESSAGES, max_tokens=5, messages=[*HI, {"role": "assistant", "content": "In a"}]).json
    ids = tiny.template.render([Message("user", "hi")], tiny.tokenizer) + tiny.tokenizer.encode("In a")
    text = server.post(TEXT, prompt=ids, max_tokens=5).json["choices"][0]["text"]
    assert begun["content"][0]["text"] == text
    assert server.post(f"{MESSAGES}/count_tokens", messages=HI).json == {"input_tokens": len(ids) - 2}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HI},
        {"messages": HI, "max_tokens": 1, "surprise": 1},
        {"messages": [{"role": "system", "content": "a"}], "max_tokens": 1},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1},
        {"messages": [{"role": "assistant", "content": "a"}], "max_tokens": 1},
        {"messages": HI, "max_tokens": 1, "stop_sequences": "a"},
        {"messages": HI, "max_tokens": 1, "thinking": {"type": "enabled"}},
        {"messages": [{"role": "user", "content": "a " * 999}], "max_tokens": 1},
    ],
)
def test_anthropics_errors_have_their_own_shape(server: Running, body: dict[str, Any]) -> None:
    answer = server.ask("POST", MESSAGES, body)
    assert answer.status == 400
    assert (answer.json["type"], answer.error["type"]) == ("error", "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"input": []}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{"type": "function_call_output"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "a", "text": {"verbosity": "low"}}, "text"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "schema": {"type": 3}}}}, "text.format"),
        ({"input": "a", "reasoning": {"effort": "huge"}}, "reasoning_effort"),
        ({"input": "a", "instructions": 1}, "instructions"),
        ({"input": "a", "previous_response_id": 1}, "previous_response_id"),
    ],
)
def test_a_bad_response_request_names_its_parameter(server: Running, body: dict[str, Any], parameter: str) -> None:
    answer = server.post(RESPONSES, **body)
    assert (answer.status, answer.error["param"]) == (400, parameter)


def test_a_response_that_is_not_stored_cannot_be_gone_on_from(server: Running) -> None:
    id = server.post(RESPONSES, input="hi", store=False, max_output_tokens=2).json["id"]
    assert server.post(RESPONSES, input="hi", previous_response_id=id).status == 404
    assert server.ask("GET", f"{RESPONSES}/{id}").status == 404


@pytest.mark.parametrize(("bound", "most"), [("_MOST_KEPT_BYTES", 8000), ("_MOST_KEPT", 1)])
def test_the_oldest_responses_go_where_there_are_too_many(
    server: Running, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(responses, bound, most)
    tools = [{"type": "function", "name": "f", "description": "x" * 5000}]
    ids = [server.post(RESPONSES, input="hi", tools=tools, tool_choice="none").json["id"] for _ in range(2)]
    assert [server.ask("GET", f"{RESPONSES}/{id}").status for id in ids] == [404, 200]


def test_a_response_takes_its_own_output_back(server: Running) -> None:
    first = server.post(RESPONSES, input="hi", max_output_tokens=3).json
    own = [{"role": "user", "content": "hi"}, *first["output"], {"role": "user", "content": "on"}]
    by_hand = server.post(RESPONSES, input=own, max_output_tokens=3).json
    by_id = server.post(RESPONSES, input="on", previous_response_id=first["id"], max_output_tokens=3).json
    assert by_hand["output"][0]["content"] == by_id["output"][0]["content"]
    assert by_hand["usage"] == by_id["usage"]


def test_embeddings_come_as_numbers_or_as_bytes(server: Running, tiny: LanguageModel) -> None:
    def embedding(**options: Any) -> Any:
        return server.post(EMBEDDINGS, input="In a small town", **options).json["data"][0]["embedding"]

    numbers, packed = embedding(), embedding(encoding_format="base64")
    assert numbers == pytest.approx(tiny.embed("In a small town").tolist(), abs=1e-6)
    assert embedding(dimensions=len(numbers)) == pytest.approx(numbers, abs=1e-6)
    assert struct.unpack(f"<{len(numbers)}f", base64.b64decode(packed)) == pytest.approx(numbers, abs=1e-6)
    for body in ({"input": ""}, {"input": "a", "encoding_format": "hex"}):
        assert server.post(EMBEDDINGS, **body).status == 400


def test_the_tokens_of_a_text_and_of_a_conversation_are_told(server: Running, tiny: LanguageModel) -> None:
    told = server.post("/tokenize", prompt="In a small <|im_end|>").json
    assert told["tokens"] == tiny.tokenizer.encode("In a small <|im_end|>")
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), tiny.ctx_size)
    assert server.post("/detokenize", tokens=told["tokens"]).json["prompt"] == "In a small <|im_end|>"
    rendered = server.post("/tokenize", messages=HI).json
    assert rendered["tokens"] == tiny.template.render([Message("user", "hi")], tiny.tokenizer)
    assert [piece["piece"] for piece in rendered["pieces"] if piece["special"]][0] == "<|im_start|>"
    wrong = ("/tokenize", {}), ("/tokenize", {"prompt": 1}), ("/detokenize", {"tokens": [-1]}), ("/detokenize", {})
    assert [server.post(path, **body).status for path, body in wrong] == [400] * 4


@pytest.fixture
def thinking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server of a model whose template opens its thoughts, and which thinks, then answers."""
    lm = gptcli.load(make_model(tmp_path / "thinker", template=TEMPLATE + "{{ '<think>\n' }}"), device="cpu")
    follow(Script(pieces=["So ", "be it.</th", "ink>\n\nYes", "."]), monkeypatch.setattr)
    with serving(lm) as running:
        yield running


def test_thoughts_are_told_from_the_answer_in_every_api(thinking: Running) -> None:
    [choice] = thinking.post(CHAT, messages=HI).json["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("So be it.", "Yes.")
    deltas = [event["choices"][0]["delta"] for event in thinking.post(CHAT, messages=HI, stream=True).events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "So be it."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    blocks = thinking.post(MESSAGES, messages=HI, max_tokens=9).json["content"]
    assert [block.get("thinking") or block["text"] for block in blocks] == ["So be it.", "Yes."]
    kinds = [event["type"] for event in thinking.post(MESSAGES, messages=HI, max_tokens=9, stream=True).events]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    output = thinking.post(RESPONSES, input="hi").json["output"]
    told = [(item["type"], item["content"][0]["text"]) for item in output]
    assert told == [("reasoning", "So be it."), ("message", "Yes.")]
    events = thinking.post(RESPONSES, input="hi", stream=True).events
    assert [event["type"] for event in events].count("response.output_item.done") == 2
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_an_error_without_its_message_and_the_server_goes_on(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def failing(batch: ContinuousBatch) -> None:
        raise ValueError("a secret")

    with serving(tiny) as server:
        with monkeypatch.context() as patch:
            patch.setattr(ContinuousBatch, "step", failing)
            answer = server.post(CHAT, messages=HI, stream=stream)
        assert (answer.status, answer.error["message"]) == (500, "internal error")
        assert b"secret" not in answer.data
        assert server.post(CHAT, messages=HI, max_tokens=1).status == 200
        [bug] = server.bugs
        assert str(bug) == "a secret"
        server.bugs.clear()
