"""Makes requests of a batch's lines, one for each of a line's choices, and gathers their texts again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from gptcli.cli.batch.answer_records import RecordId, Vectors, answer_record, error_record, vectors_record
from gptcli.cli.batch.bodies import PlainSettings, asked_of, filled
from gptcli.cli.batch.input_lines import InputLine
from gptcli.cli.batch.output_file import line_id
from gptcli.cli.json_records import json_line
from gptcli.cli.run_options import note_unheld
from gptcli.errors import GptcliError
from gptcli.generation.events import Completed
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.openai_api.bodies import Asked, AskedVectors
from gptcli.openai_api.prompting import Prompting
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches
from gptcli.tools.definitions import AUTO, Definition


@dataclass(frozen=True)
class BatchSettings:
    """Settings of every line that has none of its own.

    options: by the names of `Request`. template: of a prompt, with `{field}`s. system: of conversations without one.
    special: whether prompts spell control tokens. tools: of conversations that bring none. made_with: a hash of all
    this and of the model, which answers carry.
    """

    options: Mapping[str, Any]
    plain: PlainSettings
    template: str | None = None
    system: str | None = None
    special: bool = False
    tools: Sequence[Definition] = ()
    tool_choice: str = AUTO
    made_with: str = ""

    def with_model(self, *facts: object) -> Self:
        """The same with its hash. facts: what else answers depend on."""
        return replace(self, made_with=hashlib.sha256(repr((self, facts)).encode()).hexdigest()[:8])


@dataclass(frozen=True)
class Answered:
    """A line's answer: the line of the output, whether it is an error, and the tokens that were generated for it."""

    number: int
    record: bytes
    failed: bool
    tokens: int


@dataclass
class Work:
    """A line and the results of its requests so far. open: requests without a result. texts: by the choice's index."""

    line: InputLine
    asked: Asked | None = None
    open: int = 1
    texts: dict[int, Completed] = field(default_factory=dict)
    vectors: Vectors | None = None
    error: GptcliError | None = None

    @property
    def custom_id(self) -> str | None:
        """The line's own id for its answer, else one of its number."""
        given = self.line.fields.get("custom_id") if isinstance(self.line.fields, dict) else None
        return given if isinstance(given, str) else f"line-{self.line.number}"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C cut a text off, so that the line counts as not answered."""
        return any(text.finished.reason == "interrupt" for text in self.texts.values())

    def answered(self, model: str, made_with: str) -> Answered:
        """Its answer, once no request is open. made_with: see `BatchSettings`."""
        tokens = sum(text.finished.usage.completion_tokens for text in self.texts.values())
        return Answered(self.line.number, json_line(self._record(model, made_with)), self.error is not None, tokens)

    def _record(self, model: str, made_with: str) -> dict[str, Any]:
        id = RecordId(line_id(self.line), made_with)
        if self.vectors is not None:
            return vectors_record(id, self.custom_id, model, self.vectors)
        if self.error is not None or self.asked is None:
            assert self.error is not None
            return error_record(id, self.custom_id, self.error)
        texts = [self.texts[index] for index in sorted(self.texts)]
        return answer_record(id, self.custom_id, self.asked.url, model, texts, len(self.asked.prompts))


class Requests:
    """The requests of lines, as `complete_many` takes them. Only lines with open requests are in memory."""

    def __init__(
        self,
        lm: LanguageModel,
        settings: BatchSettings,
        template: Callable[[], tuple[ChatTemplate, Switches]],
        note: Callable[[str], None],
    ) -> None:
        self._lm, self._settings, self._note = lm, settings, note
        self._noted = set[str]()
        self._prompting = Prompting(
            lm, settings.options, template, settings.system, settings.special, settings.tools, settings.tool_choice
        )
        self._open: dict[int, tuple[Work, int]] = {}  # by index of the request: its line, and the choice
        self._index = 0

    def of(self, lines: Iterable[InputLine | None]) -> Iterator[Request | Vectors | GptcliError | None]:
        """Requests in the order of the lines; vectors or an error for a line without one, None for no line yet."""
        for line in lines:
            if line is None:
                yield None
                continue
            work = Work(line)
            made: Sequence[Request | Vectors | GptcliError]
            try:
                made = self._made(work)
            except GptcliError as error:
                made = [error]
            work.open = len(made)
            for choice, request in enumerate(made):
                self._open[self._index] = work, choice
                self._index += 1
                yield request

    def finished(self, index: int, answer: Completed | Vectors | GptcliError) -> Work | None:
        """Takes the result of the request with this index; returns the line if that was its last one."""
        work, choice = self._open.pop(index)
        if isinstance(answer, Completed):
            work.texts[choice] = answer
        elif isinstance(answer, Vectors):
            work.vectors = answer
        else:
            work.error = work.error or (answer if work.asked is None else work.asked.named(answer))
        work.open -= 1
        return None if work.open else work

    def _made(self, work: Work) -> Sequence[Request | Vectors]:
        if isinstance(work.line.fields, GptcliError):
            raise work.line.fields
        asked = self._asked(work.line.fields)
        if asked.model not in (None, self._lm.name):
            self._note_once("model", f"the requests name {asked.model[:80]}; {self._lm.name} answers them")
        if isinstance(asked, AskedVectors):
            texts = self._prompting.ids_to_embed(asked)
            numbers = [self._lm.embed(ids).tolist() for ids in texts]
            return [Vectors(numbers, sum(map(len, texts)), asked.packed)]
        work.asked = asked
        requests = self._prompting.requests(asked)
        note_unheld(requests[0].tools, partial(self._note_once, "strict"))
        return requests

    def _note_once(self, about: str, text: str) -> None:
        if about not in self._noted:
            self._noted.add(about)
            self._note(text)

    def _asked(self, fields: Mapping[str, Any]) -> Asked | AskedVectors:
        if self._settings.template is not None:
            return self._settings.plain.asked(filled(self._settings.template, fields))
        return asked_of(fields, self._settings.plain)
