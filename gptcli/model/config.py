"""A decoder's architecture as frozen, hashable records, with a BlockConfig for each layer. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CACHE_STEP = 512  # tokens by which the key-value cache grows


def other_field(config: DataclassInstance, *names: str) -> str | None:
    """The first field of a config that is not among `names` and differs from its default, such as `MlpConfig.bias`."""
    for each in fields(config):
        if each.name not in names and getattr(config, each.name) != each.default:
            return f"{type(config).__name__}.{each.name}"
    return None


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every position divided by `factor` (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths stretched by `factor`, short ones kept, a smooth blend between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """A ramp from interpolated to kept frequencies (Peng et al., 2023). `magnitude` multiplies cos and sin."""

    factor: float
    original_context: int
    magnitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """Each channel's wavelength stretched by its factor (Ding et al., 2024): from `short` if the text fits in
    `original_context`, from `long` for all positions of a longer text. `magnitude` multiplies cos and sin."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    magnitude: float


@dataclass(frozen=True, kw_only=True)
class ProportionalScaling:
    """The first `rotated` channel pairs rotate, as slowly as if all did; positions divided by `factor` (Gemma 4)."""

    rotated: int
    factor: float = 1.0


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | ProportionalScaling


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding over the first `dim` channels of a head, by halves (Su et al., 2021)."""

    theta: float
    dim: int
    scaling: RopeScaling | None = None
    backward: bool = False  # rotates the other way

    @property
    def border(self) -> int | None:
        """A text longer than this is rotated differently from its first position on; None if no text is."""
        scaling = self.scaling
        if not isinstance(scaling, LongRopeScaling) or scaling.short == scaling.long:
            return None
        return scaling.original_context


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """RMSNorm or LayerNorm.

    With `wide_scale`, and always in a LayerNorm, the weight is multiplied before rounding to the input's dtype.
    """

    kind: Literal["rms", "layer"]
    eps: float
    weight: bool = True
    bias: bool = False
    wide_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class QkNormConfig:
    """Norms of q and k: one weight for all heads, one for each head, or one over the full width."""

    norm: NormConfig
    over: Literal["head", "each_head", "full"]
    after_rope: bool = False


@dataclass(frozen=True, kw_only=True)
class PositionScale:
    """q scaled by 1 + beta * log(1 + floor(position / original_context)) (Llama 4).

    first: what a text's first position counts as.
    """

    beta: float
    original_context: int
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Scores plus the key's position times a slope for each head, from 2 ** (-most / heads) on (Press et al., 2021).

    rounded: the products are rounded to bf16, as Falcon does, and multiplied by the scale of scores.
    """

    most: float = 8.0
    rounded: bool = False


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention. `window` counts the query itself; None attends to all; rope None is NoPE."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None
    scale: float  # of the scores, commonly head_dim ** -0.5
    window: int | None = None
    chunked: bool = False  # no sliding: a text is cut every `window` tokens, and a query sees its own piece
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNormConfig | None = None
    position_scale: PositionScale | None = None
    alibi: Alibi | None = None
    clip: float | None = None  # bound on q, k and v as they are projected
    softcap: float | None = None  # scores become tanh(scores / softcap) * softcap
    sinks: bool = False  # each head has a learned logit that takes part in the softmax and is dropped
    gated: bool = False  # the heads' results are multiplied by the sigmoid of a gate, projected with q
    out_scale: float = 1.0  # of what it adds to the residual stream
    v_norm: NormConfig | None = None  # of each head's values
    keys_of: int | None = None  # the earlier layer whose keys and values it attends to

    @property
    def cached_dims(self) -> tuple[int, int]:
        """Numbers in the cache for a token's keys, and for its values, per key-value head."""
        return (self.head_dim, self.head_dim) if self.keys_of is None else (0, 0)

    @property
    def keeps_scores(self) -> bool:
        """Whether all scores are in memory at once, because no fused kernel computes it."""
        return self.sinks or self.softcap is not None or self.alibi is not None


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-AI, 2024): all heads make their keys and values of one latent per token.

    `rope` rotates the last channels of each query and key; all heads share those of the keys. The cache holds the
    latent and these rotated channels.
    """

    heads: int
    latent_dim: int
    plain_dim: int  # channels of a head's query and key that are not rotated
    value_dim: int
    rope: RopeConfig
    scale: float  # of the scores
    norm: NormConfig  # of the latents
    query_rank: int | None = None  # size of the latent that queries are made of; None: they are made of x
    bias: bool = False  # of the projections to latents and of the output's

    @property
    def head_dim(self) -> int:
        """Channels of a query or a key."""
        return self.plain_dim + self.rope.dim

    @property
    def absorbed(self) -> AttentionConfig:
        """Attention of queries projected to latents: one head of keys for all."""
        dim = self.latent_dim + self.rope.dim
        return AttentionConfig(heads=self.heads, kv_heads=1, head_dim=dim, rope=self.rope, scale=self.scale)

    @property
    def expanded(self) -> AttentionConfig:
        """Attention with keys and values made of the latents, for each head."""
        return AttentionConfig(
            heads=self.heads, kv_heads=self.heads, head_dim=self.head_dim, rope=self.rope, scale=self.scale
        )

    @property
    def expands_from(self) -> float:
        """The number of queries from which expanding keys and values is cheaper than projecting queries to latents."""
        saved = 2 * self.latent_dim - self.plain_dim - self.value_dim
        return self.latent_dim * (self.plain_dim + self.value_dim) / saved if saved > 0 else math.inf

    @property
    def is_expanded_in_kernels(self) -> bool:
        """Whether the kernels expand keys and values for prompts: not if values are wider than keys."""
        return self.value_dim <= self.head_dim and self.expands_from < math.inf

    @property
    def kv_heads(self) -> int:
        """One key for all heads."""
        return 1

    @property
    def cached_dims(self) -> tuple[int, int]:
        """Numbers in the cache for a token: the latent with the keys' rotated channels, and no values."""
        return self.absorbed.head_dim, 0

    @property
    def window(self) -> None:
        """It attends to all."""

    @property
    def keeps_scores(self) -> bool:
        """See `AttentionConfig.keeps_scores`."""
        return False


Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared", "xielu", "clamped_swiglu"]


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) if not gated."""

    width: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    gate_scale: float = 1.0  # of the gate before the activation
    out_scale: float = 1.0
    sparsity: float = 0.0  # the gate is cut off at this quantile of a normal distribution with its mean and deviation


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """A mixture of experts: each token goes through its `top_k` by a score of each (Shazeer et al., 2017).

    router: turns logits into scores; `sparsemixer` does two softmaxes, each over the experts near the best one left
    (Liu et al., 2023). A shared expert sees every token.
    """

    expert: MlpConfig
    experts: int
    top_k: int
    renormalize: bool  # the chosen scores are divided by their sum
    router: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    router_bias: bool = False
    wide_router: bool = False  # the router computes in fp32, whatever the dtype
    correction: bool = False  # each expert has a learned bias, added to its score for the choice alone
    groups: int = 1  # of consecutive experts; only experts of the `top_groups` best groups are chosen
    top_groups: int = 1
    group_best: int = 2  # how many of a group's best scores are summed to rank it
    least_sum: float = 0.0  # the least divisor of the chosen scores
    added_to_sum: float = 0.0  # added to that divisor
    scale: float = 1.0  # of the chosen scores
    jitter: float = 0.0  # of sparsemixer: an expert is near if its relative distance to the best is at most twice this
    expert_scale: bool = False  # each expert's routing weight is multiplied by a learned number
    scales_input: bool = False  # the scores multiply what experts see, not what they return
    shared: MlpConfig | None = None
    shared_gate: bool = True  # a sigmoid scales the shared expert, if there is one
    latent: int | None = None  # experts see x projected to so many numbers; what is mixed of them is projected back
    latent_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class DenseAndMoeConfig:
    """An MLP and a mixture side by side, each between norms of its own (Gemma 4); the layer adds their sum.

    The router sees the residual stream through a norm of its own.
    """

    dense: MlpConfig
    moe: MoeConfig
    norm: NormConfig


@dataclass(frozen=True, kw_only=True)
class LayerInputsConfig:
    """An embedding of each token for each layer, which the layer gates and adds (Gemma 3n)."""

    vocab_size: int  # ids from here on are embedded as token 0
    width: int  # for one layer
    activation: Activation


@dataclass(frozen=True, kw_only=True)
class AltUpConfig:
    """Several residual streams (Baykal et al., 2023), and a low-rank residual parallel to attention."""

    streams: int
    active: int  # the one that layers run
    laurel_rank: int


@dataclass(frozen=True, kw_only=True)
class ShortConvolutionConfig:
    """A convolution over the last `kernel` tokens, channel by channel, between two gates (Liquid AI, LFM2)."""

    kernel: int
    bias: bool = False

    def state_shapes(self, hidden_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what it keeps of a text: the convolution's last inputs."""
        return ((self.kernel - 1, hidden_size),)


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Mamba 2 (Dao and Gu, 2024). Heads of a group share the vectors that write to their states and read them.

    part_scales: factors of the projected gate, x, b, c and steps.
    """

    heads: int
    head_dim: int
    groups: int
    state_dim: int
    kernel: int
    bias: bool = False
    out_bias: bool | None = None  # of the output's projection; None: `bias` holds there, too
    convolution_bias: bool = True
    step_limits: tuple[float, float] = (0.0, math.inf)
    norm_eps: float | None = None  # of the norm over each group's channels, if there is one
    norm_before_gate: bool = False
    part_scales: tuple[float, float, float, float, float] | None = None
    out_scale: float = 1.0

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def shared_width(self) -> int:
        """Channels of b, and of c."""
        return self.groups * self.state_dim

    @property
    def channels(self) -> int:
        """What is convolved: x, b and c."""
        return self.width + 2 * self.shared_width

    def state_shapes(self, hidden_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what it keeps of a text: the convolution's last inputs, and the states of its heads."""
        return ((self.kernel - 1, self.channels), (self.heads, self.head_dim, self.state_dim))


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig:
    """Gated DeltaNet (Yang et al., 2024). `heads` of values share `key_heads` of keys and queries, evenly.

    tiled: the value heads of a key head are `key_heads` apart, not neighbours.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm: NormConfig  # of each head's output
    tiled: bool = False

    @property
    def width(self) -> int:
        """Channels of all values."""
        return self.heads * self.value_dim

    @property
    def channels(self) -> int:
        """What is convolved: q, k and v."""
        return 2 * self.key_heads * self.key_dim + self.width

    def state_shapes(self, hidden_size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what it keeps of a text: the convolution's last inputs, and the states of its heads."""
        return ((self.kernel - 1, self.channels), (self.heads, self.key_dim, self.value_dim))


