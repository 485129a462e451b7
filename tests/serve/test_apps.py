"""What editors, agents and other apps ask is answered.

A path names the source that a request follows; the others follow what is publicly known of the app.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import gptcli
from tests.cli.scripted import Script, follow
from tests.serve.conftest import CHAT, EMBEDDINGS, MESSAGES, RESPONSES, TEXT, Running, serving
from tests.tiny import make_model
from tests.tools.templates import HERMES

PATH = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
STRICT_PATH = PATH | {"additionalProperties": False}
READ = {"name": "read_file", "description": "Reads a file.", "parameters": PATH}
CALL = {"id": "call_1", "type": "function", "function": {"name": "read_file", "arguments": '{"path": "a.py"}'}}
USER = {"role": "user", "content": "What does a.py do?"}
CACHED: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}

ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    # crates/open_ai/src/open_ai.rs: what is absent is left out, but for an assistant's content.
    "zed": (CHAT, {
        "model": "tiny", "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 4096,
        "messages": [
            {"role": "system", "content": "You edit code."},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "print(1)", "tool_call_id": "call_1"},
            {"role": "user", "content": []},
        ],
        "temperature": 1.0, "tool_choice": "auto", "parallel_tool_calls": False, "prompt_cache_key": "thread-1",
        "tools": [{"type": "function", "function": READ}],
    }),
    # packages/openai-adapters/src/apis/OpenAI.ts
    "continue": (CHAT, {
        "model": "tiny", "messages": [{"role": "system", "content": "Be brief."}, USER], "max_tokens": 4096,
        "temperature": 0.5, "stream": True, "stream_options": {"include_usage": True},
    }),
    "continue's autocompletion": (TEXT, {
        "model": "tiny", "prompt": "def add(a, b):\n    return", "max_tokens": 64, "temperature": 0.01, "stream": True,
        "stop": ["\n\n", "<fim_prefix>", "/src/", "#- coding: utf-8"], "frequency_penalty": 0, "presence_penalty": 0,
    }),
    # src/core/api/providers/openai.ts
    "cline": (CHAT, {
        "model": "tiny", "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "You are Cline."},
            {"role": "user", "content": [{"type": "text", "text": "<task>\nhi\n</task>"}]},
        ],
    }),
    # With cache_control_injection_points
    "litellm": (CHAT, {
        "model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", **CACHED}]}],
    }),
    # codex-rs/codex-api/src/common.rs, ResponsesApiRequest
    "codex": (RESPONSES, {
        "model": "tiny", "instructions": "You are a coding agent.", "stream": True, "store": False, "reasoning": None,
        "tool_choice": "auto", "parallel_tool_calls": False, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199", "client_metadata": {"session": "1"}, "text": {"verbosity": "medium"},
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "sandboxed"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What does a.py do?"}]},
            {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
            {"type": "function_call", "name": "read_file", "arguments": '{"path": "a.py"}', "call_id": "call_1"},
            {"type": "function_call_output", "call_id": "call_1", "output": "print(1)"},
        ],
        "tools": [{"type": "function", **READ, "strict": False}],
    }),
    # The Agents SDK, with OpenAIResponsesModel
    "openai-agents": (RESPONSES, {
        "model": "tiny", "input": [{"role": "user", "content": "hi"}], "include": [], "tools": [],
        "instructions": "Be brief.", "truncation": "disabled", "background": False,
    }),
    # The API's reference: padding of streams, switched off for trusted networks
    "unpadded": (RESPONSES, {
        "model": "tiny", "input": "hi", "stream": True, "stream_options": {"include_obfuscation": False},
    }),
    # With ANTHROPIC_BASE_URL; what its caching and tools need, by Anthropic's documentation
    "claude code": (f"{MESSAGES}?beta=true", {
        "model": "claude", "max_tokens": 32000, "stream": True, "temperature": 1, "metadata": {"user_id": "user_1"},
        "system": [{"type": "text", "text": "You are an agent.", **CACHED}, {"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What does a.py do?", **CACHED}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "read_file", "input": {"path": "a.py"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "print(1)", "is_error": False, **CACHED},
            ]},
        ],
        "tools": [{"name": "read_file", "description": "Reads a file.", "input_schema": PATH, **CACHED}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }),
    # The manual's request with curl
    "lm studio": (CHAT, {
        "model": "tiny", "messages": [{"role": "system", "content": "Answer in rhymes."}, USER], "temperature": 0.7,
        "max_tokens": -1, "stream": True,
    }),
    # README.md of tools/server
    "llama.cpp": (CHAT, {
        "model": "tiny", "messages": [USER],
        "response_format": {"type": "json_object", "schema": {"type": "object", "properties": {}}}, "seed": -1,
    }),
    # README.md of tools/server, again: what changes no text
    "llama.cpp's fields": (TEXT, {
        "model": "tiny", "prompt": "def add(a, b):", "max_tokens": 8, "cache_prompt": True, "id_slot": -1,
        "stream": True, "top_k": 40, "min_p": 0.05, "timings_per_token": False,
    }),
    # vllm/entrypoints/openai/protocol.py, values that ask for nothing
    "vllm's fields": (CHAT, {
        "model": "tiny", "messages": [USER], "skip_special_tokens": True, "add_generation_prompt": True, "priority": 0,
        "continue_final_message": False, "stop_token_ids": [], "min_tokens": 0, "request_id": "1", "ignore_eos": False,
    }),
    # lua/minuet/backends/openai_base.lua, whose template puts the code after the cursor into the prompt
    "minuet": (TEXT, {
        "model": "tiny", "stream": True, "max_tokens": 256, "top_p": 0.9, "stop": ["\n\n"],
        "prompt": "<|fim_prefix|>def add(a, b):\n<|fim_suffix|>\n<|fim_middle|>",
    }),
    # aider/models.py, through litellm
    "aider": (CHAT, {
        "model": "tiny", "stream": True, "temperature": 0,
        "messages": [
            {"role": "system", "content": "Act as an expert software developer."}, USER,
            {"role": "assistant", "content": "Ok."}, {"role": "user", "content": "a.py\n```\nprint(1)\n```"},
        ],
    }),
    # As langchain-openai's with_structured_output asks, through the client's parse()
    "langchain": (CHAT, {
        "model": "tiny", "messages": [USER], "n": 1, "stream": False, "max_completion_tokens": 50, "top_p": 0.9,
        "response_format": {"type": "json_schema", "json_schema": {
            "name": "File", "description": "A file.", "strict": True, "schema": STRICT_PATH,
        }},
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a model whose template knows tools."""
    path = make_model(tmp_path_factory.mktemp("models") / "tiny", template=HERMES, max_position_embeddings=1024)
    with pytest.MonkeyPatch.context() as patch:
        follow(Script(pieces=["It ", "prints."]), patch.setattr)
        with serving(gptcli.load(path, device="cpu", dtype="fp32")) as running:
            yield running


