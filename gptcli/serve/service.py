"""Shared by all endpoints: the models, their runner, and threads that read requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from gptcli.chat.thinking import Thoughts
from gptcli.errors import UsageError
from gptcli.generation.events import Finished
from gptcli.generation.request import Request
from gptcli.openai_api.bodies import CHAT, Asked, BadParameter
from gptcli.openai_api.prompting import Prompting
from gptcli.serve.runner import Runner
from gptcli.serve.served_models import ServedModels
from gptcli.serve.transport import Call
from gptcli.settings import SamplingConfig
from gptcli.text.chat_templates.chat_template import prompt_opens_thoughts
from gptcli.tools.thought_tags import OPENING

DEFAULT_TEXT_TOKENS = 16  # OpenAI's for `TEXT`; the answer in a conversation has none
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to run. name: of its model. requests: one for each text."""

    name: str
    prompting: Prompting
    asked: Asked
    requests: list[Request]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; each counts once."""
        return sum(len(request.prompt) for request in self.requests[:: self.asked.choices])

    def thoughts(self) -> Thoughts | None:
        """Splits thoughts from an answer; None if the model's template has none."""
        template, _ = self.prompting.template()
        if OPENING not in template.source:
            return None
        tokenizer, prompt = self.prompting.lm.tokenizer, self.requests[0].prompt
        begun = self.prompting.answer_ids(self.asked)
        before = [int(id) for id in prompt[: len(prompt) - len(begun)]]
        thoughts = Thoughts(inside=prompt_opens_thoughts(before, tokenizer))
        for _ in thoughts.push(tokenizer.decode(begun).decode("utf-8", "replace")):
            pass
        return thoughts


@dataclass
class Service:
    """The served models and their runner. most_tokens: of an answer; -1 is until the context is full."""

    models: ServedModels
    runner: Runner
    most_tokens: int = -1
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "reader"))

    def close(self) -> None:
        """Ends all texts, and threads once their current work is done."""
        self.runner.close()
        self.readers.shutdown(wait=False, cancel_futures=True)

    async def read(self, function: Callable[[], _Result]) -> _Result:
        """Runs slow work, such as encoding a text, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, function)

    async def prepared(self, asked: Asked) -> Prepared:
        """Makes requests of `asked`, with the model loaded. Raises GptcliError."""
        try:
            return await self.read(lambda: self._prepared(asked))
        except UsageError as error:
            raise asked.named(error) from None

    def _prepared(self, asked: Asked) -> Prepared:
        name = self.models.name(asked.model)
        prompting = self.models.loaded(name)
        limit = asked.options.get("max_tokens", -1 if asked.url == CHAT else DEFAULT_TEXT_TOKENS)
        limit = limit if self.most_tokens < 0 else self.most_tokens if limit < 0 else min(limit, self.most_tokens)
        requests = prompting.requests(replace(asked, options={**asked.options, "max_tokens": limit}))
        lm = prompting.lm
        begun = prompting.answer_ids(asked)
        if lm.stop_ids.intersection(begun):
            raise BadParameter("answer_ids", "answer_ids has a token that ends an answer")
        if not all(0 <= id < lm.tokenizer.size for id in begun):
            raise BadParameter("answer_ids", f"answer_ids must be token ids from 0 to {lm.tokenizer.size - 1}")
        for request in requests[:: asked.choices]:
            assert not isinstance(request.prompt, str)
            sampling = SamplingConfig.resolve(request.given, lm.sampling_defaults)
            lm.check_request(request.prompt, sampling, request.constraint)
        return Prepared(name, prompting, asked, requests)

    def count(self, asked: Asked) -> int:
        """The tokens of a conversation, which need not fit. Raises GptcliError."""
        [request] = self.models.opened(self.models.name(asked.model)).requests(asked)
        return len(request.prompt)

    async def spoken(self, prepared: Prepared, call: Call) -> AsyncGenerator[tuple[str, bool] | Finished]:
        """The answer of a conversation: texts, each with whether it is a thought, then its end."""
        thoughts = prepared.thoughts()
        async with aclosing(self.runner.texts(prepared.prompting.lm, prepared.requests[:1])) as events:
            async for _, each in events:
                if isinstance(each, Finished):
                    for piece in thoughts.flush() if thoughts else ():
                        yield piece
                    call.completion_tokens = each.usage.completion_tokens
                    yield each
                else:
                    for piece in [(each.text, False)] if thoughts is None else thoughts.push(each.text):
                        yield piece
