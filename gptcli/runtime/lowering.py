"""Lowers a decoder to a program that the compiled kernels run, and runs it.

Nothing here computes: blocks become operations on buffers, in the order of `model/decoder.py`. Each function names the
config fields that it lowers. If any other field differs from its default, or there is no operation for something
(a clip of q, for example), `lower` returns None, and torch runs the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor, nn

from gptcli.kernels.bindings import ACTIVATIONS, Arithmetic, CacheKind, Matrix, Op
from gptcli.kernels.layers import CompiledEmbedding, CompiledExperts, CompiledLinear
from gptcli.kernels.memory import Memory
from gptcli.kernels.tensors import Library
from gptcli.model.adapted_linear import AdaptedLinear
from gptcli.model.attention import Attention
from gptcli.model.config import (
    CACHE_STEP,
    AttentionConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlpConfig,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
    other_field,
)
from gptcli.model.decoder import Block, Decoder
from gptcli.model.linear import Embedding, Linear
from gptcli.model.mlp import Experts, Mlp, Moe
from gptcli.model.norm import Norm
from gptcli.model.rope import rotary_table
from gptcli.runtime.engine import Cancelled, Extension, never_cancelled
from gptcli.runtime.fast_start.snapshot_file import RotaryTable, Snapshot
from gptcli.runtime.program import MANY_LOGITS, Buffer, Program, Text, Vector
from gptcli.runtime.program_cache import ProgramCache

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The fields of DecoderConfig that the program computes, and those that `Decoder.scaled` applies to its logits.
_IN_PROGRAM = (
    "vocab_size", "hidden_size", "max_context", "blocks", "norm", "tied_head", "final_norm", "head_bias",
    "learned_positions", "embedding_scale", "embedding_norm",
)  # fmt: skip
_AFTER_PROGRAM = ("logit_scale", "logit_softcap")
_CHOICE_WIDTH = 3  # of kernels.h's Choice, beside fp32


class Unsupported(Exception):
    """The decoder needs something that the compiled kernels have no operation for."""


def _handles(config: DataclassInstance, *names: str) -> None:
    """Raises Unsupported if a field of a config that is not among `names` differs from its default."""
    if (other := other_field(config, *names)) is not None:
        raise Unsupported(other)


def lower(decoder: Decoder, library: Library, kind: CacheKind = "fp32") -> DecoderProgram | None:
    """The decoder's step as a program; None if something in it has no operation. Its weights must stay alive.

    kind: how keys and values are stored.
    """
    lowering = _Lowering(decoder, library)
    try:
        lowering.step()
    except Unsupported:
        return None
    program = Program(library, lowering.ops, lowering.uses, lowering.matrices, lowering.vectors, kind)
    return DecoderProgram(decoder, program, lowering.ropes)


class DecoderProgram:
    """A decoder's step, for tokens of one or more texts."""

    def __init__(self, decoder: Decoder, program: Program, ropes: list[RopeConfig]) -> None:
        self.program = program
        self._decoder, self._ropes = decoder, ropes
        self._tables: dict[tuple[RopeConfig, bool], RotaryTable] = {}

    def snapshot(self, most_positions: int, dtype: str, threads: int) -> Snapshot | None:
        """Runs texts of up to `most_positions` each without the decoder; None if that takes more than the program.

        Shares its weights with the decoder.
        """
        config = self._decoder.config
        try:
            _handles(config, *_IN_PROGRAM)
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
        return ProgramCache(self.program.layouts, limit)

    def run(self, texts: Sequence[Extension], cancelled: Cancelled = never_cancelled) -> Tensor:
        """Appends tokens to each of several texts, and counts them as cached. Raises StepCancelled once cancelled.

        The logits that they want, (sum of wanted, vocab).
        """
        parts, asked, end = [], list[int](), 0
        longest = max(cache.length + len(tokens) for cache, tokens, _ in texts)  # no table may be replaced meanwhile
        for cache, tokens, wanted in texts:
            assert 0 <= min(tokens) <= max(tokens) < self._decoder.config.vocab_size
            rows = cache.rows(len(tokens))
            rotations = [self._table(rope, longest, cache.span).at(cache.length) for rope in self._ropes]
            parts.append(Text(tokens, cache.length, rotations, rows))
            end += len(tokens)
            asked += range(end - wanted, end)
        logits = _room(len(asked), self._decoder.config.vocab_size)
        self.program.run(parts, asked, logits.data_ptr(), cancelled)
        for cache, tokens, _ in texts:
            cache.tokens += tokens
        return self._decoder.scaled(logits)

    def _table(self, rope: RopeConfig, positions: int, span: int) -> RotaryTable:
        key = rope, rope.border is not None and span > rope.border
        table = self._tables.get(key)
        if table is None or table.positions < positions:
            positions = min(self._decoder.config.max_context, 2 * positions + CACHE_STEP)
            table = _rotary(*rotary_table(rope, positions, span, torch.device("cpu"), torch.float32))
            self._tables[key] = table
        return table