@pytest.mark.parametrize("app", ASKED)
def test_what_an_app_asks_is_answered(server: Running, app: str) -> None:
    path, body = ASKED[app]
    answer = server.ask("POST", path, body)
    assert answer.status == 200, answer.data
    assert b"error" not in answer.data.replace(b'"error": null', b"")
    if body.get("stream"):
        ends = {RESPONSES: b"response.completed", MESSAGES: b"event: message_stop"}
        assert ends.get(path.partition("?")[0], b"data: [DONE]") in answer.data
    assert b"prints." in answer.data


@pytest.mark.parametrize(("path", "said"), [(CHAT, "unknown or unsupported parameter: mesages"), (MESSAGES, "mesages")])
def test_a_misspelt_parameter_is_named_before_one_that_is_missing(server: Running, path: str, said: str) -> None:
    assert said in server.post(path, mesages=[USER], max_tokens=1).error["message"]


@pytest.mark.parametrize(
    ("path", "name"), [(CHAT, "messages"), (TEXT, "prompt"), (RESPONSES, "input"), (EMBEDDINGS, "input")]
)
def test_what_is_missing_is_said_to_be(server: Running, path: str, name: str) -> None:
    error = server.post(path, model="tiny").error
    assert (error["param"], error["message"].partition(":")[0]) == (name, f"{name} is missing")


def test_what_a_request_asks_for_is_never_ignored(server: Running) -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        *((CHAT, {name: value}) for name, value in {
            "functions": [READ], "function_call": "auto", "audio": {"voice": "a"}, "modalities": ["audio"],
            "prediction": {"type": "content", "content": "a"}, "web_search_options": {}, "verbosity": "low",
            "moderation": {}, "top_logprobs": 1, "reasoning_effort": "low", "stream_options": {"include_usage": True},
        }.items()),
        *((RESPONSES, {name: value}) for name, value in {
            "background": True, "truncation": "auto", "include": ["message.output_text.logprobs"], "conversation": "a",
            "prompt": {"id": "a"}, "max_tool_calls": 1, "context_management": [{"type": "compaction"}],
            "top_logprobs": 1, "text": {"verbosity": "high"}, "moderation": {}, "tools": [{"type": "web_search"}],
            "stream_options": {"include_obfuscation": True},
        }.items()),
        *((MESSAGES, {name: value}) for name, value in {
            "container": "a", "speed": "fast", "output_config": {"surprise": 1}, "mcp_servers": [],
            "tool_choice": {"type": "auto", "surprise": 1}, "tools": [{"type": "bash_20250124", "name": "bash"}],
        }.items()),
    ]  # fmt: skip
    needed: dict[str, dict[str, Any]] = {
        CHAT: {"messages": [USER]}, RESPONSES: {"input": "hi"}, MESSAGES: {"messages": [USER], "max_tokens": 9},
    }  # fmt: skip
    for path, body in refused:
        answer = server.post(path, **needed[path], **body)
        assert answer.status == 400, body
        assert next(iter(body)).split("_")[0] in answer.error["message"], answer.error


def test_a_message_is_of_the_form_that_its_output_has_to_have(server: Running) -> None:
    body = {"messages": [USER], "max_tokens": 99, "output_config": {"format": {"type": "json_schema", "schema": {}}}}
    assert server.post(MESSAGES, **body).status == 200
    body["output_config"] = {"format": {"type": "json_schema", "schema": {"type": 3}}}
    assert "schema" in server.post(MESSAGES, **body).error["message"]


def test_tokens_of_a_conversation_that_does_not_fit_are_counted(server: Running) -> None:
    long = {"role": "user", "content": "In a small town " * 400}
    assert server.post(f"{MESSAGES}/count_tokens", messages=[long]).json["input_tokens"] > 1024
    assert server.post(MESSAGES, messages=[long], max_tokens=1).status == 400


def test_a_request_for_too_many_texts_is_refused(server: Running) -> None:
    assert server.post(TEXT, prompt=["a"] * 17, n=128, max_tokens=1).error["param"] == "n"
