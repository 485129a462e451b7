"""OpenAI's `/v1/responses`, whole and as a stream. Responses are kept while the process runs."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from gptcli.generation.events import Finished
from gptcli.openai_api.bodies import (
    CHAT,
    WITHOUT_EFFECT,
    Asked,
    BadParameter,
    asking,
    check_effort,
    check_flag,
    check_kinds,
    known_only,
    messages_of,
    missing_or,
    model_of,
    response_format,
    tools_of,
)
from gptcli.openai_api.refusals import Refusal
from gptcli.serve.service import Prepared, Service
from gptcli.serve.transport import Call, Events, event, to_json
from gptcli.text.messages import Message, message_record
from gptcli.tools.definitions import ToolCall

_KNOWN = {
    *("model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "stream", "store", "text"),
    *("previous_response_id", "reasoning", "parallel_tool_calls", "tools", "tool_choice", *WITHOUT_EFFECT),
    "include",
}
_MOST_KEPT, _MOST_KEPT_BYTES = 1000, 64 << 20


@dataclass
class Kept:
    """A response, and the conversation up to its end. size: of both, roughly, in bytes."""

    response: dict[str, Any]
    messages: Sequence[Message]
    size: int


@dataclass
class Responses:
    """The endpoints. Keeps the latest responses, a thousand and 64 MB at most, unless a request forbids it."""

    service: Service
    kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)

    async def create(self, call: Call) -> dict[str, Any] | Events:
        """Answers a body for `/v1/responses`."""
        given = known_only(call.body, _KNOWN)
        earlier = self._earlier(given.get("previous_response_id"))
        turns = messages_of([*map(message_record, earlier), *_turns(given.get("input"))], "input")
        asked = _asked(given, turns)
        store = check_flag("store", given.get("store", True))
        prepared = await self.service.prepared(asked)
        call.prompt_tokens = prepared.prompt_tokens
        response = _response(prepared, given)
        events = self._events(prepared, response, call)
        if asked.stream:
            return self._streamed(events, response, turns, store)
        async with aclosing(events):
            async for _ in events:
                pass
        self._keep(response, turns, store)
        return response

    async def read(self, call: Call) -> dict[str, Any]:
        """A kept response."""
        return self._find(call.path["id"]).response

    async def delete(self, call: Call) -> dict[str, Any]:
        """Forgets a response."""
        self._find(call.path["id"])
        del self.kept[call.path["id"]]
        return {"id": call.path["id"], "object": "response", "deleted": True}

    def _find(self, id: str) -> Kept:
        if id not in self.kept:
            raise Refusal(404, f"there is no response {id[:80]}; this process keeps the latest {_MOST_KEPT}")
        return self.kept[id]

    def _earlier(self, id: object) -> Sequence[Message]:
        if id is None:
            return ()
        if not isinstance(id, str):
            raise BadParameter("previous_response_id", "previous_response_id must be a text")
        return self._find(id).messages

    def _keep(self, response: dict[str, Any], turns: Sequence[Message], store: bool) -> None:
        if store:
            said = messages_of([*map(message_record, turns), *_turns(response["output"])])
            size = len(to_json(response)) + sum(len(to_json(message_record(message))) for message in said)
            self.kept[response["id"]] = Kept(response, said, size)
            while len(self.kept) > _MOST_KEPT or sum(each.size for each in self.kept.values()) > _MOST_KEPT_BYTES:
                self.kept.popitem(last=False)

    async def _streamed(self, events: Any, response: dict[str, Any], turns: Sequence[Message], store: bool) -> Events:
        numbers = itertools.count()
        async with aclosing(events):
            async for kind, fields in events:
                yield event({"type": kind, "sequence_number": next(numbers), **fields}, kind)
        self._keep(response, turns, store)

    async def _events(self, prepared: Prepared, response: dict[str, Any], call: Call) -> Any:
        """Fills a response with the answer, and yields the events of its stream."""
        begun, output = False, response["output"]
        async with aclosing(self.service.spoken(prepared, call)) as pieces:
            async for piece in pieces:
                if not begun:
                    begun = True
                    yield "response.created", {"response": response}
                    yield "response.in_progress", {"response": response}
                if isinstance(piece, Finished):
                    if not output and not piece.tool_calls:  # an empty answer is a message, too
                        for each in _begun(output, False):
                            yield each
                    for each in _ended(output) if output else ():
                        yield each
                    for each in (event for made in piece.tool_calls for event in _called(output, made)):
                        yield each
                    _finish(response, piece, call)
                    yield f"response.{response['status']}", {"response": response}
                    continue
                text, thought = piece
                if not output or (output[-1]["type"] == "reasoning") != thought:
                    for each in _ended(output) if output else ():
                        yield each
                    for each in _begun(output, thought):
                        yield each
                output[-1]["content"][0]["text"] += text
                yield f"response.{_part_kind(output)}.delta", _at(output) | {"delta": text}


def _part_kind(output: list[dict[str, Any]]) -> str:
    return "reasoning_text" if output[-1]["type"] == "reasoning" else "output_text"


def _at(output: list[dict[str, Any]]) -> dict[str, Any]:
    place = {"item_id": output[-1]["id"], "output_index": len(output) - 1, "content_index": 0}
    return place if output[-1]["type"] == "reasoning" else place | {"logprobs": []}


def _begun(output: list[dict[str, Any]], thought: bool) -> list[tuple[str, dict[str, Any]]]:
    """Adds an item; returns its events."""
    id = secrets.token_hex(12)
    item: dict[str, Any] = {"id": f"rs_{id}", "type": "reasoning", "summary": [], "status": "in_progress"}
    part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
    if not thought:
        item = {"id": f"msg_{id}", "type": "message", "role": "assistant", "status": "in_progress"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    output.append(item | {"content": [part]})
    added = {"output_index": len(output) - 1, "item": item | {"content": []}}
    return [
        ("response.output_item.added", added),
        ("response.content_part.added", _at(output) | {"part": dict(part)}),
    ]


def _ended(output: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    item = output[-1]
    item["status"] = "completed"
    [part] = item["content"]
    return [
        (f"response.{_part_kind(output)}.done", _at(output) | {"text": part["text"]}),
        ("response.content_part.done", _at(output) | {"part": part}),
        ("response.output_item.done", {"output_index": len(output) - 1, "item": item}),
    ]


def _called(output: list[dict[str, Any]], call: ToolCall) -> list[tuple[str, dict[str, Any]]]:
    """Adds a call of a tool; returns its events."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    item = {"id": f"fc_{secrets.token_hex(12)}", "type": "function_call", "call_id": call.id, "name": call.name}
    place = {"output_index": len(output)}
    output.append(item | {"arguments": arguments, "status": "completed"})
    said = place | {"item_id": item["id"]}
    return [
        ("response.output_item.added", place | {"item": item | {"arguments": "", "status": "in_progress"}}),
        ("response.function_call_arguments.delta", said | {"delta": arguments}),
        ("response.function_call_arguments.done", said | {"name": call.name, "arguments": arguments}),
        ("response.output_item.done", place | {"item": output[-1]}),
    ]


