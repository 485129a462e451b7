"""`gptcli chat` on a terminal: reads, answers, and goes on, whatever happens within a turn or a command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from gptcli.chat.session import Event, TurnsDropped
from gptcli.chat.storage import SessionFile
from gptcli.chat.thinking import opens_thoughts
from gptcli.cli.repl.actions import excerpt
from gptcli.cli.repl.answer import Answer, View, dropped_note
from gptcli.cli.repl.background_load import Loading
from gptcli.cli.repl.commands import COMMANDS, Leave
from gptcli.cli.repl.line_input import LineInput
from gptcli.cli.repl.prompt_history import FileHistory
from gptcli.cli.repl.slash_command import CommandCompleter, find
from gptcli.cli.terminal.signals import stoppable
from gptcli.cli.terminal.stderr import Activity, is_dumb_terminal, note_failures, print_error, print_note, stats_line
from gptcli.cli.terminal.stdout import Sink
from gptcli.cli.terminal.type_ahead import HeldTerminal
from gptcli.errors import GptcliError, OutputError, TemplateError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import ChatSession, LanguageModel
from gptcli.runtime.engine import Workload
from gptcli.text.chat_template import ChatTemplate

_METER = 10  # characters


class Repl:
    """A conversation at a prompt. The model is read while the first message is typed.

    session, file: what is said, and where it is kept; `file` is None where nothing can be. template: of its own, in the
    model's place. view: how answers look.
    """

    def __init__(
        self,
        session: ChatSession,
        file: SessionFile | None,
        template: ChatTemplate | None,
        view: View,
        *,
        offline: bool,
    ) -> None:
        self.session = session
        self.file = file
        self.template = template
        self.view = view
        self.offline = offline
        dumb = is_dumb_terminal()
        history = FileHistory(print_note, kept=file is not None)
        self.input = LineInput(history, CommandCompleter(self, COMMANDS), self._toolbar, dumb=dumb)
        self._sink = Sink()
        self._terminal = HeldTerminal(self.input.terminal, dumb=dumb)
        self._loading = Loading(session.lm, self.input.refresh, self.input.fail)
        self._used = 0
        self._warned = False
        self._failures: list[str] = []  # that were told
        self._unsaved: list[SessionFile] = []  # of conversations that were left

    def run(self) -> None:
        """Until the person leaves. Raises what kept the model from loading, and OutputError for what was not saved."""
        with self._terminal:
            self._greet()
            with contextlib.suppress(Leave):
                while True:
                    self._turn()
        files = [file for file in (*self._unsaved, self.file) if file is not None and file.problem is not None]
        for file in files:
            file.sync()
        for file in files:
            if file.problem is not None:
                raise OutputError(f"cannot write: {file.path}: {file.problem.strerror}")

    def say(self, text: str) -> None:
        """Writes lines of our own."""
        self._sink.write(f"{text}\n".encode())

    def _greet(self) -> None:
        asked = [message.content for message in self.session.messages if message.role == "user"]
        what = f"session {self.file.name}" if asked and self.file else "a new conversation"
        self.say(f"{_short(self.session.lm)}: {what}. /help lists commands, Ctrl-D leaves.")
        if asked:
            self.say(f"last said: {excerpt(asked[-1])}")
        if self.session.unanswered is not None:
            print_note(f"without an answer: {excerpt(self.session.unanswered)}; /retry asks it again")

    def paint(self, text: str) -> None:
        """Writes what is coloured already, and is known not to drive the terminal otherwise."""
        self._sink.draw(text)

    def _turn(self) -> None:
        self._used = self._tokens_used()
        try:
            self._take(self.input.read())
        except EOFError:
            raise Leave from None
        except KeyboardInterrupt:
            self.say("")
        except MemoryError:
            print_error("out of memory", None)
        except GptcliError as error:
            if error is self._loading.failure:
                raise
            print_error(error.message, error.hint)

    def _take(self, typed: str) -> None:
        """A command, or something to say to the model."""
        text = typed.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, *argument = text[1:].split(maxsplit=1) or [""]
            command = find(name, COMMANDS)
            if argument and not command.arguments:
                raise UsageError(f"/{command.name} takes nothing behind it")
            command.run(self, *argument or [""])
        elif text:
            message = typed.lstrip()[1:] if text.startswith("//") else typed
            self.answer(partial(self.session.send, message))

    def answer(self, ask: Callable[..., Iterator[Event]]) -> None:
        """Shows what a method of the session brings. Ctrl-C ends it, and what there is of it is kept."""
        finished: Finished | None = None
        answer: Answer | None = None
        with self._terminal.typing_ahead() as typed, stoppable() as stop, Activity(quiet=False) as activity:
            stop.pressed += typed.take_interrupt()
            if not self._loading.wait(activity, stop):
                typed.keep_unsent()
                activity.close()
                print_note("not sent: the model is still loading")
                return
            self.session.records_probabilities = self.view.probabilities
            events = ask(on_prefill=partial(activity.tokens, "prefill"), cancelled=stop)
            try:
                for event in events:
                    match event:
                        case TurnsDropped():
                            activity.close()
                            print_note(dropped_note(event))
                        case TextDelta():
                            answer = answer or self._answer_view(activity)
                            answer.take(event)
                        case Finished():
                            finished = event
            except (OSError, OutputError):
                if not stop():
                    raise
                for _ in events:  # the terminal is gone: the rest is for the session alone
                    pass
            finally:
                if answer is not None:
                    answer.close()
            activity.close()
            if stop.pressed:
                typed.keep_unsent()
        if finished is not None:
            self._conclude(finished, answered=answer is not None)

    def switch_model(self, name: str) -> None:
        """Answers with another model from now on. Until that is loaded, nothing has changed."""
        with self._terminal.typing_ahead(), stoppable() as stop, Activity(quiet=False) as activity:
            lm = LanguageModel.open(
                name,
                self.session.lm.runtime,
                offline=self.offline,
                on_fetch=activity.fetch,
                workload=None if self.view.probabilities else Workload(),
            )
            _ = self.template or lm.template  # a model without one fails here
            loading = Loading(lm, self.input.refresh, lambda error: None)
            if not loading.wait(activity, stop):
                return
        self._loading = loading
        self.session.lm = lm

    def change_session(self, session: ChatSession, file: SessionFile | None) -> None:
        """Goes on with another conversation. The present one stays as it is, and is offered to the disk once more."""
        self.session.keep_in(None)
        if self.file is not None:
            if self.file.problem is not None:
                self.file.sync()
            if self.file.problem is not None:
                self._unsaved.append(self.file)
            else:
                self.file.close()
        session.share_cache(self.session)
        self.session, self.file, self._warned = session, file, False

    def _answer_view(self, activity: Activity) -> Answer:
        return Answer(self.view, self._sink, activity, lm=self.session.lm, thinking=opens_thoughts(self.session))

    def _conclude(self, finished: Finished, *, answered: bool) -> None:
        if finished.reason == "interrupt":
            print_note("interrupted" if answered else "interrupted, and the question taken back; /retry asks it again")
        elif finished.reason == "length":
            whole = finished.usage.completion_tokens == self.session.settings.max_tokens
            print_note("cut off at max_tokens, which /set changes" if whole else "cut off: the context is full")
        if self.view.stats:
            print_note(stats_line(finished, self.session.lm.ctx_size))
        new = [failure for failure in self.session.lm.engine.failures if failure not in self._failures]
        note_failures(new)
        self._failures += new
        self.say("")
        self._warn_of_unsaved()

    def _warn_of_unsaved(self) -> None:
        problem = self.file.problem if self.file else None
        if problem is not None and not self._warned and self.file:
            print_note(f"not saved: {self.file.path}: {problem.strerror}; it is tried again at every turn")
        self._warned = problem is not None

    def _tokens_used(self) -> int:
        try:
            return self.session.used
        except TemplateError:  # it says so when a message is sent
            return 0

    def _toolbar(self, width: int) -> str:
        """Model, context and speed, as much of it as fits."""
        lm = self.session.lm
        share = self._loading.share
        speeds = [finished.usage.decode_tokens_per_s for finished in self.session.finished]
        latest = next((f"{speed:.0f} tok/s" for speed in reversed(speeds) if speed), "")
        speed = latest if share is None else f"loading {share:.0%}"
        context = f"{self._used}/{lm.ctx_size}"
        filled = min(_METER, -(-_METER * self._used // lm.ctx_size))
        meter = "█" * filled + "░" * (_METER - filled)
        name = _short(lm)
        for parts in ([name, f"{meter} {context} ctx", speed], [name, context, speed], [context, speed]):
            line = " · ".join(filter(None, parts))
            if len(line) <= width:
                return line
        return context


def _short(lm: LanguageModel) -> str:
    """A model's name without what comes before it in a path or at a hub."""
    return lm.name.rstrip("/").rpartition("/")[2]
