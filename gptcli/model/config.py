"""What a decoder is made of: frozen, hashable records. A model is a tuple of block configs, one a layer. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
class RopeConfig:
    """Rotary position embedding over the first `dim` channels of a head, by halves (Su et al., 2021)."""

    theta: float
    dim: int
    scaling: LinearScaling | Llama3Scaling | YarnScaling | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention. `window` counts the query itself; None attends to all; rope None is NoPE."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class MlpConfig:
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    width: int
    activation: Literal["silu"] = "silu"
    bias: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """One layer: attention, then an MLP, each behind a norm and added to the residual stream."""

    attention: AttentionConfig
    mlp: MlpConfig


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A whole decoder."""

    vocab_size: int
    hidden_size: int
    max_context: int
    blocks: tuple[BlockConfig, ...]
    norm_eps: float
    tied_head: bool

    def cache_bytes(self, context: int, element_bytes: int) -> int:
        """Size of the keys and values of `context` tokens, in bytes."""
        channels = sum(block.attention.kv_heads * block.attention.head_dim for block in self.blocks)
        return 2 * channels * context * element_bytes
