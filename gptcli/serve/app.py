"""The server's paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from gptcli.errors import GptcliError
from gptcli.openai_api.answers import error_answer
from gptcli.openai_api.bodies import CHAT, TEXT
from gptcli.openai_api.refusals import Refusal
from gptcli.serve.endpoints.anthropic_messages import answer_message, anthropic_error, count_message_tokens
from gptcli.serve.endpoints.completions import complete
from gptcli.serve.endpoints.embeddings_and_tokens import detokenize, embed, tokenize
from gptcli.serve.endpoints.responses import Responses
from gptcli.serve.guards import Access, Guarded
from gptcli.serve.metrics import Metrics, Observed
from gptcli.serve.page import Page
from gptcli.serve.service import Service
from gptcli.serve.transport import Bodies, Call, Endpoint, ErrorAnswer, Handler


@dataclass(frozen=True)
class Outlets:
    """Outputs of the server. log: a line for each request. on_bug: called with an unexpected exception."""

    log: Callable[[str], object]
    on_bug: Callable[[Exception], object]


def make_app(service: Service, access: Access, outlets: Outlets, most_bytes: int) -> ASGIApp:
    """The server as an ASGI application. most_bytes: of a request's body."""
    responses = Responses(service)
    bodies = Bodies(most_bytes)
    metrics = Metrics(lambda: service.runner.waiting)
    paths: dict[str, dict[str, Handler]] = {
        CHAT: {"POST": partial(complete, service, CHAT)},
        TEXT: {"POST": partial(complete, service, TEXT)},
        "/v1/engines/{model:path}/completions": {"POST": partial(_with_path_model, service)},
        "/v1/responses": {"POST": responses.create},
        "/v1/responses/{id}": {"GET": responses.read, "DELETE": responses.delete},
        "/v1/messages": {"POST": partial(answer_message, service)},
        "/v1/messages/count_tokens": {"POST": partial(count_message_tokens, service)},
        "/v1/embeddings": {"POST": partial(embed, service)},
        "/tokenize": {"POST": partial(tokenize, service)},
        "/detokenize": {"POST": partial(detokenize, service)},
        "/v1/models": {"GET": partial(_models, service)},
        "/v1/models/{model:path}": {"GET": partial(_model, service)},
        "/": {"GET": Page().answer},
        "/health": {"GET": _health},
        "/metrics": {"GET": metrics.answer},
    }

    def endpoint(path: str, handlers: Mapping[str, Handler]) -> Endpoint:
        return Endpoint(handlers, bodies=bodies, error=_errors(path), on_bug=outlets.on_bug)

    routes = [Route(path, endpoint(path, handlers)) for path, handlers in paths.items()]
    nowhere = endpoint("", {"GET": _nowhere, "POST": _nowhere})
    router = Router(routes, redirect_slashes=False, default=nowhere)
    return Observed(Guarded(router, access, _errors), metrics, frozenset(paths), outlets.log)


def _errors(path: str) -> ErrorAnswer:
    """The format of errors in the API of a path."""
    return anthropic_error if path.startswith("/v1/messages") else _openai_error


def _openai_error(error: GptcliError) -> tuple[int, dict[str, Any]]:
    status, body = error_answer(error)
    return status, {"error": body}


async def _with_path_model(service: Service, call: Call) -> Any:
    """Answers OpenAI's oldest path, which names the model."""
    call.body = {"model": call.path["model"], **call.body}
    return await complete(service, TEXT, call)


async def _models(service: Service, call: Call) -> dict[str, Any]:
    records = [await service.read(partial(_record, service, name)) for name in service.models.names]
    return {"object": "list", "data": records}


async def _model(service: Service, call: Call) -> dict[str, Any]:
    name = call.path["model"]
    if name not in service.models.names:
        raise Refusal(404, f"there is no model {name[:80]}", "model_not_found")
    return await service.read(partial(_record, service, name))


def _record(service: Service, name: str) -> dict[str, Any]:
    """A model. max_model_len: its context in tokens, under other servers' name."""
    record = {"id": name, "object": "model", "created": 0, "owned_by": "gptcli"}
    return record | {"max_model_len": service.models.opened(name).lm.ctx_size}


async def _health(call: Call) -> dict[str, Any]:
    return {"status": "ok"}


async def _nowhere(call: Call) -> dict[str, Any]:
    raise Refusal(404, "there is nothing at this path; docs/serve.md has those that there are")
