"""Lowers a decoder to a program that the compiled kernels run, and runs it.

Nothing here computes: blocks become operations on buffers, in the order of `model/decoder.py`. Each function names the
config fields that it lowers. If another field differs from its default, or an operation is missing, `lower` returns
None, and torch runs the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gptcli.kernels.bindings import ROUNDED_PRODUCTS, CacheKind, Rotation
from gptcli.kernels.memory import Memory
from gptcli.kernels.tensors import Library
from gptcli.model.config import CACHE_STEP, RopeConfig
from gptcli.model.decoder import Block, Decoder
from gptcli.model.rope import rotary_table
from gptcli.runtime.engine import Cancelled, Extension, never_cancelled
from gptcli.runtime.fast_start.snapshot_file import RotaryTable, Snapshot
from gptcli.runtime.lowering.attention import lower_attention
from gptcli.runtime.lowering.mlp import lower_mlp
from gptcli.runtime.lowering.operations import Operations, Unsupported, handles, vector_of
from gptcli.runtime.lowering.state import lower_state
from gptcli.runtime.lowering.streams import (
    LoweredStreams,
    lower_laurel,
    lower_layer_input,
    lower_layer_inputs,
)
from gptcli.runtime.program import MANY_LOGITS, Buffer, Program, Scored
from gptcli.runtime.program_cache import ProgramCache

# The fields of DecoderConfig that the program computes, and those that `Decoder.scaled` applies to its logits.
_IN_PROGRAM = (
    "vocab_size", "hidden_size", "max_context", "blocks", "norm", "tied_head", "final_norm", "head_bias",
    "learned_positions", "embedding_scale", "embedding_norm", "wide_residual", "layer_inputs",
    "altup",
)  # fmt: skip
_AFTER_PROGRAM = ("logit_scale", "logit_softcap")


def lower(decoder: Decoder, library: Library, kind: CacheKind = "fp32") -> DecoderProgram | None:
    """The decoder's step as a program; None if it needs an operation that there is not. Its weights must stay alive.

    kind: the format of keys and values.
    """
    ops = Operations(decoder.config, library)
    try:
        _step(ops, decoder)
    except Unsupported:
        return None
    program = Program(library, ops.ops, ops.uses, ops.matrices, ops.vectors, kind)
    return DecoderProgram(decoder, program, ops.ropes)


class DecoderProgram:
    """A decoder's step, for tokens of one or more texts."""

    def __init__(self, decoder: Decoder, program: Program, ropes: list[RopeConfig]) -> None:
        self.program = program
        self._decoder, self._ropes = decoder, ropes
        self._tables: dict[tuple[RopeConfig, bool], RotaryTable] = {}

    def snapshot(self, most_positions: int, dtype: str, threads: int) -> Snapshot | None:
        """The program for texts of up to `most_positions`, without the decoder; None if it needs the decoder, too.

        Shares the decoder's weights.
        """
        config = self._decoder.config
        try:
            handles(config, *_IN_PROGRAM)
        except Unsupported:
            return None
        if config.rope_borders:
            return None
        positions = min(config.max_context, most_positions)
        device = torch.device("cpu")
        tables = [_rotary(*rotary_table(rope, positions, positions, device, torch.float32)) for rope in self._ropes]
        return Snapshot(self.program, tables, config.vocab_size, positions, dtype, threads)

    def new_cache(self, limit: int) -> ProgramCache:
        """An empty cache of a text of up to `limit` tokens."""
        return ProgramCache(self.program.layouts, limit, self.program.state_bytes)

    def run(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> Tensor:
        """Appends tokens to each of several texts; returns the wanted logits, (sum of wanted, vocab).

        Raises StepCancelled once cancelled.
        """
        logits = _empty(sum(text.wanted for text in texts), self._decoder.config.vocab_size)
        self.program.run(texts, self._rotations(texts), logits.data_ptr(), cancelled)
        return self._decoder.scaled(logits)

    @property
    def scores(self) -> bool:
        """Whether the program's logits are those of the model, so that `score` may sum them up."""
        return self._decoder.config.logit_scale == 1 and self._decoder.config.logit_softcap is None

    def score(self, texts: Sequence[Extension], targets: Sequence[int], vocabulary: int) -> list[float] | None:
        """As `run`, but gives each wanted token's target's log-probability, in nats; None if a logit is not finite."""
        scored = Scored(targets, vocabulary)
        self.program.run(texts, self._rotations(texts), 0, scored=scored)
        return scored.logprobs

    def _rotations(self, texts: Sequence[Extension]) -> list[list[Rotation]]:
        vocabulary, rotations = self._decoder.config.vocab_size, []
        longest = max(cache.length + len(tokens) for cache, tokens, _ in texts)  # no table may be replaced meanwhile
        for cache, tokens, _ in texts:
            assert 0 <= min(tokens) <= max(tokens) < vocabulary
            rotations.append([self._table(rope, longest, cache.span).at(cache.length) for rope in self._ropes])
        return rotations

    def _table(self, rope: RopeConfig, positions: int, span: int) -> RotaryTable:
        key = rope, rope.border is not None and span > rope.border
        table = self._tables.get(key)
        if table is None or table.positions < positions:
            positions = min(self._decoder.config.max_context, 2 * positions + CACHE_STEP)
            table = _rotary(*rotary_table(rope, positions, span, torch.device("cpu"), torch.float32))
            self._tables[key] = table
        return table


def _empty(rows: int, columns: int) -> Tensor:
    """(rows, columns) in fp32, not initialized."""
    if rows < MANY_LOGITS:
        return torch.empty(rows, columns)
    memory = Memory(4 * rows * columns, huge_pages=True)
    return torch.frombuffer(memory.view, dtype=torch.float32).view(rows, columns)


def _rotary(cos: Tensor, sin: Tensor) -> RotaryTable:
    return RotaryTable(vector_of(cos), vector_of(sin), cos.shape[-1])


def _step(ops: Operations, decoder: Decoder) -> None:
    """The whole step, from ids to logits."""
    config = decoder.config
    handles(config, *_IN_PROGRAM, *_AFTER_PROGRAM)
    x, normalized = Buffer("x", config.hidden_size), Buffer("normalized", config.hidden_size)
    embedding, positions = decoder.embed, decoder.positions
    ops.add(
        "EMBED",
        matrices=[ops.matrix(embedding)],
        out=x,
        weight=None if positions is None else positions.weight,
        size=config.hidden_size,
        factor=config.embedding_scale,
    )
    ops.norm(decoder.embedding_norm, x, x)
    if decoder.layer_inputs is not None:
        lower_layer_inputs(ops, decoder.layer_inputs, x)
    if config.altup is not None and decoder.streams is not None:
        streams = LoweredStreams(ops, config.altup, decoder.streams, x)
        for index, block in enumerate(decoder.blocks):
            _block_of_streams(ops, index, cast(Block, block), streams, x)
        streams.merge(x)
    else:
        for index, block in enumerate(decoder.blocks):
            _block_of_one(ops, index, cast(Block, block), x)
    final = ops.norm(decoder.final_norm, x, normalized)
    ops.linear(embedding if decoder.head is None else decoder.head, final, None)
    rounds = any(getattr(module, "arithmetic", "fp32") != "fp32" for module in decoder.modules())
    ops.ops[-1].arithmetic = ROUNDED_PRODUCTS if rounds else 0
    ops.narrow()


def _block_of_streams(ops: Operations, index: int, block: Block, streams: LoweredStreams, x: Buffer) -> None:
    if block.altup is None or block.scale is not None:
        raise Unsupported("a layer of one stream")
    streams.predict(block.altup, x)
    _block(ops, index, block, x)
    streams.correct(block.altup, x)
    if block.layer_input is not None:
        streams.scaled_active(block.altup, x)
        streams.add(lower_layer_input(ops, index, block.layer_input, x))


def _block_of_one(ops: Operations, index: int, block: Block, x: Buffer) -> None:
    _block(ops, index, block, x)
    if block.layer_input is not None:
        ops.sum(x, lower_layer_input(ops, index, block.layer_input, x))
    if block.scale is not None:
        ops.scale(x, block.scale.item())


def _block(ops: Operations, index: int, block: Block, x: Buffer) -> None:
    """Lowers `Block._run`."""
    config = block.config
    handles(config, "attention", "mlp", "residual", "residual_scale", "state", "scaled")
    residual, mixes = config.residual, block.attention is not None or block.state is not None
    normalized, mixed, fed = (Buffer(name, x.width) for name in ("normalized", "mixed", "fed"))
    if residual not in ("pre", "post", "sandwich", "after", "parallel", "shared"):
        raise Unsupported(residual)
    source = ops.norm(block.attention_norm, x, normalized)
    if block.attention is not None:
        lower_attention(ops, index, block.attention, source, mixed)
    if block.state is not None:
        followed = mixed if block.attention is None else Buffer("followed", x.width)
        lower_state(ops, block.state, source, followed)
        if block.attention is not None:
            ops.sum(mixed, followed)
    if residual in ("parallel", "shared"):
        if not mixes or block.mlp is None:
            raise Unsupported("half of a parallel layer")
        lower_mlp(ops, block.mlp, source if residual == "shared" else ops.norm(block.mlp_norm, x, normalized), fed)
        ops.sum(x, mixed, config.residual_scale)
        ops.sum(x, fed, config.residual_scale)
    else:
        if mixes:
            _add(ops, block, x, mixed, block.post_attention_norm)
        if block.laurel is not None:
            lower_laurel(ops, block.laurel, source, x)
        if block.mlp is not None:
            lower_mlp(ops, block.mlp, ops.norm(block.mlp_norm, x, normalized), fed)
            _add(ops, block, x, fed, block.post_mlp_norm)


def _add(ops: Operations, block: Block, x: Buffer, out: Buffer, norm: nn.Module) -> None:
    """Adds the output of half a layer to the residual stream x."""
    if block.config.residual == "after":
        ops.sum(x, out)
        ops.norm(norm, x, x)
    else:
        ops.sum(x, ops.norm(norm, out, out), block.config.residual_scale)
