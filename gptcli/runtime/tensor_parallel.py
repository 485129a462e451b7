"""One decoder split among the processes that `torchrun` starts.

Rank 0 leads. It runs a command as if alone, and tells the others what its decoder runs and what happens to its caches.
The others follow. `RankShard` defines each rank's weights.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from weakref import finalize

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import Progress, WeightPlan, load_decoder
from gptcli.checkpoint.rank_shard import RankShard
from gptcli.errors import GptcliError
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.decoder import Decoder
from gptcli.runtime.device_plan import DevicePlan, plan_for
from gptcli.runtime.ranks import Ranks
from gptcli.settings import RuntimeConfig

_FOREVER = timedelta(days=365)  # a chat may wait for its user
_CHOSEN = ("dtype", "packing", "half", "arithmetic")  # fields of WeightPlan that the first rank chooses for all


class _Channel:
    """Sends messages from rank 0 to the others; notes go along with the next message.

    within: whether a decoder runs. Other ranks then wait for its sums, and listen to nothing else.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[Any, ...]] = []
        self.within = False

    def note(self, *message: Any) -> None:
        self._noted.append(message)

    def tell(self, *message: Any) -> None:
        if self.within:
            raise GptcliError("a step ended in the middle, and the other processes still wait for its end")
        noted, self._noted = self._noted, []
        dist.broadcast_object_list([[*noted, message]])


_channel = _Channel()
_names = itertools.count()  # of decoders and caches


def lead(
    folder: ModelFolder, runtime: RuntimeConfig, ctx_size: int, plan: DevicePlan, on_progress: Progress, ranks: Ranks
) -> tuple[Decoder, DevicePlan]:
    """Loads a decoder with the other ranks: this one's shard, which runs with theirs, and the plan for it.

    Raises UsageError if the decoder cannot be split among so many.
    """
    shard = RankShard(folder.architecture.config, ranks.rank, ranks.ranks)
    _ = shard.config  # raises before the others are told
    _start()
    name = next(_names)
    chosen = {each: getattr(plan.weights, each) for each in _CHOSEN}
    _channel.tell("load", name, folder, runtime, ctx_size, chosen)
    decoder = load_decoder(folder, plan.weights, on_progress, shard)
    _join(decoder, shard, name)
    decoder.register_forward_pre_hook(partial(_tell_run, name), with_kwargs=True)
    decoder.register_forward_hook(_ran)
    finalize(decoder, _channel.note, "forget", name)
    return decoder, replace(plan, capture=None, new_cache=partial(_LedCache, name))


def follow(ranks: Ranks) -> None:
    """Follows rank 0 until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0
    _start()
    follower = _Follower(ranks)
    heard: list[Any] = [()]
    try:
        while ("end",) not in heard[0]:
            dist.broadcast_object_list(heard)
            for kind, *message in heard[0]:
                if kind != "end":
                    getattr(follower, kind)(*message)
    except RuntimeError as error:
        if "closed by peer" not in str(error) and "reset by peer" not in str(error):
            raise  # otherwise rank 0 has died, and has printed why
    dist.destroy_process_group()


def dismiss() -> None:
    """Lets the other ranks end."""
    if not _channel.within:
        _start()
        _channel.tell("end")
        dist.destroy_process_group()  # its threads must not outlive the interpreter


def _start() -> None:
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_FOREVER)


class _Follower:
    """Decoders and caches of a rank that follows. Rank 0's messages name its methods."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._decoders: dict[int, tuple[Decoder, WeightPlan, int]] = {}
        self._caches: dict[int, KVCache] = {}

    def load(
        self, name: int, folder: ModelFolder, runtime: RuntimeConfig, ctx_size: int, chosen: dict[str, Any]
    ) -> None:
        plan = replace(plan_for(folder, runtime, self._ranks).weights, **chosen)
        shard = RankShard(folder.architecture.config, self._ranks.rank, self._ranks.ranks)
        decoder = load_decoder(folder, plan, shard=shard)
        _join(decoder, shard, name)
        self._decoders[name] = decoder, plan, ctx_size

    def forget(self, name: int) -> None:
        del self._decoders[name]

    def new_cache(self, name: int, decoder_name: int) -> None:
        decoder, plan, limit = self._decoders[decoder_name]
        self._caches[name] = KVCache(decoder.config, limit, plan.device, plan.dtype)

    def forget_cache(self, name: int) -> None:
        del self._caches[name]

    def truncate(self, name: int, length: int) -> None:
        self._caches[name].truncate(length)

    def discard(self, name: int) -> None:
        self._caches[name].discard()

    @torch.inference_mode()
    def fill(self, name: int, others: Sequence[int]) -> None:
        self._caches[name].fill([self._caches[other] for other in others])

    @torch.inference_mode()
    def run(self, decoder_name: int, names: Sequence[int], spans: Sequence[int], texts: Sequence[list[int]]) -> None:
        decoder, plan, _ = self._decoders[decoder_name]
        caches = [self._caches[name] for name in names]
        for cache, span in zip(caches, spans, strict=True):
            cache.span = span
        ids = torch.tensor([[*itertools.chain(*texts)]], device=plan.device)
        decoder(ids, *caches, counts=[len(text) for text in texts])
        for cache, text in zip(caches, texts, strict=True):
            cache.advance(text)

    @torch.inference_mode()
    def project(self, decoder_name: int, shape: Sequence[int], dtype: torch.dtype) -> None:
        decoder, plan, _ = self._decoders[decoder_name]
        x = torch.empty(shape, dtype=dtype, device=plan.device)
        (decoder.head or decoder.embed.project)(x)


