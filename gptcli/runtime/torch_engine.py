"""Runs a decoder in torch, as a compiled program or as a CUDA graph: prefill in chunks, then a token at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from typing import get_args

import torch
from torch import Tensor

from gptcli.cuda.graph import RecordedSteps
from gptcli.cuda.static_step import all_finite
from gptcli.errors import NonFiniteLogits, OutOfMemory
from gptcli.kernels.bindings import Arithmetic, not_built
from gptcli.kernels.layers import CompiledExperts, CompiledLinear
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.runtime.device_plan import DevicePlan, free_bytes
from gptcli.runtime.engine import (
    MOST_ROWS,
    Cancelled,
    Extended,
    Extension,
    Progress,
    StepCancelled,
    TokenScore,
    Workload,
    never_cancelled,
    no_progress,
)
from gptcli.runtime.fast_start.snapshot_file import Snapshot
from gptcli.runtime.lowering.decoder import lower
from gptcli.runtime.memory_errors import memory_errors
from gptcli.runtime.program import CHUNK, chunks, sums_up
from gptcli.runtime.program_cache import ProgramCache

TextCache = KVCache | ProgramCache

_CACHED_ROWS = 16  # of logits that stay in a cache while they are summed
_CUDA_CHUNK = 2048  # prompt tokens where attention keeps no scores: fewer leave a GPU half idle


class TorchEngine:
    """A loaded decoder on its device; an `Engine` whose logits are tensors, for every workload."""

    def __init__(self, decoder: Decoder, plan: DevicePlan, ctx_size: int, load_s: float) -> None:
        self.decoder = decoder
        self.plan = plan
        self.ctx_size = ctx_size
        self.load_s = load_s
        self.library, self.device_name, self.dtype_name = plan.library, str(plan.device), plan.dtype_name
        self._step = threading.Lock()  # program, rotary tables and recorded step have one set of buffers
        self._program = lower(decoder, plan.library, plan.cache_kind) if plan.library else None
        self._recorded = RecordedSteps(decoder, plan.record) if plan.record else None

    @property
    def kernels(self) -> str:
        """What multiplies: the kernels' instruction set, torch, or both; on CUDA also the checked fast paths."""
        library, plan = self.plan.library, self.plan
        if library is not None:
            return library.level if self._program else f"{library.level} and torch"
        graphs = ["CUDA graphs"] if self._recorded and self._recorded.failure is None else []
        tinygemm = ["tinygemm"] if plan.weights.tinygemm and plan.weights.tinygemm.used else []
        return ", ".join(["torch", *graphs, *tinygemm])

    @property
    def arithmetic(self) -> str:
        """The arithmetic for more than a few tokens, in the layer that rounds most."""
        compiled = [m for m in self.decoder.modules() if isinstance(m, CompiledLinear | CompiledExperts)]
        names = get_args(Arithmetic)
        return max((module.arithmetic for module in compiled), key=names.index, default=self.dtype_name)

    @property
    def failures(self) -> tuple[str, ...]:
        """See `Engine.failures`; fast paths that failed their check are not used."""
        checked = (self._recorded, self.plan.weights.tinygemm)
        failures = [each.failure for each in checked if each is not None and each.failure is not None]
        if self.plan.device.type == "cpu" and not_built():
            failures.append("the CPU kernels are not built: install a C compiler, then gptcli again")
        rounding = [] if self.plan.rounding is None else [self.plan.rounding]
        return *rounding, *(f"slower than it could be: {failure}" for failure in failures)

    @property
    def threads(self) -> int:
        """CPU threads that share the work."""
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
        return plan.new_cache(config, self.ctx_size, plan.device, plan.weights.dtype, zeroed=self._recorded is not None)

    @torch.inference_mode()
    def prefill(
        self,
        tokens: Sequence[int],
        cache: TextCache,
        on_progress: Progress = no_progress,
        cancelled: Cancelled = never_cancelled,
    ) -> Tensor | None:
        """See `Engine.prefill`; the logits are (vocab,) in fp32."""
        tokens = self._rotated_alike(tokens, cache)
        done = 0
        # The same prompt again needs what was before its last token.
        states = self.decoder.config.keeps_states and len(tokens) > 1
        for chunk in chunks(tokens, len(tokens) - 1 if states else 0, self._prompt_chunk):
            if cancelled():
                return None
            cache.mark()
            try:
                logits = self._run(chunk, cache, cancelled=cancelled)
            except StepCancelled:
                return None
            done += len(chunk)
            on_progress(done, len(tokens))
        return logits[-1]

    def decode(self, token: int, cache: TextCache) -> Tensor:
        """Appends one token; its logits (vocab,) in fp32. Raises as `prefill` does."""
        return self.step([token], cache)[0]

    def step(self, tokens: Sequence[int], cache: TextCache) -> Sequence[Tensor]:
        """See `Engine.step`; each logits is (vocab,) in fp32."""
        return self._append(Extension(cache, self._rotated_alike(tokens, cache), len(tokens)))

    def _append(self, text: Extension) -> Sequence[Tensor]:
        *earlier, last = chunks(text.tokens)
        for chunk in earlier:
            self._run(chunk, text.cache)
        return self._run(last, text.cache, text.wanted).unbind()

    @torch.inference_mode()
    def decode_rows(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Appends one token to each row; the logits after each, (rows, vocab) in fp32. Raises as `prefill` does."""
        if self._crosses_border(1, cache):
            logits = self.prefill_rows([[*text, token] for text, token in zip(cache.texts, tokens, strict=True)], cache)
            assert logits is not None
            return logits
        return self._run_in_torch([[token] for token in tokens], cache)

    @torch.inference_mode()
    def prefill_rows(
        self, texts: Sequence[Sequence[int]], cache: KVCache, cancelled: Cancelled = never_cancelled
    ) -> Tensor | None:
        """Runs texts of equal length one by one and makes them the rows of a cache.

        Returns the logits after each, (rows, vocab) in fp32, or None once cancelled. Raises as `prefill` does.
        """
        caches, logits = [], []
        for text in texts:
            caches.append(self._new_kv_cache())
            last = self.prefill(text, caches[-1], cancelled=cancelled)
            if last is None:
                return None
            logits.append(last)
        self.fill(cache, caches)
        return torch.stack(logits)

    @torch.inference_mode()
    def fill(self, cache: KVCache, caches: Sequence[KVCache]) -> None:
        """Copies caches into the rows of another; see `KVCache.fill`. Raises OutOfMemory."""
        with memory_errors(self.plan.device, f"sharing {caches[0].length} tokens among {len(caches)} texts"):
            cache.fill(caches)

    def rows(self, cache: KVCache, count: int) -> TensorRows:
        """`count` texts that begin with a copy of a cache; run in torch. Raises OutOfMemory."""
        rows = self._new_kv_cache()
        self.fill(rows, [cache] * count)
        return TensorRows(self, rows)

    @property
    def kv(self) -> str:
        """The format of keys and values, as on the command line."""
        return self.dtype_name if self._program is None else self.plan.cache_kind

    @property
    def program_bytes_a_token(self) -> int | None:
        """Bytes of weights that a program multiplies one token with; None where torch runs the steps."""
        return None if self._program is None else self._program.program.bytes_a_token

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

    @torch.inference_mode()
    def score_tokens(
        self, tokens: Sequence[int], cache: TextCache, targets: Sequence[int], vocabulary: int, top: int
    ) -> Iterator[list[TokenScore]]:
        """See `Engine.score_tokens`. Holds no more than one chunk's logits."""
        tokens = self._rotated_alike(tokens, cache)
        before = len(tokens) - len(targets)  # tokens that nothing is scored after
        first = max(0, before) if self.decoder.config.keeps_states else 0
        for chunk in chunks(tokens, first):
            cache.mark()
            asked = targets[max(0, -before) :][: max(0, len(chunk) - max(0, before))]
            before -= len(chunk)
            if asked and self._sums_up(len(asked), top):
                yield self._score_texts([Extension(cache, chunk, len(asked))], asked, vocabulary)
                continue
            logits = self._run(chunk, cache, wanted=max(1, len(asked)))[:, :vocabulary]
            if asked:
                yield self._scores(logits, asked, top)

    @torch.inference_mode()
    def score_texts(
        self, texts: Sequence[Extension], targets: Sequence[Sequence[int]], vocabulary: int, top: int
    ) -> list[list[TokenScore]]:
        """See `Engine.score_texts`."""
        texts = self._all_rotated_alike(texts)
        if self.decoder.config.keeps_states:  # the same text with another end needs what is before that
            before, texts = zip(*(text.split() for text in texts), strict=True)
            if any(text.tokens for text in before):
                self._run_texts([text for text in before if text.tokens])
            for text in texts:
                text.cache.mark()
        if self._sums_up(sum(text.wanted for text in texts), top):
            rest = iter(self._score_texts(texts, [target for own in targets for target in own], vocabulary))
            return [[next(rest) for _ in own] for own in targets]
        logits = self._run_texts(texts)
        if not self._all_finite(logits):
            raise NonFiniteLogits(max(text.cache.length for text in texts), self.plan.dtype_name)
        each = torch.split(logits[:, :vocabulary], [text.wanted for text in texts])
        return [self._scores(own, asked, top) for own, asked in zip(each, targets, strict=True)]

    def _sums_up(self, targets: int, top: int) -> bool:
        """Whether the program sums up the logits for so many targets, of which it then keeps none."""
        return self._program is not None and self._program.scores and sums_up(targets, top)

    def _score_texts(self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int) -> list[TokenScore]:
        assert self._program is not None
        length = max(text.cache.length + len(text.tokens) for text in texts)
        with memory_errors(self.plan.device, f"running token {length}"), self._step:
            logprobs = self._program.score(texts, targets, vocabulary)
        if logprobs is None:
            raise NonFiniteLogits(length, self.plan.dtype_name)
        return [TokenScore(logprob, ()) for logprob in logprobs]

    def _scores(self, logits: Tensor, targets: Sequence[int], top: int) -> list[TokenScore]:
        """The score of a target for each row of logits, (T, vocabulary)."""
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

    def most_ahead(self, cache: TextCache) -> int:
        """See `Engine.most_ahead`: a text that crosses a RoPE border cannot go back, nor can a state."""
        if self.decoder.config.keeps_states:
            return 0
        borders = [border for border in self.decoder.config.rope_borders if border >= cache.length]
        return max(0, min(min([self.ctx_size, *borders]) - cache.length, CHUNK) - 1)

    @torch.no_grad()  # not inference mode: the caller may change what it gets
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits at every position of a text, (T, vocab) in fp32. Raises as `prefill` does."""
        cache = self.new_cache()
        cache.span = len(tokens)
        return torch.cat([self._run(chunk, cache, wanted=len(chunk)) for chunk in chunks(tokens)])

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> Tensor:
        """The mean of a text's hidden states after the final norm, (hidden,) in fp32. Raises as `prefill` does."""
        cache = self._new_kv_cache()
        cache.span = len(tokens)
        total: Tensor | float = 0.0
        for chunk in chunks(tokens):
            with memory_errors(self.plan.device, f"running token {cache.length + len(chunk)}"), self._step:
                hidden = self.decoder(torch.tensor([chunk], device=self.plan.device), cache)
                total = total + self.decoder.final_norm(hidden)[0].float().sum(0)
                cache.advance(chunk)
        mean = total / len(tokens)
        assert isinstance(mean, Tensor)
        if not mean.isfinite().all():
            raise NonFiniteLogits(len(tokens), self.plan.dtype_name)
        return mean

    @property
    def _prompt_chunk(self) -> int | None:
        """Prompt tokens per pass, by default CHUNK: more where a fused CUDA kernel keeps no scores of attention."""
        keeps_scores = any(attention.keeps_scores for attention in self.decoder.config.attentions)
        return _CUDA_CHUNK if self.plan.device.type == "cuda" and not keeps_scores else None

    def _rotated_alike(self, tokens: Sequence[int], cache: TextCache) -> Sequence[int]:
        """The tokens to run so that all keys are rotated alike: the whole text if these cross a RoPE border."""
        if not self._crosses_border(len(tokens), cache):
            return tokens
        tokens = [*cache.tokens, *tokens]
        cache.truncate(0)
        return tokens

    def _all_rotated_alike(self, texts: Sequence[Extension]) -> list[Extension]:
        return [text._replace(tokens=self._rotated_alike(text.tokens, text.cache)) for text in texts]

    def _crosses_border(self, tokens: int, cache: TextCache) -> bool:
        """Whether this many more tokens cross a RoPE border, past which the cached keys are wrong."""
        before, cache.span = cache.span, cache.length + tokens
        crossed = any((before > border) != (cache.span > border) for border in self.decoder.config.rope_borders)
        return crossed and cache.length > 0

    def _run(
        self, tokens: Sequence[int], cache: TextCache, wanted: int = 1, cancelled: Cancelled = never_cancelled
    ) -> Tensor:
        """Appends tokens to a text; the logits of the last ones, (wanted, vocab)."""
        if not isinstance(cache, ProgramCache):
            return self._run_in_torch([tokens], cache, wanted)
        logits = self._run_texts([Extension(cache, tokens, wanted)], cancelled)
        if not self._all_finite(logits):
            raise NonFiniteLogits(cache.length, self.plan.dtype_name)
        return logits

    @property
    def records_rows(self) -> bool:
        """See `Engine.records_rows`."""
        return self._recorded is not None and self._recorded.failure is None

    def extend(self, texts: Sequence[Extension]) -> list[Extended]:
        """See `Engine.extend`; each logits is (vocab,) in fp32. A text that crosses a RoPE border runs by itself.

        Steps of one text may be recorded, those of several are not.
        """
        whole = self._all_rotated_alike(texts)
        several = self._program is not None or len(texts) > 1
        shares = [several and own.tokens is text.tokens for own, text in zip(whole, texts, strict=True)]
        shared = iter(self._run_together(list(compress(whole, shares))))
        return [next(shared) if sharing else self._run_alone(own) for own, sharing in zip(whole, shares, strict=True)]

    def _run_together(self, texts: Sequence[Extension]) -> list[Extended]:
        if not texts:
            return []
        try:
            logits = self._run_texts(texts)
        except OutOfMemory as error:
            return [error] * len(texts)
        rows = iter(logits.unbind())
        if self._all_finite(logits):
            return [list(islice(rows, text.wanted)) for text in texts]
        return [
            own.unbind() if self._all_finite(own) else NonFiniteLogits(text.cache.length, self.plan.dtype_name)
            for own, text in zip(torch.split(logits, [text.wanted for text in texts]), texts, strict=True)
        ]

    def _run_alone(self, text: Extension) -> Extended:
        try:
            return self._append(text)
        except (NonFiniteLogits, OutOfMemory) as error:
            return error

    def copy_of(self, cache: TextCache, length: int) -> TextCache:
        """See `Engine.copy_of`."""
        with memory_errors(self.plan.device, f"copying {length} tokens"):
            if isinstance(cache, ProgramCache):
                return cache.copy(length)
            other = self._new_kv_cache()
            other.fill([cache])
        other.truncate(length)
        return other

    def _run_texts(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> Tensor:
        """Appends tokens to each of several texts; the wanted logits, (sum of wanted, vocab), finite or not."""
        length = max(text.cache.length + len(text.tokens) for text in texts)
        with memory_errors(self.plan.device, f"running token {length}"), self._step:
            # No torch modes around a program: they are as slow as a layer.
            return self._run_side_by_side(texts) if self._program is None else self._program.run(texts, cancelled)

    @torch.inference_mode()
    def _run_side_by_side(self, texts: Sequence[Extension]) -> Tensor:
        counts = [len(text.tokens) for text in texts]
        ids = torch.tensor([token for text in texts for token in text.tokens], device=self.plan.device)
        [hidden] = self.decoder(ids[None], *(text.cache for text in texts), counts=counts)
        for text in texts:
            text.cache.advance(text.tokens)
        ends = [own[-text.wanted :] for own, text in zip(torch.split(hidden, counts), texts, strict=True)]
        return self.decoder.logits(torch.cat(ends))

    def _all_finite(self, logits: Tensor) -> bool | Tensor:
        # Without torch operations in a step, torch's threads stay asleep instead of spinning for the next one.
        if self.library is not None and logits.is_contiguous():
            return self.library.all_finite(logits.data_ptr(), logits.numel())
        return all_finite(logits)

    @torch.inference_mode()
    def _run_in_torch(self, rows: Sequence[Sequence[int]], cache: KVCache, wanted: int = 1) -> Tensor:
        """Appends tokens, equally many to each row; the logits of each row's last ones, (rows * wanted, vocab)."""
        length = cache.length + len(rows[0])
        finite: bool | Tensor
        with memory_errors(self.plan.device, f"running token {length}"), self._step:
            if self._recorded is not None and len(rows[0]) == 1:
                logits, finite = self._recorded.run([token for [token] in rows], cache)
            else:
                hidden = self.decoder(torch.tensor(rows, device=self.plan.device), cache)
                logits = self.decoder.logits(hidden[:, -wanted:].flatten(0, 1))
                finite = self._all_finite(logits)
            cache.advance(*rows)
            finite = bool(finite)  # the next recorded step overwrites it
        if not finite:
            if self._recorded is not None:
                cache.discard()  # recorded steps multiply scratch by zero, and NaN stays NaN
            raise NonFiniteLogits(length, self.plan.dtype_name)
        return logits


def _log_sums(logits: Tensor) -> Tensor:
    """The logarithm of each row's sum of e^logit, (rows, 1) in fp64."""
    most = logits.amax(-1, keepdim=True)
    return (logits - most).exp_().sum(-1, keepdim=True, dtype=torch.float64).log() + most


class TensorRows:
    """Texts of equal length that share steps, as rows of one cache."""

    def __init__(self, engine: TorchEngine, cache: KVCache) -> None:
        self._engine, self._cache = engine, cache

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        """Appends one token to each row; the logits (vocab,) in fp32 after each. Raises as `prefill` does."""
        return self._engine.decode_rows(tokens, self._cache).unbind()

    def replace(self, texts: Sequence[Sequence[int]], cancelled: Cancelled) -> Sequence[Tensor] | None:
        """Makes other texts the rows; the logits after each, or None once cancelled."""
        logits = self._engine.prefill_rows(texts, self._cache, cancelled)
        return None if logits is None else logits.unbind()

    def drop(self, row: int) -> None:
        """Forgets a row; the last one takes its index."""
        self._cache.drop(row)
