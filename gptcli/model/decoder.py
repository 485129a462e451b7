"""The decoder: embedding, blocks, final norm, head. One class for every family, driven by DecoderConfig."""

from __future__ import annotations

from torch import Tensor, nn

from gptcli.model.attention import Attention, causal_mask
from gptcli.model.cache import KVCache
from gptcli.model.config import BlockConfig, DecoderConfig, RopeConfig
from gptcli.model.linear import Linear, project
from gptcli.model.mlp import Mlp
from gptcli.model.norm import RMSNorm
from gptcli.model.rope import rotary_table


class Embedding(nn.Embedding):
    """Token embeddings that can also serve as the output head."""

    def project(self, x: Tensor) -> Tensor:
        """(..., hidden) to logits (..., vocab)."""
        return project(x, self.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: BlockConfig, hidden_size: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(hidden_size, norm_eps)
        self.attention = Attention(config.attention, hidden_size, norm_eps)
        self.mlp_norm = RMSNorm(hidden_size, norm_eps)
        self.mlp = Mlp(config.mlp, hidden_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache, block: int
    ) -> Tensor:
        """x: (B, T, hidden); the same shape comes back."""
        x = x + self.attention(self.attention_norm(x), rope, mask, cache, block)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A decoder-only transformer. Build it on the meta device and let the loader fill it."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(block, config.hidden_size, config.norm_eps) for block in config.blocks)
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotary: dict[RopeConfig, tuple[Tensor, Tensor]] = {}

    def forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Runs tokens (B, T) behind those in the cache and writes them there; returns hidden states (B, T, hidden).

        The caller then lets the cache `advance`.
        """
        T = tokens.shape[1]
        cache.reserve(T)
        x: Tensor = self.embed(tokens)
        attentions = [block.attention for block in self.config.blocks]
        ropes = {rope: self._rotation(rope, cache, T, x) for rope in {a.rope for a in attentions} if rope is not None}
        masks = {window: causal_mask(cache.length, T, window, x.device) for window in {a.window for a in attentions}}
        for index, (block, attention) in enumerate(zip(self.blocks, attentions, strict=True)):
            rope = None if attention.rope is None else ropes[attention.rope]
            x = block(x, rope, masks[attention.window], cache, index)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) to logits (..., vocab) in fp32."""
        normalized = self.final_norm(hidden)
        project = self.embed.project if self.head is None else self.head
        logits: Tensor = project(normalized)
        return logits.float()

    def _rotation(self, rope: RopeConfig, cache: KVCache, T: int, like: Tensor) -> tuple[Tensor, Tensor]:
        table = self._rotary.get(rope)
        if table is None or len(table[0]) < cache.length + T:
            table = self._rotary[rope] = rotary_table(rope, cache.capacity, like.device, like.dtype)
        cos, sin = table
        return cos[cache.length : cache.length + T], sin[cache.length : cache.length + T]
