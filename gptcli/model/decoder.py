"""The decoder: embedding, blocks, final norm, head. One class for every family, driven by DecoderConfig."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gptcli.model.attention import Attention
from gptcli.model.cache import KVCache
from gptcli.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    LatentAttentionConfig,
    MoeConfig,
    NormConfig,
)
from gptcli.model.latent_attention import LatentAttention
from gptcli.model.linear import Linear, project
from gptcli.model.mlp import Mlp, Moe
from gptcli.model.norm import Norm
from gptcli.model.position import AppendPosition, Position, RotaryTables


class Embedding(nn.Embedding):
    """Embeddings that can also serve as the output head."""

    def reset_parameters(self) -> None:
        """Does nothing: see `Linear`."""

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return project(x, self.weight)


class Block(nn.Module):
    """Attention and an MLP on the residual stream; BlockConfig.residual says where the norms are."""

    def __init__(self, config: BlockConfig, hidden_size: int, norm: NormConfig) -> None:
        super().__init__()
        self.config = config
        before = config.residual in ("pre", "sandwich", "parallel", "shared")
        after = config.residual in ("post", "sandwich", "after")
        self.attention_norm = Norm(norm, hidden_size) if before else nn.Identity()
        self.attention = _attention(config.attention, hidden_size)
        self.post_attention_norm = Norm(norm, hidden_size) if after else nn.Identity()
        self.mlp_norm = Norm(norm, hidden_size) if before and config.residual != "shared" else nn.Identity()
        self.mlp = Moe(config.mlp, hidden_size) if isinstance(config.mlp, MoeConfig) else Mlp(config.mlp, hidden_size)
        self.post_mlp_norm = Norm(norm, hidden_size) if after else nn.Identity()

    def forward(self, x: Tensor, position: Position, block: int) -> Tensor:
        """x: (B, T, hidden) to the same shape. block: its index in the decoder."""
        scale = self.config.residual_scale
        normalized = self.attention_norm(x)
        attended: Tensor = self.attention(normalized, position, block)
        out: Tensor
        match self.config.residual:
            case "parallel":
                out = torch.add(x, attended + self.mlp(self.mlp_norm(x)), alpha=scale)
            case "shared":
                out = torch.add(x, attended + self.mlp(normalized), alpha=scale)
            case "after":
                x = self.post_attention_norm(x + attended)
                out = self.post_mlp_norm(x + self.mlp(x))
            case _:
                x = torch.add(x, self.post_attention_norm(attended), alpha=scale)
                out = torch.add(x, self.post_mlp_norm(self.mlp(self.mlp_norm(x))), alpha=scale)
        return out


def _attention(config: AttentionConfig | LatentAttentionConfig, hidden_size: int) -> nn.Module:
    match config:
        case AttentionConfig():
            return Attention(config, hidden_size)
        case LatentAttentionConfig():
            return LatentAttention(config, hidden_size)


class Decoder(nn.Module):
    """A decoder-only transformer. It is built on the meta device and filled by the loader."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.positions = Embedding(config.max_context, config.hidden_size) if config.learned_positions else None
        self.embedding_norm = Norm(config.norm, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(block, config.hidden_size, config.norm) for block in config.blocks)
        self.final_norm = Norm(config.norm, config.hidden_size) if config.final_norm else nn.Identity()
        self.head = None if config.tied_head else Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.tables = RotaryTables()

    def forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Appends tokens (B, T) to the cache; returns hidden states (B, T, hidden).

        The caller must then `advance` the cache.
        """
        cache.reserve(tokens.shape[1])
        return self.run(tokens, AppendPosition(self.tables, cache, tokens.shape[1]))

    def run(self, tokens: Tensor, position: Position) -> Tensor:
        """Runs tokens (B, T) at their position; returns hidden states (B, T, hidden)."""
        x: Tensor = self.embed(tokens)
        if self.config.embedding_scale != 1:
            # In the weights' precision, as the models were trained.
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        if self.positions is not None:
            x = x + self.positions(position.positions)
        x = self.embedding_norm(x)
        for index, block in enumerate(self.blocks):
            x = block(x, position, index)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) to logits (..., vocab) in fp32."""
        normalized = self.final_norm(hidden)
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
