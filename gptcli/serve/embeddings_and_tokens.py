"""The embeddings of texts, and their tokens."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from functools import partial
from typing import Any

from gptcli.errors import UsageError
from gptcli.openai_api.bodies import (
    BadParameter,
    check_flag,
    check_ids,
    known_only,
    messages_of,
    model_of,
    prompts_of,
)
from gptcli.serve.service import Service
from gptcli.serve.transport import Call
from gptcli.settings import SamplingConfig


async def embed(service: Service, call: Call) -> dict[str, Any]:
    """`/v1/embeddings`: the mean of each text's last hidden states, of length 1."""
    given = known_only(call.body, {"model", "user", "input", "encoding_format"})
    inputs, form = prompts_of("input", given.get("input")), given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadParameter("encoding_format", "encoding_format must be float or base64")
    name = service.models.name(model_of(call.body))
    prompting = await service.read(lambda: service.models.loaded(name))
    lm = prompting.lm

    def ids_of(each: str | Sequence[int]) -> Sequence[int]:
        ids = prompting.encoded(each) if isinstance(each, str) else each
        try:
            lm.check_request(ids, SamplingConfig())
        except UsageError as error:
            raise BadParameter("input", error.message) from None
        return ids

    def embedded(ids: Sequence[int]) -> list[float]:
        vector: list[float] = lm.embed(ids).tolist()
        return vector

    texts = await service.read(lambda: [ids_of(each) for each in inputs])
    call.prompt_tokens = sum(map(len, texts))
    data = []
    for index, ids in enumerate(texts):
        vector = await service.runner.call(lm, partial(embedded, ids))
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed if form == "base64" else vector})
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


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
