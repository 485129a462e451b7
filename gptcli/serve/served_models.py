"""The models that are served, by the names that requests use."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from gptcli.errors import OutOfMemory
from gptcli.language_model import LanguageModel
from gptcli.openai_api.prompting import Prompting
from gptcli.openai_api.refusals import Refusal


class ServedModels:
    """Loads a model when a request first names it; the least recently used leave the memory if it is short.

    A model that is served alone answers requests for any name. Threads that load one take turns.

    openers: open a model, again after it left. note: called with the first name that is not the model's own, and with
    models that leave. leave: frees a model's memory.
    """

    def __init__(
        self,
        openers: Mapping[str, Callable[[], Prompting]],
        note: Callable[[str], object],
        leave: Callable[[LanguageModel], object] = lambda lm: None,
    ) -> None:
        self._openers = openers
        self._opened: OrderedDict[str, Prompting] = OrderedDict()  # least recently used first
        self._note, self._noted, self._leave = note, False, leave
        self._lock = threading.RLock()
        self.names = list(openers)

    def name(self, asked: str | None) -> str:
        """The name of the model that answers a request for `asked`. Raises Refusal."""
        if asked is None or asked in self._openers:
            return asked or self.names[0]
        if len(self.names) > 1:
            known = ", ".join(self.names)
            raise Refusal(404, f"there is no model {asked[:80]}; there are: {known}", "model_not_found")
        if not self._noted:
            self._noted = True
            self._note(f"a request names {asked[:80]}; {self.names[0]} answers it, and every other")
        return self.names[0]

    def opened(self, name: str) -> Prompting:
        """The model of this name, opened. Raises what opening it does."""
        with self._lock:
            if name not in self._opened:
                self._opened[name] = self._openers[name]()
            return self._opened[name]

    def close(self) -> None:
        """Closes the models, which keep snapshots for a fast start."""
        for model in self._opened.values():
            model.lm.close()

    def loaded(self, name: str) -> Prompting:
        """The model of this name, loaded. Raises as opening and loading do, OutOfMemory if no other can leave."""
        with self._lock:
            return self._loaded(name)

    def _loaded(self, name: str) -> Prompting:
        while True:
            model = self.opened(name)
            self._opened.move_to_end(name)
            try:
                model.lm.load()
                return model
            except OutOfMemory:
                others = [other for other, each in self._opened.items() if other != name and each.lm.is_loaded]
                if not others:
                    raise
                self._leave(self._opened.pop(others[0]).lm)  # requests that run on it keep it until they end
                self._note(f"{others[0]} leaves the memory for {name}")
            gc.collect()