def _room(rows: int, columns: int) -> Tensor:
    """(rows, columns) in fp32, of any values."""
    if rows < MANY_LOGITS:
        return torch.empty(rows, columns)
    memory = Memory(4 * rows * columns, huge_pages=True)
    return torch.frombuffer(memory.view, dtype=torch.float32).view(rows, columns)


def _rotary(cos: Tensor, sin: Tensor) -> RotaryTable:
    return RotaryTable(_vector(cos), _vector(sin), cos.shape[-1])


def _vector(values: Tensor) -> Vector:
    assert values.dtype == torch.float32 and values.is_contiguous()
    return Vector(values.data_ptr(), values.nbytes, values)


def _check_rope(rope: RopeConfig) -> None:
    _handles(rope, "theta", "dim", "scaling", "backward")
    match rope.scaling:
        case None:
            pass
        case LinearScaling() as scaling:
            _handles(scaling, "factor")
        case Llama3Scaling() as scaling:
            _handles(scaling, "factor", "low_freq_factor", "high_freq_factor", "original_context")
        case YarnScaling() as scaling:
            _handles(scaling, "factor", "original_context", "magnitude", "beta_fast", "beta_slow", "truncate")
        case LongRopeScaling() as scaling:
            _handles(scaling, "short", "long", "original_context", "magnitude")
        case ProportionalScaling() as scaling:
            _handles(scaling, "turned", "factor")
        case _:
            raise Unsupported


def _up_width(config: MlpConfig) -> int:
    return config.width * (2 if config.gated else 1)


