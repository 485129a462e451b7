"""The decoder: embedding, blocks, final norm, head. One class for every family, driven by DecoderConfig."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.errors import UnsupportedArchitecture
from gptcli.model.altup import AltUp, Laurel, Streams
from gptcli.model.attention import Attention
from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DeltaNetConfig,
    DenseAndMoeConfig,
    LatentAttentionConfig,
    Mamba2Config,
    MlpConfig,
    MoeConfig,
    ShortConvolutionConfig,
)
from gptcli.model.latent_attention import LatentAttention
from gptcli.model.layer_inputs import LayerInput, LayerInputs
from gptcli.model.linear import Embedding, Linear
from gptcli.model.mlp import DenseAndMoe, Mlp, Moe
from gptcli.model.norm import Norm
from gptcli.model.position import AppendPosition, Position, RotaryTables, SideBySide, WholeTexts
from gptcli.model.recurrence.delta_net import DeltaNet
from gptcli.model.recurrence.mamba2 import Mamba2
from gptcli.model.recurrence.short_convolution import ShortConvolution


class Block(nn.Module):
    """A mixer of tokens and an MLP on the residual stream; BlockConfig.residual says where the norms are.

    The mixer is attention, a layer with a state, or the sum of both. A block may lack it, or the MLP.
    """

    CONSTANTS = ("scale",)  # parameters that training leaves

    def __init__(self, config: BlockConfig, decoder: DecoderConfig) -> None:
        super().__init__()
        self.config, hidden_size, norm = config, decoder.hidden_size, decoder.norm
        self.wide_residual = decoder.wide_residual
        before = config.residual in ("pre", "sandwich", "parallel", "shared")
        after = config.residual in ("post", "sandwich", "after")
        mixes, mlp = bool(config.attention or config.state), config.mlp is not None
        self.attention_norm = Norm(norm, hidden_size) if before and mixes else nn.Identity()
        self.attention = _layer("attention", config, hidden_size)
        self.state = _layer("state", config, hidden_size)
        self.post_attention_norm = Norm(norm, hidden_size) if after and mixes else nn.Identity()
        own_norm = config.residual == "shared" or isinstance(config.mlp, DenseAndMoeConfig)
        self.mlp_norm = Norm(norm, hidden_size) if before and mlp and not own_norm else nn.Identity()
        self.mlp = _layer("mlp", config, hidden_size)
        self.post_mlp_norm = Norm(norm, hidden_size) if after and mlp else nn.Identity()
        inputs, altup = decoder.layer_inputs, decoder.altup
        self.layer_input = None if inputs is None else LayerInput(inputs, hidden_size, norm)
        self.altup = None if altup is None else AltUp(altup, hidden_size, norm)
        self.laurel = None if altup is None else Laurel(altup.laurel_rank, hidden_size, norm)
        self.scale = nn.Parameter(torch.empty(1)) if config.scaled else None

    def forward(self, x: Tensor, position: Position, block: int, layer_input: Tensor | None = None) -> Tensor:
        """x: (B, T, hidden), or (streams, B, T, hidden), to the same shape. block: its index in the decoder."""
        if self.altup is not None:
            predicted = self.altup.predict(x)
            active = self.altup.config.active
            x = self.altup.correct(predicted, self._run(predicted[active], position, block))
            if self.layer_input is not None:
                added = self.layer_input(x[active] * self.altup.scale, layer_input)
                x = torch.cat([x[:1], x[1:] + added])
            return x
        x = self._run(x, position, block)
        if self.layer_input is not None:
            x = x + self.layer_input(x, layer_input)
        return x if self.scale is None else x * self.scale

    def _run(self, x: Tensor, position: Position, block: int) -> Tensor:
        residual, scale = self.config.residual, self.config.residual_scale
        normalized = self.attention_norm(x.to(_computed_in(self.attention_norm)) if self.wide_residual else x)
        mixers = [mixer for mixer in (self.attention, self.state) if mixer is not None]
        mixed = sum(mixer(normalized, position, block) for mixer in mixers)
        if residual in ("parallel", "shared"):
            assert self.mlp is not None
            return torch.add(x, mixed + self.mlp(normalized if residual == "shared" else self.mlp_norm(x)), alpha=scale)
        if mixers:
            x = self._added(x, mixed, self.post_attention_norm)
        if self.laurel is not None:
            x = (x + self.laurel(normalized)) * 2**-0.5
        if self.mlp is not None:
            x = self._added(x, self.mlp(self.mlp_norm(x)), self.post_mlp_norm)
        return x

    def _added(self, x: Tensor, out: Tensor, norm: nn.Module) -> Tensor:
        if self.config.residual == "after":
            normalized: Tensor = norm(x + out)
            return normalized
        return torch.add(x, norm(out), alpha=self.config.residual_scale)


def _computed_in(norm: nn.Module) -> torch.dtype:
    return next(norm.parameters()).dtype


_LAYERS: dict[type, Callable[[Any, int], nn.Module]] = {
    AttentionConfig: Attention,
    LatentAttentionConfig: LatentAttention,
    ShortConvolutionConfig: ShortConvolution,
    Mamba2Config: Mamba2,
    DeltaNetConfig: DeltaNet,
    MlpConfig: Mlp,
    MoeConfig: Moe,
    DenseAndMoeConfig: DenseAndMoe,
}


def _layer(name: str, config: BlockConfig, hidden_size: int) -> nn.Module | None:
    """The layer that a block's field asks for; None if it asks for none. Raises UnsupportedArchitecture."""
    if (wanted := getattr(config, name)) is None:
        return None
    for kind, layer in _LAYERS.items():
        if isinstance(wanted, kind):
            return layer(wanted, hidden_size)
    raise UnsupportedArchitecture(f"no layer for {name} = {type(wanted).__name__}")


