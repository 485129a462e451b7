"""Separates calls from a model's text as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from gptcli.tools.definitions import ToolCall, call_id, tool_name
from gptcli.tools.formats import HARMONY, ToolUse
from gptcli.tools.syntaxes import Written
from gptcli.tools.thought_tags import CLOSING, OPENING, overlap

_KEPT_ID = re.compile(r"[A-Za-z0-9]{9}|functions\.\S+:\d+")  # Mistral's and Kimi's, which their templates want back
_HARMONY_MARK = re.compile(r"<\|(start|channel|message|constrain|end|call|return)\|>")
_HARMONY_BEGUN = re.compile(r"<(\|\w{0,9}\|?)?\Z")  # perhaps one of these


class Splitter(Protocol):
    """Takes a text as it comes, and keeps the calls in it.

    calls: the complete ones. cut: whether the text ended amid a call, which is left out. marks: control tokens that
    `push` must get by their names.
    """

    calls: list[ToolCall]
    cut: bool
    marks: frozenset[int]

    @property
    def done(self) -> bool:
        """Whether the text ends here, because there may be no other call."""

    def push(self, text: str) -> str:
        """The next text outside of calls; the possible beginning of a call stays pending."""

    def flush(self, *, ended: bool) -> str:
        """The rest of the text. ended: whether the model ended it; then half a call is malformed, not cut."""


def splitter_of(
    use: ToolUse, salt: object = "", *, control_ids: Mapping[str, int] | None = None, in_thoughts: bool = False
) -> Splitter:
    """A splitter for a text. salt: makes the ids of calls differ from other texts'.

    control_ids: the tokenizer's control tokens by name. in_thoughts: whether the prompt has opened thoughts.
    """
    harmony = use.format is HARMONY
    splitter = HarmonySplitter(use, salt) if harmony else CallSplitter(use, salt, in_thoughts=in_thoughts)
    splitter.marks = frozenset(id for name, id in (control_ids or {}).items() if use.format.is_mark(name))
    return splitter


class _Calls:
    """The calls of a text, each with an id of its own."""

    def __init__(self, use: ToolUse, salt: object) -> None:
        self.calls: list[ToolCall] = []
        self.cut = False
        self.marks = frozenset[int]()
        self._use, self._salt = use, salt

    @property
    def done(self) -> bool:
        """See `Splitter.done`."""
        return bool(self.calls) and not self._use.parallel

    def _add(self, written: Sequence[Written]) -> None:
        for name, arguments, id in written:
            if self.done:
                return
            if not _KEPT_ID.fullmatch(id or "") or id in [call.id for call in self.calls]:
                id = call_id(self._salt, len(self.calls), name, json.dumps(arguments))
            self.calls.append(ToolCall(str(id), name, arguments))


class CallSplitter(_Calls):
    """A `Splitter` for formats with marks, and for those in which the whole text is calls."""

    def __init__(self, use: ToolUse, salt: object, *, in_thoughts: bool) -> None:
        super().__init__(use, salt)
        self._format = use.format
        self._pending = ""
        self._blanks = ""  # at the end of the released text; a call after them drops them
        self._at_beginning = True
        self._in_thoughts = in_thoughts
        self._opened: str | None = None  # the mark of the call that has begun; empty if it has none
        self._searched = 0  # index up to which the end of the call was searched for
        self._failed = 0  # index after the first closing mark that did not end it; 0: none
        self._said = False  # whether any text was released

    def push(self, text: str) -> str:
        """See `Splitter.push`."""
        self._pending += text
        released = ""
        while not self.done and (step := self._step()) is not None:
            released += self._released(step)
        return released

    def flush(self, *, ended: bool) -> str:
        """See `Splitter.flush`."""
        rest, self._pending = "" if self.done else self._pending, ""
        if self._opened is not None:
            if (ended or not self._format.closing) and self._take(rest):
                rest = ""
            elif ended or not self._looks_like_call(rest):
                rest = self._opened + rest
            else:
                self.cut, rest = True, ""
        rest = self._released(rest) + self._blanks
        return rest.rstrip() if self.calls or self.cut else rest

    def _step(self) -> str | None:
        """Text that can be released before the next call or thought; None if nothing can be decided yet."""
        if not self._pending:
            return None
        if self._in_thoughts:
            return self._thought()
        if self._opened is not None:
            return self._closed()
        if self._at_beginning:
            return self._first()
        found = [(at, -len(mark), mark) for mark in self._format.openings if (at := self._pending.find(mark)) >= 0]
        if found:
            at, _, self._opened = min(found)
            released, self._pending = self._pending[:at], self._pending[at + len(self._opened) :]
            return released
        border = len(self._pending) - max((overlap(self._pending, mark) for mark in self._format.openings), default=0)
        released, self._pending = self._pending[:border], self._pending[border:]
        return released or None

    def _thought(self) -> str | None:
        border = self._pending.find(CLOSING)
        if border >= 0:
            border += len(CLOSING)
            self._in_thoughts = False
        else:
            border = len(self._pending) - overlap(self._pending, CLOSING)
        released, self._pending = self._pending[:border], self._pending[border:]
        return released or None

    def _first(self) -> str | None:
        """As `_step`, until it is clear whether the text begins with thoughts or with a call without a mark."""
        start = self._pending.lstrip()
        beginning = self._format.beginning
        if start.startswith(OPENING):
            border = len(self._pending) - len(start) + len(OPENING)
            released, self._pending = self._pending[:border], self._pending[border:]
            self._in_thoughts = True
            return released
        if OPENING.startswith(start) or (beginning and beginning.begun.fullmatch(start)):
            return None
        self._at_beginning = False
        if beginning and beginning.opened.match(start):
            self._opened = ""
        return ""

    def _closed(self) -> str | None:
        """Takes the open call if it has ended. A malformed one becomes text once another begins."""
        closing, opening = self._format.closing, self._format.opening
        if not closing:
            return None
        while True:
            at = self._pending.find(closing, self._searched)
            again = self._pending.find(opening, self._failed) if self._failed else -1
            if again >= 0 and not 0 <= at < again:
                released = f"{self._opened}{self._pending[: self._failed]}"
                self._leave_call(self._failed)
                return released
            if at < 0:
                self._searched = max(self._searched, len(self._pending) - len(closing) + 1)
                return None
            self._searched = at + len(closing)
            if self._take(self._pending[:at]):
                self._leave_call(self._searched)
                return ""
            self._failed = self._failed or self._searched

    def _leave_call(self, end: int) -> None:
        self._pending, self._opened = self._pending[end:], None
        self._searched = self._failed = 0

    def _take(self, body: str) -> bool:
        try:
            written = self._format.read(body, self._use.tools)
        except ValueError:
            return False
        names = list(map(tool_name, self._use.tools))
        if self._opened == "" and not all(call.name in names for call in written):
            return False  # an answer in JSON
        self._add(written)
        return True

    def _looks_like_call(self, body: str) -> bool:
        if self._opened:
            return True
        names = "|".join(re.escape(tool_name(tool)) for tool in self._use.tools)
        return re.search(rf'"({names})"|\[\s*({names})\(', body) is not None

    def _released(self, text: str) -> str:
        text = self._blanks + text
        if self.calls and not self._said:
            text = text.lstrip()
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        self._said = self._said or bool(shown)
        return shown


class HarmonySplitter(_Calls):
    """A `Splitter` for gpt-oss, whose messages have channels; `analysis` becomes thoughts."""

    def __init__(self, use: ToolUse, salt: object) -> None:
        super().__init__(use, salt)
        self._pending = ""
        self._header: str | None = ""  # of the open message; None once its text begins
        self._channel = self._recipient = ""
        self._body = ""  # of a call
        self._gap = ""  # blank lines due before the next message's text

    def push(self, text: str) -> str:
        """See `Splitter.push`."""
        self._pending += text
        released = ""
        while match := _HARMONY_MARK.search(self._pending):
            before, self._pending = self._pending[: match.start()], self._pending[match.end() :]
            released += self._text(before)
            released += self._mark(match[1])
        begun = _HARMONY_BEGUN.search(self._pending)
        border = begun.start() if begun else len(self._pending)
        released += self._text(self._pending[:border])
        self._pending = self._pending[border:]
        return released

    def flush(self, *, ended: bool) -> str:
        """See `Splitter.flush`."""
        rest, self._pending = self._text(self._pending), ""
        if self._recipient:
            return rest + self._end_call(ended=ended)
        return rest + self._end_thoughts()

    def _text(self, text: str) -> str:
        if self._header is not None:
            self._header += text
            return ""
        if self._recipient:
            self._body += text
            return ""
        if text:
            text, self._gap = self._gap + text, ""
        return text

    def _mark(self, mark: str) -> str:
        if mark in ("channel", "constrain"):
            self._header = f"{self._header or ''}<|{mark}|>"
        elif mark == "message" and self._header is not None:
            channel = re.search(r"<\|channel\|>\s*(\w+)", self._header)
            recipient = re.search(r"to=functions\.([^\s<]+)", self._header)
            self._channel = channel[1] if channel else "final"
            self._recipient = recipient[1] if recipient else ""
            self._header = None
            return OPENING if self._channel == "analysis" and not self._recipient else ""
        elif mark in ("start", "end", "call", "return"):
            ended = self._end_call(ended=True) if self._recipient else self._end_thoughts()
            if self._header is None and self._channel != "analysis" and not self._recipient:
                self._gap = "\n\n"
            self._header, self._channel = "", ""
            return ended
        return ""

    def _end_thoughts(self) -> str:
        return f"{CLOSING}\n\n" if self._header is None and self._channel == "analysis" else ""

    def _end_call(self, *, ended: bool) -> str:
        header = f"<|channel|>commentary to=functions.{self._recipient}<|message|>"
        body, self._body, self._recipient = self._body, "", ""
        try:
            self._add(self._use.format.read(header + body, self._use.tools))
        except ValueError:
            if ended:
                return header + body
            self.cut = True
        return ""
