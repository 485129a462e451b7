"""Records the log-probabilities of drawn tokens, from logits in main memory. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from gptcli.generation.events import StepLogprobs, TokenLogprob
from gptcli.generation.sampling.banned_tokens import within
from gptcli.generation.sampling.constraint import TokenMask
from gptcli.generation.sampling.native_sampler import HostLogits, NativeSampler


class RecordingSampler:
    """Draws with another sampler; see `sampling.sampler.Sampler`.

    vocabulary, banned: the other's. alternatives: the number of likeliest tokens recorded with each.
    """

    records, repeats = True, False

    def __init__(
        self,
        sampler: NativeSampler,
        vocabulary: int,
        banned: frozenset[int],
        token_bytes: Callable[[int], bytes],
        alternatives: int,
    ) -> None:
        self.seed = sampler.seed
        self._sampler, self._vocabulary, self._banned = sampler, vocabulary, within(vocabulary, banned)
        self._token_bytes, self._alternatives = token_bytes, min(alternatives, vocabulary)

    def sample(
        self, logits: HostLogits, history: Sequence[int], allowed: TokenMask | None = None
    ) -> tuple[int, StepLogprobs]:
        """See `Sampler.sample`. Raises as the other does."""
        token, _ = self._sampler.sample(logits, history, allowed)
        return token, self._record(logits, token)

    def take(self, logits: HostLogits, token: int) -> StepLogprobs:
        """See `Sampler.take`."""
        self._sampler.take(logits, token)
        return self._record(logits, token)

    def _record(self, logits: HostLogits, token: int) -> StepLogprobs:
        import numpy as np

        row = (ctypes.c_float * self._vocabulary).from_address(logits.data_ptr())
        logprobs = np.ctypeslib.as_array(row).astype(np.float64)
        logprobs[self._banned] = -np.inf
        logprobs -= logprobs.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        likeliest = np.argpartition(-logprobs, self._alternatives - 1)[: self._alternatives]

        def entry(id: int) -> TokenLogprob:
            return TokenLogprob(id, self._token_bytes(id), float(logprobs[id]))

        return StepLogprobs(entry(token), tuple(map(entry, sorted(likeliest.tolist(), key=lambda id: -logprobs[id]))))
