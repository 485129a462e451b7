"""OpenAI's two endpoints: what the model says, in OpenAI's shape, whole and streamed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gptcli import Finished, LanguageModel
from gptcli.text.messages import Message
from tests.serve.conftest import CHAT, EMBEDDINGS, HI, TEXT, Running


def said(tiny: LanguageModel, prompt: Any, **options: Any) -> tuple[str, Finished]:
    """What the model says without a server."""
    *deltas, finished = tiny.generate(prompt, **{"temperature": 0.0, "max_tokens": 8, **options})
    return b"".join(delta.data for delta in deltas).decode("utf-8", "replace"), finished


def test_a_text_is_what_the_model_says_without_a_server(server: Running, tiny: LanguageModel) -> None:
    options = {"max_tokens": 12, "temperature": 0.9, "seed": 7, "frequency_penalty": 0.5, "logit_bias": {"44": 2.0}}
    answer = server.post(TEXT, prompt="In a small town", **options).json
    text, finished = said(tiny, "In a small town", **{**options, "logit_bias": {44: 2.0}})
    [choice] = answer["choices"]
    assert (answer["object"], answer["model"], answer["id"][:5]) == ("text_completion", "tiny", "cmpl-")
    assert (choice["text"], choice["index"], choice["finish_reason"]) == (text, 0, finished.reason)
    counts = finished.usage.prompt_tokens, finished.usage.completion_tokens
    assert answer["usage"] == {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}


def test_a_conversation_is_rendered_with_the_models_template(server: Running, tiny: LanguageModel) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = server.post(CHAT, messages=messages, max_tokens=8).json
    ids = tiny.template.render([Message("system", "Be brief."), Message("user", "hi")], tiny.tokenizer)
    text, finished = said(tiny, ids)
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finished.reason}
    assert answer["choices"] == [choice]


def test_prompts_may_be_texts_or_token_ids_with_several_answers(server: Running, tiny: LanguageModel) -> None:
    ids = tiny.tokenizer.encode("In a small")
    options = {"temperature": 1.0, "max_tokens": 4}
    several = server.post(TEXT, prompt=["In a small", "The clock"], n=2, seed=5, **options).json["choices"]
    expected = [said(tiny, text, seed=seed, **options)[0] for text in ("In a small", "The clock") for seed in (5, 6)]
    assert [choice["text"] for choice in several] == expected
    assert [choice["index"] for choice in several] == [0, 1, 2, 3]
    for prompt in (ids, [ids]):
        assert server.post(TEXT, prompt=prompt, seed=5, **options).json["choices"][0]["text"] == expected[0]


def test_a_stop_text_ends_the_answer_and_is_not_in_it(server: Running, tiny: LanguageModel) -> None:
    text, _ = said(tiny, "In a small town", max_tokens=12)
    assert "In" in text
    choice = server.post(TEXT, prompt="In a small town", max_tokens=12, stop=["In", "never"]).json["choices"][0]
    assert choice["text"] == text[: text.index("In")]
    assert choice["finish_reason"] == "stop"


def test_a_stream_adds_up_to_the_whole_answer(server: Running) -> None:
    body = {"messages": HI, "max_tokens": 9, "n": 2, "seed": 3, "temperature": 1.0, "logprobs": True, "top_logprobs": 2}
    whole = server.post(CHAT, **body).json
    answer = server.post(CHAT, **body, stream=True, stream_options={"include_usage": True})
    *chunks, last = answer.events
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.data.endswith(b"data: [DONE]\n\n")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
        assert [each["finish_reason"] for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        logprobs = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
        assert [token["id"] for token in logprobs] == [token["id"] for token in choice["logprobs"]["content"]]
        assert all(len(token["top_logprobs"]) == 2 for token in logprobs)


def test_a_streamed_text_has_the_log_probabilities_of_the_whole(server: Running) -> None:
    body = {"prompt": "In a small town", "max_tokens": 9, "logprobs": 2}
    whole = server.post(TEXT, **body).json["choices"][0]
    own = [chunk["choices"][0] for chunk in server.post(TEXT, **body, stream=True).events]
    assert "".join(each["text"] for each in own) == whole["text"]
    columns = whole["logprobs"]
    streamed = {name: [value for each in own for value in (each["logprobs"] or {}).get(name, ())] for name in columns}
    assert streamed["tokens"] == columns["tokens"]
    assert streamed["text_offset"] == columns["text_offset"]
    assert streamed["token_logprobs"] == pytest.approx(columns["token_logprobs"], abs=1e-4)
    assert list(map(list, streamed["top_logprobs"])) == list(map(list, columns["top_logprobs"]))


def test_log_probabilities_are_those_of_the_model(server: Running, tiny: LanguageModel) -> None:
    body = {"messages": HI, "max_tokens": 6, "logprobs": True, "top_logprobs": 3}
    content = server.post(CHAT, **body).json["choices"][0]["logprobs"]["content"]
    ids = tiny.template.render([Message("user", "hi")], tiny.tokenizer)
    _, finished = said(tiny, ids, max_tokens=6, logprobs=3)
    for token, step in zip(content, finished.logprobs, strict=True):
        assert (token["id"], bytes(token["bytes"])) == (step.chosen.id, step.chosen.data)
        assert token["logprob"] == pytest.approx(step.chosen.logprob, abs=1e-4)
        assert [each["id"] for each in token["top_logprobs"]] == [each.id for each in step.top]


def test_an_answer_can_go_on_from_given_tokens(server: Running, tiny: LanguageModel) -> None:
    body = {"messages": HI, "max_tokens": 8, "logprobs": True}
    whole = server.post(CHAT, **body).json["choices"][0]
    ids = [token["id"] for token in whole["logprobs"]["content"]]
    rest = server.post(CHAT, **body | {"max_tokens": 5}, answer_ids=ids[:3]).json["choices"][0]
    assert [token["id"] for token in rest["logprobs"]["content"]] == ids[3:]


def form(**json_schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": json_schema}


X_OR_Y = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("asked", [{"type": "json_object"}, form(name="a", strict=True, schema=X_OR_Y)])
def test_an_answer_has_the_form_that_is_asked_for(server: Running, asked: dict[str, Any]) -> None:
    choice = server.post(CHAT, messages=HI, response_format=asked, seed=1, temperature=1.0).json["choices"][0]
    if choice["finish_reason"] == "stop":
        value = json.loads(choice["message"]["content"])
        assert isinstance(value, dict)
        assert asked["type"] == "json_object" or value["a"] in ("x", "y")
    else:
        assert asked["type"] == "json_object" and choice["message"]["content"].startswith("{")


def test_extensions_are_called_as_on_the_command_line(server: Running, tiny: LanguageModel) -> None:
    choice = server.post(TEXT, prompt="In a", max_tokens=5, regex="[xyz]{3}", top_k=1).json["choices"][0]
    assert choice["text"] == said(tiny, "In a", regex="[xyz]{3}", top_k=1)[0]
    assert len(choice["text"]) == 3


def test_fifty_at_once_have_the_answers_that_each_has_alone(server: Running) -> None:
    def answer(number: int) -> Any:
        options = {"max_tokens": 3 + number % 11, "temperature": 1.0, "seed": number}
        return server.post(TEXT, prompt="In a small town " * (1 + number % 5), **options).json["choices"]

    alone = [answer(number) for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(answer, range(50))) == alone


def test_the_models_are_listed(server: Running, tiny: LanguageModel) -> None:
    listed = server.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [(model["id"], model["max_model_len"]) for model in listed["data"]] == [("tiny", tiny.ctx_size)]
    assert server.ask("GET", "/v1/models/tiny").json == listed["data"][0]
    assert server.ask("GET", "/v1/models/other").error["code"] == "model_not_found"


def test_a_model_served_alone_answers_to_any_name_and_says_its_own(server: Running) -> None:
    assert server.post(TEXT, model="gpt-4o", prompt="a", max_tokens=1).json["model"] == "tiny"
    assert sum("gpt-4o" in line for line in server.lines) == 1


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": ["hi"]}, "messages[0]"),
    (CHAT, {"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image", "text": "a"}]}]}, "messages[0].content"),
    (CHAT, {"messages": HI, "temprature": 1}, "temprature"),
    (CHAT, {"messages": HI, "temperature": "1"}, "temperature"),
    (CHAT, {"messages": HI, "temperature": -1}, "temperature"),
    (CHAT, {"messages": HI, "temperature": 10**400}, "temperature"),
    (CHAT, {"messages": HI, "seed": 10**400}, "seed"),
    (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
    (CHAT, {"messages": HI, "max_completion_tokens": 0}, "max_completion_tokens"),
    (CHAT, {"messages": HI, "n": 0}, "n"),
    (CHAT, {"messages": HI, "n": 129}, "n"),
    (CHAT, {"messages": HI, "stream": 1}, "stream"),
    (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"messages": HI, "stop": [""]}, "stop"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (CHAT, {"messages": HI, "top_logprobs": 3}, "logprobs"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"messages": HI, "logit_bias": {"a": 1}}, "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"1": 10**400}}, "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"9999": 1}}, "logit_bias"),
    (CHAT, {"messages": HI, "response_format": {"type": "xml"}}, "response_format"),
    (CHAT, {"messages": HI, "response_format": form(schema={"type": 3})}, "response_format"),
    (CHAT, {"messages": HI, "json_schema": {"type": 3}}, "json_schema"),
    (CHAT, {"messages": HI, "response_format": form(schema={}, surprise=1)}, "response_format"),
    (CHAT, {"messages": HI, "response_format": form(schema={}) | {"surprise": 1}}, "response_format"),
    (CHAT, {"messages": HI, "regex": "("}, "regex"),
    (CHAT, {"messages": HI, "top_p": 2}, "top_p"),
    (CHAT, {"messages": HI, "stop": ["a"] * 1001}, "stop"),
    (CHAT, {"messages": HI, "bad_words_ids": [[1]] * 1001}, "bad_words_ids"),
    (CHAT, {"messages": HI, "bad_words_ids": [[]]}, "bad_words_ids"),
    (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "a"}}]}, "tools"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"enable_thinking": True}}, "thinking"),
    (CHAT, {"messages": HI, "reasoning_effort": "huge"}, "reasoning_effort"),
    (CHAT, {"messages": HI, "reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"messages": HI, "answer_ids": [999]}, "answer_ids"),
    (CHAT, {"messages": HI, "answer_ids": [2]}, "answer_ids"),
    (CHAT, {"messages": HI, "model": 3}, "model"),
    (TEXT, {"prompt": ""}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [1, "a"]}, "prompt"),
    (TEXT, {"prompt": [[1], "a"]}, "prompt"),
    (TEXT, {"prompt": [True]}, "prompt"),
    (TEXT, {"prompt": [400]}, "prompt"),
    (TEXT, {"prompt": ["a"] * 2049}, "prompt"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
    (TEXT, {"prompt": "a", "best_of": 2}, "best_of"),
    (TEXT, {"prompt": "a", "n_predict": 2}, "n_predict"),  # of llama.cpp's server
    (TEXT, {"prompt": "a", "repetition_penalty": 1.0}, "repetition_penalty"),  # of vLLM
    (EMBEDDINGS, {"input": [400]}, "input"),
    (EMBEDDINGS, {"input": "a", "dimensions": 3}, "dimensions"),
    (EMBEDDINGS, {"input": "a", "dimensions": "3"}, "dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "parameter"), WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_honoured_is_an_error_that_names_it(
    server: Running, path: str, body: dict[str, Any], parameter: str, stream: bool
) -> None:
    streams = stream and parameter != "stream_options" and path != EMBEDDINGS
    answer = server.ask("POST", path, {"stream": True, **body} if streams else body)
    assert answer.status == 400
    assert answer.error.keys() == {"message", "type", "param", "code"}
    assert (answer.error["type"], answer.error["param"]) == ("invalid_request_error", parameter)


def test_a_prompt_that_does_not_fit_is_said_in_openais_words(server: Running) -> None:
    for prompt in ("In a small town " * 200, "In a small town " * 20_000):  # the second is not even encoded
        error = server.post(TEXT, prompt=prompt).error
        assert error["code"] == "context_length_exceeded"
        assert "in a context of 256" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff{}", b"[" * 9000]
    + [b'{"prompt": NaN}', b'{"a": 1, "a": 2}', b'{"prompt": "\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(server: Running, body: bytes) -> None:
    answer = server.ask("POST", TEXT, body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