@dataclass
class _Lowering:
    decoder: Decoder
    library: Library
    ops: list[Op] = field(default_factory=list)
    uses: list[tuple[int, str, Buffer]] = field(default_factory=list)
    matrices: list[tuple[int, Matrix]] = field(default_factory=list)
    vectors: list[tuple[int, str, Vector]] = field(default_factory=list)

    def __post_init__(self) -> None:
        attentions = self.decoder.config.attentions
        self.ropes = list(dict.fromkeys(attention.rope for attention in attentions if attention.rope is not None))
        self.windows = list(dict.fromkeys(attention.window for attention in attentions))

    def step(self) -> None:
        """The whole step, from ids to logits."""
        decoder, config = self.decoder, self.decoder.config
        _handles(config, *_IN_PROGRAM, *_AFTER_PROGRAM)
        x, normalized = Buffer("x", config.hidden_size), Buffer("normalized", config.hidden_size)
        embedding, positions = decoder.embed, decoder.positions
        self._add(
            "EMBED",
            matrices=[self._matrix(embedding)],
            out=x,
            weight=None if positions is None else positions.weight,
            size=config.hidden_size,
            factor=config.embedding_scale,
        )
        self._norm(decoder.embedding_norm, x, x)
        for block in decoder.blocks:
            self._block(cast(Block, block), x, normalized)
        final = self._norm(decoder.final_norm, x, normalized)
        self._linear(embedding if decoder.head is None else decoder.head, final, None)

    def _block(self, block: Block, x: Buffer, normalized: Buffer) -> None:
        _handles(block.config, "attention", "mlp", "residual", "residual_scale")
        residual, scale = block.config.residual, block.config.residual_scale
        attended, fed = Buffer("attended", x.width), Buffer("fed", x.width)
        if block.attention is None or block.mlp is None:
            raise Unsupported
        match residual:
            case "after":
                self._attention(block.attention, x, attended)
                self._sum(x, attended, 1.0)
                self._norm(block.post_attention_norm, x, x)
                self._mlp(block.mlp, x, fed)
                self._sum(x, fed, 1.0)
                self._norm(block.post_mlp_norm, x, x)
            case "parallel" | "shared":
                self._attention(block.attention, self._norm(block.attention_norm, x, normalized), attended)
                source = normalized if residual == "shared" else self._norm(block.mlp_norm, x, normalized)
                self._mlp(block.mlp, source, fed)
                self._sum(x, attended, scale)
                self._sum(x, fed, scale)
            case "pre" | "post" | "sandwich":
                self._attention(block.attention, self._norm(block.attention_norm, x, normalized), attended)
                self._norm(block.post_attention_norm, attended, attended)
                self._sum(x, attended, scale)
                self._mlp(block.mlp, self._norm(block.mlp_norm, x, normalized), fed)
                self._norm(block.post_mlp_norm, fed, fed)
                self._sum(x, fed, scale)
            case _:
                raise Unsupported

    def _attention(self, attention: nn.Module, x: Buffer, out: Buffer) -> None:
        if not isinstance(attention, Attention):
            raise Unsupported(type(attention).__name__)
        config = attention.config
        _handles(
            config, "heads", "kv_heads", "head_dim", "rope", "scale", "window", "qkv_bias", "out_bias", "qk_norm",
            "softcap", "sinks",
        )  # fmt: skip
        qkv = Buffer("qkv", (config.heads + 2 * config.kv_heads) * config.head_dim)
        heads = Buffer("heads", config.heads * config.head_dim)
        self._linear(attention.qkv, x, qkv)
        qkv_layer = attention.qkv.base if isinstance(attention.qkv, AdaptedLinear) else attention.qkv
        after_rope = config.qk_norm is not None and config.qk_norm.after_rope
        if not after_rope:
            self._head_norms(attention, qkv)
        if config.rope is not None:
            _check_rope(config.rope)
            self._add(
                "ROTATE",
                out=qkv,
                rows=config.heads + config.kv_heads,
                size=config.head_dim,
                stride=qkv.width,
                table=self.ropes.index(config.rope),
            )
        if after_rope:
            self._head_norms(attention, qkv)
        self._add(
            "ATTEND",
            input=qkv,
            out=heads,
            weight=attention.sinks,
            size=config.head_dim,
            stride=qkv.width,
            table=self.windows.index(config.window),
            heads=config.heads,
            kv_heads=config.kv_heads,
            window=config.window or 0,
            factor=config.scale,
            softcap=config.softcap or 0.0,
            arithmetic=get_args(Arithmetic).index(getattr(qkv_layer, "arithmetic", "fp32")),
        )
        self._linear(attention.out, heads, out)

    def _head_norms(self, attention: Attention, qkv: Buffer) -> None:
        config = attention.config
        if config.qk_norm is not None:
            keys = Buffer(qkv.name, qkv.width, offset=config.heads * config.head_dim)
            self._head_norm(attention.q_norm, config, qkv, config.heads)
            self._head_norm(attention.k_norm, config, keys, config.kv_heads)

    def _head_norm(self, norm: nn.Module, config: AttentionConfig, heads: Buffer, count: int) -> None:
        assert config.qk_norm is not None
        _handles(config.qk_norm, "norm", "over", "after_rope")
        match config.qk_norm.over:
            case "full":
                self._vectors(norm, heads, heads, rows=1, size=count * config.head_dim)
            case "head":
                self._vectors(norm, heads, heads, rows=count, size=config.head_dim)
            case "each_head":
                self._vectors(norm, heads, heads, rows=count, size=config.head_dim, weight_step=config.head_dim)
            case _:
                raise Unsupported

    def _norm(self, norm: nn.Module, x: Buffer, out: Buffer) -> Buffer:
        """Returns the buffer of the normalized values: x itself if there is no norm."""
        if isinstance(norm, nn.Identity):
            return x
        self._vectors(norm, x, out, rows=1, size=x.width)
        return out

    def _vectors(self, norm: nn.Module, x: Buffer, out: Buffer, *, rows: int, size: int, weight_step: int = 0) -> None:
        assert isinstance(norm, Norm)
        _handles(norm.config, "kind", "eps", "weight", "bias", "wide_scale")  # wide_scale: all is wide in fp32
        codes = {"rms": "RMS_NORM", "layer": "LAYER_NORM"}
        if norm.config.kind not in codes or (norm.config.kind == "rms" and norm.bias is not None):
            raise Unsupported
        self._add(
            codes[norm.config.kind],
            input=x,
            out=out,
            weight=norm.weight,
            bias=norm.bias,
            rows=rows,
            size=size,
            stride=x.width,
            weight_step=weight_step,
            factor=norm.config.eps,
        )

    def _mlp(self, mlp: nn.Module, x: Buffer, out: Buffer) -> None:
        match mlp:
            case Moe():
                self._mixture(mlp, x, out)
            case Mlp():
                self._linear(mlp.up, x, Buffer("up", _up_width(mlp.config)))
                self._activate(mlp.config)
                self._linear(mlp.down, Buffer("activated", mlp.config.width), out)
            case _:
                raise Unsupported

    def _activate(self, config: MlpConfig, rows: int = 1) -> None:
        """From "up" to "activated", for so many rows of each token."""
        _handles(config, "width", "activation", "gated", "bias")
        if config.activation not in ACTIVATIONS:
            raise Unsupported
        self._add(
            "ACTIVATE",
            input=Buffer("up", rows * _up_width(config)),
            out=Buffer("activated", rows * config.width),
            rows=rows,
            size=config.width,
            stride=_up_width(config),
            table=ACTIVATIONS[config.activation],
        )

    def _mixture(self, moe: Moe, x: Buffer, out: Buffer) -> None:
        config, top_k = moe.config, moe.config.top_k
        _handles(config, "expert", "experts", "top_k", "renormalize", "router_bias", "wide_router", "shared")
        if not config.expert.gated:
            raise Unsupported
        routed, choices = Buffer("routed", config.experts), Buffer("choices", top_k * _CHOICE_WIDTH)
        each = Buffer("each", top_k * out.width)  # the results of a token's experts
        self._linear(moe.router, x, routed)
        self._add("CHOOSE", out=routed, choices=choices, rows=top_k, size=config.experts, table=config.renormalize)
        self._experts(moe.up, x, choices, Buffer("up", top_k * _up_width(config.expert)), moe, by_token=True)
        self._activate(config.expert, rows=top_k)
        self._experts(moe.down, Buffer("activated", top_k * config.expert.width), choices, each, moe, by_token=False)
        self._add("MIX", input=each, out=out, choices=choices, rows=top_k, size=out.width)
        if moe.shared is not None:
            shared, gate = Buffer("shared", out.width), Buffer("gate", 1)
            self._mlp(moe.shared, x, shared)
            self._linear(cast(nn.Module, moe.shared_gate), x, gate)
            self._add("GATE", input=gate, out=shared, size=out.width)
            self._sum(out, shared, 1.0)

    def _experts(
        self, experts: nn.Module, x: Buffer, choices: Buffer, out: Buffer, moe: Moe, *, by_token: bool
    ) -> None:
        """by_token: whether x has a row for each token, not one for each of its choices, sorted by expert."""
        match experts:
            case CompiledExperts():
                matrices = experts.matrices
            case Experts() if experts.weight.dtype == torch.float32 and experts.weight.is_contiguous():
                matrices = [self.library.dense(weight) for weight in experts.weight.detach()]
            case _:
                raise Unsupported
        self._add(
            "EXPERTS",
            matrices=matrices,
            input=x,
            out=out,
            choices=choices,
            bias=experts.bias,
            rows=moe.config.top_k,
            size=moe.config.experts,
            table=by_token,
        )

    def _linear(self, module: nn.Module, x: Buffer, out: Buffer | None) -> None:
        if isinstance(module, AdaptedLinear):
            assert out is not None
            self._linear(module.base, x, out)
            low_rank, update = Buffer("low_rank", len(module.down)), Buffer("update", out.width)
            self._add("LINEAR", matrices=[self.library.dense(module.down.detach())], input=x, out=low_rank)
            self._add("LINEAR", matrices=[self.library.dense(module.up.detach())], input=low_rank, out=update)
            self._sum(out, update, 1.0)
            return
        self._add("LINEAR", matrices=[self._matrix(module)], input=x, out=out, bias=getattr(module, "bias", None))

    def _sum(self, x: Buffer, addend: Buffer, scale: float) -> None:
        self._add("ADD", input=addend, out=x, size=x.width, factor=scale)

    def _matrix(self, module: nn.Module) -> Matrix:
        match module:
            case CompiledLinear() | CompiledEmbedding():
                return module.matrix
            case Linear() | Embedding() if module.weight.dtype == torch.float32 and module.weight.is_contiguous():
                return self.library.dense(module.weight.detach())
        raise Unsupported

    def _add(
        self,
        code: str,
        *,
        matrices: Sequence[Matrix] = (),
        input: Buffer | None = None,
        out: Buffer | None = None,
        choices: Buffer | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        **numbers: float,
    ) -> None:
        if any(vector is not None and vector.dtype != torch.float32 for vector in (weight, bias)):
            raise Unsupported
        index = len(self.ops)
        self.ops.append(Op(code=self.library.code(code), **numbers))
        self.matrices += [(index, matrix) for matrix in matrices]
        for name, vector in (("weight", weight), ("bias", bias)):
            if vector is not None:
                self.vectors.append((index, name, _vector(vector)))
        buffers = (("input", input), ("out", out), ("choices", choices))
        self.uses += [(index, name, rows) for name, rows in buffers if rows]