class _LedCache(KVCache):
    """Rank 0's cache; the other ranks have one like it."""

    def __init__(self, decoder_name: int, *arguments: Any, **options: Any) -> None:
        self.name = next(_names)
        _channel.note("new_cache", self.name, decoder_name)
        finalize(self, _channel.note, "forget_cache", self.name)
        super().__init__(*arguments, **options)

    def truncate(self, length: int) -> None:
        _channel.note("truncate", self.name, length)
        super().truncate(length)

    def discard(self) -> None:
        _channel.note("discard", self.name)
        super().discard()

    def fill(self, caches: Sequence[KVCache]) -> None:
        _channel.note("fill", self.name, [cache.name for cache in caches if isinstance(cache, _LedCache)])
        super().fill(caches)


def _tell_run(decoder_name: int, decoder: nn.Module, inputs: tuple[Any, ...], named: dict[str, Sequence[int]]) -> None:
    [tokens], *caches = inputs  # one row
    texts = [text.tolist() for text in torch.split(tokens, list(named.get("counts", [len(tokens)])))]
    _channel.tell("run", decoder_name, [cache.name for cache in caches], [cache.span for cache in caches], texts)
    _channel.within = True


def _ran(decoder: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> None:
    _channel.within = False


def _join(decoder: Decoder, shard: RankShard, name: int) -> None:
    """Makes a shard's decoder sum over all ranks and return whole logits."""
    for block in decoder.blocks:
        for part in (block.get_submodule("attention"), block.get_submodule("mlp")):
            part.register_forward_hook(_sum)
    decoder.set_submodule("embed", _SplitVocabulary(decoder.embed, shard, name))
    if decoder.head is not None:
        decoder.set_submodule("head", _SplitVocabulary(decoder.head, shard, name))


def _sum(part: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    out = out.contiguous()
    dist.all_reduce(out)
    return out


class _SplitVocabulary(nn.Module):
    """Embeddings or a head of which each rank has some of the vocabulary."""

    def __init__(self, inner: nn.Module, shard: RankShard, name: int) -> None:
        super().__init__()
        self.inner, self._name = inner, name
        self._leads = shard.rank == 0
        self._first, self._end = shard.vocabulary
        self._sizes = [end - first for first, end in shard.vocabularies]

    def forward(self, x: Tensor) -> Tensor:
        """Ids (B, T) to (B, T, hidden); of a head, what `project` returns."""
        if x.is_floating_point():
            return self.project(x)
        embedded: Tensor = self.inner((x - self._first).clamp(0, self._end - self._first - 1))
        here = (self._first <= x) & (x < self._end)
        embedded = embedded * here[..., None]
        dist.all_reduce(embedded)
        return embedded

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab) of all ranks, on rank 0."""
        if self._leads:
            _channel.tell("project", self._name, x.shape, x.dtype)
        x = x.contiguous()
        dist.broadcast(x, 0)
        logits: Tensor = getattr(self.inner, "project", self.inner)(x)
        most = max(self._sizes)  # all ranks must send equally many
        padded = F.pad(logits, (0, most - logits.shape[-1])).contiguous()
        gathered = [torch.empty_like(padded) for _ in self._sizes] if self._leads else None
        dist.gather(padded, gathered)
        if gathered is None:
            return logits
        return torch.cat([each[..., :size] for each, size in zip(gathered, self._sizes, strict=True)], -1)
