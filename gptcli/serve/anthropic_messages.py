"""Anthropic's `/v1/messages`, whole and as a stream."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from gptcli.errors import GptcliError
from gptcli.generation.events import Finished
from gptcli.serve.openai_answers import error_answer
from gptcli.serve.openai_bodies import CHAT, Asked, BadParameter, check_flag, check_kinds, known_only, model_of
from gptcli.serve.service import Prepared, Service
from gptcli.serve.transport import Call, Events, event
from gptcli.text.messages import Message

_KNOWN = {
    *("model", "messages", "system", "max_tokens", "stop_sequences", "temperature", "top_p", "top_k"),
    *("stream", "thinking", "metadata", "service_tier"),
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
    call.prompt_tokens = len(prepared.requests[0].prompt)
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
    if asked.stream:
        return _streamed(service, prepared, message, call)
    blocks: list[dict[str, Any]] = message["content"]
    async with aclosing(service.spoken(prepared, call)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Finished):
                message |= _ending(piece, asked)
                message["usage"]["output_tokens"] = call.completion_tokens
            else:
                text, thought = piece
                kind = "thinking" if thought else "text"
                if not blocks or blocks[-1]["type"] != kind:
                    blocks.append(_block(thought))
                blocks[-1][kind] += text
    return message


async def count_message_tokens(service: Service, call: Call) -> dict[str, Any]:
    """Answers a body for `/v1/messages/count_tokens`."""
    prepared = await service.prepared(asked_of_messages({"max_tokens": 1, **call.body}))
    return {"input_tokens": len(prepared.requests[0].prompt)}


async def _streamed(service: Service, prepared: Prepared, message: dict[str, Any], call: Call) -> Events:
    blocks, inside = 0, None  # inside: the kind of block that is open: whether it is a thought
    async with aclosing(service.spoken(prepared, call)) as pieces:
        begun = False
        async for piece in pieces:
            if not begun:
                begun = True
                yield _event("message_start", message=message)
            if isinstance(piece, Finished):
                if inside is not None:
                    yield _event("content_block_stop", index=blocks - 1)
                usage = {"output_tokens": call.completion_tokens}
                yield _event("message_delta", delta=_ending(piece, prepared.asked), usage=usage)
                continue
            text, thought = piece
            if inside is not thought:
                if inside is not None:
                    yield _event("content_block_stop", index=blocks - 1)
                yield _event("content_block_start", index=blocks, content_block=_block(thought))
                blocks, inside = blocks + 1, thought
            kind = "thinking" if thought else "text"
            yield _event("content_block_delta", index=blocks - 1, delta={"type": f"{kind}_delta", kind: text})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


def _block(thought: bool) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": ""} if thought else {"type": "text", "text": ""}


def _ending(finished: Finished, asked: Asked) -> dict[str, Any]:
    if finished.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finished.stop in asked.options.get("stop", ()):
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def asked_of_messages(body: Mapping[str, Any]) -> Asked:
    """What a body asks for. A last message of the assistant is what the answer goes on from. Raises BadParameter."""
    given = known_only(body, _KNOWN)
    most, turns = given.get("max_tokens"), given.get("messages")
    if type(most) is not int or most < 1:
        raise BadParameter("max_tokens", "max_tokens must be a whole number, at least 1")
    if not isinstance(turns, list) or not turns:
        raise BadParameter("messages", "messages must be a list of messages")
    messages = [_message(f"messages[{number}]", turn) for number, turn in enumerate(turns)]
    begun = messages.pop().content if messages[-1].role == "assistant" else ""
    if not messages:
        raise BadParameter("messages", "messages must begin with one of the user")
    if "system" in given:
        messages.insert(0, Message("system", _text("system", given["system"])))
    options: dict[str, Any] = {name: given[name] for name in ("temperature", "top_p", "top_k") if name in given}
    options |= {"max_tokens": most, "stop": given.get("stop_sequences", [])}
    if not isinstance(options["stop"], list):
        raise BadParameter("stop_sequences", "stop_sequences must be a list of texts")
    check_kinds(options)
    return Asked(
        url=CHAT,
        prompts=[messages],
        options=options,
        switches={"thinking": _thinking(given.get("thinking"))},
        answer_ids=begun,
        stream=check_flag("stream", given.get("stream", False)),
        model=model_of(given),
    )


def _thinking(asked: object) -> bool | None:
    match asked:
        case None:
            return None
        case {"type": "enabled" | "adaptive"}:
            return True
        case {"type": "disabled"}:
            return False
    raise BadParameter("thinking", "thinking must be of type enabled, adaptive or disabled")


def _message(where: str, turn: object) -> Message:
    match turn:
        case {"role": "user" | "assistant" as role, "content": content, **rest} if not rest:
            return Message(role, _text(f"{where}.content", content))
    raise BadParameter(where, f"{where} must have a role, user or assistant, and content")


def _text(where: str, content: object) -> str:
    """A text, or blocks of text. Thoughts of earlier answers are dropped, as templates do; caching changes nothing."""
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
