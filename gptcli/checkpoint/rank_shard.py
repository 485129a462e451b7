"""A rank's shard of a decoder: tensor parallelism (Shoeybi et al., 2019). No torch.

A rank has some heads, some of an MLP's or an expert's channels, and some of the vocabulary. Its attention or MLP
returns one term of a sum over all ranks. Everything else is the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from gptcli.checkpoint.recipes import Ranges, Recipe, Slice
from gptcli.errors import UsageError
from gptcli.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DenseAndMoeConfig,
    MlpConfig,
    MoeConfig,
    other_field,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_UNITS = (256, 128, 64, 32)  # columns of a group or block: weights cut between these stay packed
_ROWS, _COLUMNS = -2, -1
# The fields that may differ from their defaults in a decoder that is split.
_WHOLE = (
    "vocab_size", "hidden_size", "max_context", "blocks", "norm", "tied_head", "embedding_norm", "final_norm",
    "head_bias", "learned_positions", "embedding_scale", "logit_scale", "logit_softcap",
)  # fmt: skip
_ATTENTION = (
    "heads", "kv_heads", "head_dim", "rope", "scale", "window", "chunked", "qkv_bias", "out_bias", "qk_norm", "v_norm",
    "position_scale", "clip", "softcap", "sinks", "gated", "out_scale",
)  # fmt: skip
_MOE = (
    "expert", "experts", "top_k", "renormalize", "router", "router_bias", "wide_router", "correction", "groups",
    "top_groups", "group_best", "least_sum", "added_to_sum", "scale", "jitter", "shared", "shared_gate", "scales_input",
)  # fmt: skip


@dataclass(frozen=True)
class RankShard:
    """A rank's shard of a decoder. whole: the config of the whole decoder.

    Raises UsageError where something in it cannot be split among so many ranks.
    """

    whole: DecoderConfig
    rank: int
    ranks: int

    @cached_property
    def config(self) -> DecoderConfig:
        """The config of this rank's shard."""
        self._check(self.whole, *_WHOLE)
        start, stop = self.vocabulary
        blocks = tuple(map(self._block, self.whole.blocks))
        return replace(self.whole, blocks=blocks, vocab_size=stop - start, ranks=self.ranks)

    @cached_property
    def vocabulary(self) -> tuple[int, int]:
        """This rank's range of ids, [first, end)."""
        return self._range(self.whole.vocab_size, "ids")

    @property
    def vocabularies(self) -> list[tuple[int, int]]:
        """`vocabulary` of every rank."""
        return [_range(self.whole.vocab_size, rank, self.ranks) for rank in range(self.ranks)]

    def recipe(self, name: str, whole: Recipe) -> Recipe:
        """The recipe of this rank's shard of a parameter."""
        match name.split("."):
            case ["blocks", index, *path]:
                cut = self._cut(self.whole.blocks[int(index)], path)
            case ["embed", _] | ["head", "weight"]:
                cut = (_ROWS, (self.vocabulary,))
            case ["head", "bias"]:
                cut = (_COLUMNS, (self.vocabulary,))
            case _:
                cut = None
        return whole if cut is None else Slice(whole, *cut)

    def adds(self, name: str) -> bool:
        """Whether this rank adds a bias; biases that all ranks have are added by the first alone."""
        return self.rank == 0 or not name.endswith(("attention.out.bias", ".down.bias"))

    def _block(self, block: BlockConfig) -> BlockConfig:
        if block.state is not None:
            raise self._unsplittable("layers with a state")
        attention = block.attention
        if attention is not None:
            if not isinstance(attention, AttentionConfig):
                raise self._unsplittable("latent attention")
            self._check(attention, *_ATTENTION)
            if attention.qk_norm is not None and attention.qk_norm.over == "full":
                raise self._unsplittable("attention whose q and k are normalized over all heads")
            (first, last), (first_kv, last_kv) = self._heads(attention)
            attention = replace(attention, heads=last - first, kv_heads=last_kv - first_kv)
        mlp = block.mlp
        if isinstance(mlp, DenseAndMoeConfig):
            raise self._unsplittable("an MLP beside a mixture")
        if isinstance(mlp, MoeConfig):
            self._check(mlp, *_MOE)
            shared = None if mlp.shared is None else self._mlp(mlp.shared)
            mlp = replace(mlp, expert=self._mlp(mlp.expert), shared=shared)
        elif mlp is not None:
            mlp = self._mlp(mlp)
        self._check(block, "attention", "mlp", "residual", "residual_scale")
        return replace(block, attention=attention, mlp=mlp)

    def _mlp(self, mlp: MlpConfig) -> MlpConfig:
        self._check(mlp, "width", "activation", "gated", "bias", "gate_scale", "out_scale")
        start, stop = self._channels(mlp)
        return replace(mlp, width=stop - start)

    def _channels(self, mlp: MlpConfig) -> tuple[int, int]:
        """This rank's range of an MLP's width."""
        fitting = (unit for unit in _UNITS if mlp.width % unit == 0 and mlp.width // unit >= self.ranks)
        unit = next(fitting, 1)
        start, stop = self._range(mlp.width // unit, "channels of an MLP")
        return start * unit, stop * unit

    def _heads(self, attention: AttentionConfig) -> tuple[tuple[int, int], tuple[int, int]]:
        """Ranges of query heads and of key-value heads. Several ranks share one of the latter if there are too few."""
        kv_heads = attention.kv_heads
        group = attention.heads // kv_heads
        if kv_heads >= self.ranks:
            first, last = self._range(kv_heads, "heads")
            return (first * group, last * group), (first, last)
        sharing, left = divmod(self.ranks, kv_heads)
        if left or sharing > group:
            raise self._unsplittable(f"attention with {attention.heads} heads, of which {kv_heads} of keys,")
        kv_head, rank = divmod(self.rank, sharing)
        first, last = (kv_head * group + index for index in _range(group, rank, sharing))
        return (first, last), (kv_head, kv_head + 1)

    def _cut(self, block: BlockConfig, path: Sequence[str]) -> tuple[int, Ranges] | None:
        """The axis along which a block's parameter is split, and the ranges of it that are kept."""
        mlp = block.mlp
        match path:
            case ["attention", *inner]:
                assert isinstance(block.attention, AttentionConfig)
                return self._attention_cut(block.attention, inner)
            case ["mlp", "shared", matrix, kind] if isinstance(mlp, MoeConfig) and mlp.shared:
                return self._mlp_cut(mlp.shared, matrix, kind)
            case ["mlp", matrix, kind] if isinstance(mlp, MlpConfig | MoeConfig):
                return self._mlp_cut(mlp.expert if isinstance(mlp, MoeConfig) else mlp, matrix, kind)
        return None

    def _attention_cut(self, attention: AttentionConfig, path: Sequence[str]) -> tuple[int, Ranges] | None:
        queries, keys = self._heads(attention)
        heads, kv_heads, dim = attention.heads, attention.kv_heads, attention.head_dim
        match path:
            case ["qkv", kind]:
                starts = [0, heads][: 1 + attention.gated]  # of the gate, and of q
                after = starts[-1] + heads
                parts = [*((start, queries) for start in starts), (after, keys), (after + kv_heads, keys)]
                rows = tuple(((start + first) * dim, (start + last) * dim) for start, (first, last) in parts)
                return (_ROWS if kind == "weight" else _COLUMNS), rows
            case ["out", "weight"]:
                return _COLUMNS, ((queries[0] * dim, queries[1] * dim),)
            case ["sinks"]:
                return _COLUMNS, (queries,)
            case ["q_norm" | "k_norm" as norm, _] if attention.qk_norm and attention.qk_norm.over == "each_head":
                return _ROWS, (queries if norm == "q_norm" else keys,)
        return None

    def _mlp_cut(self, mlp: MlpConfig, matrix: str, kind: str) -> tuple[int, Ranges] | None:
        start, stop = self._channels(mlp)
        if matrix == "up":
            halves = (0, mlp.width)[: 1 + mlp.gated]
            ranges = tuple((half + start, half + stop) for half in halves)
            return (_ROWS if kind == "weight" else _COLUMNS), ranges
        return (_COLUMNS, ((start, stop),)) if (matrix, kind) == ("down", "weight") else None

    def _range(self, count: int, what: str) -> tuple[int, int]:
        if count < self.ranks:
            raise self._unsplittable(f"{count} {what}")
        return _range(count, self.rank, self.ranks)

    def _check(self, config: DataclassInstance, *names: str) -> None:
        if (other := other_field(config, *names)) is not None:
            raise self._unsplittable(other)

    def _unsplittable(self, what: str) -> UsageError:
        return UsageError(f"{what} cannot be split among {self.ranks} processes", "run it in one, or in fewer")


def _range(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """A rank's range of `count`; lengths differ by at most one."""
    return count * rank // ranks, count * (rank + 1) // ranks
