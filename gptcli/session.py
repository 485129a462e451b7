"""A conversation and its reusable cache. Knows nothing of terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gptcli.generation.events import Finished, TextDelta
from gptcli.settings import SamplingConfig, StopConfig
from gptcli.text.conversation import Message

if TYPE_CHECKING:
    from gptcli.language_model import LanguageModel


class Session:
    """Messages so far, and a cache of what was run for them, so that only what is new is run."""

    def __init__(self, lm: LanguageModel, system: str | None = None) -> None:
        self.messages = [] if system is None else [Message("system", system)]
        self._lm = lm
        self._cache = lm.engine.new_cache()

    def send(
        self,
        text: str,
        sampling: SamplingConfig | None = None,
        stop: StopConfig | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[TextDelta | Finished]:
        """Says something; yields the answer as it comes. Both become messages once the answer has finished."""
        asked = [*self.messages, Message("user", text)]
        answer = b""
        for event in self._lm.stream(
            self._lm.template.render(asked, self._lm.tokenizer),
            sampling or SamplingConfig.resolve({}, self._lm.sampling_defaults),
            stop or StopConfig(),
            cache=self._cache,
            cancelled=cancelled,
        ):
            if isinstance(event, TextDelta):
                answer += event.data
            else:
                self.messages = [*asked, Message("assistant", answer.decode("utf-8", "replace"))]
            yield event
