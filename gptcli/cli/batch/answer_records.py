"""The lines that a batch writes, in OpenAI's output format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gptcli.errors import GptcliError, InputError
from gptcli.generation.events import Completed
from gptcli.openai_api.answers import answer_body, chat_choice, error_answer, text_choice, usage_of, vectors_body
from gptcli.openai_api.bodies import CHAT


class RecordId(NamedTuple):
    """What an answer's ids say. line: its input line's number and content. made_with: see `BatchSettings`."""

    line: str
    made_with: str


def answer_record(
    id: RecordId, custom_id: str | None, url: str, model: str, texts: Sequence[Completed], prompts: int
) -> dict[str, Any]:
    """The line of a request that succeeded. texts: the choices in their order; prompts: how many it had."""
    choice = chat_choice if url == CHAT else text_choice
    choices = [choice(index, text) for index, text in enumerate(texts)]
    return _record(id, custom_id, 200, answer_body(id.line, url, model, choices, usage_of(texts, prompts)))


@dataclass(frozen=True)
class Vectors:
    """The embeddings of a request's texts. tokens: of all of them. packed: see `vectors_body`."""

    numbers: Sequence[Sequence[float]]
    tokens: int
    packed: bool


def vectors_record(id: RecordId, custom_id: str | None, model: str, vectors: Vectors) -> dict[str, Any]:
    """The line of a request for embeddings that succeeded."""
    body = vectors_body(model, vectors.numbers, vectors.tokens, packed=vectors.packed)
    return _record(id, custom_id, 200, body)


def error_record(id: RecordId, custom_id: str | None, error: GptcliError) -> dict[str, Any]:
    """The line of a request that failed: status 400 or 500, or no response if the line is no request."""
    if isinstance(error, InputError):
        wrong = {"code": "invalid_json_line", "message": error.message}
        return {"id": f"batch_req_{id.line}", "custom_id": custom_id, "response": None, "error": wrong}
    status, body = error_answer(error)
    return _record(id, custom_id, status, {"error": body})


def _record(id: RecordId, custom_id: str | None, status: int, body: dict[str, Any]) -> dict[str, Any]:
    response = {"status_code": status, "request_id": f"req_{id.line}_{id.made_with}", "body": body}
    return {"id": f"batch_req_{id.line}", "custom_id": custom_id, "response": response, "error": None}
