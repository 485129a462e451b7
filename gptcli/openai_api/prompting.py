"""Makes requests of a model: prompts become token ids, settings get the model's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gptcli.errors import ContextOverflow, UsageError
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.openai_api.bodies import CHAT, Asked, AskedVectors, BadParameter
from gptcli.settings import CONSTRAINT_FIELDS, SamplingConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches
from gptcli.text.messages import Message
from gptcli.tools.definitions import AUTO, NONE, Definition


@dataclass(frozen=True)
class Prompting:
    """Makes a model's requests.

    options: defaults, by the names of `Request`. template: finds the chat template and its switches once a conversation
    needs them. system: for conversations without one; None is the model's own. special: whether prompts spell control
    tokens. tools, tool_choice: for conversations without any.
    """

    lm: LanguageModel
    options: Mapping[str, Any]
    template: Callable[[], tuple[ChatTemplate, Switches]]
    system: str | None = None
    special: bool = False
    tools: Sequence[Definition] = ()
    tool_choice: str = AUTO

    def requests(self, asked: Asked) -> list[Request]:
        """A request for each choice of each prompt, in their order; seeds count up. Raises GptcliError."""
        base = dict(self.options)
        if any(name in asked.options for name in CONSTRAINT_FIELDS):
            base = {name: value for name, value in base.items() if name not in CONSTRAINT_FIELDS}
        tools, choice = self._offered(asked)
        parallel = asked.parallel_tool_calls
        use = self.template()[0].tool_use(tools, choice, self.lm.tokenizer, parallel=parallel) if tools else None
        requests = []
        for prompt in asked.prompts:
            options = base | dict(asked.options)
            ids = [*self._ids(asked, prompt, tools), *self.answer_ids(asked)]
            for number in range(asked.choices):
                if number and type(seed := options.get("seed")) is int:  # the first request has checked its range
                    options = options | {"seed": (seed + 1) % 2**64}
                requests.append(Request(ids, logprobs=asked.logprobs, tools=use, **options))
        return requests

    def _offered(self, asked: Asked) -> tuple[Sequence[Definition], object]:
        """The tools that the model is offered, and the choice among them."""
        tools, choice = asked.tools, asked.tool_choice
        if asked.url == CHAT and not tools:
            tools, choice = self.tools, self.tool_choice if choice == AUTO else choice
        if not tools and choice not in (AUTO, NONE):
            raise BadParameter("tool_choice", "tool_choice needs tools")
        return () if choice == NONE else tools, choice

    def _ids(
        self, asked: Asked, prompt: str | Sequence[int] | Sequence[Message], tools: Sequence[Definition]
    ) -> Sequence[int]:
        if asked.url == CHAT:
            messages = [message for message in prompt if isinstance(message, Message)]
            return self.rendered(messages, {**asked.switches, "tools": tools})
        if isinstance(prompt, str):
            if not prompt:
                raise BadParameter("prompt", "the prompt is empty")
            return self.encoded(prompt)
        return [id for id in prompt if isinstance(id, int)]

    def ids_to_embed(self, asked: AskedVectors) -> list[Sequence[int]]:
        """Token ids of the texts whose embeddings are asked for. Raises BadParameter or ContextOverflow."""
        size = self.lm.folder.architecture.config.hidden_size
        if asked.dimensions not in (None, size):
            raise BadParameter("dimensions", f"dimensions must be {size}: the model's embeddings are not shortened")
        texts = [self.encoded(each) if isinstance(each, str) else each for each in asked.inputs]
        try:
            for ids in texts:
                self.lm.check_request(ids, SamplingConfig())
        except UsageError as error:
            raise BadParameter("input", error.message) from None
        return texts

    def encoded(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a text. Raises ContextOverflow, for a text that cannot fit before it is encoded."""
        self._check_length(len(text))
        return self.lm.tokenizer.encode(text, special=self.special, add_special=add_special)

    def _check_length(self, characters: int, messages: int = 0) -> None:
        """Raises ContextOverflow: a message has a token at least, a token no more bytes than the longest piece."""
        ctx_size = self.lm.ctx_size
        if characters > ctx_size * self._longest_piece or messages > ctx_size:
            what = f"{messages} messages" if messages > ctx_size else f"{characters} characters"
            raise ContextOverflow(f"the prompt does not fit: {what} in a context of {ctx_size} tokens")

    @cached_property
    def _longest_piece(self) -> int:
        """Bytes of the longest piece; no token's text is longer."""
        vocabulary = self.lm.tokenizer.library.get_vocab(with_added_tokens=True)
        return max(len(piece.encode("utf-8", "replace")) for piece in vocabulary)

    def answer_ids(self, asked: Asked) -> Sequence[int]:
        """The ids that an answer begins with."""
        begun = asked.answer_ids
        return self.lm.tokenizer.encode(begun, add_special=False) if isinstance(begun, str) else begun

    def rendered(self, messages: Sequence[Message], asked: Switches) -> list[int]:
        """Token ids of a conversation. asked: switches that replace the command's."""
        system = self.lm.store.system if self.system is None else self.system
        if system is not None and messages[0].role != "system":
            messages = [Message("system", system), *messages]
        self._check_length(sum(len(message.content) for message in messages), len(messages))
        template, switches = self.template()
        template.check_switches(**asked)
        given: Any = {name: value for name, value in asked.items() if value is not None}
        switches = {**switches, **given}
        return template.render(messages, self.lm.tokenizer, **switches)
