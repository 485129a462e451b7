"""A conversation, and a cache that holds exactly what was run for it. Knows nothing of terminals or files.

Whatever happens to a session is an event, a plain record that JSON can spell, and its state is what the events add up
to. So it is kept, continued, forked and, since the seeds are among them, replayed.
"""

from __future__ import annotations

import datetime
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from gptcli import __version__
from gptcli.errors import InputError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.settings import ChatSettings, SamplingConfig
from gptcli.text.conversation import Message, Role, message_record

if TYPE_CHECKING:
    from gptcli.language_model import LanguageModel
    from gptcli.model.cache import KVCache
    from gptcli.text.chat_template import ChatTemplate

_VERSION = 1


class Journal(Protocol):
    """Where a session's events go as they happen."""

    def append(self, record: Mapping[str, Any]) -> None:
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
    """A conversation with a model. What a turn shares with the one before is not run again."""

    def __init__(
        self,
        lm: LanguageModel,
        system: str | None = None,
        settings: ChatSettings | None = None,
        *,
        template: ChatTemplate | None = None,
    ) -> None:
        self.finished: list[Finished] = []  # how each reply ended that this process generated
        self.records_probabilities = False  # whether the next replies come with those of their tokens
        self.unanswered: str | None = None  # a question whose reply was lost with the process that wrote it
        self.events: list[Mapping[str, Any]] = []
        self._lm = lm
        self._own_template = template
        self._cache: KVCache | None = None
        self._journal: Journal | None = None
        self._system: str | None = None
        self._turns: list[Mapping[str, Any]] = []  # the events of the user's and the assistant's messages in turn
        self._hidden = 0  # how many of them the model no longer sees
        self._replies = 0  # how many there ever were, those taken back too
        self._measured = 0, 0  # a number of events, and the prompt's tokens then
        self._settings = ChatSettings()
        self._record({"type": "session", "version": _VERSION, "created": _now()})
        if system is not None:
            self.system = system
        if settings is not None:
            self.settings = settings

    @classmethod
    def restored(
        cls, lm: LanguageModel, events: Sequence[Mapping[str, Any]], *, template: ChatTemplate | None = None
    ) -> Session:
        """A session as its events left it. Raises InputError for what are none."""
        session = cls(lm, template=template)
        if events:
            session.events.clear()
        for number, event in enumerate(events, 1):
            try:
                session._apply(event)
            except (KeyError, TypeError, ValueError, UsageError) as error:
                raise InputError(f"not a session: event {number}: {error}") from None
            session.events.append(event)
        if len(session._turns) % 2:
            session.unanswered = session._turns[-1]["content"]
            session._truncate(len(session._turns) - 1)
        return session

    @property
    def lm(self) -> LanguageModel:
        """The model that answers."""
        return self._lm

    @lm.setter
    def lm(self, lm: LanguageModel) -> None:
        if lm is not self._lm:
            self._lm, self._cache = lm, None

    @property
    def template(self) -> ChatTemplate:
        """What renders the conversation: a template of its own, or the model's. Raises TemplateError."""
        return self._own_template or self._lm.template

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, the system message first if there is one."""
        return self._seen(0)

    def _seen(self, hidden: int) -> list[Message]:
        """The system message, and all others but the first ones."""
        head = [] if self._system is None else [Message("system", self._system)]
        return head + [
            Message(event["role"], event["content"], bool(event.get("interrupted"))) for event in self._turns[hidden:]
        ]

    @property
    def system(self) -> str | None:
        """The system message."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        self._record({"type": "system", "content": text})

    @property
    def settings(self) -> ChatSettings:
        """How replies are drawn and when they end."""
        return self._settings

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
        self._turns.append({"role": "user", "content": text})
        try:
            hidden, prompt = self._fitting()
            self._lm.check_request(prompt, self._next_sampling())
            return self._seen(hidden)
        finally:
            self._turns.pop()

    def send(
        self,
        text: str,
        *,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Says something; yields the answer as it comes.

        Once `cancelled` is true the reply ends as it is, and is kept and marked. A question that brought no text at
        all, for an error or an interrupt, is taken back. Raises what LanguageModel.stream does, and ContextOverflow
        where the question alone does not fit.
        """
        self.unanswered = None
        before = len(self._turns)
        self._record({"type": "message", "role": "user", "content": text})
        try:
            yield from self._answer(on_prefill, cancelled)
        finally:
            if len(self._turns) == before + 1:
                self._truncate(before)
            if self._journal is not None:
                self._journal.sync()

    def retry(
        self,
        text: str | None = None,
        *,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Asks the last question again, with the next seed, or another in its place; also one whose reply was lost.

        The turn before stays where the new one brings no reply. Otherwise as `send`. Raises UsageError where there is
        nothing to ask again.
        """
        replaced = self._turns[-2:] if self.unanswered is None else []
        question = self.undo() if self.unanswered is None else self.unanswered
        before = len(self._turns)
        try:
            yield from self.send(question if text is None else text, on_prefill=on_prefill, cancelled=cancelled)
        finally:
            if len(self._turns) == before:
                for event in replaced:
                    self._record(event)

    def undo(self) -> str:
        """Takes the last turn back; returns what the user had said. Raises UsageError where there is none."""
        if not self._turns:
            raise UsageError("there is no turn to take back")
        text: str = self._turns[-2]["content"]
        self._truncate(len(self._turns) - 2)
        return text

    def fork(self) -> Session:
        """A session that has gone the same way so far; it shares the cache, which serves whoever speaks next."""
        fork = Session.restored(self._lm, self.events, template=self._own_template)
        fork._cache = self._cache
        return fork

    def prompt(self) -> list[int]:
        """Token ids that the model would be given now."""
        return self._rendered(self._hidden)

    @property
    def used(self) -> int:
        """How many tokens of the context the conversation takes."""
        if self._measured[0] != len(self.events):
            self._measured = len(self.events), len(self.prompt()) if self.messages else 0
        return self._measured[1]

    def _rendered(self, hidden: int) -> list[int]:
        return self.template.render(self._seen(hidden), self._lm.tokenizer, thinking=self._settings.thinking)

    def _answer(self, on_prefill: Callable[[int, int], None], cancelled: Callable[[], bool]) -> Iterator[Event]:
        hidden, prompt = self._fitting()
        if hidden > self._hidden:
            yield TurnsDropped((hidden - self._hidden) // 2)
        sampling = self._next_sampling()
        stopping = self._settings.stopping
        self._lm.check_request(prompt, sampling)
        if self._cache is None:
            self._cache = self._lm.engine.new_cache()
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
        prompt = self._rendered(self._hidden)
        size = self._lm.ctx_size
        longest = self._settings.max_tokens
        room = size // 4 if longest < 0 else min(longest, size // 4)
        if self._settings.overflow != "shift" or len(prompt) + room <= size:
            return self._hidden, prompt
        starts = range(self._hidden, len(self._turns), 2)
        first = bisect_left(starts, True, lo=1, key=lambda start: len(self._rendered(start)) <= size // 2)
        hidden = starts[min(first, len(starts) - 1)]
        return hidden, self._rendered(hidden)

    def _next_sampling(self) -> SamplingConfig:
        """The sampling of the next reply: a seed that was set counts up, so that a retry brings another one."""
        sampling = self._settings.sampling(self._lm.sampling_defaults)
        return sampling if sampling.seed is None else replace(sampling, seed=(sampling.seed + self._replies) % 2**64)

    def _reply(self, text: str, finished: Finished, hidden: int, sampling: SamplingConfig) -> dict[str, Any]:
        plan = self._lm.engine.plan
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
                "device": str(plan.device),
                "dtype": plan.dtype_name,
                "quantize": self._lm.runtime.quantize,
                "ctx_size": self._lm.ctx_size,
                "version": __version__,
            },
            "time": _now(),
        }

    def _truncate(self, length: int) -> None:
        self._record({"type": "truncate", "messages": length})

    def _record(self, event: Mapping[str, Any]) -> None:
        self._apply(event)
        self.events.append(event)
        if self._journal is not None:
            self._journal.append(event)

    def _apply(self, event: Mapping[str, Any]) -> None:
        """What an event does to the state. Raises KeyError, TypeError, ValueError or UsageError for what is none."""
        match event["type"]:
            case "session":
                if event["version"] != _VERSION:
                    raise ValueError(f"version {event['version']} is not known; it was written by another gptcli")
            case "system":
                if not isinstance(event["content"], str | None):
                    raise TypeError("a message must be a text")
                self._system = event["content"]
            case "settings":
                self._settings = ChatSettings.from_record(event["settings"])
            case "message":
                role: Role = "assistant" if len(self._turns) % 2 else "user"
                if event["role"] != role:
                    raise ValueError(f"a message of the {role} was expected")
                if not isinstance(event["content"], str):
                    raise TypeError("a message must be a text")
                self._turns.append(event)
                if role == "assistant":
                    self._replies += 1
                    self._hidden = int(event["hidden"])
            case "truncate":
                del self._turns[int(event["messages"]) :]
                self._hidden = min(self._hidden, max(0, len(self._turns) - 2))
            case unknown:
                raise ValueError(f"there is no event {unknown!r}")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
