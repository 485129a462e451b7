"""A model that follows a script, for tests of what the command line does with its output. Needs no torch.

Run as a program, it is `gptcli` with such a model: the script is JSON in GPTCLI_TEST_SCRIPT.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gptcli.errors import ContextOverflow, GptcliError, OutOfMemory
from gptcli.generation.events import Completed, Finished, FinishReason, TextDelta, Usage
from gptcli.generation.request import Request
from gptcli.language_model import LanguageModel
from gptcli.scheduler import Deliver, Scheduler
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.tools.formats import ToolUse
from gptcli.tools.splitter import splitter_of

ENGINE = SimpleNamespace(device_name="cpu", dtype_name="fp32", failures=())


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the model does: its pieces of text, the seconds before each and for loading and prefill, its errors."""

    pieces: Sequence[str | bytes] = ()
    load_s: float = 0.0
    prefill_s: float = 0.0
    piece_s: float = 0.0
    reason: FinishReason = "stop"
    overflows: bool = False  # at the end
    load_error: str = ""  # out of memory
    turn_error: str = ""  # out of memory before the first piece
    loses_exceptions: bool = False  # while loading, as numpy's import does
    mark: str = ""  # a file created when loading starts if that takes time, else after the first piece

    def environment(self) -> dict[str, str]:
        """The environment in which this module, run as a program, follows the script."""
        return {**os.environ, "GPTCLI_TEST_SCRIPT": json.dumps(vars(self)), "TERM": "xterm-256color"}

    def load(
        self, on_progress: Callable[[int, int], None] = lambda done, total: None, workload: object = None
    ) -> SimpleNamespace:
        ends = time.monotonic() + self.load_s
        if self.load_s:
            self._leave_mark()
        while time.monotonic() < ends:
            on_progress(100_000_000, 300_000_000)
            try:
                time.sleep(0.02)
            except BaseException:
                if not self.loses_exceptions:
                    raise
        if self.load_error:
            raise OutOfMemory(self.load_error)
        return ENGINE

    def stream(
        self,
        lm: LanguageModel,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        stop: StopConfig,
        *,
        tools: ToolUse | None = None,
        on_prefill: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        **ignored: object,
    ) -> Iterator[TextDelta | Finished]:
        reason = self.reason
        on_prefill(0, len(prompt))
        time.sleep(self.prefill_s)
        if self.turn_error:
            raise OutOfMemory(self.turn_error)
        splitter = None if tools is None else splitter_of(tools, prompt)
        for piece in self.pieces:
            time.sleep(self.piece_s)
            if cancelled():
                reason = "interrupt"
                break
            if splitter is not None:
                piece = splitter.push(str(piece))
            yield TextDelta(piece if isinstance(piece, bytes) else piece.encode())
            self._leave_mark()
        if splitter is not None:
            yield TextDelta(splitter.flush(ended=reason == "stop").encode())
            reason = "tool_calls" if reason == "stop" and splitter.calls else reason
        if self.overflows:
            raise ContextOverflow("the context of 8 tokens is full")
        usage = Usage(
            prompt_tokens=len(prompt), completion_tokens=len(self.pieces), load_s=0.1, prefill_s=0.1, ttft_s=0.1,
            decode_s=0.1, prefill_tokens_per_s=10.0, decode_tokens_per_s=10.0,
        )  # fmt: skip
        yield Finished(
            reason=reason, ids=(), stop=None, seed=sampling.seed or 0, usage=usage, logprobs=None,
            tool_calls=tuple(splitter.calls) if splitter else (), cut_call=splitter is not None and splitter.cut,
        )  # fmt: skip

    def streams(
        self, lm: LanguageModel, prompt: Sequence[int], samplings: Sequence[SamplingConfig], *given: Any, **named: Any
    ) -> Iterator[Iterator[TextDelta | Finished]]:
        return (self.stream(lm, prompt, sampling, *given, **named) for sampling in samplings)

    def complete_many(
        self,
        lm: LanguageModel,
        requests: Iterable[Request | GptcliError],
        *,
        ordered: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
        wait: Callable[[], object] = lambda: None,
        **ignored: object,
    ) -> Iterator[tuple[int, Completed | GptcliError]]:
        """Answers three at a time, the last one first unless their order is kept."""
        numbered = enumerate(request for request in requests if request is not None or wait())
        while some := list(islice(numbered, 3)):
            answers = [(index, self._answer(lm, request, cancelled)) for index, request in some]
            yield from answers if ordered else reversed(answers)
            if cancelled():
                return

    def _answer(
        self, lm: LanguageModel, request: Request | GptcliError, cancelled: Callable[[], bool]
    ) -> Completed | GptcliError:
        if isinstance(request, GptcliError):
            return request
        try:
            config = SamplingConfig.resolve(request.given, {})
            ids = lm.tokenizer.encode(request.prompt) if isinstance(request.prompt, str) else request.prompt
            *deltas, end = self.stream(lm, ids, config, request.stopping, cancelled=cancelled)
        except GptcliError as error:
            return error
        return Completed(b"".join(delta.data for delta in deltas), end)

    def start(self, scheduler: Any, request: Request, deliver: Deliver) -> Callable[[], None]:
        """Replaces `Scheduler.start`."""
        cancelled = threading.Event()

        def run() -> None:
            how = {"tools": request.tools, "cancelled": cancelled.is_set}
            try:
                for event in self.stream(scheduler._lm, request.prompt, SamplingConfig(), request.stopping, **how):
                    deliver(event)
            except GptcliError as error:
                deliver(error)

        threading.Thread(target=run, daemon=True).start()
        return cancelled.set

    def _leave_mark(self) -> None:
        if self.mark:
            Path(self.mark).touch()


def follow(script: Script, set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Replaces loading and generation of every model by the script."""
    set_attribute(LanguageModel, "load", lambda lm, *given: script.load(*given))
    set_attribute(LanguageModel, "engine", ENGINE)
    set_attribute(LanguageModel, "stream", lambda lm, *given, **named: script.stream(lm, *given, **named))
    set_attribute(Scheduler, "start", lambda scheduler, *given: script.start(scheduler, *given))
    set_attribute(LanguageModel, "streams", lambda lm, *given, **named: script.streams(lm, *given, **named))
    set_attribute(LanguageModel, "complete_many", lambda lm, *given, **named: script.complete_many(lm, *given, **named))


if __name__ == "__main__":
    from gptcli.__main__ import main

    follow(Script(**json.loads(os.environ["GPTCLI_TEST_SCRIPT"])), setattr)
    main()
