"""OpenAI's `/v1/chat/completions` and `/v1/completions`, whole and as streams."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptcli.chat.thinking import Thoughts
from gptcli.generation.events import Completed, Event, Finished, StepLogprobs
from gptcli.openai_api.answers import (
    answer_body,
    chat_choice,
    chat_logprobs,
    heading,
    text_choice,
    text_logprobs,
    token_columns,
    usage_record,
)
from gptcli.openai_api.bodies import CHAT, asked_of_body
from gptcli.serve.service import Prepared, Service
from gptcli.serve.transport import Call, Events, event


async def complete(service: Service, url: str, call: Call) -> dict[str, Any] | Events:
    """Answers a body for `CHAT` or `TEXT`."""
    asked = asked_of_body(url, call.body)
    prepared = await service.prepared(asked)
    call.prompt_tokens = prepared.prompt_tokens
    if asked.stream:
        return _streamed(service, prepared, call)
    heard: list[list[Event]] = [[] for _ in prepared.requests]
    async with aclosing(service.runner.texts(prepared.prompting.lm, prepared.requests)) as events:
        async for index, each in events:
            heard[index].append(each)
            if isinstance(each, Finished):
                call.completion_tokens += each.usage.completion_tokens
    texts = list(map(Completed.of, heard))
    if url == CHAT:
        choices = [chat_choice(index, text, prepared.thoughts()) for index, text in enumerate(texts)]
    else:
        echoes = await _echoes(service, prepared)
        choices = [text_choice(index, text, *echoes[index // asked.choices]) for index, text in enumerate(texts)]
    usage = usage_record(call.prompt_tokens, call.completion_tokens)
    return answer_body(secrets.token_hex(12), url, prepared.name, choices, usage)


async def _echoes(service: Service, prepared: Prepared) -> list[tuple[str, dict[str, Any] | None]]:
    """The prompt of each text with its log-probabilities, for `echo`; empty without it."""
    asked = prepared.asked
    if not asked.echo:
        return [("", None)] * len(asked.prompts)
    lm, echoes = prepared.prompting.lm, list[tuple[str, dict[str, Any] | None]]()
    tokenizer = lm.tokenizer
    for prompt, request in zip(asked.prompts, prepared.requests[:: asked.choices], strict=True):
        ids, top = [int(id) for id in request.prompt], asked.logprobs
        text = prompt if isinstance(prompt, str) else tokenizer.decode(ids).decode("utf-8", "replace")
        if top is None:
            echoes.append((text, None))
            continue
        score = await service.runner.call(lm, partial(lm.score_ids, ids, top=top))
        names = map(tokenizer.token_name, ids)
        echoes.append((text, token_columns(zip(names, score.logprobs, score.top, strict=True))))
    return echoes


async def _streamed(service: Service, prepared: Prepared, call: Call) -> Events:
    asked = prepared.asked
    head = heading(secrets.token_hex(12), asked.url, prepared.name, chunk=True)
    if asked.include_usage:
        head["usage"] = None
    choices: list[ChatChoice] | list[TextChoice]
    if asked.url == CHAT:
        choices = [ChatChoice(index, prepared.thoughts()) for index in range(len(prepared.requests))]
    else:
        echoes = await _echoes(service, prepared)
        choices = [TextChoice(index, *echoes[index // asked.choices]) for index in range(len(prepared.requests))]
    async with aclosing(service.runner.texts(prepared.prompting.lm, prepared.requests)) as events:
        async for index, each in events:
            for choice in choices[index].said(each):
                yield event({**head, "choices": [choice]})
            if isinstance(each, Finished):
                call.completion_tokens += each.usage.completion_tokens
    if asked.include_usage:
        usage = usage_record(call.prompt_tokens, call.completion_tokens)
        yield event({**head, "choices": [], "usage": usage})
    yield event("[DONE]")


@dataclass
class ChatChoice:
    """One answer of a conversation, as chunks of a stream."""

    index: int
    thoughts: Thoughts | None
    begun: bool = False
    steps: int = 0  # with log-probabilities sent

    def said(self, each: Event) -> Iterator[dict[str, Any]]:
        """The choices of an event's chunks."""
        if not self.begun:
            self.begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        if isinstance(each, Finished):
            for text, thought in self.thoughts.flush() if self.thoughts else ():
                yield self._delta(text, thought)
            if each.tool_calls:
                calls = [{"index": number, **call.record} for number, call in enumerate(each.tool_calls)]
                yield self._chunk({"tool_calls": calls})
            yield self._chunk({}, (each.logprobs or ())[self.steps :], each.reason)
            return
        pieces = [(each.text, False)] if self.thoughts is None else list(self.thoughts.push(each.text))
        if not pieces and each.steps:
            pieces = [("", False)]
        for number, (text, thought) in enumerate(pieces):
            yield self._delta(text, thought, each.steps if number == 0 else ())

    def _delta(self, text: str, thought: bool, steps: tuple[StepLogprobs, ...] = ()) -> dict[str, Any]:
        return self._chunk({"reasoning_content" if thought else "content": text}, steps)

    def _chunk(
        self, delta: dict[str, Any], steps: tuple[StepLogprobs, ...] = (), reason: str | None = None
    ) -> dict[str, Any]:
        self.steps += len(steps)
        logprobs = chat_logprobs(steps) if steps else None
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


@dataclass
class TextChoice:
    """One text, as chunks of a stream."""

    index: int
    echo: str = ""
    echoed: dict[str, Any] | None = None
    begun: bool = False
    steps: int = 0  # with log-probabilities sent
    offset: int = 0  # characters of their tokens

    def said(self, each: Event) -> Iterator[dict[str, Any]]:
        """The choices of an event's chunks."""
        if self.echo and not self.begun:
            self.begun, self.offset = True, len(self.echo)
            yield {"index": self.index, "text": self.echo, "logprobs": self.echoed, "finish_reason": None}
        if isinstance(each, Finished):
            yield self._chunk("", (each.logprobs or ())[self.steps :], each.reason)
        else:
            yield self._chunk(each.text, each.steps)

    def _chunk(self, text: str, steps: tuple[StepLogprobs, ...], reason: str | None = None) -> dict[str, Any]:
        logprobs = text_logprobs(steps, self.offset) if steps else None
        self.steps += len(steps)
        self.offset += sum(map(len, logprobs["tokens"])) if logprobs else 0
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
