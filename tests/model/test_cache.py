from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gptcli.model.cache.kv_cache import KVCache
from gptcli.model.config import AttentionConfig, BlockConfig, DecoderConfig, MlpConfig, NormConfig
from gptcli.runtime.engine import keep_common

ATTENTION = AttentionConfig(heads=2, kv_heads=1, head_dim=4, rope=None, scale=0.5)
MLP = MlpConfig(width=8)
CONFIG = DecoderConfig(
    vocab_size=8,
    hidden_size=8,
    max_context=2000,
    blocks=(BlockConfig(attention=ATTENTION, mlp=MLP),) * 2,
    norm=NormConfig(kind="rms", eps=1e-5),
    tied_head=True,
)


SLIDING = replace(CONFIG, blocks=(CONFIG.blocks[0], BlockConfig(attention=replace(ATTENTION, window=8), mlp=MLP)))


def filled(tokens: list[int], limit: int = 2000, config: DecoderConfig = CONFIG) -> KVCache:
    """A cache in which token t has keys of t and values of -t."""
    cache = KVCache(config, limit, torch.device("cpu"), torch.float32)
    append(cache, tokens)
    return cache


def append(cache: KVCache, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    cache.reserve(len(tokens))
    keys = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 1, -1, 4)
    for block in range(2):
        seen = cache.write(block, keys, -keys)
    cache.advance(tokens)
    return seen


def test_a_growing_cache_keeps_its_keys_and_values() -> None:
    cache = filled(list(range(500)))
    assert cache.capacity == 512
    keys, values = append(cache, list(range(500, 1100)))
    assert cache.capacity == 1536
    assert keys[0, 0, :, 0].tolist() == list(range(1100))
    assert values[0, 0, :, 3].tolist() == [-t for t in range(1100)]


def test_a_cache_never_grows_beyond_its_limit() -> None:
    assert filled([1] * 600, limit=700).capacity == 700
    with pytest.raises(AssertionError, match="701 tokens in a cache limited to 700"):
        filled([1] * 701, limit=700)


def test_truncated_tokens_are_overwritten() -> None:
    cache = filled([1, 2, 3, 4])
    cache.truncate(2)
    keys, _ = append(cache, [7])
    assert keys[0, 0, :, 0].tolist() == [1, 2, 7]
    assert cache.tokens == [1, 2, 7]


@pytest.mark.parametrize(
    ("prompt", "kept"), [([1, 2, 3, 4], 3), ([1, 2], 2), ([1, 9, 3], 1), ([], 0), ([9], 0), ([1, 2, 3], 3)]
)
def test_the_longest_common_prefix_is_kept(prompt: list[int], kept: int) -> None:
    cache = filled([1, 2, 3])
    keep_common(cache, prompt)
    assert cache.tokens == [1, 2, 3][:kept]


def test_a_block_with_a_window_keeps_no_more_than_that_and_a_step() -> None:
    cache = filled([0], config=SLIDING)
    for token in range(1, 1500):
        keys, values = append(cache, [token])
        assert 8 <= keys.shape[2] <= 520 or token < 8
        assert keys[0, 0, -8:, 0].tolist() == list(range(max(0, token - 7), token + 1))
        assert values[0, 0, -8:, 3].tolist() == [-t for t in range(max(0, token - 7), token + 1)]
    everything, _ = cache.write(0, keys[:, :, :0], keys[:, :, :0])
    assert everything[0, 0, :, 0].tolist() == list(range(1500))
    assert SLIDING.cache_bytes(1500, 4) == 2 * 4 * 4 * (1500 + 520)


def test_chunks_wider_than_a_window_see_what_was_before_them() -> None:
    cache = filled(list(range(600)), config=SLIDING)
    keys, _ = append(cache, list(range(600, 1200)))
    assert keys[0, 0, :, 0].tolist() == list(range(593, 1200))


@pytest.mark.parametrize(("length", "kept"), [(1100, 1100), (600, 600), (599, 0), (3, 0)])
def test_going_back_before_what_a_window_keeps_forgets_everything(length: int, kept: int) -> None:
    cache = filled(list(range(600)), config=SLIDING)
    append(cache, list(range(600, 1200)))
    cache.truncate(length)
    assert cache.length == kept
    keys, _ = append(cache, [7] * 9)
    assert keys[0, 0, -9:, 0].tolist() == [7] * 9
    assert keys.shape[2] == (kept - 593 if kept else 0) + 9


@pytest.mark.parametrize("config", [CONFIG, SLIDING], ids=["whole", "sliding"])
def test_a_cache_that_could_not_grow_is_as_it_was(config: DecoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(list(range(500)), config=config)
    moved = KVCache._moved
    calls = 0

    def failing(self: KVCache, old: torch.Tensor, tokens: int, room: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        return moved(self, old, tokens, room)

    monkeypatch.setattr(KVCache, "_moved", failing)
    with pytest.raises(MemoryError):
        cache.reserve(600)
    monkeypatch.undo()
    keys, _ = append(cache, list(range(500, 1100)))
    assert keys[0, 0, -600:, 0].tolist() == list(range(500, 1100))
    everything, _ = cache.write(0, keys[:, :, :0], keys[:, :, :0])
    assert everything[0, 0, :, 0].tolist() == list(range(1100))


@pytest.mark.parametrize("config", [CONFIG, SLIDING], ids=["whole", "sliding"])
def test_rows_begin_alike_go_their_own_ways_and_move_up_when_one_is_dropped(config: DecoderConfig) -> None:
    prompt = filled(list(range(600)), config=config)
    cache = KVCache(config, 2000, torch.device("cpu"), torch.float32)
    cache.fill([prompt] * 3)
    texts = [list(range(600)) for _ in range(3)]

    def append_rows(step: int) -> torch.Tensor:
        tokens = [[1000 * row + step] for row in range(len(texts))]
        cache.reserve(1)
        keys = torch.tensor(tokens, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 1, 4)
        seen = [cache.write(block, keys, -keys)[0] for block in range(2)]
        cache.advance(*tokens)
        for text, new in zip(texts, tokens, strict=True):
            text += new
        return seen[1][:, 0, -8:, 0]

    for step in range(1000):
        if step in (300, 700):
            cache.drop(0)
            texts[0] = texts.pop()
        assert append_rows(step).tolist() == [text[-8:] for text in texts]
    assert cache.texts == texts
    everything, _ = cache.write(0, torch.empty(1, 1, 0, 4), torch.empty(1, 1, 0, 4))
    assert everything[0, 0, :, 0].tolist() == texts[0]
    assert prompt.tokens == list(range(600))