class Decoder(nn.Module):
    """A decoder-only transformer, built on the meta device and filled by `checkpoint.load`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_context, config.hidden_size) if config.learned_positions else None
        self.embedding_norm = Norm(config.norm, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(block, config) for block in config.blocks)
        self.final_norm = Norm(config.norm, config.hidden_size) if config.final_norm else nn.Identity()
        self.head = None if config.tied_head else Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.layer_inputs = None if config.layer_inputs is None else LayerInputs(config, config.layer_inputs)
        self.streams = None if config.altup is None else Streams(config.altup, config.hidden_size)
        self.tables = RotaryTables()

    def forward(self, tokens: Tensor, *caches: KVCache, counts: Sequence[int] = ()) -> Tensor:
        """Appends tokens (B, T) to a cache; returns hidden states (B, T, hidden).

        With several caches, tokens are one row (1, T), and `counts` has the tokens of each. The caller must `advance`
        the caches.
        """
        counts = counts or [tokens.shape[1]]
        for cache, count in zip(caches, counts, strict=True):
            cache.reserve(count)
        if len(caches) == 1:
            return self.run(tokens, AppendPosition(self.tables, caches[0], counts[0]))
        return self.run(tokens, SideBySide(self.tables, caches, counts))

    def run_whole(self, tokens: Tensor) -> Tensor:
        """Runs whole texts, tokens (B, T), without a cache; returns hidden states (B, T, hidden), with gradients."""
        B, T = tokens.shape
        return self.run(tokens, WholeTexts(self.config, self.tables, (B, T), tokens.device))

    def run(self, tokens: Tensor, position: Position) -> Tensor:
        """Runs tokens (B, T) at their position; returns hidden states (B, T, hidden)."""
        x: Tensor = self.embed(tokens)
        if self.config.embedding_scale != 1:
            # In the weights' precision, as the models were trained.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        if self.positions is not None:
            x = x + self.positions(position.positions)
        x = self.embedding_norm(x)
        inputs = None if self.layer_inputs is None else self.layer_inputs(tokens, x)
        if self.streams is not None:
            x = self.streams.expand(x)
        if self.config.wide_residual:
            x = x.float()
        for index, block in enumerate(self.blocks):
            x = block(x, position, index) if inputs is None else block(x, position, index, inputs[index])
        return x if self.streams is None else self.streams.merge(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) to logits (..., vocab) in fp32."""
        normalized = self.final_norm(hidden)
        if self.config.wide_residual:
            normalized = normalized.to(_computed_in(self.final_norm))
        project = self.embed.project if self.head is None else self.head
        return self.scaled(project(normalized))

    def scaled(self, logits: Tensor) -> Tensor:
        """The head's output in fp32, scaled and bounded as the config says."""
        logits = logits.float()
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        if (cap := self.config.logit_softcap) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits
