"""The models that are served, by the names that requests use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gptcli.serve.prompting import Prompting
from gptcli.serve.refusals import Refusal


class ServedModels:
    """Opens a model when a request first names it. One that is served alone answers whatever name a request has.

    note: told of the first such name that is not the model's own.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Prompting]], note: Callable[[str], object]) -> None:
        self._openers = openers
        self._opened: dict[str, Prompting] = {}
        self._note, self._noted = note, False
        self.names = list(openers)

    def name(self, asked: str | None) -> str:
        """The model that answers a request for this one. Raises Refusal."""
        if asked is None or asked in self._openers:
            return asked or self.names[0]
        if len(self.names) > 1:
            known = ", ".join(self.names)
            raise Refusal(404, f"there is no model {asked[:80]}; there are: {known}", "model_not_found")
        if not self._noted:
            self._noted = True
            self._note(f"a request names {asked[:80]}; {self.names[0]} answers it, and every other")
        return self.names[0]

    def get(self, name: str) -> Prompting:
        """The model of this name. Raises what opening it does."""
        if name not in self._opened:
            self._opened[name] = self._openers[name]()
        return self._opened[name]
