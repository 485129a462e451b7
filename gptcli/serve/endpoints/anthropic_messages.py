"""Anthropic's `/v1/messages`, whole and as a stream."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any

from gptcli.errors import GptcliError
from gptcli.generation.events import Finished
from gptcli.openai_api.answers import error_answer
from gptcli.openai_api.bodies import (
    CHAT,
    Asked,
    BadParameter,
    check_effort,
    check_flag,
    check_kinds,
    known_only,
    messages_of,
    missing_or,
    model_of,
    tools_of,
)
from gptcli.serve.service import Prepared, Service
from gptcli.serve.transport import Call, Events, event

_KNOWN = {
    *("model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k"),
    *("stream", "thinking", "metadata", "service_tier", "tools", "tool_choice", "output_config"),
    *("cache_control", "inference_geo"),  # which change no text
}
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error",
}  # fmt: skip


def anthropic_error(error: GptcliError) -> tuple[int, dict[str, Any]]:
    """An error's status and body, as Anthropic's API has them."""
    status, openai = error_answer(error)
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return status, {"type": "error", "error": {"type": kind, "message": openai["message"]}}


async def answer_message(service: Service, call: Call) -> dict[str, Any] | Events:
    """Answers a body for `/v1/messages`."""
    asked = asked_of_messages(call.body)
    prepared = await service.prepared(asked)
    call.prompt_tokens = prepared.prompt_tokens
    message: dict[str, Any] = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": prepared.name,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": call.prompt_tokens, "output_tokens": 0},
    }
    events = _events(service, prepared, message, call)
    if asked.stream:
        return events
    async with aclosing(events):
        async for _ in events:
            pass
    return message


async def count_message_tokens(service: Service, call: Call) -> dict[str, Any]:
    """Answers a body for `/v1/messages/count_tokens`."""
    asked = asked_of_messages({"max_tokens": 1, **call.body})
    return {"input_tokens": await service.read(lambda: service.count(asked))}


async def _events(service: Service, prepared: Prepared, message: dict[str, Any], call: Call) -> Events:
    """Fills a message with the answer, and yields the events of its stream."""
    begun, blocks = False, message["content"]
    async with aclosing(service.spoken(prepared, call)) as pieces:
        async for piece in pieces:
            if not begun:
                begun = True
                yield _event("message_start", message=message)
            if isinstance(piece, Finished):
                if blocks:
                    yield _event("content_block_stop", index=len(blocks) - 1)
                for each in piece.tool_calls:
                    text = json.dumps(each.arguments, ensure_ascii=False)
                    block = {"type": "tool_use", "id": each.id, "name": each.name, "input": dict(each.arguments)}
                    yield _event("content_block_start", index=len(blocks), content_block=block | {"input": {}})
                    delta = {"type": "input_json_delta", "partial_json": text}
                    yield _event("content_block_delta", index=len(blocks), delta=delta)
                    yield _event("content_block_stop", index=len(blocks))
                    blocks.append(block)
                usage, ending = {"output_tokens": call.completion_tokens}, _ending(piece, prepared.asked)
                message |= ending
                message["usage"] |= usage
                yield _event("message_delta", delta=ending, usage=usage)
                continue
            text, thought = piece
            kind = "thinking" if thought else "text"
            if not blocks or blocks[-1]["type"] != kind:
                if blocks:
                    yield _event("content_block_stop", index=len(blocks) - 1)
                blocks.append({"type": kind, kind: ""} | ({"signature": ""} if thought else {}))
                yield _event("content_block_start", index=len(blocks) - 1, content_block=blocks[-1])
            blocks[-1][kind] += text
            yield _event("content_block_delta", index=len(blocks) - 1, delta={"type": f"{kind}_delta", kind: text})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _ending(finished: Finished, asked: Asked) -> dict[str, Any]:
    if finished.reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if finished.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finished.stop in asked.options.get("stop", ()):
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def asked_of_messages(body: Mapping[str, Any]) -> Asked:
    """Reads a body. A last message of the assistant begins the answer. Raises BadParameter."""
    given = known_only(body, _KNOWN)
    most, turns = given.get("max_tokens"), given.get("messages")
    if type(most) is not int or most < 1:
        raise missing_or("max_tokens", most, "a whole number, at least 1")
    if not isinstance(turns, list) or not turns:
        raise missing_or("messages", turns, "a list of messages")
    converted = [part for number, turn in enumerate(turns) for part in _turn(f"messages[{number}]", turn)]
    if "system" in given:
        converted.insert(0, {"role": "system", "content": _text("system", given["system"])})
    messages = messages_of(converted)
    begun = messages.pop().content if messages[-1].role == "assistant" and not messages[-1].calls else ""
    if all(message.role == "system" for message in messages):
        raise BadParameter("messages", "messages must begin with one of the user")
    options: dict[str, Any] = {name: given[name] for name in ("temperature", "top_p", "top_k") if name in given}
    options |= {"max_tokens": most, "stop": given.get("stop_sequences", [])}
    form, effort = _output(given.get("output_config", {}))
    if not isinstance(options["stop"], list) or not all(isinstance(text, str) and text for text in options["stop"]):
        raise BadParameter("stop_sequences", "stop_sequences must be a list of texts, and none empty")
    check_kinds(options)
    return Asked(
        url=CHAT,
        prompts=[messages],
        options=options | form,
        schema_parameter="output_config",
        switches={"thinking": _thinking(given.get("thinking")), "reasoning_effort": effort},
        answer_ids=begun,
        stream=check_flag("stream", given.get("stream", False)),
        model=model_of(given),
        **tools_of(_tools(given)),
    )


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools and the choice among them, in OpenAI's format."""
    converted: dict[str, Any] = {}
    if "tools" in given:
        if not isinstance(given["tools"], list):
            raise BadParameter("tools", "tools must be a list of tools")
        converted["tools"] = [_tool(f"tools[{number}]", tool) for number, tool in enumerate(given["tools"])]
    match given.get("tool_choice", {"type": "auto"}):
        case {"type": "auto" | "any" | "none" as kind, **rest}:
            converted["tool_choice"] = {"any": "required"}.get(kind, kind)
        case {"type": "tool", "name": str(name), **rest}:
            converted["tool_choice"] = {"type": "function", "function": {"name": name}}
        case _:
            raise BadParameter("tool_choice", "tool_choice must be of type auto, any, tool or none")
    alone = check_flag("tool_choice.disable_parallel_tool_use", rest.pop("disable_parallel_tool_use", False))
    if rest:
        raise BadParameter("tool_choice", f"unknown or unsupported: tool_choice.{next(iter(rest))}")
    return converted | {"parallel_tool_calls": not alone}


