"""Runs a decoder: prefill in chunks, decode a token at a time. Knows nothing of text or sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gptcli.cuda.graph import RecordedSteps
from gptcli.cuda.static_step import all_finite
from gptcli.errors import NonFiniteLogits
from gptcli.kernels.tensors import Library
from gptcli.model.cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.runtime.device_plan import DevicePlan, free_bytes
from gptcli.runtime.fast_start.snapshot_file import Prepared
from gptcli.runtime.lowering import lower
from gptcli.runtime.memory_errors import memory_errors
from gptcli.runtime.program import CHUNK

_MOST_ROWS = 32  # texts in one step: twice as many gain little more, and the first of them is waited for twice as long
_CUDA_CHUNK = 2048  # where attention holds no scores: fewer would leave much of the device idle


class Engine:
    """A loaded decoder on its device, with a context of `ctx_size` tokens."""

    def __init__(self, decoder: Decoder, plan: DevicePlan, ctx_size: int, load_s: float) -> None:
        self.decoder = decoder
        self.plan = plan
        self.ctx_size = ctx_size
        self.load_s = load_s  # seconds it took to load
        self._program = lower(decoder, plan.library) if plan.library else None
        self._recorded = RecordedSteps(decoder, plan.record) if plan.record else None

    @property
    def kernels(self) -> str:
        """What multiplies: `torch`, or the compiled kernels' instruction set, with torch where no program runs; on CUDA
        torch with what makes it fast, as far as that has passed its checks."""
        library, plan = self.plan.library, self.plan
        if library is not None:
            return library.level if self._program else f"{library.level} and torch"
        graphs = ["CUDA graphs"] if self._recorded and self._recorded.failure is None else []
        tinygemm = ["tinygemm"] if plan.tinygemm and plan.tinygemm.used else []
        return ", ".join(["torch", *graphs, *tinygemm])

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it is slower here than it could be: of what did not pass its check, something else does the work."""
        checked = (self._recorded, self.plan.tinygemm)
        return tuple(part.failure for part in checked if part is not None and part.failure is not None)

    @property
    def threads(self) -> int:
        """CPU threads that share the work."""
        return torch.get_num_threads()

    @property
    def library(self) -> Library | None:
        """The compiled kernels, where they multiply."""
        return self.plan.library

    @property
    def device_name(self) -> str:
        """The device as the command line spells it."""
        return str(self.plan.device)

    @property
    def dtype_name(self) -> str:
        """The dtype as the command line spells it."""
        return self.plan.dtype_name

    def prepared(self, most_positions: int) -> Prepared | None:
        """What runs one text of up to so many tokens without torch, as this does; None where it takes torch."""
        if self._program is None:
            return None
        return self._program.prepared(most_positions, self.dtype_name, self.threads)

    def new_cache(self) -> KVCache:
        """An empty cache as long as the context."""
        config, plan = self.decoder.config, self.plan
        return KVCache(config, self.ctx_size, plan.device, plan.dtype, zeroed=self._recorded is not None)

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
        tokens = self._rotated_alike(tokens, cache)
        done = 0
        for chunk in self._chunks(tokens, _CUDA_CHUNK if self._spares_scores() else CHUNK):
            if cancelled():
                return None
            logits = self._run([chunk], cache)
            done += len(chunk)
            on_progress(done, len(tokens))
        return logits[-1]

    def decode(self, token: int, cache: KVCache) -> Tensor:
        """Runs one token behind those in the cache; its logits (vocab,) in fp32. Raises as `prefill` does."""
        return self.step([token], cache)[0]

    def step(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Runs one token, and perhaps as many more as `most_ahead` allows; logits behind each, (T, vocab) in fp32.

        Raises as `prefill` does.
        """
        *earlier, last = self._chunks(self._rotated_alike(tokens, cache))
        for chunk in earlier:
            self._run([chunk], cache)
        return self._run([last], cache, wanted=len(tokens))

    @torch.inference_mode()
    def decode_rows(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Runs one token behind each row of a cache; logits behind each, (rows, vocab) in fp32.

        Raises as `prefill` does.
        """
        if self._is_rotated_otherwise(1, cache):
            logits = self.prefill_rows([[*text, token] for text, token in zip(cache.texts, tokens, strict=True)], cache)
            assert logits is not None
            return logits
        return self._run([[token] for token in tokens], cache)

    @torch.inference_mode()
    def prefill_rows(
        self, texts: Sequence[Sequence[int]], cache: KVCache, cancelled: Callable[[], bool] = lambda: False
    ) -> Tensor | None:
        """Runs texts of one length, one after the other, and makes them the rows of a cache, whatever that held.

        The logits behind each, (rows, vocab) in fp32, or None once it is cancelled. Raises as `prefill` does.
        """
        caches, logits = [], []
        for text in texts:
            caches.append(self.new_cache())
            behind = self.prefill(text, caches[-1], cancelled=cancelled)
            if behind is None:
                return None
            logits.append(behind)
        self.fill(cache, caches)
        return torch.stack(logits)

    @torch.inference_mode()
    def fill(self, cache: KVCache, caches: Sequence[KVCache]) -> None:
        """Makes other caches the rows of one, as `KVCache.fill` does. Raises OutOfMemory."""
        with memory_errors(self.plan.device, f"sharing {caches[0].length} tokens among {len(caches)} texts"):
            cache.fill(caches)

    def most_rows(self, tokens: int) -> int:
        """How many texts of so many tokens may share a step: as many as gain by it, and as fit into the memory."""
        config, itemsize = self.decoder.config, self.plan.dtype.itemsize
        row_bytes = config.cache_bytes(min(tokens, self.ctx_size), itemsize)
        # A text that is run again has three: the old one, its own, and its place among the new rows.
        return max(1, min(_MOST_ROWS, int(free_bytes(self.plan.device) / (3 * row_bytes))))

    @torch.inference_mode()
    def each_logits(self, tokens: Sequence[int], cache: KVCache, wanted: int) -> Iterator[Tensor]:
        """Runs tokens behind those in the cache; yields the logits of the last `wanted` in pieces, (T, vocab) in fp32.

        Never more than a chunk's are in memory. Raises as `prefill` does.
        """
        tokens = self._rotated_alike(tokens, cache)
        behind = len(tokens)
        for chunk in self._chunks(tokens):
            behind -= len(chunk)
            asked = min(len(chunk), wanted - behind)
            logits = self._run([chunk], cache, wanted=max(1, asked))
            if asked > 0:
                yield logits

    def most_ahead(self, cache: KVCache) -> int:
        """How many tokens may be run ahead of the next one, so that they can be taken back."""
        borders = [border for border in self.decoder.config.rope_borders if border >= cache.length]
        return max(0, min([self.ctx_size, *borders]) - cache.length - 1)

    @torch.no_grad()  # not inference mode: the caller may change what it gets
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises as `prefill` does."""
        cache = self.new_cache()
        cache.span = len(tokens)
        return torch.cat([self._run([chunk], cache, wanted=len(chunk)) for chunk in self._chunks(tokens)])

    def _chunks(self, tokens: Sequence[int], most: int | None = None) -> list[Sequence[int]]:
        most = most or CHUNK
        return [tokens[start : start + most] for start in range(0, len(tokens), most)]

    def _spares_scores(self) -> bool:
        """Whether attention over a prompt is a fused kernel, which never holds its scores: on CUDA, where one can."""
        attentions = [block.attention for block in self.decoder.config.blocks]
        return self.plan.device.type == "cuda" and not any(each.sinks or each.softcap for each in attentions)

    def _rotated_alike(self, tokens: Sequence[int], cache: KVCache) -> Sequence[int]:
        """What to run so that all keys are rotated for the new length: the whole text when it crosses a border."""
        if not self._is_rotated_otherwise(len(tokens), cache):
            return tokens
        tokens = [*cache.tokens, *tokens]
        cache.truncate(0)
        return tokens

    def _is_rotated_otherwise(self, tokens: int, cache: KVCache) -> bool:
        """Whether so many tokens more make the text cross a border, behind which the keys there are are wrong."""
        before, cache.span = cache.span, cache.length + tokens
        crossed = any((before > border) != (cache.span > border) for border in self.decoder.config.rope_borders)
        return crossed and cache.length > 0

    def _run(self, rows: Sequence[Sequence[int]], cache: KVCache, wanted: int = 1) -> Tensor:
        """Runs tokens, equally many for each row of the cache, behind those in it.

        The logits of each row's last ones, (rows * wanted, vocab) in fp32.
        """
        length = cache.length + len(rows[0])
        finite: bool | Tensor
        with memory_errors(self.plan.device, f"running token {length}"):
            if self._program is not None:  # no place for what costs as much as a layer, such as a mode of torch's
                logits = self._program.run(rows, cache, wanted)
                finite = self._all_finite(logits)
            else:
                logits, finite = self._run_in_torch(rows, cache, wanted)
            cache.advance(*rows)
        if not finite:
            if self._recorded is not None:
                cache.discard()  # NaN in what a recorded step multiplies with zero is NaN
            raise NonFiniteLogits(length, self.plan.dtype_name)
        return logits

    def _all_finite(self, logits: Tensor) -> bool | Tensor:
        # A step that has nothing of torch's in it leaves torch's threads asleep, which would spin for the next one.
        if self.library is not None and logits.is_contiguous():
            return self.library.all_finite(logits.data_ptr(), logits.numel())
        return all_finite(logits)

    @torch.inference_mode()
    def _run_in_torch(self, rows: Sequence[Sequence[int]], cache: KVCache, wanted: int) -> tuple[Tensor, bool | Tensor]:
        if self._recorded is not None and len(rows[0]) == 1:
            return self._recorded.run([token for [token] in rows], cache)
        hidden = self.decoder(torch.tensor(rows, device=self.plan.device), cache)
        logits = self.decoder.logits(hidden[:, -wanted:].flatten(0, 1))
        return logits, self._all_finite(logits)
