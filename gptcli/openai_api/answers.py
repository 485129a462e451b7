"""OpenAI's answers: whole, in the chunks of a stream, and its errors."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any

from gptcli.chat.thinking import Thoughts
from gptcli.errors import ContextOverflow, GptcliError, OutOfMemory, TemplateError, UsageError
from gptcli.generation.events import Completed, StepLogprobs, TokenLogprob
from gptcli.openai_api.bodies import CHAT
from gptcli.openai_api.refusals import Refusal

LEAST_LOGPROB = -9999.0  # OpenAI's for impossible tokens; JSON has no infinity


def answer_body(
    id: str, url: str, model: str, choices: Sequence[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    """The body of an answer to `CHAT` or `TEXT`."""
    return {**heading(id, url, model), "choices": choices, "usage": usage}


def heading(id: str, url: str, model: str, *, chunk: bool = False) -> dict[str, Any]:
    """The fields at the beginning of an answer, or of each chunk of one."""
    chat = url == CHAT
    kind = ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion"
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{id}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def usage_record(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The counts of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_of(texts: Sequence[Completed], prompts: int) -> dict[str, Any]:
    """The counts of several texts, equally many for each prompt; a prompt counts once."""
    usages = [text.finished.usage for text in texts]
    asked = sum(usage.prompt_tokens for usage in usages[:: len(texts) // prompts])
    return usage_record(asked, sum(usage.completion_tokens for usage in usages))


def chat_choice(index: int, text: Completed, thoughts: Thoughts | None = None) -> dict[str, Any]:
    """A whole answer of a conversation. thoughts: splits thoughts off, None if there are none."""
    steps = text.finished.logprobs
    message: dict[str, Any] = {"role": "assistant", "content": text.text, "refusal": None}
    if thoughts is not None:
        pieces = [*thoughts.push(text.text), *thoughts.flush()]
        message["content"] = "".join(piece for piece, thought in pieces if not thought)
        if thought_text := "".join(piece for piece, thought in pieces if thought):
            message["reasoning_content"] = thought_text
    if calls := text.finished.tool_calls:
        message |= {"content": message["content"] or None, "tool_calls": [call.record for call in calls]}
    return {
        "index": index,
        "message": message,
        "logprobs": None if steps is None else chat_logprobs(steps),
        "finish_reason": text.finished.reason,
    }


def chat_logprobs(steps: Iterable[StepLogprobs]) -> dict[str, Any]:
    """Log-probabilities of a conversation's tokens; `id` is an extension."""
    return {"content": list(map(_chat_step, steps)), "refusal": None}


def _chat_step(step: StepLogprobs) -> dict[str, Any]:
    return {**_chat_token(step.chosen), "top_logprobs": list(map(_chat_token, step.top))}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"id": token.id, "token": _text(token), "bytes": list(token.data), "logprob": _finite(token.logprob)}


def text_choice(index: int, text: Completed, echo: str = "", echoed: dict[str, Any] | None = None) -> dict[str, Any]:
    """A whole text. echo: the prompt before it. echoed: the prompt's log-probabilities."""
    steps = text.finished.logprobs
    logprobs = None if steps is None else text_logprobs(steps, len(echo))
    if logprobs is not None and echoed is not None:
        logprobs = {name: echoed[name] + values for name, values in logprobs.items()}
    return {"index": index, "text": echo + text.text, "logprobs": logprobs, "finish_reason": text.finished.reason}


def text_logprobs(steps: Iterable[StepLogprobs], offset: int = 0) -> dict[str, Any]:
    """Log-probabilities of a text's tokens in OpenAI's old format, without bytes. offset: characters before them."""
    return token_columns(((_text(step.chosen), step.chosen.logprob, step.top) for step in steps), offset)


def token_columns(
    tokens: Iterable[tuple[str, float | None, Sequence[TokenLogprob]]], offset: int = 0
) -> dict[str, Any]:
    """The old format's columns of tokens, each with its log-probability and alternatives; a first token has neither."""
    columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, logprob, top in tokens:
        columns["tokens"].append(token)
        columns["token_logprobs"].append(None if logprob is None else _finite(logprob))
        top_logprobs = {_text(each): _finite(each.logprob) for each in top}
        columns["top_logprobs"].append(None if logprob is None else top_logprobs)
        columns["text_offset"].append(offset)
        offset += len(token)
    return columns


def vectors_body(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, packed: bool) -> dict[str, Any]:
    """The body of an answer with embeddings. tokens: of all texts. packed: as base64 of fp32 numbers."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def error_answer(error: GptcliError) -> tuple[int, dict[str, Any]]:
    """An error's HTTP status, and the object that OpenAI's API describes it with."""
    code = None
    if isinstance(error, Refusal):
        status, code = error.status, error.code
    else:
        of_user = isinstance(error, UsageError | ContextOverflow | TemplateError)
        status = 400 if of_user else 503 if isinstance(error, OutOfMemory) else 500
    if isinstance(error, ContextOverflow):
        code = "context_length_exceeded"
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return status, {
        "message": error.message,
        "type": kind.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": error.setting if isinstance(error, UsageError) else None,
        "code": code,
    }


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _text(token: TokenLogprob) -> str:
    return token.data.decode("utf-8", "replace")
