"""`gptcli chat` on a terminal. Reads and answers until the user leaves; an error ends a turn, not the conversation."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from gptcli.chat.session import ReplyEvent, TurnsDropped
from gptcli.chat.storage import SessionFile
from gptcli.cli.repl.answer_display import AnswerDisplay, DisplaySettings, dropped_note
from gptcli.cli.repl.background_load import BackgroundLoad
from gptcli.cli.repl.commands.slash_command import Command, Leave, find
from gptcli.cli.repl.commands.tab_completion import CommandCompleter
from gptcli.cli.repl.prompt.line_input import LineInput
from gptcli.cli.repl.prompt.prompt_background_colour import PromptBackground
from gptcli.cli.repl.prompt.prompt_history import PromptHistory
from gptcli.cli.run_options import note_template_with_doubled_bos
from gptcli.cli.terminal.capabilities import is_dumb_terminal
from gptcli.cli.terminal.columns import excerpt, packed, terminal_columns, wrapped
from gptcli.cli.terminal.signals import stoppable
from gptcli.cli.terminal.stderr import ProgressLine, print_error, stats_line, tokens
from gptcli.cli.terminal.stderr import print_prompt_note as print_note
from gptcli.cli.terminal.stdout import StdoutSink, clean
from gptcli.cli.terminal.type_ahead import CbreakTerminal
from gptcli.errors import GptcliError, OutputError, TemplateError, UsageError
from gptcli.generation.events import Finished, TextDelta
from gptcli.language_model import ChatSession, LanguageModel
from gptcli.runtime.engine import Workload
from gptcli.text.chat_templates.chat_template import ChatTemplate
from gptcli.tools.definitions import ToolCall

_INTERRUPTED = "interrupted"
_METER = 10  # characters
_FIRST_ANSWER_S, _LAST_ANSWER_S = 0.1, 0.5  # longest waits for the terminal's background


class Repl:
    """A conversation at a prompt. The model loads while the user types the first message.

    file: keeps the session; None if nothing can be kept. template: replaces the model's. display: how answers look.
    """

    def __init__(
        self,
        session: ChatSession,
        file: SessionFile | None,
        template: ChatTemplate | None,
        display: DisplaySettings,
        commands: Sequence[Command],
        *,
        offline: bool,
    ) -> None:
        self.session = session
        self.file = file
        self.template = template
        self.display = display
        self.commands = commands
        self.offline = offline
        dumb = is_dumb_terminal()
        history = PromptHistory(print_note, kept=file is not None)
        self._input = LineInput(history, CommandCompleter(commands), self._toolbar, dumb=dumb)
        self._sink = StdoutSink()
        self._terminal = CbreakTerminal(self._input.terminal, dumb=dumb)
        self._loading = BackgroundLoad(session.lm, self._input.refresh, self._input.fail)
        self._used = 0  # tokens of the context
        self._warned_unsaved = False
        self._noted_failures: list[str] = []
        self._unanswered: tuple[ToolCall, ...] = ()  # calls that the user left unanswered
        self._unsaved: list[SessionFile] = []  # of earlier conversations

    def run(self) -> None:
        """Runs until the user leaves. Raises the error that ended loading, and OutputError for unsaved sessions."""
        with self._terminal:
            self._background = PromptBackground(self._input.terminal)
            self._greet()
            with contextlib.suppress(Leave):
                while True:
                    self._turn()
            self._drop_emptied()
            self._background.wait(_LAST_ANSWER_S)  # it would be typed into the shell
            if self.file is not None and self.file.problem is None and self.session.messages[1:]:
                command = f"gptcli chat --session {shlex.quote(self.file.name)}"
                self.say("\n".join(map(" ".join, packed(["to go on:", command], " ", terminal_columns()))))
        unsaved = [file for file in (*self._unsaved, self.file) if file is not None and file.problem is not None]
        for file in unsaved:
            file.sync()
        for file in unsaved:
            file.check_written()

    def say(self, text: str) -> None:
        """Writes a message of gptcli, in lines that fit."""
        columns = terminal_columns()
        self._sink.write("".join(f"{wrapped(line, columns)}\n" for line in text.split("\n")).encode())

    def draw(self, text: str) -> None:
        """Writes a clean text with colours."""
        self._sink.draw(text)

    def read(self, prompt: str, default: str) -> str:
        """Asks the user to edit a line. Raises EOFError for Ctrl-D."""
        return self._input.read(prompt, default)

    def answer(self, ask: Callable[..., Iterator[ReplyEvent]]) -> None:
        """Shows the reply that a method of the session yields. Ctrl-C ends it, and keeps what came so far."""
        finished: Finished | None = None
        answer: AnswerDisplay | None = None
        progress = ProgressLine(quiet=False, at_prompt=True)
        with self._terminal.typing_ahead() as typed, stoppable() as stop, progress:
            stop.pressed += typed.take_interrupt()
            if not self._loading.wait(progress, stop):
                typed.keep_unsent()
                progress.close()
                print_note("not sent: the model is still loading")
                return
            self.session.records_probabilities = self.display.probabilities
            events = ask(on_prefill=partial(progress.tokens, "prefill"), cancelled=stop)
            try:
                for event in events:
                    match event:
                        case TurnsDropped():
                            progress.close()
                            print_note(dropped_note(event))
                        case TextDelta():
                            answer = answer or self._answer_display(progress)
                            answer.take(event)
                        case Finished():
                            finished = event
            except (OSError, OutputError):
                if not stop():
                    raise
                for _ in events:  # the terminal is gone, but the session takes the rest
                    pass
            finally:
                if answer is not None:
                    answer.close()
            progress.close()
            if stop.pressed:
                typed.keep_unsent()
        if finished is not None:
            self._conclude(finished, answered=answer is not None)

    def switch_model(self, name: str) -> None:
        """Answers with another model from now on. Nothing changes until that is loaded."""
        with self._terminal.typing_ahead(), stoppable() as stop, ProgressLine(quiet=False, at_prompt=True) as progress:
            lm = LanguageModel.open(
                name,
                self.session.lm.runtime,
                offline=self.offline,
                on_fetch=progress.fetch,
                workload=None if self.display.probabilities else Workload(),
            )
            progress.note_leftovers(lm.notes)
            _ = self.template or lm.template  # fails here if the model has none
            loading = BackgroundLoad(lm, self._input.refresh, lambda error: None)
            if not loading.wait(progress, stop):
                return
        self._loading = loading
        self.session.lm = lm
        note_template_with_doubled_bos(self.session, print_note)

    def change_session(self, session: ChatSession, file: SessionFile | None) -> None:
        """Goes on with another conversation. The present one is kept, and saved again if that failed."""
        self._drop_emptied()
        self.session.keep_in(None)
        if self.file is not None:
            if self.file.problem is not None:
                self.file.sync()
            if self.file.problem is not None:
                self._unsaved.append(self.file)
            else:
                self.file.close()
        session.share_cache(self.session)
        self.session, self.file, self._warned_unsaved = session, file, False

    def _drop_emptied(self) -> None:
        """Deletes the file of a conversation whose messages were all taken back."""
        if self.file is not None and not self._is_begun and any(each["type"] == "message" for each in self.file.events):
            self.file.delete()

    def _greet(self) -> None:
        what = f"session {self.file.name}" if self._is_begun and self.file else "a new conversation"
        self.say(f"{_short_name(self.session.lm)}: {what}. /help lists commands, Ctrl-D leaves.")
        self.show_last_turn()

    @property
    def _is_begun(self) -> bool:
        """Whether there is a message that was not taken back."""
        return any(message.role == "user" for message in self.session.messages) or self.session.unanswered is not None

    def show_last_turn(self) -> None:
        """Shows the last turn, with the calls of tools and their answers, or that it has no answer."""
        messages = self.session.messages
        asked = max((index for index, each in enumerate(messages) if each.role == "user"), default=len(messages))
        for message in messages[asked:]:
            if message.role != "assistant":
                bold, normal = ("", "") if is_dumb_terminal() else ("\x1b[1m", "\x1b[m")  # as it was typed
                self.draw(bold)
                self.say(f"{clean(excerpt(message.name or ''))}> {excerpt(message.content, 300)}")
                self.draw(normal)
                continue
            self._background.wait(_FIRST_ANSWER_S)
            if message.content:
                with contextlib.closing(self._answer_display(ProgressLine(quiet=True))) as display:
                    display.take(TextDelta(message.content.encode()))
            self._show_calls(message.calls)
            if message.interrupted:
                print_note(_INTERRUPTED)
        if messages[asked:]:
            self.say("")
        if self.session.unanswered is not None:
            print_note(f"without an answer: {excerpt(self.session.unanswered)}; /retry asks it again")

    def _turn(self) -> None:
        try:
            self._used = self.session.used
        except (TemplateError, UsageError):  # of a template that takes no tools, say; shown when a message is sent
            self._used = 0
        try:
            calls = self.session.open_calls
            if calls and calls != self._unanswered:
                self._take_answers(calls)
            else:
                self._take(self._input.read())
        except EOFError:
            raise Leave from None
        except KeyboardInterrupt:
            self.say("")
        except MemoryError:
            print_error("out of memory", None, at_prompt=True)
        except GptcliError as error:
            if error is self._loading.failure:
                raise
            print_error(error.message, error.hint, at_prompt=True)

    def _take(self, typed: str) -> None:
        """Runs a command, or sends a message to the model."""
        text = typed.strip()
        if text.startswith("/") and not text.startswith("//"):
            name, *argument = text[1:].split(maxsplit=1) or [""]
            command = find(name, self.commands)
            if argument and not command.arguments:
                raise UsageError(f"/{command.name} takes no arguments")
            command.run(self, *argument or [""])
        elif text:
            message = typed.lstrip()[1:] if text.startswith("//") else typed
            self.answer(partial(self.session.send, message))

    def _take_answers(self, calls: Sequence[ToolCall]) -> None:
        """Asks for the answer of each tool that was called, or takes a command. Ctrl-D leaves them unanswered."""
        answers = list[str]()
        for call in calls:
            typed = ""
            while not typed.strip():
                try:
                    typed = self._input.read(f"{clean(excerpt(call.name))}> ")
                except EOFError:
                    self._unanswered = tuple(calls)
                    print_note("not answered; Ctrl-D again leaves")
                    return
            if typed.lstrip().startswith("/") and not typed.lstrip().startswith("//"):
                self._take(typed)
                return
            answers.append(typed.lstrip()[1:] if typed.lstrip().startswith("//") else typed)
        self.answer(partial(self.session.answer, answers))

    def _show_calls(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            self.say(f"calls {call.name} {json.dumps(call.arguments, ensure_ascii=False)}")

    def _answer_display(self, progress: ProgressLine) -> AnswerDisplay:
        return AnswerDisplay(self.display, self._sink, progress, self.session, self._background.colour)

    def _conclude(self, finished: Finished, *, answered: bool) -> None:
        """Calls, notes and figures after an answer."""
        self._show_calls(finished.tool_calls)
        if finished.cut_call:
            print_note("cut amid a call of a tool, which is left out")
        if finished.reason == "interrupt":
            taken_back = "" if answered else ", and the question taken back; /retry asks it again"
            print_note(f"{_INTERRUPTED}{taken_back}")
        elif finished.reason == "length":
            whole = finished.usage.completion_tokens == self.session.settings.max_tokens
            at = f"at {tokens(self.session.settings.max_tokens)}; `/set max_tokens N` changes that"
            why = at if whole else "off: the context is full"
            print_note(f"cut {why}")
        if self.display.stats:
            print_note(stats_line(finished, self.session.lm.ctx_size))
        new = [failure for failure in self.session.lm.failures if failure not in self._noted_failures]
        for failure in new:
            print_note(failure)
        self._noted_failures += new
        self.say("")
        problem = self.file.problem if self.file else None
        if self.file and problem and not self._warned_unsaved:
            print_note(f"not saved: {self.file.path}: {problem.strerror}; it is tried again at every turn")
        self._warned_unsaved = problem is not None

    def _toolbar(self, width: int) -> str:
        """Model, context and speed, as far as they fit."""
        lm = self.session.lm
        loaded = self._loading.loaded
        speeds = [finished.usage.decode_tokens_per_s for finished in self.session.finished]
        latest = next((f"{speed:.0f} tok/s" for speed in reversed(speeds) if speed), "")
        speed = latest if loaded is None else f"loading {loaded:.0%}"
        context = f"{self._used}/{lm.ctx_size}"
        filled = min(_METER, -(-_METER * self._used // lm.ctx_size))
        meter = "█" * filled + "░" * (_METER - filled)
        name = _short_name(lm)
        for fields in ([name, f"{meter} {context} ctx", speed], [name, context, speed], [context, speed]):
            line = " · ".join(filter(None, fields))
            if len(line) <= width:
                return line
        return context


def _short_name(lm: LanguageModel) -> str:
    """A model's name without its directory or hub organisation."""
    return lm.name.rstrip("/").rpartition("/")[2]
