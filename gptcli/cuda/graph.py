"""Decodes by playing a recorded step again, a CUDA graph, which costs a launch a token instead of a thousand.

A recording is made when a cache's memory or the number of its rows has changed, and each is checked against a plain
step before it is trusted. Where it fails, plain steps go on, and `failure` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gptcli.cuda.check import relative_difference
from gptcli.cuda.static_step import Outputs, StaticStep, all_finite
from gptcli.model.cache import KVCache
from gptcli.model.decoder import Decoder

Record = Callable[[Callable[[], Outputs], torch.device], Callable[[], Outputs]]
"""Runs a function on a device at least once and records it: what plays it again, into the same outputs each time."""


def cuda_graph(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A `Record` of what a function does on a CUDA device. Raises RuntimeError where that cannot be recorded."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    side.wait_stream(current)
    # Not left to torch.cuda.graph, which stays on its stream where a recording fails.
    with torch.cuda.stream(side):
        run()  # what libraries set up at their first call cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            outputs = run()
    current.wait_stream(side)

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


class RecordedSteps:
    """Steps of one token a row, as a recording of the last cache's. `failure` is why there are to be no more."""

    def __init__(self, decoder: Decoder, record: Record) -> None:
        self.failure: str | None = None
        self._decoder, self._record = decoder, record
        self._last: tuple[StaticStep, Callable[[], Outputs]] | None = None

    def run(self, tokens: Sequence[int], cache: KVCache) -> Outputs:
        """Runs a token for each row behind those in a zeroed cache, however it can, and writes them there.

        The caller then lets the cache `advance`.
        """
        cache.reserve(1)
        if self._last is None or not self._last[0].serves(cache):
            self._last = None  # its memory goes before the next one takes some
            if self.failure is not None:
                return self._plain(tokens, cache)
            return self._first(tokens, cache)
        step, replay = self._last
        step.feed(tokens, cache)
        logits, finite = replay()
        return logits.clone(), finite  # the next step writes over them

    def _plain(self, tokens: Sequence[int], cache: KVCache) -> Outputs:
        ids = torch.tensor(tokens, device=cache.device)[:, None]
        logits = self._decoder.logits(self._decoder(ids, cache)[:, -1])
        return logits, all_finite(logits)

    def _first(self, tokens: Sequence[int], cache: KVCache) -> Outputs:
        """The plain step's outputs, and what it wrote; a recording is made, and kept if it does the same."""
        step = StaticStep(self._decoder, cache)
        step.feed_another(cache)
        try:
            replay = self._record(step.run, cache.device)
            step.wipe(cache)
            step.feed(tokens, cache)
            logits = replay()[0].clone()
            written = step.written(cache)
        except RuntimeError as error:
            self.failure = f"the decode step could not be recorded: {str(error).splitlines()[0]}"
            return self._plain(tokens, cache)
        expected, finite = self._plain(tokens, cache)
        difference = max(relative_difference(logits, expected), relative_difference(written, step.written(cache)))
        if difference <= _tolerance(cache.dtype):
            self._last = step, replay
        elif finite:
            self.failure = f"the recorded decode step differs from the plain one by {difference:.2g} of its size"
        return expected, finite


def _tolerance(dtype: torch.dtype) -> float:
    """What rounding explains: sums in another order leave half of the digits alike. A wrong position does not."""
    return float(torch.finfo(dtype).eps ** 0.5)