StateConfig = ShortConvolutionConfig | Mamba2Config | DeltaNetConfig


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer. `residual` says where the norms N are around attention A and MLP M:

    pre:       x + A(N(x)), then x + M(N(x))
    post:      x + N(A(x)), then x + N(M(x))
    sandwich:  x + N(A(N(x))), then x + N(M(N(x)))
    after:     N(x + A(x)), then N(x + M(x))
    parallel:  x + A(N(x)) + M(N(x)), with two norms
    shared:    the same with one norm

    A layer with a `state` may have attention, too: A is then the sum of both. A layer without attention and state, or
    without an MLP, is its other half alone.
    """

    attention: AttentionConfig | LatentAttentionConfig | None
    mlp: MlpConfig | MoeConfig | DenseAndMoeConfig | None
    residual: Literal["pre", "post", "sandwich", "after", "parallel", "shared"] = "pre"
    residual_scale: float = 1.0
    state: StateConfig | None = None
    scaled: bool = False  # its output is multiplied by a learned number


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A whole decoder, or a rank's shard of it."""

    vocab_size: int
    hidden_size: int
    max_context: int
    blocks: tuple[BlockConfig, ...]
    norm: NormConfig
    tied_head: bool
    embedding_norm: bool = False  # before the first block
    final_norm: bool = True
    head_bias: bool = False
    learned_positions: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    wide_residual: bool = False  # the residual stream is fp32, whatever the dtype
    layer_inputs: LayerInputsConfig | None = None
    altup: AltUpConfig | None = None
    ranks: int = 1

    @property
    def attentions(self) -> list[AttentionConfig | LatentAttentionConfig]:
        """Attention of every layer that has it."""
        return [block.attention for block in self.blocks if block.attention is not None]

    @property
    def keeps_states(self) -> bool:
        """Whether a layer keeps a state, which cannot be cut back to fewer tokens."""
        return any(block.state is not None for block in self.blocks)

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Bytes of the keys and values of `context` tokens, and of states. A window takes a CACHE_STEP more."""
        elements = 0
        for attention in self.attentions:
            tokens = context if attention.window is None else min(context, attention.window + CACHE_STEP)
            elements += attention.kv_heads * sum(attention.cached_dims) * tokens
        shapes = (shape for block in self.blocks if block.state for shape in block.state.state_shapes(self.hidden_size))
        return elements * element_bytes + 4 * sum(map(math.prod, shapes))

    @cached_property
    def rope_borders(self) -> frozenset[int]:
        """All different `RopeConfig.border`s."""
        ropes = (attention.rope for attention in self.attentions)
        return frozenset(rope.border for rope in ropes if rope and rope.border)
