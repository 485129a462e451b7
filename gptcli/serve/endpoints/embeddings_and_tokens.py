"""The embeddings of texts, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from gptcli.openai_api.answers import vectors_body
from gptcli.openai_api.bodies import (
    BadParameter,
    asked_vectors,
    check_flag,
    check_ids,
    known_only,
    messages_of,
    model_of,
)
from gptcli.serve.service import Service
from gptcli.serve.transport import Call


async def embed(service: Service, call: Call) -> dict[str, Any]:
    """`/v1/embeddings`: the mean of each text's last hidden states, of length 1."""
    asked = asked_vectors(call.body)
    name = service.models.name(asked.model)
    prompting = await service.read(lambda: service.models.loaded(name))
    lm = prompting.lm

    def embedded(ids: Sequence[int]) -> list[float]:
        vector: list[float] = lm.embed(ids).tolist()
        return vector

    texts = await service.read(lambda: prompting.ids_to_embed(asked))
    call.prompt_tokens = sum(map(len, texts))
    vectors = [await service.runner.call(lm, partial(embedded, ids)) for ids in texts]
    return vectors_body(name, vectors, call.prompt_tokens, packed=asked.packed)


async def tokenize(service: Service, call: Call) -> dict[str, Any]:
    """`/tokenize`: the tokens of a text, or of a conversation as its template renders it."""
    known = {"model", "user", "prompt", "content", "messages", "add_special_tokens", "add_special"}
    given = known_only(call.body, known)
    texts = [given[name] for name in ("prompt", "content") if name in given]
    special = check_flag("add_special_tokens", given.get("add_special_tokens", given.get("add_special", True)))
    name = service.models.name(model_of(call.body))
    messages = messages_of(given["messages"]) if "messages" in given else None
    if len(texts) + (messages is not None) != 1 or (texts and not isinstance(texts[0], str)):
        raise BadParameter("prompt", "there must be either a prompt, a text, or messages")

    def tokens() -> dict[str, Any]:
        prompting = service.models.opened(name)
        tokenizer = prompting.lm.tokenizer
        if messages is not None:
            ids = prompting.rendered(messages, {})
        else:
            ids = prompting.encoded(texts[0], add_special=special)
        most = prompting.lm.ctx_size
        pieces = [
            {"id": id, "piece": tokenizer.token_name(id), "special": tokenizer.is_control(id)} for id in ids[:most]
        ]
        return {"count": len(ids), "max_model_len": most, "tokens": ids, "pieces": pieces}

    return await service.read(tokens)


async def detokenize(service: Service, call: Call) -> dict[str, Any]:
    """`/detokenize`: the text of tokens."""
    given = known_only(call.body, {"model", "user", "tokens"})
    ids = check_ids("tokens", given.get("tokens"))
    name = service.models.name(model_of(call.body))

    def text() -> str:
        lm = service.models.opened(name).lm
        if not all(0 <= id < lm.tokenizer.size for id in ids):
            raise BadParameter("tokens", f"tokens must be ids from 0 to {lm.tokenizer.size - 1}")
        return lm.tokenizer.decode(ids).decode("utf-8", "replace")

    said = await service.read(text)
    return {"prompt": said, "content": said}
