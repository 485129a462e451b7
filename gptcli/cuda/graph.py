"""Experimental: decodes by replaying a CUDA graph of the step, one launch per token instead of a thousand.

A step is captured again when the cache's memory or number of rows changes. Each capture is checked against a plain
step before its use. If the check fails, plain steps continue, and `failure` tells why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gptcli.cuda.check import relative_difference
from gptcli.cuda.static_step import Outputs, StaticStep, all_finite
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.decoder import Decoder

Capture = Callable[[Callable[[], Outputs], torch.device], Callable[[], Outputs]]
"""Runs a function on a device at least once and captures it; returns what replays it into the same output tensors."""


def cuda_graph(run: Callable[[], Outputs], device: torch.device) -> Callable[[], Outputs]:
    """A `Capture` with CUDA graphs. Raises RuntimeError if the function cannot be captured."""
    side = torch.cuda.Stream(device)
    current = torch.cuda.current_stream(device)
    side.wait_stream(current)
    # torch.cuda.graph would leave its own stream current when capture fails.
    with torch.cuda.stream(side):
        run()  # libraries initialize at their first call, which cannot be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            outputs = run()
    current.wait_stream(side)

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay


class CapturedSteps:
    """Steps of one token per row, replayed from a capture. `failure`: why steps are no longer captured."""

    def __init__(self, decoder: Decoder, capture: Capture) -> None:
        states = decoder.config.keeps_states
        self.failure: str | None = "steps of layers that keep a state are not recorded" if states else None
        self._decoder, self._capture = decoder, capture
        self._last: tuple[StaticStep, Callable[[], Outputs]] | None = None

    def run(self, tokens: Sequence[int], cache: KVCache) -> Outputs:
        """Appends a token to each row of a zeroed cache, by replay if possible.

        The caller must then `advance` the cache.
        """
        cache.reserve(1)
        if self._last is None or not self._last[0].serves(cache):
            self._last = None  # frees its memory before the next capture needs some
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
        """Runs a plain step, and keeps a capture if it gives the same outputs and writes the same."""
        step = StaticStep(self._decoder, cache)
        step.feed_another(cache)
        try:
            replay = self._capture(step.run, cache.device)
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
    """The most that rounding explains: sums in another order agree in half the digits, other errors in fewer."""
    return float(torch.finfo(dtype).eps ** 0.5)
