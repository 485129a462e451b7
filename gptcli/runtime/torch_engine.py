"""Runs a decoder in torch, as a compiled program or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from gptcli.cuda.graph import CapturedSteps
from gptcli.cuda.static_step import all_finite
from gptcli.kernels.bindings import Arithmetic, not_built
from gptcli.kernels.layers import CompiledExperts, CompiledLinear
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.runtime.chunked_engine import ChunkedEngine, longest
from gptcli.runtime.device_plan import DevicePlan, free_bytes
from gptcli.runtime.engine import (
    MOST_ROWS,
    Cache,
    Cancelled,
    Extension,
    TokenScore,
    Workload,
    caches_of,
    never_cancelled,
)
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.lowering.decoder import lower
from gptcli.runtime.memory_errors import memory_errors
from gptcli.runtime.program import chunks
from gptcli.runtime.program_cache import ProgramCache
from gptcli.runtime.weight_bytes import weight_bytes

TextCache = KVCache | ProgramCache

_CACHED_ROWS = 16  # of logits that stay in a cache while they are summed
_CUDA_CHUNK = 2048  # prompt tokens where attention keeps no scores: fewer leave a GPU half idle


class TorchEngine(ChunkedEngine[Tensor]):
    """A loaded decoder on its device; a `FullEngine`."""

    def __init__(self, decoder: Decoder, plan: DevicePlan, ctx_size: int, load_s: float) -> None:
        self.decoder = decoder
        self.plan = plan
        self.ctx_size = ctx_size
        self.load_s = load_s
        self.library, self.device_name, self.dtype_name = plan.library, str(plan.device), plan.dtype_name
        super().__init__()
        config = decoder.config
        self._rope_borders, self._keeps_states = config.rope_borders, config.keeps_states
        keeps_scores = any(attention.keeps_scores for attention in config.attentions)
        self._prompt_chunk = _CUDA_CHUNK if plan.device.type == "cuda" and not keeps_scores else None
        self._program = lower(decoder, plan.library, plan.cache_kind) if plan.library else None
        self._sums_up = self._program is not None and self._program.scores
        self._captured = CapturedSteps(decoder, plan.capture) if plan.capture else None

    @property
    def kernels(self) -> str:
        """See `FullEngine.kernels`."""
        library, plan = self.plan.library, self.plan
        if library is not None:
            return library.level if self._program else f"{library.level} and torch"
        graphs = ["CUDA graphs"] if self._captured and self._captured.failure is None else []
        tinygemm = ["tinygemm"] if plan.weights.tinygemm and plan.weights.tinygemm.used else []
        return ", ".join(["torch", *graphs, *tinygemm])

    @property
    def arithmetic(self) -> str:
        """See `FullEngine.arithmetic`."""
        compiled = [m for m in self.decoder.modules() if isinstance(m, CompiledLinear | CompiledExperts)]
        names = get_args(Arithmetic)
        return max((module.arithmetic for module in compiled), key=names.index, default=self.dtype_name)

    @property
    def failures(self) -> tuple[str, ...]:
        """See `Engine.failures`; fast paths that failed their check are not used."""
        checked = (self._captured, self.plan.weights.tinygemm)
        failures = [each.failure for each in checked if each is not None and each.failure is not None]
        if self.plan.device.type == "cpu" and not_built():
            failures.append("the CPU kernels are not built: install a C compiler, then gptcli again")
        rounding = [] if self.plan.rounding is None else [self.plan.rounding]
        return *rounding, *(f"slower than it could be: {failure}" for failure in failures)

    @property
    def threads(self) -> int:
        """See `FullEngine.threads`."""
        return torch.get_num_threads()

    def serves(self, workload: Workload) -> bool:
        """See `Engine.serves`."""
        return True

    def snapshot(self, most_positions: int) -> Snapshot | None:
        """What runs one text of up to `most_positions` tokens without torch; None where torch is needed."""
        if self._program is None:
            return None
        return self._program.snapshot(most_positions, self.dtype_name, self.threads)

    def new_cache(self) -> TextCache:
        """See `Engine.new_cache`."""
        return self._new_kv_cache() if self._program is None else self._program.new_cache(self.ctx_size)

    def _new_kv_cache(self) -> KVCache:
        config, plan = self.decoder.config, self.plan
        return plan.new_cache(config, self.ctx_size, plan.device, plan.weights.dtype, zeroed=self._captured is not None)

    def new_rows(self) -> TensorRows | None:
        """See `Engine.new_rows`: where steps of rows are captured."""
        return None if self._captured is None or self._captured.failure else TensorRows(self)

    @property
    def kv(self) -> str:
        """The format of keys and values, as on the command line."""
        return self.dtype_name if self._program is None else self.plan.cache_kind

    def bytes_a_token(self, context: int) -> int:
        """See `FullEngine.bytes_a_token`."""
        weights = weight_bytes(self.decoder) if self._program is None else self._program.program.bytes_a_token
        return weights + self.cache_bytes(context)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of a text's keys and values."""
        itemsize = self.plan.weights.dtype.itemsize
        if self._program is not None:
            itemsize = {"fp32": 4, "fp16": 2, "int8": 1}[self.plan.cache_kind]
        return self.decoder.config.cache_bytes(tokens, itemsize)

    def most_rows(self, tokens: int) -> int:
        """As many as gain by sharing steps and fit into the memory; see `Engine.most_rows`."""
        row_bytes = self.cache_bytes(min(tokens, self.ctx_size))
        if self._program is not None:
            row_bytes += self._program.program.most_state_bytes
        # A text that is run again needs three: the old row, its own cache, and the new row.
        return max(1, min(MOST_ROWS, int(free_bytes(self.plan.device) / (3 * row_bytes))))

    def _log_probabilities(
        self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int
    ) -> list[float] | None:
        assert self._program is not None
        with memory_errors(self.device_name, f"running token {longest(texts)}"), self._step:
            return self._program.score(texts, targets, vocabulary)

    def _scores(self, logits: Tensor, targets: Sequence[int], vocabulary: int, top: int) -> list[TokenScore]:
        logits = logits[:, :vocabulary]
        if self.library is not None and logits.stride(1) == 1:  # torch needs more time for these sums than for a layer
            rows, size = logits.shape
            sums = self.library.log_sums(logits.data_ptr(), rows, size, logits.stride(0))
            total = torch.tensor(sums, dtype=torch.float64)[:, None]
        else:
            total = torch.cat([_log_sums(some) for some in torch.split(logits, _CACHED_ROWS)])  # (T, 1)
        chosen = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None]) - total
        if not top:
            return [TokenScore(value, ()) for value in chosen[:, 0].tolist()]
        best = logits.topk(min(top, logits.shape[1]))
        ranked = zip(best.indices.tolist(), (best.values - total).tolist(), strict=True)
        likeliest = [list(zip(*pair, strict=True)) for pair in ranked]
        return list(map(TokenScore, chosen[:, 0].tolist(), likeliest))

    @torch.no_grad()  # not inference mode: the caller may change what it gets
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """See `FullEngine.logits`."""
        cache = self.new_cache()
        cache.span = len(tokens)
        return torch.cat([self._run(Extension(cache, chunk, len(chunk))) for chunk in chunks(tokens)])

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """See `FullEngine.embed`."""
        cache = self._new_kv_cache()
        cache.span = len(tokens)
        total: Tensor | float = 0.0
        for chunk in chunks(tokens):
            with memory_errors(self.device_name, f"running token {cache.length + len(chunk)}"), self._step:
                hidden = self.decoder(torch.tensor([chunk], device=self.plan.device), cache)
                total = total + self.decoder.final_norm(hidden)[0].float().sum(0)
                cache.advance(chunk)
        mean = total / len(tokens)
        assert isinstance(mean, Tensor)
        if not mean.isfinite().all():
            raise self._non_finite(len(tokens))
        return mean

    def _run(self, text: Extension, cancelled: Cancelled = never_cancelled) -> Tensor:
        if self._program is not None:
            return super()._run(text, cancelled)
        [cache] = caches_of([text], KVCache)
        return self._run_rows([text.tokens], cache, text.wanted)

    def copy_of(self, cache: Cache, length: int) -> TextCache:
        """See `Engine.copy_of`."""
        with memory_errors(self.plan.device, f"copying {length} tokens"):
            if isinstance(cache, ProgramCache):
                return cache.copy(length)
            assert isinstance(cache, KVCache)
            other = self._new_kv_cache()
            other.fill([cache])
        other.truncate(length)
        return other

    def _run_texts(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> Tensor:
        with memory_errors(self.device_name, f"running token {longest(texts)}"), self._step:
            # No torch modes around a program: they are as slow as a layer.
            return self._run_side_by_side(texts) if self._program is None else self._program.run(texts, cancelled)

    @torch.inference_mode()
    def _run_side_by_side(self, texts: Sequence[Extension]) -> Tensor:
        caches, counts = caches_of(texts, KVCache), [len(text.tokens) for text in texts]
        ids = torch.tensor([token for text in texts for token in text.tokens], device=self.plan.device)
        [hidden] = self.decoder(ids[None], *caches, counts=counts)
        for cache, text in zip(caches, texts, strict=True):
            cache.advance(text.tokens)
        ends = [own[-text.wanted :] for own, text in zip(torch.split(hidden, counts), texts, strict=True)]
        return self.decoder.logits(torch.cat(ends))

    def _all_finite(self, logits: Tensor) -> bool:
        # Without torch operations in a step, torch's threads stay asleep instead of spinning for the next one.
        if self.library is not None and logits.is_contiguous():
            return self.library.all_finite(logits.data_ptr(), logits.numel())
        return bool(all_finite(logits))

    @torch.inference_mode()
    def _run_rows(self, rows: Sequence[Sequence[int]], cache: KVCache, wanted: int = 1) -> Tensor:
        """Appends tokens, equally many to each row; the logits of each row's last ones, (rows * wanted, vocab)."""
        length = cache.length + len(rows[0])
        with memory_errors(self.device_name, f"running token {length}"), self._step:
            if self._captured is not None and len(rows[0]) == 1:
                logits, all_of_them = self._captured.run([token for [token] in rows], cache)
                finite = bool(all_of_them)  # the next captured step overwrites it
            else:
                hidden = self.decoder(torch.tensor(rows, device=self.plan.device), cache)
                logits = self.decoder.logits(hidden[:, -wanted:].flatten(0, 1))
                finite = self._all_finite(logits)
            cache.advance(*rows)
        if not finite:
            if self._captured is not None:
                cache.discard()  # captured steps multiply scratch by zero, and NaN stays NaN
            raise self._non_finite(length)
        return logits


def _log_sums(logits: Tensor) -> Tensor:
    """The logarithm of each row's sum of e^logit, (rows, 1) in fp64."""
    most = logits.amax(-1, keepdim=True)
    return (logits - most).exp_().sum(-1, keepdim=True, dtype=torch.float64).log() + most


class TensorRows:
    """See `Rows`: run in torch, whatever runs other texts."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine, self._cache = engine, engine._new_kv_cache()

    def begin(self, cache: Cache, count: int) -> None:
        """See `Rows.begin`."""
        self._fill(caches_of([Extension(cache, ())], KVCache) * count)

    @torch.inference_mode()
    def _fill(self, caches: Sequence[KVCache]) -> None:
        doing = f"sharing {caches[0].length} tokens among {len(caches)} texts"
        with memory_errors(self._engine.device_name, doing):
            self._cache.fill(caches)

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        """See `Rows.step`; each logits is (vocab,) in fp32."""
        if self._engine._crosses_border(1, self._cache):
            texts = [[*text, token] for text, token in zip(self._cache.texts, tokens, strict=True)]
            logits = self.replace(texts)
            assert logits is not None
            return logits
        return self._engine._run_rows([[token] for token in tokens], self._cache).unbind()

    def replace(
        self, texts: Sequence[Sequence[int]], cancelled: Cancelled = never_cancelled
    ) -> Sequence[Tensor] | None:
        """See `Rows.replace`: texts are run one by one. They must be equally long."""
        caches, logits = [], []
        for text in texts:
            caches.append(self._engine._new_kv_cache())
            last = self._engine.prefill(text, caches[-1], cancelled=cancelled)
            if last is None:
                return None
            logits.append(last)
        self._fill(caches)
        return logits

    def drop(self, row: int) -> None:
        """See `Rows.drop`."""
        self._cache.drop(row)
