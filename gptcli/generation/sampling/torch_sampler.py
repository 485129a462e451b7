"""Draws tokens in torch, on the logits' device, and records how each was drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import torch
from torch import Tensor

from gptcli.generation.events import Explanation, StepLogprobs, TokenLogprob
from gptcli.generation.sampling.banned_tokens import always_banned, banned_next, within
from gptcli.generation.sampling.constraint import TokenMask, mask_words, nothing_allowed
from gptcli.generation.sampling.explain import explain
from gptcli.generation.sampling.filters import Stage, ban, stages
from gptcli.settings import SamplingConfig, random_seed


class TorchSampler:
    """Draws the tokens of one text; see `sampling.sampler.Sampler`.

    vocabulary: number of tokens; later logits are padding. banned: tokens that must not be drawn. token_bytes: gives a
    token's bytes, for records. logprobs, explain: see `make_sampler`.
    """

    def __init__(
        self,
        config: SamplingConfig,
        vocabulary: int,
        banned: frozenset[int],
        token_bytes: Callable[[int], bytes],
        *,
        logprobs: int | None = None,
        explain: bool = False,
    ) -> None:
        self.records = explain or logprobs is not None
        self.repeats = config.greedy and not config.bans and not self.records
        self.seed = random_seed() if config.seed is None else config.seed
        self._config, self._random, self._vocabulary = config, Random(self.seed), vocabulary
        self._banned = within(vocabulary, banned)
        self._always_banned, self._begins = always_banned(config), True
        self._token_bytes, self._alternatives, self._explain = token_bytes, logprobs or 0, explain

    def sample(
        self, logits: Tensor, history: Sequence[int], allowed: TokenMask | None = None
    ) -> tuple[int, StepLogprobs | None]:
        """See `Sampler.sample`. Raises ValueError for a mask of too few words."""
        logits = self._possible(logits)
        recent = None
        if self._config.penalizes:
            recent = torch.tensor(self._config.recent(history), dtype=torch.int64, device=logits.device)
        mask = None if allowed is None else _unpacked(allowed, self._vocabulary).to(logits.device)
        now = self._banned_after(history) if self._config.bans else []
        passed = list(stages(logits, mask, recent, self._config, banned=now, whole=self._explain))
        token = self._draw(passed[-1], limited=mask is not None or bool(now))
        if not self.records:
            return token, None
        return token, self._step(logits, token, explain(logits, passed, token) if self._explain else None)

    def take(self, logits: Tensor, token: int) -> StepLogprobs | None:
        """See `Sampler.take`."""
        self._begins = False
        if not self.records:
            return None
        logits = self._possible(logits)
        forced = [Stage("constraint", logits[[token]], torch.tensor([token], device=logits.device))]
        return self._step(logits, token, explain(logits, forced, token) if self._explain else None)

    def _possible(self, logits: Tensor) -> Tensor:
        """Logits without padding and banned tokens, which records leave out, too."""
        logits = logits[: self._vocabulary]
        return ban(logits, self._banned) if self._banned else logits

    def _banned_after(self, history: Sequence[int]) -> list[int]:
        banned = self._always_banned.union(banned_next(self._config, history, begins=self._begins))
        self._begins = False
        return within(self._vocabulary, banned)

    def _draw(self, last: Stage, *, limited: bool) -> int:
        """The token at which the cumulative probability reaches a random share."""
        if self._config.greedy:
            index = torch.zeros(1, dtype=torch.int64, device=last.logits.device)
        else:
            sums = last.logits.exp().cumsum(0, dtype=torch.float64)
            index = torch.searchsorted(sums, sums[-1:] * self._random.random(), right=True).clamp(max=len(sums) - 1)
        if limited and not last.logits[index] > -math.inf:  # NaN where every logit was -inf
            raise nothing_allowed()
        return int(index if last.ids is None else last.ids[index])

    def _step(self, logits: Tensor, token: int, explanation: Explanation | None) -> StepLogprobs:
        logprobs = logits.log_softmax(0)

        def entry(id: int, logprob: float) -> TokenLogprob:
            return TokenLogprob(id, self._token_bytes(id), logprob)

        top = logprobs.topk(min(self._alternatives, len(logprobs)))
        return StepLogprobs(
            chosen=entry(token, float(logprobs[token])),
            top=tuple(map(entry, top.indices.tolist(), top.values.tolist())),
            explanation=explanation,
        )


def _unpacked(mask: TokenMask, vocabulary: int) -> Tensor:
    """A mask's bits as booleans (vocab,)."""
    words = torch.frombuffer(mask, dtype=torch.int32, count=mask_words(vocabulary))
    return (words[:, None] >> torch.arange(32, dtype=torch.int32) & 1).flatten()[:vocabulary].bool()
