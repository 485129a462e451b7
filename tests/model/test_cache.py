from __future__ import annotations

import pytest
import torch

from gptcli.model.cache import KVCache
from gptcli.model.config import AttentionConfig, BlockConfig, DecoderConfig, MlpConfig, NormConfig

ATTENTION = AttentionConfig(heads=2, kv_heads=1, head_dim=4, rope=None, scale=0.5)
CONFIG = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    max_context=2000,
    blocks=(BlockConfig(attention=ATTENTION, mlp=MlpConfig(width=8)),) * 2,
    norm=NormConfig(kind="rms", eps=1e-5),
    tied_head=True,
)


def filled(tokens: list[int], limit: int = 2000) -> KVCache:
    """A cache in which token t has keys of t and values of -t."""
    cache = KVCache(CONFIG, limit, torch.device("cpu"), torch.float32)
    append(cache, tokens)
    return cache


def append(cache: KVCache, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    cache.reserve(len(tokens))
    keys = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, -1, 4)
    for block in range(2):
        seen = cache.write(block, keys, -keys)
    cache.advance(tokens)
    return seen


def test_growing_keeps_what_is_there() -> None:
    cache = filled(list(range(500)))
    assert cache.capacity == 512
    keys, values = append(cache, list(range(500, 1100)))
    assert cache.capacity == 1536
    assert keys[0, 0, :, 0].tolist() == list(range(1100))
    assert values[0, 0, :, 3].tolist() == [-t for t in range(1100)]


def test_it_never_grows_beyond_its_limit() -> None:
    assert filled([1] * 600, limit=700).capacity == 700
    with pytest.raises(AssertionError, match="701 tokens in a cache limited to 700"):
        filled([1] * 701, limit=700)


def test_what_was_truncated_is_written_over() -> None:
    cache = filled([1, 2, 3, 4])
    cache.truncate(2)
    keys, _ = append(cache, [7])
    assert keys[0, 0, :, 0].tolist() == [1, 2, 7]
    assert cache.tokens == [1, 2, 7]


@pytest.mark.parametrize(
    ("prompt", "kept"), [([1, 2, 3, 4], 3), ([1, 2], 2), ([1, 9, 3], 1), ([], 0), ([9], 0), ([1, 2, 3], 3)]
)
def test_the_longest_common_beginning_is_kept(prompt: list[int], kept: int) -> None:
    cache = filled([1, 2, 3])
    cache.keep_common(prompt)
    assert cache.tokens == [1, 2, 3][:kept]


def test_a_cache_that_could_not_grow_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(list(range(500)))
    grown = KVCache._grown
    calls = 0

    def failing(self: KVCache, old: torch.Tensor, capacity: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        return grown(self, old, capacity)

    monkeypatch.setattr(KVCache, "_grown", failing)
    with pytest.raises(MemoryError):
        cache.reserve(600)
    keys, _ = append(cache, list(range(500, 1100)))
    assert keys[0, 0, :, 0].tolist() == list(range(1100))