def _response(prepared: Prepared, given: Mapping[str, Any]) -> dict[str, Any]:
    """A response without output."""
    return {
        "id": f"resp_{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "metadata": given.get("metadata") or {},
        "model": prepared.name,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": given.get("previous_response_id"),
        "store": given.get("store", True),
        "temperature": given.get("temperature"),
        "text": given.get("text") or {"format": {"type": "text"}},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools") or [],
        "top_p": given.get("top_p"),
        "usage": None,
    }


def _finish(response: dict[str, Any], finished: Finished, call: Call) -> None:
    response["status"] = "completed" if finished.reason in ("stop", "tool_calls") else "incomplete"
    if response["status"] == "incomplete":
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    response["usage"] = {
        "input_tokens": call.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": call.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": call.prompt_tokens + call.completion_tokens,
    }


def _asked(given: Mapping[str, Any], turns: list[Message]) -> Asked:
    options = {name: given[name] for name in ("temperature", "top_p") if name in given}
    if "max_output_tokens" in given:
        options["max_tokens"] = most = given["max_output_tokens"]
        if type(most) is not int or most < 1:
            raise BadParameter("max_output_tokens", "max_output_tokens must be a whole number, at least 1")
    if "text" in given:
        options |= _text_format(given["text"])
    if given.get("include") not in (None, ["reasoning.encrypted_content"]):  # has no effect
        raise BadParameter("include", "include may have reasoning.encrypted_content alone")
    reasoning = given.get("reasoning", {})
    if not isinstance(reasoning, dict) or reasoning.keys() - {"effort", "summary"}:
        raise BadParameter("reasoning", "reasoning has effort alone")
    if "instructions" in given:
        if not isinstance(given["instructions"], str):
            raise BadParameter("instructions", "instructions must be a text")
        turns = [Message("system", given["instructions"]), *turns]
    check_kinds(options)
    return Asked(
        url=CHAT,
        prompts=[turns],
        options=options,
        schema_parameter="text.format",
        switches={"reasoning_effort": check_effort(reasoning.get("effort"))},
        stream=check_flag("stream", given.get("stream", False)),
        model=model_of(given),
        **tools_of(_tools(given)),
    )


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tools and the choice among them, in the format of conversations."""
    names = ("tools", "tool_choice", "parallel_tool_calls")
    converted: dict[str, Any] = {name: given[name] for name in names if name in given}
    if isinstance(tools := converted.get("tools"), list):
        converted["tools"] = [
            {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
            if isinstance(tool, dict) and tool.get("type") == "function"
            else tool
            for tool in tools
        ]
    match converted.get("tool_choice"):
        case {"type": "function", "name": str(name)}:
            converted["tool_choice"] = {"type": "function", "function": {"name": name}}
    return converted


def _text_format(asked: object) -> dict[str, Any]:
    match asking(asked) if isinstance(asked, dict) else asked:
        case {"format": {"type": "json_schema", **named}, **rest} if not rest:
            return response_format({"type": "json_schema", "json_schema": named}, "text.format")
        case {"format": form, **rest} if not rest:
            return response_format(form, "text.format")
        case {**rest} if not rest:
            return {}
    raise BadParameter("text", "text has format alone")


def _turns(asked: object) -> list[dict[str, Any]]:
    """The messages of an input, in the format of conversations; the calls of one turn are one message.

    Takes items of earlier responses, too, without their thoughts.
    """
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}]
    if not isinstance(asked, list) or not asked:
        raise missing_or("input", asked, "a text, or a list of messages")
    turns = list[dict[str, Any]]()
    for number, item in enumerate(asked):
        match {name: value for name, value in item.items() if value is not None} if isinstance(item, dict) else item:
            case {"type": "reasoning"}:
                continue
            case {"type": "function_call", "call_id": id, "name": name, "arguments": arguments}:
                if not turns or turns[-1]["role"] != "assistant":
                    turns.append({"role": "assistant", "content": ""})
                call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                turns[-1].setdefault("tool_calls", []).append(call)
                continue
            case {"type": "function_call_output", "call_id": id, "output": output}:
                turns.append({"role": "tool", "tool_call_id": id, "content": _parts(output)})
                continue
            case {"role": role, "content": content, **rest} if not rest.keys() - {"type", "id", "status"}:
                if rest.get("type", "message") == "message":
                    turns.append({"role": role, "content": _parts(content)})
                    continue
        raise BadParameter(f"input[{number}]", f"not supported: input[{number}] is no message")
    return turns


def _parts(content: object) -> object:
    if not isinstance(content, list):
        return content
    return [
        {"type": "text", "text": part.get("text")}
        if isinstance(part, dict) and part.get("type") in ("input_text", "output_text", "text")
        else part
        for part in content
    ]
