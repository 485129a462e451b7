"""Reads a line at the prompt: keys, pastes, history, completion, toolbar.

On a dumb terminal the kernel edits the line, with none of these.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import Completer
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus, is_done
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, UIContent, UIControl, Window
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from gptcli.cli.repl.prompt.external_editor import edited
from gptcli.cli.repl.prompt.prompt_history import PromptHistory
from gptcli.cli.terminal.signals import handled
from gptcli.cli.terminal.stdout import clean

_PROMPT, _MORE, _QUOTES = "> ", ". ", '"""'
_STYLE = Style.from_dict(
    {"": "bold", "prompt": "ansimagenta", "pasted": "reverse", "toolbar": "nobold fg:ansibrightblack"}
)
_WAY_OUT = "Ctrl-D leaves"


class _Aborted(BaseException):
    """The prompt ends without a line."""


class LineInput:
    """The prompt. toolbar: takes a number of columns, returns the text below the line."""

    def __init__(
        self, history: PromptHistory, completer: Completer, toolbar: Callable[[int], str], *, dumb: bool
    ) -> None:
        self.terminal: Input = create_input()
        self._history = history
        self._toolbar = toolbar
        self._pastes = history.pastes
        self._hinting = False
        self._failure: Exception | None = None
        self._killed_by = 0
        self._session: PromptSession[str] | None = None
        if not dumb:
            self._session = PromptSession(
                history=history,
                completer=completer,
                input=self.terminal,
                output=_output(),
                style=_STYLE,
                multiline=True,
                prompt_continuation=lambda width, number, wraps: " " * len(_MORE) if wraps else _MORE,
                enable_history_search=True,
                enable_suspend=True,
                input_processors=[self._pastes],
                key_bindings=self._bindings(),
                reserve_space_for_menu=6,
            )
            _drop_last_space_when_done(self._session.layout.current_control)
            # prompt_toolkit's own toolbar waits until the terminal reports its cursor position.
            toolbar_window = Window(FormattedTextControl(self._toolbar_text), height=1, dont_extend_height=True)
            container = self._session.layout.container
            assert isinstance(container, HSplit)
            container.children.append(ConditionalContainer(toolbar_window, ~is_done))
            self._session.app.key_processor.before_key_press += self._forget_hint

    def read(self, prompt: str = _PROMPT, default: str = "") -> str:
        """The next message or command, with pastes unfolded and triple quotes removed.

        Raises EOFError for Ctrl-D on an empty line, and the error given to `fail`. Restores the terminal before it
        raises a deadly signal again.
        """
        if self._session is None:
            typed = _cooked_line(prompt, default)
        else:
            typed = self._edited(self._session, prompt, default)
            self._history.append_string(typed)
            typed = self._pastes.expand(typed)
        typed = typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        inner = typed.strip()
        if inner.startswith(_QUOTES):
            typed = inner.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
        return typed

    def fail(self, error: Exception) -> None:
        """Ends this or the next prompt with an error. For another thread."""
        self._failure = error
        self._abort()

    def refresh(self) -> None:
        """Redraws the toolbar. For another thread."""
        if self._session is not None:
            self._session.app.invalidate()

    def _edited(self, session: PromptSession[str], prompt: str, default: str) -> str:
        with handled(self._kill, "SIGTERM", "SIGHUP"):
            try:
                shown = self._pastes.refold(default)
                return session.prompt([("class:prompt", prompt)], default=shown, pre_run=self._start)
            except _Aborted:
                pass
        if self._killed_by:
            signal.raise_signal(self._killed_by)  # for the handler outside of the prompt
        assert self._failure
        failure, self._failure = self._failure, None
        raise failure

    def _start(self) -> None:
        self._hinting = False
        self._check_aborted()

    def _forget_hint(self, sender: object) -> None:
        self._hinting = False

    def _kill(self, signum: int, frame: FrameType | None) -> None:
        self._killed_by = signum
        self._abort()

    def _abort(self) -> None:
        app = self._session.app if self._session else None
        loop = app.loop if app else None
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing; the next prompt checks
                loop.call_soon_threadsafe(self._check_aborted)

    def _check_aborted(self) -> None:
        app = get_app()
        if (self._failure or self._killed_by) and app.is_running and not app.is_done:
            app.exit(exception=_Aborted())

    def _toolbar_text(self) -> StyleAndTextTuples:
        width = get_app().output.get_size().columns
        text = _WAY_OUT if self._hinting else self._toolbar(width - 1)
        return [("class:toolbar", text[: width - 1])]

    def _bindings(self) -> KeyBindings:
        bindings = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)

        @bindings.add("enter", filter=typing)
        def submit(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            inner = buffer.text.strip()
            if inner.startswith(_QUOTES) and (len(inner) < 6 or not inner.endswith(_QUOTES)):
                buffer.newline(copy_margin=False)
            else:
                event.app.exit(result=buffer.text)

        @bindings.add("c-j", filter=typing)
        @bindings.add("escape", "enter", filter=typing)
        def new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @bindings.add(Keys.BracketedPaste, filter=typing)
        def paste(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(self._pastes.fold(event.data))

        @bindings.add("c-x", "c-e", filter=typing)
        async def edit(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            text = self._pastes.expand(buffer.text)
            text = await run_in_terminal(partial(edited, text), in_executor=True)
            text = self._pastes.refold(text)
            buffer.document = Document(text, len(text))

        @bindings.add("c-c", filter=typing)
        @bindings.add(Keys.SIGINT)
        def clear(event: KeyPressEvent) -> None:
            buffer = event.app.layout.get_buffer_by_name(DEFAULT_BUFFER)
            if buffer is not None and buffer.text:
                buffer.reset()
            else:
                self._hinting = True

        return bindings


def _drop_last_space_when_done(control: UIControl) -> None:
    """Takes from a sent line the blank on which the cursor could stand: after a full row it takes a row of its own."""
    create_content = control.create_content

    def without_space(width: int, height: int) -> UIContent:
        content = create_content(width, height)
        if get_app().is_done:
            whole = content.get_line
            content.get_line = lambda number: whole(number)[:-1]
        return content

    vars(control)["create_content"] = without_space


def _output() -> Output:
    """The terminal, without cursor position requests: a late reply would look like typed keys."""
    output = create_output(sys.stdout)
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


def _cooked_line(prompt: str, default: str) -> str:
    """A line edited by the kernel, or all lines between triple quotes. Raises EOFError at the end of input."""
    if default:
        print(f"Enter alone takes: {clean(default)}")
    print(prompt, end="", flush=True)
    typed = sys.stdin.readline()
    while typed.lstrip().startswith(_QUOTES) and not typed.rstrip().removeprefix(_QUOTES).endswith(_QUOTES):
        print(_MORE, end="", flush=True)
        if not (more := sys.stdin.readline()):
            break
        typed += more
    if not typed:
        print()
        raise EOFError
    return typed.rstrip("\n") or default
