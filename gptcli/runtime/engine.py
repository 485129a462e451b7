"""Runs a decoder: prefill in chunks, decode a token at a time. Knows nothing of text or sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gptcli.errors import NonFiniteLogits, OutOfMemory
from gptcli.model.cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.runtime.device import DevicePlan

_CHUNK = 512  # prompt tokens in one forward pass: bounds memory, costs a tenth of the speed at 4,096


class Engine:
    """A loaded decoder on its device, with a context of `ctx_size` tokens."""

    def __init__(self, decoder: Decoder, plan: DevicePlan, ctx_size: int, load_s: float) -> None:
        self.decoder = decoder
        self.plan = plan
        self.ctx_size = ctx_size
        self.load_s = load_s  # seconds it took to load

    def new_cache(self) -> KVCache:
        """An empty cache as long as the context."""
        return KVCache(self.decoder.config, self.ctx_size, self.plan.device, self.plan.dtype)

    @torch.inference_mode()
    def prefill(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Tensor | None:
        """Runs one or more tokens behind those in the cache; the last one's logits (vocab,) in fp32.

        on_progress: called with the tokens done and all of them after every chunk. cancelled: asked before every
        chunk; once it is true, the result is None. Raises NonFiniteLogits and OutOfMemory.
        """
        hidden = None
        for start in range(0, len(tokens), _CHUNK):
            if cancelled():
                return None
            hidden = self._run(tokens[start : start + _CHUNK], cache)
            on_progress(min(start + _CHUNK, len(tokens)), len(tokens))
        assert hidden is not None, "prefill needs a token"
        return self._logits(hidden[:, -1], cache)[0]

    @torch.inference_mode()
    def decode(self, token: int, cache: KVCache) -> Tensor:
        """Runs one token behind those in the cache; its logits (vocab,) in fp32. Raises as `prefill` does."""
        return self._logits(self._run([token], cache)[:, -1], cache)[0]

    @torch.no_grad()  # not inference mode: the caller may change what it gets
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises as `prefill` does."""
        cache = self.new_cache()
        chunks = [
            self._logits(self._run(tokens[start : start + _CHUNK], cache), cache)[0]
            for start in range(0, len(tokens), _CHUNK)
        ]
        return torch.cat(chunks)

    def _run(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        try:
            hidden: Tensor = self.decoder(torch.tensor([tokens], device=self.plan.device), cache)
            cache.advance(tokens)
            return hidden
        except torch.OutOfMemoryError:
            pass
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):
                raise
        raise OutOfMemory(
            f"out of memory on {self.plan.device} at token {cache.length + len(tokens)}",
            hint="try a smaller --ctx-size, --quantize int4 or a smaller model",
        )

    def _logits(self, hidden: Tensor, cache: KVCache) -> Tensor:
        logits = self.decoder.logits(hidden)
        if not logits.isfinite().all():
            raise NonFiniteLogits(
                f"the model computed NaN or infinity at token {cache.length} in {self.plan.dtype_name}",
                hint="try --dtype fp32; `gptcli models verify` finds damaged weights",
            )
        return logits
