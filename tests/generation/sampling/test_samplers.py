"""What both samplers draw, and that they draw the same."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli import LanguageModel
from gptcli.errors import UsageError
from gptcli.generation.sampling.constraint import mask_words
from gptcli.generation.sampling.native_sampler import NativeSampler, native_can_sample
from gptcli.generation.sampling.recording_sampler import RecordingSampler
from gptcli.generation.sampling.sampler import Sampler, make_sampler
from gptcli.generation.sampling.torch_sampler import TorchSampler
from gptcli.kernels.bindings import Functions, functions
from gptcli.settings import SamplingConfig

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # no filter
NONE = frozenset[int]()

Make = Callable[[SamplingConfig, int, frozenset[int]], Sampler]


def in_torch(config: SamplingConfig, vocabulary: int, banned: frozenset[int] = NONE) -> Sampler:
    return TorchSampler(config, vocabulary, banned, lambda id: b"")


def native(library: Functions) -> Make:
    return lambda config, vocabulary, banned: NativeSampler(library, config, vocabulary, banned)


@pytest.fixture(scope="module")
def library() -> Functions:
    built = functions()
    if built is None:
        pytest.skip("the kernels are not built")
    return built


@pytest.fixture(scope="module", params=["torch", "native"])
def make(request: pytest.FixtureRequest) -> Make:
    """Each kind of sampler in turn."""
    return in_torch if request.param == "torch" else native(request.getfixturevalue("library"))


def mask_of(allowed: Iterable[int], vocabulary: int) -> bytearray:
    """A mask in which the bits after the vocabulary are set, too: they must not count."""
    words = array("I", [0] * mask_words(vocabulary))
    for id in (*allowed, *range(vocabulary, 32 * len(words))):
        words[id // 32] |= 1 << id % 32
    return bytearray(words)


def drawn(
    sampler: Sampler,
    logits: torch.Tensor,
    count: int,
    history: list[int] | None = None,
    allowed: bytearray | None = None,
) -> list[int]:
    return [sampler.sample(logits, history or [], allowed)[0] for _ in range(count)]


def frequencies(make: Make, logits: torch.Tensor, count: int, **config: Any) -> torch.Tensor:
    """The share of draws that each token gets."""
    sampler = make(SamplingConfig(**(OFF | config), seed=0), len(logits), NONE)
    return torch.bincount(torch.tensor(drawn(sampler, logits, count)), minlength=len(logits)) / count


@settings(max_examples=100)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 7, 900, 1024, 1025, 5000]),
    st.builds(
        SamplingConfig,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7, 1e30]),
        top_k=st.sampled_from([0, 1, 2, 40, 4999, 10**9]),
        top_p=st.sampled_from([1e-9, 0.4, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
        repeat_penalty=st.sampled_from([0.5, 1.0, 1.3]),
        repeat_last_n=st.sampled_from([-1, 0, 3]),
        presence_penalty=st.sampled_from([0.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, 0.4, -0.4]),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.data(),
)
def test_both_samplers_draw_the_same_tokens(
    library: Functions, seed: int, size: int, config: SamplingConfig, data: st.DataObject
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3
    ids = st.integers(0, size - 1)
    banned = frozenset(data.draw(st.sets(ids, max_size=min(4, size - 1))))
    config = replace(
        config, logit_bias=tuple((id, data.draw(st.sampled_from([-2.5, 4.0]))) for id in range(0, size, 400))
    )
    history = data.draw(st.lists(ids, max_size=9))
    allowed = None
    if share := data.draw(st.sampled_from([0, 0.01, 0.5, 1.0])):
        chosen = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share
        chosen[next(id for id in range(size) if id not in banned)] = True
        allowed = mask_of(chosen.nonzero().flatten().tolist(), size)
    of_torch, of_native = (
        drawn(make(config, size, banned), logits, 5, history, allowed) for make in (in_torch, native(library))
    )
    assert of_native == of_torch


@settings(max_examples=100)
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=50),
    st.builds(
        SamplingConfig,
        temperature=st.floats(0, sys.float_info.max),
        top_k=st.integers(0, 10**20),
        top_p=st.floats(0, 1, exclude_min=True),
        min_p=st.floats(0, 1),
        repeat_penalty=st.floats(0.01, 100),
        repeat_last_n=st.integers(-1, 10**20),
        presence_penalty=st.floats(-100, 100),
        frequency_penalty=st.floats(-100, 100),
        seed=st.integers(0, 2**64 - 1),
    ),
    st.data(),
)
def test_any_settings_draw_a_token_that_is_neither_banned_nor_masked(
    make: Make, values: list[float], config: SamplingConfig, data: st.DataObject
) -> None:
    ids = st.integers(0, len(values) - 1)
    forbidden = data.draw(st.sets(ids, max_size=len(values) - 1))
    banned, biased, masked = (data.draw(st.sets(st.sampled_from(sorted(forbidden) or [0]))) & forbidden for _ in "123")
    forbidden = banned | biased | masked
    biases = dict.fromkeys(masked, 1e6) | dict.fromkeys(biased, -math.inf)  # which must not bring masked tokens back
    config = replace(config, logit_bias=tuple(biases.items()))
    history = data.draw(st.lists(ids, max_size=9))
    allowed = mask_of(set(range(len(values))) - masked, len(values)) if masked else None
    [token] = drawn(make(config, len(values), frozenset(banned)), torch.tensor(values), 1, history, allowed)
    assert 0 <= token < len(values)
    assert token not in forbidden


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=0), SamplingConfig(**OFF)])
def test_a_mask_that_leaves_no_token_is_refused(make: Make, config: SamplingConfig) -> None:
    sampler = make(replace(config, logit_bias=((1, -math.inf), (2, 5.0))), 40, frozenset({3}))
    for allowed in ([], [1, 3]):
        with pytest.raises(UsageError, match="no token is left"):
            sampler.sample(torch.zeros(40), [], mask_of(allowed, 40))
    assert sampler.sample(torch.zeros(40), [], mask_of([1, 3, 39], 40)) == (39, None)
    assert len(set(drawn(make(SamplingConfig(**OFF, seed=1), 40, NONE), torch.zeros(40), 300))) > 20


def test_a_mask_that_is_too_short_is_refused(make: Make) -> None:
    with pytest.raises(ValueError):
        make(SamplingConfig(), 33, NONE).sample(torch.zeros(33), [], bytearray(4))


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.9999}, {"min_p": 0.01}])
def test_draws_follow_the_distribution(make: Make, filters: dict[str, Any]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    assert frequencies(make, probabilities.log(), 5000, **filters).allclose(probabilities, atol=0.03)


def test_temperature_sharpens_after_the_filters(make: Make) -> None:
    wanted = torch.tensor([0.25, 0.09, 0.04])
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert frequencies(make, logits, 3000, temperature=0.5).allclose(wanted / wanted.sum(), atol=0.03)


def test_a_huge_vocabulary_gives_the_same_tokens_as_sorting_it_all(make: Make) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 3
    ordered, ids = logits.sort(descending=True)
    nucleus = int((ordered.softmax(0).cumsum(0) < 0.6).sum()) + 1
    got = set(frequencies(make, logits, 300, top_p=0.6).nonzero().flatten().tolist())
    assert got <= set(ids[:nucleus].tolist()) and len(got) > 0.5 * nucleus


def test_a_flat_distribution_is_not_cut_to_the_first_candidates(make: Make) -> None:
    assert frequencies(make, torch.linspace(0.01, 0, 5000), 60, top_p=0.99)[1024:].any()


def test_a_top_p_of_one_draws_tokens_however_unlikely(make: Make) -> None:
    logits = torch.cat([torch.tensor([30.0]), torch.linspace(0.01, 0, 5000)])
    assert frequencies(make, logits, 60, temperature=100.0)[1024:].any()


def test_of_equally_likely_tokens_the_first_is_taken(library: Functions) -> None:
    for config in (SamplingConfig(temperature=0), SamplingConfig(**OFF | {"top_k": 1})):
        assert drawn(NativeSampler(library, config, 4, NONE), torch.tensor([0.0, 2.0, 2.0, 1.0]), 1) == [1]
        for first in (0, 5, 127, 128, 700):
            logits = torch.full((1001,), -math.inf)
            logits[first] = logits[701] = logits[1000] = -3.0
            assert drawn(NativeSampler(library, config, 1001, NONE), logits, 1) == [first]


def test_the_same_seed_draws_the_same_tokens_and_another_does_not(make: Make) -> None:
    def sequence(seed: int) -> list[int]:
        return drawn(make(SamplingConfig(**OFF, seed=seed), 1000, NONE), torch.zeros(1000), 20)

    assert sequence(7) == sequence(7) != sequence(8)


def test_a_random_seed_is_told_and_repeats_the_text(make: Make) -> None:
    first = make(SamplingConfig(**OFF), 1000, NONE)
    again = make(SamplingConfig(**OFF, seed=first.seed), 1000, NONE)
    assert drawn(first, torch.zeros(1000), 9) == drawn(again, torch.zeros(1000), 9)


def test_penalties_are_for_the_last_n_tokens(make: Make) -> None:
    sampler = make(SamplingConfig(temperature=0, repeat_penalty=2.0, repeat_last_n=2), 2, NONE)
    logits = torch.tensor([1.0, 0.9])
    assert drawn(sampler, logits, 1, [0, 1, 1]) == [0]
    assert drawn(sampler, logits, 1, [1, 0, 0]) == [1]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_at_any_index(library: Functions, wrong: float) -> None:
    values = torch.full((1003,), -3e38)
    assert library.all_finite(values.data_ptr(), len(values))
    for index in (0, 500, 1002):
        broken = values.clone()
        broken[index] = wrong
        assert not library.all_finite(broken.data_ptr(), len(broken))


@dataclass(frozen=True, kw_only=True)
class LargerConfig(SamplingConfig):
    """A config with a field that the compiled code does not know."""

    unheard_of: float = 0.5


def test_a_setting_that_compiled_code_does_not_know_is_sampled_in_torch(
    library: Functions, tiny: LanguageModel
) -> None:
    def kind(config: SamplingConfig) -> type[Sampler]:
        return type(make_sampler(library, tiny.tokenizer, config, banned=NONE))

    assert kind(LargerConfig(top_k=3, logit_bias=((1, 2.0),), seed=1)) is NativeSampler
    assert kind(LargerConfig(unheard_of=0.6)) is TorchSampler
    assert not native_can_sample(LargerConfig(unheard_of=0.6))


def test_what_is_explained_is_sampled_in_torch(library: Functions, tiny: LanguageModel) -> None:
    config = SamplingConfig()
    sampler = make_sampler(library, tiny.tokenizer, config, banned=NONE, explain=True)
    assert isinstance(sampler, TorchSampler) and sampler.records


def test_probabilities_are_recorded_without_torch_where_the_kernels_can_draw(
    library: Functions, tiny: LanguageModel
) -> None:
    config = SamplingConfig(temperature=0.0)
    banned = frozenset({3, 7})
    samplers = [make_sampler(each, tiny.tokenizer, config, banned=banned, logprobs=4) for each in (library, None)]
    assert [type(sampler) for sampler in samplers] == [RecordingSampler, TorchSampler]
    logits = torch.linspace(-3, 3, tiny.tokenizer.size + 5).flip(0).contiguous()  # the last five are padding
    (token, fast), (same, slow) = (sampler.sample(logits, []) for sampler in samplers)
    assert token == same == 0
    assert fast is not None and slow is not None
    assert [each.id for each in fast.top] == [each.id for each in slow.top] == [0, 1, 2, 4]
    pairs = zip((fast.chosen, *fast.top), (slow.chosen, *slow.top), strict=True)
    assert all(each.logprob == pytest.approx(other.logprob, abs=1e-6) for each, other in pairs)


def test_without_kernels_everything_is_sampled_in_torch(tiny: LanguageModel) -> None:
    config = SamplingConfig()
    assert isinstance(make_sampler(None, tiny.tokenizer, config, banned=NONE), TorchSampler)


def test_banned_tokens_are_not_drawn_however_hot(make: Make) -> None:
    config = SamplingConfig(**OFF | {"temperature": 1e300}, logit_bias=((2, -math.inf),), seed=1)
    assert set(drawn(make(config, 5, frozenset({0, 1})), torch.zeros(5), 200)) == {3, 4}


def test_banned_tokens_keep_their_logits(make: Make) -> None:
    logits = torch.zeros(5)
    assert set(drawn(make(SamplingConfig(**OFF, seed=1), 5, frozenset({0, 1})), logits, 200)) == {2, 3, 4}
    assert logits.equal(torch.zeros(5))
