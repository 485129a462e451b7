"""A conversation with a model, and the cache of what was run for it.

Whatever happens to a session is an event, and its state is what the events add up to (`chat/events.py`). So it can be
stored, continued, forked and, as seeds are among the events, replayed.
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
from gptcli.text.chat_template import ChatTemplate
from gptcli.text.messages import Message, message_record
from gptcli.text.tokenizer import Tokenizer
from gptcli.tools.definitions import AUTO, Definition, ToolCall

if TYPE_CHECKING:
    from gptcli.tools.formats import ToolUse


class ChatModel(Protocol):
    """What a session asks of a model; see `language_model.LanguageModel`."""

    ctx_size: int
    tokenizer: Tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The chat template that the model brings. Raises TemplateError."""

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """Sampling defaults that the model brings."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What a stored reply says of how it was computed."""

    def check_request(
        self,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        constraint: ConstraintConfig | None = None,
        tools: ToolUse | None = None,
    ) -> None:
        """Raises UsageError or ContextOverflow where a prompt cannot be continued."""

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
    """The conversation no longer fits: the model does not see so many more of its oldest turns from now on.

    They stay among the messages.
    """

    turns: int


ReplyEvent = TextDelta | TurnsDropped | Finished


class Session(Generic[Model]):
    """A conversation with a model. What a turn shares with the one before is not run again.

    events: all that happened, as JSON objects that `restored` takes. finished: how each reply of this process ended.
    records_probabilities: whether the next replies come with their tokens' probabilities. borrows_model: whether
    replies leave open which model the session goes on with.
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
        self._overrides: dict[str, Any] = {}  # settings above those of the events, and
        self._defaults: dict[str, Any] = {}  # below them; neither are among the events
        self._measured = 0, 0  # number of events when the prompt was measured, and its tokens
        self._record({"type": "session", "version": FORMAT_VERSION, "created": _now()})
        if system is not None:
            self.system = system
        if settings is not None:
            self.settings = settings

    @classmethod
    def restored(cls, lm: Model, events: Sequence[Record], *, template: ChatTemplate | None = None) -> Session[Model]:
        """A session as its events left it. Raises InputError if they are not those of a session."""
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
        """What renders the conversation: the session's template, or the model's. Raises TemplateError."""
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
        """What `retry` asks again: the `unanswered` question, else the last one, if there is one."""
        question = self._history.unanswered or next(iter(self._history.turns[-2:-1]), None)
        return None if question is None else question_text(question)

    @property
    def open_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the last reply called, whose answers `answer` gives."""
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

    def offer(self, tools: Sequence[Definition]) -> None:
        """Tells the model of tools from now on. Raises UsageError if they are none, or the template takes none."""
        kept = replace(self._history.settings, tools=tuple(tools))
        if tools:
            self.template.tool_use(kept.tools, AUTO, self._lm.tokenizer)
        if kept != self._history.settings:
            self._record({"type": "settings", "settings": kept.record})

    @property
    def tool_use(self) -> ToolUse | None:
        """What finds the calls of the next reply. Raises as `ChatTemplate.tool_use` does."""
        settings = self.settings
        if not settings.offered:
            return None
        return self.template.tool_use(settings.tools, settings.tool_choice, self._lm.tokenizer)

    def origin(self, name: str) -> Literal["option", "session", "file", "default"]:
        """Who gave a setting its value: `override`'s given, the events, `override`'s defaults, or nobody."""
        if name in self._overrides:
            return "option"
        if name in self._history.settings.record:
            return "session"
        return "file" if name in self._defaults else "default"

    def change(self, name: str, text: str) -> None:
        """Changes one setting for good, as a user spells it; what overrode it no longer does. Raises UsageError."""
        changed = self.settings.changed(name, text)
        self._check_switches(changed)
        name = name.replace("-", "_")
        self._overrides.pop(name, None)
        kept = replace(self._history.settings, **{name: changed.values[name]})
        self._record({"type": "settings", "settings": kept.record, **({"seeds": True} if name == "seed" else {})})

    def override(self, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Changes settings for as long as this object lives, without an event. Raises UsageError.

        given: what applies whatever the events say. defaults: what applies where they say nothing.
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
        """The messages that the model would be given with a question, or with the answers of the tools it called.

        Raises as `send` and `answer` do; needs no weights.
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

        Once `cancelled` is true the reply ends, and is kept and marked. A question without any reply, after an error or
        an interrupt, is taken back; so is one whose reply is not read to its end. Raises what LanguageModel.stream
        does, UsageError while another reply is being read, and ContextOverflow if the question alone does not fit.
        """
        return self._ask(self._question(text), **run)

    def answer(self, results: Sequence[str], **run: Unpack[ReplyKeywords]) -> Iterator[ReplyEvent]:
        """Gives the answers of the tools that the last reply called, one for each of `open_calls`.

        Otherwise as `send`. Raises UsageError for another number of them.
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
        """Another session with the same model and overrides, and this one's system message and settings, or `events`.

        Shares the cache. Raises InputError if they are not a session's.
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
        """Uses the cache of another session of the same model, so that their common prefix is not run again.

        With another model nothing happens.
        """
        if other._lm is self._lm:
            self._cache = other._cache

    def prompt(self) -> list[int]:
        """Token ids that the model would be given now."""
        return self._rendered(self._history.hidden)

    @property
    def used(self) -> int:
        """How many tokens of the context the conversation takes."""
        if self._measured[0] != len(self.events):
            self._measured = len(self.events), len(self.prompt()) if self.messages else 0
        return self._measured[1]

    def _rendered(self, hidden: int) -> list[int]:
        return self.template.render(
            self._history.messages(hidden),
            self._lm.tokenizer,
            thinking=self.settings.thinking,
            reasoning_effort=self.settings.reasoning_effort,
            tools=self.settings.offered,
        )

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
            # Whole turns are dropped before a reply: amid it the model would lose its own thread.
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
        """How many messages must be hidden for a reply to fit, and the prompt without them.

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
            if self._history.turns[start]["role"] == "user"  # an answer of a tool needs its call
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
