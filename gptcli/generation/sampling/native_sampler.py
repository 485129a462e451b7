"""Draws tokens in compiled code, in a third of torch_sampler.py's time. No torch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import fields
from random import Random
from typing import Protocol

from gptcli.generation.sampling.banned_tokens import always_banned, banned_next, within
from gptcli.generation.sampling.constraint import TokenMask, mask_words, nothing_allowed
from gptcli.kernels.bindings import Draw, Functions
from gptcli.settings import MAX_TEMPERATURE, SamplingConfig, random_seed

# SamplingConfig's fields that are applied here; sample.c applies all but the seed, given the banned ids.
_APPLIED = frozenset(
    """
    temperature top_k top_p min_p repeat_penalty repeat_last_n presence_penalty frequency_penalty logit_bias
    suppress_tokens begin_suppress_tokens bad_words_ids no_repeat_ngram_size seed
    """.split()
)


def native_can_sample(config: SamplingConfig) -> bool:
    """Whether `NativeSampler` applies all of a config: fields that it does not know must have their defaults."""
    return all(field.name in _APPLIED or getattr(config, field.name) == field.default for field in fields(config))


class HostLogits(Protocol):
    """Contiguous fp32 logits (vocab,) in main memory: a tensor, or a snapshot's without torch."""

    def data_ptr(self) -> int:
        """The address of the first."""


class NativeSampler:
    """Draws the tokens of one text, if `native_can_sample`; see `sampling.sampler.Sampler`. It records nothing.

    vocabulary: how many tokens there are; the logits after those are padding. banned: tokens that must not be drawn.
    """

    records = False

    def __init__(self, library: Functions, config: SamplingConfig, vocabulary: int, banned: frozenset[int]) -> None:
        assert native_can_sample(config)
        self.seed = random_seed() if config.seed is None else config.seed
        self.repeats = config.greedy and not config.bans
        self._library, self._config, self._random = library, config, Random(self.seed)
        biased = [token for token, _ in config.logit_bias]
        # Draw has only the addresses of these arrays, so they must live as long.
        self._banned = _integers(within(vocabulary, banned | always_banned(config)))
        self._biased = _integers(biased)
        self._mask_type = ctypes.c_uint32 * mask_words(vocabulary)
        self._biases = (ctypes.c_float * len(biased))(*(bias for _, bias in config.logit_bias))
        self._vocabulary, self._begins = vocabulary, True
        self._remembers = config.penalizes or config.bans  # what to do depends on the text
        self._draw = Draw(
            vocabulary=vocabulary,
            biased=ctypes.addressof(self._biased),
            biases=ctypes.addressof(self._biases),
            biased_count=len(biased),
            banned=ctypes.addressof(self._banned),
            banned_count=len(self._banned),
            greedy=config.greedy,
            top_k=min(config.top_k, vocabulary),
            top_p=config.top_p,
            min_p=config.min_p,
            repeat=config.repeat_penalty,
            presence=config.presence_penalty,
            frequency=config.frequency_penalty,
            temperature=min(config.temperature, MAX_TEMPERATURE),
        )

    def sample(self, logits: HostLogits, history: Sequence[int], allowed: TokenMask | None = None) -> tuple[int, None]:
        """See `Sampler.sample`. Raises MemoryError, and ValueError for a mask of too few words."""
        mask = None if allowed is None else self._mask_type.from_buffer(allowed)
        self._draw.logits = logits.data_ptr()
        self._draw.allowed = None if mask is None else ctypes.addressof(mask)
        if self._remembers:
            recent = _integers(self._config.recent(history) if self._config.penalizes else ())
            banned = self._banned_after(history)
            self._draw.banned, self._draw.banned_count = ctypes.addressof(banned), len(banned)
            self._draw.recent, self._draw.recent_count = ctypes.addressof(recent), len(recent)
        self._draw.uniform = 0.0 if self._draw.greedy else self._random.random()
        token = self._library.draw(self._draw)
        if token is None:
            raise nothing_allowed()
        return token, None

    def take(self, logits: HostLogits, token: int) -> None:
        """See `Sampler.take`."""
        self._begins = False

    def _banned_after(self, history: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
        now = within(self._vocabulary, banned_next(self._config, history, begins=self._begins))
        self._begins = False
        return _integers([*self._banned, *now]) if now else self._banned


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)
