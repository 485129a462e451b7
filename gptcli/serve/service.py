"""What all endpoints share: the models, the engine's thread, and where requests are read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from gptcli.chat.thinking import OPENING, Thoughts
from gptcli.generation.request import Request
from gptcli.serve.engine_thread import EngineThread
from gptcli.serve.models import ServedModels
from gptcli.serve.openai_bodies import CHAT, Asked
from gptcli.serve.prompting import Prompting
from gptcli.settings import SamplingConfig

DEFAULT_TEXT_TOKENS = 16  # OpenAI's for `TEXT`; the answer in a conversation has none
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Prepared:
    """A request that can be run: by whom, and what becomes a text each. inside_thoughts: whether answers begin so."""

    name: str
    prompting: Prompting
    requests: list[Request]


@dataclass
class Service:
    """The models that are served, and how. most_tokens: of an answer; -1 is as many as the context holds."""

    models: ServedModels
    engine: EngineThread
    most_tokens: int = -1
    # One thread, for neither sandboxes nor templates are made for several.
    reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))

    async def read(self, function: Callable[[], _Result]) -> _Result:
        """Runs what takes a while, such as encoding a text, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, function)

    async def prepared(self, asked: Asked) -> Prepared:
        """Makes requests of what was asked for. Raises GptcliError."""
        return await self.read(lambda: self._prepared(asked))

    def _prepared(self, asked: Asked) -> Prepared:
        name = self.models.name(asked.model)
        prompting = self.models.get(name)
        limit = asked.options.get("max_tokens", -1 if asked.url == CHAT else DEFAULT_TEXT_TOKENS)
        limit = limit if self.most_tokens < 0 else self.most_tokens if limit < 0 else min(limit, self.most_tokens)
        requests = prompting.requests(replace(asked, options={**asked.options, "max_tokens": limit}))
        lm = prompting.lm
        for request in requests[:: asked.choices]:
            assert not isinstance(request.prompt, str)
            sampling = SamplingConfig.resolve(request.given, lm.sampling_defaults)
            lm.check_request(request.prompt, sampling, request.constraint)
        return Prepared(name, prompting, requests)

    def thoughts(self, prepared: Prepared, asked: Asked) -> Thoughts | None:
        """What tells an answer's thoughts apart, if the model's template knows any."""
        template, _ = prepared.prompting.template()
        if OPENING not in template.source:
            return None
        tokenizer, prompt = prepared.prompting.lm.tokenizer, prepared.requests[0].prompt
        rendered = prompt[: len(prompt) - len(asked.answer_ids)]
        end = b"".join(tokenizer.token_bytes(int(id)) for id in rendered[-8:])
        thoughts = Thoughts(inside=end.rstrip().endswith(OPENING.encode()))
        for _ in thoughts.push(tokenizer.decode(asked.answer_ids).decode("utf-8", "replace")):
            pass
        return thoughts
