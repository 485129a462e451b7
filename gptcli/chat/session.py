"""A conversation with a model, and the cache of its tokens.

Each change of a session is an event, and its state is the sum of its events (`chat/events.py`). So it can be stored,
continued, forked and, with the seeds in the events, replayed.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, Unpack

from gptcli.chat.events import FORMAT_VERSION, History, Record, question_text
from gptcli.errors import InputError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.generation.request import StreamKeywords
from gptcli.runtime.engine import PromptCache, ReplyKeywords
from gptcli.settings import ChatSettings, ConstraintConfig, SamplingConfig, StopConfig
from gptcli.text.chat_templates.chat_template import ChatTemplate, Switches
from gptcli.text.messages import Message, message_record
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import AUTO, Definition, ToolCall

if TYPE_CHECKING:
    from gptcli.tools.formats import ToolUse


class ChatModel(Protocol):
    """A model, as a session uses it; see `language_model.LanguageModel`."""

    ctx_size: int
    tokenizer: Tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template. Raises TemplateError."""

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """The model's sampling defaults."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Facts about how replies are computed, for stored replies."""

    def check_request(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        constraint: ConstraintConfig | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        """Raises UsageError or ContextOverflow for a prompt that cannot be continued."""

    def stream(
        self, prompt: Sequence[int], sampling: SamplingConfig, stop: StopConfig, **options: Unpack[StreamKeywords]
    ) -> Iterator[TextDelta | Finished]:
        """Continues a prompt: text as it comes, then one Finished."""


Model = TypeVar("Model", bound=ChatModel)


class Journal(Protocol):
    """Where a session's events are written as they happen."""

    def append(self, record: Record) -> None:
        """Writes the next event."""

    def sync(self) -> None:
        """Makes sure that a completed turn is on disk."""


@dataclass(frozen=True)
class TurnsDropped:
    """The conversation no longer fits: from now on the model does not see this many more of the oldest turns.

    They stay among the messages.
    """

    turns: int


ReplyEvent = TextDelta | TurnsDropped | Finished


class Session(Generic[Model]):
    """A conversation with a model. A turn does not run the prefix that it shares with the turn before.

    events: all of them, as JSON objects that `restored` takes. finished: how each reply of this process ended.
    records_probabilities: whether the next replies come with their tokens' probabilities. borrows_model: whether the
    model only stands in for the session's own.
    """

    def __init__(
        self,
        lm: Model,
        system: str | None = None,
        settings: ChatSettings | None = None,
        *,
        template: ChatTemplate | None = None,
    ) -> None:
        self.finished: list[Finished] = []
        self.records_probabilities = False
        self.borrows_model = False
        self.events: list[Record] = []
        self._lm = lm
        self._own_template = template
        self._cache = PromptCache()
        self._journal: Journal | None = None
        self._history = History()
        self._overrides: dict[str, Any] = {}  # precede the settings of the events; not among the events
        self._defaults: dict[str, Any] = {}  # follow them; not among the events either
        self._measured = 0, 0  # events when the prompt was measured, and its tokens
        self._record({"type": "session", "version": FORMAT_VERSION, "created": _now()})
        if system is not None:
            self.system = system
        if settings is not None:
            self.settings = settings

    @classmethod
    def restored(cls, lm: Model, events: Sequence[Record], *, template: ChatTemplate | None = None) -> Session[Model]:
        """A session as its events left it. Raises InputError for other events than a session's."""
        session = cls(lm, template=template)
        if events:
            session.events.clear()
        for number, event in enumerate(events, 1):
            try:
                session._history.apply(event)
            except (KeyError, TypeError, ValueError, UsageError) as error:
                raise InputError(f"not a session: event {number}: {error}") from None
            session.events.append(event)
        session._take_question_back()
        return session

    @property
    def lm(self) -> Model:
        """The model that answers."""
        return self._lm

    @lm.setter
    def lm(self, lm: Model) -> None:
        if lm is not self._lm:
            self._lm, self._cache, self._measured = lm, PromptCache(), (0, 0)
            self.borrows_model = False

    @property
    def template(self) -> ChatTemplate:
        """The session's own template, else the model's. Raises TemplateError."""
        return self._own_template or self._lm.template

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system message first if there is one."""
        return self._history.messages()

    @property
    def unanswered(self) -> str | None:
        """The last question, if it was taken back or the process died before its reply; `retry` asks it again."""
        question = self._history.unanswered
        return None if question is None else question_text(question)

    @property
    def question(self) -> str | None:
        """The question that `retry` asks again: the `unanswered` one, else the last, if there is one."""
        question = self._history.unanswered or next(iter(self._history.turns[-2:-1]), None)
        return None if question is None else question_text(question)

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The last reply's calls of tools, which `answer` answers."""
        return self._history.open_calls

    @property
    def system(self) -> str | None:
        """The system message."""
        return self._history.system

    @system.setter
    def system(self, text: str | None) -> None:
        self._record({"type": "system", "content": text})

    @property
    def settings(self) -> ChatSettings:
        """How replies are drawn and when they end."""
        kept = self._history.settings
        if not self._overrides and not self._defaults:
            return kept
        below = {name: value for name, value in self._defaults.items() if name not in kept.record}
        return replace(kept, **below | self._overrides)

    @settings.setter
    def settings(self, settings: ChatSettings) -> None:
        self._check_switches(settings)
        self._overrides, self._defaults = {}, {}
        self._record({"type": "settings", "settings": settings.record})

    @property
    def switches(self) -> Switches:
        """The variables of the template that the settings give."""
        given = self.settings
        return {"thinking": given.thinking, "reasoning_effort": given.reasoning_effort, "tools": given.offered}

    def offer(self, tools: Sequence[Definition]) -> None:
        """Offers tools to the model from now on. Raises UsageError for bad tools, and if the template takes none."""
        kept = replace(self._history.settings, tools=tuple(tools))
        if tools:
            self.template.tool_use(kept.tools, AUTO, self._lm.tokenizer)
        if kept != self._history.settings:
            self._record({"type": "settings", "settings": kept.record})

    @property
    def tool_use(self) -> ToolUse | None:
        """Finds the calls of the next reply; None without tools. Raises as `ChatTemplate.tool_use` does."""
        settings = self.settings
        if not settings.offered:
            return None
        return self.template.tool_use(settings.tools, settings.tool_choice, self._lm.tokenizer)

    def origin(self, name: str) -> Literal["option", "session", "file", "default"]:
        """The origin of a setting's value: `override`'s given, the events, `override`'s defaults, or none of them."""
        if name in self._overrides:
            return "option"
        if name in self._history.settings.record:
            return "session"
        return "file" if name in self._defaults else "default"

    def change(self, name: str, text: str) -> None:
        """Changes one setting for good, as a user spells it, and drops its override. Raises UsageError."""
        changed = self.settings.changed(name, text)
        self._check_switches(changed)
        name = name.replace("-", "_")
        self._overrides.pop(name, None)
        kept = replace(self._history.settings, **{name: changed.values[name]})
        self._record({"type": "settings", "settings": kept.record, **({"seeds": True} if name == "seed" else {})})

    def override(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Changes settings for as long as this object lives, without an event. Raises UsageError.

        given: precede the settings of the events. defaults: follow them.
        """
        self._check_switches(replace(self.settings, **{**defaults, **given}))
        self._overrides, self._defaults = dict(given), dict(defaults)

    def _check_switches(self, settings: ChatSettings) -> None:
        if settings.thinking is not None or settings.reasoning_effort is not None:
            self.template.check_switches(thinking=settings.thinking, reasoning_effort=settings.reasoning_effort)

    def keep_in(self, journal: Journal | None, *, kept: int = 0) -> None:
        """Writes all events, past and future, to a journal that has the first `kept` of them; None ends writing."""
        self._journal = journal
        if journal is not None:
            for event in self.events[kept:]:
                journal.append(event)

    def preview(self, said: str | Sequence[str]) -> list[Message]:
        """The messages that the model would get with a question, or with the answers of the tools it called.

        Raises as `send` and `answer` do. Needs no weights.
        """
        self._history.turns.append(self._question(said))
        try:
            hidden, prompt = self._fitting()
            self._lm.check_request(prompt, self._next_sampling(), self.settings.constraint, self.tool_use)
            return self._history.messages(hidden)
        finally:
            self._history.turns.pop()

    def send(self, text: str, **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        """Asks a question; yields the reply as it comes. Nothing happens until the first event is read.

        Once `cancelled` is true the reply ends, and is kept and marked. A question is taken back if it gets no reply,
        after an error or an interrupt, or if its reply is not read to the end. Raises as LanguageModel.stream does,
        UsageError while another reply is being read, and ContextOverflow if the question alone does not fit.
        """
        return self._ask(self._question(text), **run)

    def answer(self, results: Sequence[str], **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        """Answers the last reply's calls of tools, one for each of `open_calls`.

        Otherwise as `send`. Raises UsageError for another number of answers.
        """
        return self._ask(self._question(results), **run)

    def _question(self, said: str | Sequence[str]) -> Record:
        if isinstance(said, str):
            return {"type": "message", "role": "user", "content": said}
        names = ", ".join(call.name for call in self.open_calls)
        if len(said) != len(self.open_calls) or not said:
            called = f"called {len(self.open_calls)} tools: {names}" if names else "called no tool"
            raise UsageError(f"the last reply {called}; there are {len(said)} answers")
        return {"type": "message", "role": "tool", "content": list(said)}

    def retry(self, text: str | None = None, **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        """Asks the last or the `unanswered` question again with the next seed, or another question instead of it.

        Keeps the old turn if the new one produces no reply, even if the process dies. Otherwise as `send`. Raises
        UsageError if there is nothing to ask again.
        """
        question = self._history.unanswered
        if question is None:
            question = {**self._last_question("ask again"), "instead": True}
        if text is not None and question["role"] == "tool" and len(question["content"]) != 1:
            raise UsageError("the last question was the answers of several tools; one text cannot take their place")
        if text is not None:
            question = {**question, "content": text if question["role"] == "user" else [text]}
        return self._ask(question, **run)

    def undo(self) -> str:
        """Takes the last turn back; returns its question. Raises UsageError if there is no turn."""
        text = question_text(self._last_question("take back"))
        self._truncate(len(self._history.turns) - 2)
        return text

    def fork(self) -> Session[Model]:
        """A session with the same events so far, which shares the cache."""
        fork = Session.restored(self._lm, self.events, template=self._own_template)
        self._lend(fork)
        return fork

    def successor(self, events: Sequence[Record] | None = None) -> Session[Model]:
        """Another session with this model, overrides and cache: of `events`, or of this system message and settings.

        Raises InputError for other events than a session's.
        """
        if events is None:
            other = Session(self._lm, self.system, self._history.settings, template=self._own_template)
        else:
            other = Session.restored(self._lm, events, template=self._own_template)
        self._lend(other)
        return other

    def _lend(self, other: Session[Model]) -> None:
        other._overrides, other._defaults = dict(self._overrides), dict(self._defaults)
        other.share_cache(self)

    def share_cache(self, other: Session[Model]) -> None:
        """Uses the cache of another session of the same model, which saves running the common prefix."""
        if other._lm is self._lm:
            self._cache = other._cache

    def prompt(self) -> list[int]:
        """Token ids that the model would get now."""
        return self._rendered(self._history.hidden)

    @property
    def used(self) -> int:
        """The number of tokens that the conversation takes of the context."""
        if self._measured[0] != len(self.events):
            self._measured = len(self.events), len(self.prompt()) if self.messages else 0
        return self._measured[1]

    def _rendered(self, hidden: int) -> list[int]:
        return self.template.render(self._history.messages(hidden), self._lm.tokenizer, **self.switches)

    def _last_question(self, purpose: str) -> Record:
        self._check_ended()
        if not self._history.turns:
            raise UsageError(f"there is no turn to {purpose}")
        return self._history.turns[-2]

    def _check_ended(self) -> None:
        if self._history.asks:
            raise UsageError("the reply before has not ended: read it to its end, or close it")

    def _ask(self, question: Record, **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        self._check_ended()
        self._record(question)
        try:
            yield from self._answer(**run)
        finally:
            self._take_question_back()
            if self._journal is not None:
                self._journal.sync()

    def _answer(self, **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        hidden, prompt = self._fitting()
        sampling = self._next_sampling()
        stopping = self.settings.stopping
        tools = self.tool_use
        self._lm.check_request(prompt, sampling, self.settings.constraint, tools)
        if hidden > self._history.hidden:
            yield TurnsDropped((hidden - self._history.hidden) // 2)
        answer = b""
        for event in self._lm.stream(
            prompt,
            sampling,
            # Turns are dropped before a reply, never during one.
            replace(stopping, overflow="stop") if stopping.overflow == "shift" else stopping,
            cache=self._cache,
            constraint=self.settings.constraint,
            logprobs=0 if self.records_probabilities else None,
            tools=tools,
            **run,
        ):
            if isinstance(event, TextDelta):
                answer += event.data
            else:
                self.finished.append(event)
                if answer or event.tool_calls or event.reason != "interrupt":
                    self._record(self._reply(answer.decode("utf-8", "replace"), event, hidden, sampling))
            yield event

    def _fitting(self) -> tuple[int, list[int]]:
        """The number of messages to hide for a reply to fit, and the prompt without them.

        Hides turns until half of the context is free: hiding makes the cache useless, so it must be rare.
        """
        prompt = self._rendered(self._history.hidden)
        size = self._lm.ctx_size
        longest = self.settings.max_tokens
        room = size // 4 if longest < 0 else min(longest, size // 4)
        if self.settings.overflow != "shift" or len(prompt) + room <= size:
            return self._history.hidden, prompt
        starts = [
            start
            for start in range(self._history.hidden, len(self._history.turns), 2)
            if self._history.turns[start]["role"] == "user"  # a tool's answer needs its call
        ]
        first = bisect_left(starts, True, lo=1, key=lambda start: len(self._rendered(start)) <= size // 2)
        hidden = starts[min(first, len(starts) - 1)]
        return hidden, self._rendered(hidden)

    def _next_sampling(self) -> SamplingConfig:
        """The sampling of the next reply; a seed counts up from where it was set, so that a retry differs."""
        sampling = self.settings.sampling(self._lm.sampling_defaults)
        if sampling.seed is None:
            return sampling
        since = self._history.seeded if self.origin("seed") == "session" else 0
        return replace(sampling, seed=(sampling.seed + self._history.replies - since) % 2**64)

    def _reply(self, text: str, finished: Finished, hidden: int, sampling: SamplingConfig) -> dict[str, Any]:
        return {
            "type": "message",
            **message_record(Message("assistant", text, finished.reason == "interrupt", finished.tool_calls)),
            "hidden": hidden,
            "ids": finished.ids,
            "finish_reason": finished.reason,
            "seed": finished.seed,
            "sampling": asdict(replace(sampling, seed=finished.seed)),
            **self._lm.provenance,
            **({"borrowed": True} if self.borrows_model else {}),
            "time": _now(),
        }

    def _take_question_back(self) -> None:
        if self._history.asks:
            self._truncate(len(self._history.turns) - 1)

    def _truncate(self, length: int) -> None:
        self._record({"type": "truncate", "messages": length})

    def _record(self, event: Record) -> None:
        self._history.apply(event)
        self.events.append(event)
        if self._journal is not None:
            self._journal.append(event)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
