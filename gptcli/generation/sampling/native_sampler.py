"""Draws tokens in compiled code: what sampling.py does in torch, in a third of the time. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from random import Random
from typing import Protocol

from gptcli.kernels.bindings import Draw, Functions
from gptcli.settings import HOTTEST, SamplingConfig, random_seed


class AtAddress(Protocol):
    """fp32 values side by side in this machine's memory."""

    def data_ptr(self) -> int:
        """The first one's address."""


class CompiledPicker:
    """Draws one text's tokens; see `generation.sample.Picker`. It records nothing.

    vocabulary: tokens that there are; logits beyond pad. never: tokens that must not be drawn.
    """

    records = False

    def __init__(self, library: Functions, config: SamplingConfig, vocabulary: int, never: frozenset[int]) -> None:
        self.seed = random_seed() if config.seed is None else config.seed
        self._library, self._config, self._random = library, config, Random(self.seed)
        biased = [token for token, _ in config.logit_bias]
        self._never = _integers([token for token in never if token < vocabulary])
        self._biased = _integers(biased)
        self._biases = (ctypes.c_float * len(biased))(*(bias for _, bias in config.logit_bias))
        self._draw = Draw(
            vocabulary=vocabulary,
            never=ctypes.addressof(self._never),
            never_count=len(self._never),
            biased=ctypes.addressof(self._biased),
            biases=ctypes.addressof(self._biases),
            biased_count=len(biased),
            greedy=config.greedy,
            top_k=min(config.top_k, vocabulary),
            top_p=config.top_p,
            min_p=config.min_p,
            repeat=config.repeat_penalty,
            presence=config.presence_penalty,
            frequency=config.frequency_penalty,
            temperature=min(config.temperature, HOTTEST),
        )

    def pick(self, logits: AtAddress, history: Sequence[int]) -> tuple[int, None]:
        """See `Picker.pick`. Raises MemoryError."""
        recent = _integers(self._config.recent(history) if self._config.penalizes else ())
        self._draw.logits = logits.data_ptr()
        self._draw.recent, self._draw.recent_count = ctypes.addressof(recent), len(recent)
        self._draw.uniform = 0.0 if self._config.greedy else self._random.random()
        return self._library.draw(self._draw), None


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
