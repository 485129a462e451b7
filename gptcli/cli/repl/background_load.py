"""Loads a model in a thread while the user types."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gptcli.cli.terminal.stderr import ProgressLine
from gptcli.language_model import LanguageModel

_POLL_S = 0.05  # between checks whether the wait was stopped


class BackgroundLoad:
    """A model being loaded. Nothing else may use its engine before `wait` has returned true.

    failure: the error that ended loading. The thread calls `changed` when `loaded` has changed, and `failed` with the
    failure.
    """

    def __init__(self, lm: LanguageModel, changed: Callable[[], object], failed: Callable[[Exception], object]) -> None:
        self._lm = lm
        self._changed = changed
        self._failed = failed
        self._done, self._total = 0, 0
        self._ended = threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    @property
    def loaded(self) -> float | None:
        """The share of the weights that is loaded, from 0 to 1; None once loading has ended."""
        if self._ended.is_set():
            return None
        return self._done / self._total if self._total else 0.0

    def wait(self, progress: ProgressLine, stopped: Callable[[], bool]) -> bool:
        """Waits until the model is loaded; false if the wait was stopped before. Raises what loading raised."""
        while not self._ended.wait(_POLL_S):
            progress.bytes(f"loading {self._lm.folder.path.name}", self._done, self._total)
            if stopped():
                return False
        if self.failure:
            raise self.failure
        return True

    def _load(self) -> None:
        try:
            self._lm.load(self._progress)
        except Exception as error:  # `wait` raises it in the main thread
            self.failure = error
        self._ended.set()
        if self.failure:
            self._failed(self.failure)
        self._changed()

    def _progress(self, done: int, total: int) -> None:
        before, self._done, self._total = self._done, done, total
        if total and done * 20 // total > before * 20 // total:
            self._changed()
