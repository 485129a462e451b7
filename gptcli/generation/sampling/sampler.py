"""The protocol of samplers, and the choice between compiled code and torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gptcli.generation.events import StepLogprobs
from gptcli.generation.sampling.constraint import TokenMask
from gptcli.generation.sampling.native_sampler import NativeSampler, native_can_sample
from gptcli.generation.sampling.recording_sampler import RecordingSampler
from gptcli.kernels.bindings import Functions
from gptcli.runtime.engine import Logits
from gptcli.settings import SamplingConfig
from gptcli.text.tokenizer import Tokenizer


class Sampler(Protocol):
    """Draws the tokens of one text."""

    records: bool
    """Whether `sample` records how each token was drawn."""
    repeats: bool
    """Whether equal arguments always give the same token: greedy, without a state."""

    @property
    def seed(self) -> int:
        """The configured seed, else a random one."""

    def sample(
        self, logits: Logits, history: Sequence[int], allowed: TokenMask | None = None
    ) -> tuple[int, StepLogprobs | None]:
        """Draws a token from the model's logits (vocab,), given the ids before it; tells how, if it `records`.

        allowed: the tokens that may be drawn, None for all. It precedes all filters, and no bias brings a token back.
        Raises UsageError if no token is left.
        """

    def take(self, logits: Logits, token: int) -> StepLogprobs | None:
        """Takes a forced token, without a draw; tells how probable it was, if it `records`."""


def make_sampler(
    library: Functions | None,
    tokenizer: Tokenizer,
    config: SamplingConfig,
    *,
    banned: frozenset[int] = frozenset(),
    logprobs: int | None = None,
    explain: bool = False,
) -> Sampler:
    """A compiled sampler if it supports the request, else one in torch.

    library: the kernels, None if they cannot read the logits. banned: tokens that must not be drawn. logprobs: records
    each token's log-probability, and those of this many alternatives. explain: records the filters' effects.
    """
    if library is not None and not explain and native_can_sample(config):
        native = NativeSampler(library, config, tokenizer.size, banned)
        if logprobs is None:
            return native
        return RecordingSampler(native, tokenizer.size, banned, tokenizer.token_bytes, logprobs)
    from gptcli.generation.sampling.torch_sampler import TorchSampler

    return TorchSampler(config, tokenizer.size, banned, tokenizer.token_bytes, logprobs=logprobs, explain=explain)
