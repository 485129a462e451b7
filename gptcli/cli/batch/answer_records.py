"""The lines that a batch writes, in OpenAI's output format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gptcli.cli.batch.bodies import CHAT, BadParameter
from gptcli.errors import ContextOverflow, GptcliError, InputError, UsageError
from gptcli.generation.events import Completed, StepLogprobs, TokenLogprob


def answer_record(
    id: str, custom_id: str | None, url: str, model: str, texts: Sequence[Completed], prompts: int
) -> dict[str, Any]:
    """The line of a request that succeeded. texts: the choices in their order; prompts: how many it had."""
    chat = url == CHAT
    usages = [text.finished.usage for text in texts]
    asked = sum(usage.prompt_tokens for usage in usages[:: len(texts) // prompts])
    made = sum(usage.completion_tokens for usage in usages)
    body = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [(_chat_choice if chat else _choice)(index, text) for index, text in enumerate(texts)],
        "usage": {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made},
    }
    return _record(id, custom_id, 200, body)


def error_record(id: str, custom_id: str | None, error: GptcliError) -> dict[str, Any]:
    """The line of a request that failed: status 400 or 500, or no response if the line is no request."""
    if isinstance(error, InputError):
        wrong = {"code": "invalid_json_line", "message": error.message}
        return {"id": f"batch_req_{id}", "custom_id": custom_id, "response": None, "error": wrong}
    of_user = isinstance(error, UsageError | ContextOverflow)
    body = {
        "message": error.message,
        "type": "invalid_request_error" if of_user else "server_error",
        "param": error.name if isinstance(error, BadParameter) else None,
        "code": "context_length_exceeded" if isinstance(error, ContextOverflow) else None,
    }
    return _record(id, custom_id, 400 if of_user else 500, {"error": body})


def _record(id: str, custom_id: str | None, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{id}", "body": body}
    return {"id": f"batch_req_{id}", "custom_id": custom_id, "response": response, "error": None}


def _chat_choice(index: int, text: Completed) -> dict[str, Any]:
    steps = text.finished.logprobs
    return {
        "index": index,
        "message": {"role": "assistant", **_said(text), "refusal": None},
        "logprobs": None if steps is None else {"content": list(map(_chat_step, steps)), "refusal": None},
        "finish_reason": text.finished.reason,
    }


def _said(text: Completed) -> dict[str, Any]:
    """The content of a message, and the calls if there are some; without a text, they alone."""
    calls = [call.record for call in text.finished.tool_calls]
    return {"content": text.text or None, "tool_calls": calls} if calls else {"content": text.text}


def _chat_step(step: StepLogprobs) -> dict[str, Any]:
    return {**_chat_token(step.chosen), "top_logprobs": list(map(_chat_token, step.top))}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(token), "bytes": list(token.data), "logprob": max(token.logprob, -9999.0)}


def _choice(index: int, text: Completed) -> dict[str, Any]:
    steps = text.finished.logprobs
    return {
        "index": index,
        "text": text.text,
        "logprobs": None if steps is None else _text_logprobs(steps),
        "finish_reason": text.finished.reason,
    }


def _text_logprobs(steps: Sequence[StepLogprobs]) -> dict[str, Any]:
    """Offsets are in characters of the completion; the old format has no bytes."""
    tokens = [_text(step.chosen) for step in steps]
    lengths = list(map(len, tokens))
    return {
        "tokens": tokens,
        "token_logprobs": [max(step.chosen.logprob, -9999.0) for step in steps],
        "top_logprobs": [{_text(token): max(token.logprob, -9999.0) for token in step.top} for step in steps],
        "text_offset": [sum(lengths[:index]) for index in range(len(tokens))],
    }


def _text(token: TokenLogprob) -> str:
    return token.data.decode("utf-8", "replace")
