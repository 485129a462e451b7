"""A conversation, and a cache that holds exactly what was run for it. Knows nothing of terminals or files.

Whatever happens to a session is an event, and its state is what the events add up to (`history`). So it is kept,
continued, forked and, since the seeds are among them, replayed.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from gptcli.chat.events import FORMAT_VERSION, History, Record
from gptcli.errors import InputError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.settings import ChatSettings, SamplingConfig
from gptcli.text.messages import Message, message_record
from gptcli.version import VERSION

if TYPE_CHECKING:
    from gptcli.language_model import Cache, LanguageModel
    from gptcli.text.chat_template import ChatTemplate


class Journal(Protocol):
    """Where a session's events go as they happen."""

    def append(self, record: Record) -> None:
        """Takes the next event."""

    def sync(self) -> None:
        """Called when a turn is complete, which must not be lost."""


@dataclass(frozen=True)
class TurnsDropped:
    """The conversation no longer fits: from here on the model does not see its oldest turns, so many more than before.

    They stay among the messages.
    """

    turns: int


Event = TextDelta | TurnsDropped | Finished


class Session:
    """A conversation with a model. What a turn shares with the one before is not run again.

    events: all that happened, plain records that JSON can keep and `restored` takes. finished: how each reply ended
    that this process generated. records_probabilities: whether the next replies come with those of their tokens.
    """

    def __init__(
        self,
        lm: LanguageModel,
        system: str | None = None,
        settings: ChatSettings | None = None,
        *,
        template: ChatTemplate | None = None,
    ) -> None:
        self.finished: list[Finished] = []
        self.records_probabilities = False
        self.events: list[Record] = []
        self._lm = lm
        self._own_template = template
        self._cache: Cache | None = None
        self._journal: Journal | None = None
        self._history = History()
        self._measured = 0, 0  # a number of events, and the prompt's tokens then
        self._record({"type": "session", "version": FORMAT_VERSION, "created": _now()})
        if system is not None:
            self.system = system
        if settings is not None:
            self.settings = settings

    @classmethod
    def restored(cls, lm: LanguageModel, events: Sequence[Record], *, template: ChatTemplate | None = None) -> Session:
        """A session as its events left it. Raises InputError for what are none."""
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
    def lm(self) -> LanguageModel:
        """The model that answers."""
        return self._lm

    @lm.setter
    def lm(self, lm: LanguageModel) -> None:
        if lm is not self._lm:
            self._lm, self._cache, self._measured = lm, None, (0, 0)

    @property
    def template(self) -> ChatTemplate:
        """What renders the conversation: a template of its own, or the model's. Raises TemplateError."""
        return self._own_template or self._lm.template

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system message first if there is one."""
        return self._history.messages()

    @property
    def unanswered(self) -> str | None:
        """The last question, if it was taken back or its reply was lost with the process: what `retry` asks again."""
        question = self._history.unanswered
        return None if question is None else question["content"]

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
        return self._history.settings

    @settings.setter
    def settings(self, settings: ChatSettings) -> None:
        if settings.thinking is not None and not self.template.knows_thinking:
            raise UsageError("this model's chat template has no switch for thinking")
        self._record({"type": "settings", "settings": settings.record})

    def keep_in(self, journal: Journal | None, *, kept: int = 0) -> None:
        """Writes what happened so far, and whatever happens from now on, to a journal that has the first `kept` events.

        None: from now on, nothing is written.
        """
        self._journal = journal
        if journal is not None:
            for event in self.events[kept:]:
                journal.append(event)

    def preview(self, text: str) -> list[Message]:
        """The messages that the model would be given with a question. Needs no weights.

        Raises what `send` would where it cannot be asked.
        """
        self._history.turns.append({"role": "user", "content": text})
        try:
            hidden, prompt = self._fitting()
            self._lm.check_request(prompt, self._next_sampling())
            return self._history.messages(hidden)
        finally:
            self._history.turns.pop()

    def send(
        self,
        text: str,
        *,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Says something; yields the answer as it comes. Nothing happens before the first of it is asked for.

        Once `cancelled` is true the reply ends as it is, and is kept and marked. A question that brought no text at
        all, for an error or an interrupt, is taken back; so is one whose reply is not read to its end. Raises what
        LanguageModel.stream does, UsageError while another reply is being read, and ContextOverflow where the question
        alone does not fit.
        """
        return self._ask({"type": "message", "role": "user", "content": text}, on_prefill, cancelled)

    def retry(
        self,
        text: str | None = None,
        *,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Asks the last question again, with the next seed, or another in its place; also one that is `unanswered`.

        The turn before stays where the new one brings no reply, be it for the end of the process. Otherwise as `send`.
        Raises UsageError where there is nothing to ask again.
        """
        question = self._history.unanswered
        if question is None:
            question = {**self._last_question("ask again"), "instead": True}
        if text is not None:
            question = {**question, "content": text}
        return self._ask(question, on_prefill, cancelled)

    def undo(self) -> str:
        """Takes the last turn back; returns what the user had said. Raises UsageError where there is none."""
        text: str = self._last_question("take back")["content"]
        self._truncate(len(self._history.turns) - 2)
        return text

    def fork(self) -> Session:
        """A session that has gone the same way so far; it shares the cache."""
        fork = Session.restored(self._lm, self.events, template=self._own_template)
        fork.share_cache(self)
        return fork

    def share_cache(self, other: Session) -> None:
        """Has one cache with another session of the same model: what both begin with is not run again.

        It serves whoever speaks next. With another model nothing happens.
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
        return self.template.render(self._history.messages(hidden), self._lm.tokenizer, thinking=self.settings.thinking)

    def _last_question(self, purpose: str) -> Record:
        self._check_ended()
        if not self._history.turns:
            raise UsageError(f"there is no turn to {purpose}")
        return self._history.turns[-2]

    def _check_ended(self) -> None:
        if self._history.asks:
            raise UsageError("the reply before has not ended: read it to its end, or close it")

    def _ask(
        self, question: Record, on_prefill: Callable[[int, int], None], cancelled: Callable[[], bool]
    ) -> Iterator[Event]:
        self._check_ended()
        self._record(question)
        try:
            yield from self._answer(on_prefill, cancelled)
        finally:
            self._take_question_back()
            if self._journal is not None:
                self._journal.sync()

    def _answer(self, on_prefill: Callable[[int, int], None], cancelled: Callable[[], bool]) -> Iterator[Event]:
        hidden, prompt = self._fitting()
        sampling = self._next_sampling()
        stopping = self.settings.stopping
        self._lm.check_request(prompt, sampling)
        if hidden > self._history.hidden:
            yield TurnsDropped((hidden - self._history.hidden) // 2)
        self._cache = self._lm.fitting_cache(self._cache, sampling, recorded=self.records_probabilities)
        answer = b""
        for event in self._lm.stream(
            prompt,
            sampling,
            # What is dropped are whole turns, before a reply: in its midst the model would lose its own thread.
            replace(stopping, overflow="stop") if stopping.overflow == "shift" else stopping,
            cache=self._cache,
            logprobs=0 if self.records_probabilities else None,
            on_prefill=on_prefill,
            cancelled=cancelled,
        ):
            if isinstance(event, TextDelta):
                answer += event.data
            else:
                self.finished.append(event)
                if answer or event.reason != "interrupt":
                    self._record(self._reply(answer.decode("utf-8", "replace"), event, hidden, sampling))
            yield event

    def _fitting(self) -> tuple[int, list[int]]:
        """How many messages must be hidden for a reply to fit, and the prompt without them.

        When the room for a reply gets short, turns are hidden until half of the context is free: the cache is of no use
        to what follows, so that it should not happen at every turn.
        """
        prompt = self._rendered(self._history.hidden)
        size = self._lm.ctx_size
        longest = self.settings.max_tokens
        room = size // 4 if longest < 0 else min(longest, size // 4)
        if self.settings.overflow != "shift" or len(prompt) + room <= size:
            return self._history.hidden, prompt
        starts = range(self._history.hidden, len(self._history.turns), 2)
        first = bisect_left(starts, True, lo=1, key=lambda start: len(self._rendered(start)) <= size // 2)
        hidden = starts[min(first, len(starts) - 1)]
        return hidden, self._rendered(hidden)

    def _next_sampling(self) -> SamplingConfig:
        """The sampling of the next reply: a seed that was set counts up, so that a retry brings another one."""
        sampling = self.settings.sampling(self._lm.sampling_defaults)
        return (
            sampling
            if sampling.seed is None
            else replace(sampling, seed=(sampling.seed + self._history.replies) % 2**64)
        )

    def _reply(self, text: str, finished: Finished, hidden: int, sampling: SamplingConfig) -> dict[str, Any]:
        engine = self._lm.running
        return {
            "type": "message",
            **message_record(Message("assistant", text, interrupted=finished.reason == "interrupt")),
            "hidden": hidden,
            "ids": finished.ids,
            "finish_reason": finished.reason,
            "seed": finished.seed,
            "sampling": asdict(replace(sampling, seed=finished.seed)),
            "model": self._lm.reference,
            "fingerprint": self._lm.fingerprint,
            "runtime": {
                "device": engine.device_name,
                "dtype": engine.dtype_name,
                "quantize": self._lm.runtime.quantize,
                "ctx_size": self._lm.ctx_size,
                "version": VERSION,
            },
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