def _tool(where: str, tool: object) -> dict[str, Any]:
    match tool:
        case {"name": str(name), "input_schema": dict(schema), **rest} if rest.get("type", "custom") == "custom":
            if not rest.keys() - {"type", "description", "cache_control", "eager_input_streaming", "strict"}:
                function = {"name": name, "description": rest.get("description") or "", "parameters": schema}
                return {"type": "function", "function": function}
    raise BadParameter(where, f"not supported: {where} is no tool with a name and an input_schema")


def _output(asked: object) -> tuple[dict[str, Any], str | None]:
    """The constraint and the effort of an `output_config`."""
    match asked:
        case {"format": {"type": "json_schema", "schema": dict(schema), **other}, **rest} if not other:
            form = {"json_schema": schema}
        case {**rest}:
            form = {}
        case _:
            raise BadParameter("output_config", "output_config must be an object")
    effort = check_effort(rest.pop("effort", None))
    if rest:
        raise BadParameter("output_config", "output_config has a format, of type json_schema, and an effort")
    return form, effort


def _thinking(asked: object) -> bool | None:
    match asked:
        case None:
            return None
        case {"type": "enabled" | "adaptive"}:
            return True
        case {"type": "disabled"}:
            return False
    raise BadParameter("thinking", "thinking must be of type enabled, adaptive or disabled")


def _turn(where: str, turn: object) -> Iterator[dict[str, Any]]:
    """A message in OpenAI's format; tools' answers become messages of their own."""
    match turn:
        case {"role": "user" | "assistant" as role, "content": content, **rest} if not rest:
            blocks = content if isinstance(content, list) else []
        case _:
            raise BadParameter(where, f"{where} must have a role, user or assistant, and content")
    texts, calls = [], []
    for block in blocks:
        match block:
            case {"type": "tool_use", "id": str(id), "name": str(name), "input": dict(given)} if role != "user":
                calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": given}})
            case {"type": "tool_result", "tool_use_id": str(id), **rest} if role == "user":
                said = _text(f"{where}.content", rest.get("content") or "")
                yield {"role": "tool", "tool_call_id": id, "content": said}
            case _:
                texts.append(block)
    if texts or calls or not blocks:
        said = _text(f"{where}.content", texts if blocks else content)
        yield {"role": role, "content": said} | ({"tool_calls": calls} if calls else {})


def _text(where: str, content: object) -> str:
    """A text, or blocks of text. Thoughts of earlier answers are dropped, as in templates."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadParameter(where, f"{where} must be a text, or blocks of text")
    texts = []
    for block in content:
        match block:
            case {"type": "thinking" | "redacted_thinking"}:
                continue
            case {"type": "text", "text": str(text), **rest} if not rest.keys() - {"cache_control", "citations"}:
                texts.append(text)
            case _:
                raise BadParameter(where, f"not supported: blocks of {where} that are no text")
    return "".join(texts)
