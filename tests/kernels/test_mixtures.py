"""Mixtures of experts as a program runs them, on every instruction set, against the same decoder in torch."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gptcli.checkpoint.load import WeightPlan
from gptcli.errors import NonFiniteLogits
from gptcli.kernels.bindings import Arithmetic
from gptcli.kernels.layers import CompiledExperts
from gptcli.kernels.tensors import Library
from gptcli.model.config import AttentionConfig, BlockConfig, DecoderConfig, MlpConfig, MoeConfig, NormConfig
from gptcli.model.decoder import Decoder
from gptcli.quant.affine import quantize_affine
from gptcli.quant.dense import DenseWeight
from gptcli.quant.ggml import ggml_weight
from gptcli.quant.packed import PackedExperts
from gptcli.quant.weight import StoredWeight
from gptcli.runtime.device_plan import DevicePlan
from gptcli.runtime.engine import Extension
from gptcli.runtime.torch_engine import TorchEngine
from tests.parity.test_families import relative_error
from tests.quant.test_ggml import random_blocks

TOLERANCE = 1e-5
IDS = torch.randint(40, (90,), generator=torch.Generator().manual_seed(1)).tolist()
MOE = MoeConfig(expert=MlpConfig(width=64), experts=6, top_k=2, renormalize=True)
GPT_OSS = MoeConfig(
    expert=MlpConfig(width=64, activation="clamped_swiglu", bias=True),
    experts=6,
    top_k=3,
    renormalize=True,
    router_bias=True,
)


def decoder_of(moe: MoeConfig, hidden: int = 64, seed: int = 0) -> Decoder:
    """One layer with random weights, whose mixture matters."""
    torch.manual_seed(seed)
    attention = AttentionConfig(heads=2, kv_heads=1, head_dim=16, rope=None, scale=0.25)
    norm = NormConfig(kind="rms", eps=1e-5)
    block = BlockConfig(attention=attention, mlp=moe)
    config = DecoderConfig(
        vocab_size=40, hidden_size=hidden, max_context=128, blocks=(block,), norm=norm, tied_head=True
    )
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        nn.init.normal_(parameter, std=2.0 if "mlp.router" in name else 0.3)
    return decoder


def engine_of(decoder: Decoder, library: Library | None) -> TorchEngine:
    """In torch if there is no library; else all of it is a program."""
    plan = DevicePlan(WeightPlan(torch.device("cpu"), torch.float32, "expand", library, None), library)
    engine = TorchEngine(decoder, plan, decoder.config.max_context, load_s=0.0)
    assert library is None or engine.kernels == library.level
    return engine


def converted(decoder: Decoder, layer: Callable[[StoredWeight, nn.Parameter | None], nn.Module], form: str) -> Decoder:
    """The same decoder with its experts' weights in another form."""
    changed = copy.deepcopy(decoder)
    for name in ("up", "down"):
        experts = getattr(changed.blocks[0].mlp, name)
        setattr(changed.blocks[0].mlp, name, layer(FORMS[form](experts.weight.data), experts.bias))
    return changed


def ggml(kind: str, weight: Tensor) -> StoredWeight:
    """Random blocks for a weight's shape, whose columns are two blocks."""
    made = ggml_weight(kind, random_blocks(kind, *weight.shape[:-1]))
    assert isinstance(made, StoredWeight) and made.shape == weight.shape
    return made


FORMS: dict[str, Callable[[Tensor], StoredWeight]] = {
    "fp32": DenseWeight,
    "fp16": lambda weight: DenseWeight(weight.half()),
    "bf16": lambda weight: DenseWeight(weight.bfloat16()),
    "int8": partial(quantize_affine, bits=8),
    "int4": partial(quantize_affine, bits=4),
    **{kind: partial(ggml, kind) for kind in ("Q4_1", "Q5_0", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q5_K", "Q6_K")},
}


def every_way(engine: TorchEngine) -> Tensor:
    """Logits of a prompt, of one token, of several tokens, and of one token or more of each of several texts."""
    cache = engine.new_cache()
    prompt = engine.prefill(IDS[:-8], cache)
    assert prompt is not None
    logits = [prompt[None], engine.decode(IDS[-8], cache)[None], torch.stack(list(engine.step(IDS[-7:], cache)))]
    copies = [Extension(engine.copy_of(cache, cache.length), [token]) for token in IDS[:5]]
    logits.append(torch.stack([own for [own] in engine.extend(copies)]))
    # Of texts of several tokens, few and many, some of the last ones.
    asked = [(IDS[:3], 2), (IDS[:20], 1), (IDS[3:5], 2), (IDS[:24], 12), (IDS[:1], 1)]
    several = [Extension(engine.copy_of(cache, cache.length), tokens, wanted) for tokens, wanted in asked]
    logits += [torch.stack(list(own)) for own in engine.extend(several) if not isinstance(own, Exception)]
    return torch.cat([*logits, engine.logits(IDS)])


def random_mixture(seed: int) -> tuple[MoeConfig, int]:
    """A mixture, and the width of the model."""
    choose = random.Random(seed)
    experts = choose.choice([1, 2, 3, 5, 8, 17, 40])
    expert = MlpConfig(
        width=choose.choice([1, 8, 17, 40, 96]),
        activation=choose.choice(["silu", "gelu", "gelu_tanh", "relu", "clamped_swiglu"]),
        bias=choose.random() < 0.5,
    )
    shared = MlpConfig(width=choose.choice([3, 32]), gated=choose.random() < 0.5)
    moe = MoeConfig(
        expert=expert,
        experts=experts,
        top_k=choose.choice([1, experts, choose.randint(1, experts)]),
        renormalize=choose.random() < 0.5,
        router_bias=choose.random() < 0.5,
        shared=shared if choose.random() < 0.5 else None,
    )
    return moe, choose.choice([7, 32, 64, 100])


@pytest.mark.parametrize("seed", range(25))
def test_a_mixture_of_any_shape_has_the_logits_that_it_has_in_torch(kernels: Library, seed: int) -> None:
    decoder = decoder_of(*random_mixture(seed), seed=seed)
    assert relative_error(every_way(engine_of(decoder, kernels)), every_way(engine_of(decoder, None))) < TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_experts_may_have_any_form(kernels: Library, form: str) -> None:
    columns = 512 if form.endswith("_K") else 64
    moe = replace(GPT_OSS, expert=replace(GPT_OSS.expert, width=columns))
    decoder = decoder_of(moe, hidden=columns)
    torch.manual_seed(0)
    compiled = converted(decoder, lambda weight, bias: CompiledExperts(kernels, weight, bias, "fp32"), form)
    torch.manual_seed(0)
    wanted = every_way(engine_of(converted(decoder, PackedExperts, form), None))
    tolerance = TOLERANCE * (10 if form.endswith("_K") else 1)  # sums of random blocks lose a digit to cancellation
    assert relative_error(every_way(engine_of(compiled, kernels)), wanted) < tolerance


@pytest.mark.parametrize(("arithmetic", "least", "most"), [("int8", 1e-4, 0.03), ("bf16", 0, 0.03)])
def test_experts_multiply_in_the_arithmetic_asked_for(
    kernels: Library, arithmetic: Arithmetic, least: float, most: float
) -> None:
    decoder = decoder_of(replace(GPT_OSS, top_k=6))  # all, so that no rounding changes a choice
    compiled = converted(decoder, lambda weight, bias: CompiledExperts(kernels, weight, bias, arithmetic), "int8")
    wanted = every_way(engine_of(converted(decoder, PackedExperts, "int8"), None))
    error = relative_error(every_way(engine_of(compiled, kernels)), wanted)
    if compiled.blocks[0].mlp.up.arithmetic == "bf16":
        least = 1e-4
    assert least <= error < most


def first_among_equals(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, indices = logits.sort(dim=-1, descending=True, stable=True)
    return values[..., :count], indices[..., :count]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("renormalize", [False, True])
def test_among_experts_with_equal_logits_the_first_are_chosen(
    kernels: Library, seed: int, renormalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(replace(MOE, experts=12, top_k=7, renormalize=renormalize), seed=seed)
    decoder.blocks[0].mlp.router.weight[torch.randperm(12)[:8]] = 0
    program = every_way(engine_of(decoder, kernels))
    monkeypatch.setattr(Tensor, "topk", first_among_equals)
    assert relative_error(program, every_way(engine_of(decoder, None))) < TOLERANCE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_router_that_is_not_finite_is_noticed_whatever_is_chosen(kernels: Library, value: float) -> None:
    decoder = decoder_of(MOE)
    decoder.blocks[0].mlp.router.weight[5, 3] = value
    engine = engine_of(decoder, kernels)
    with pytest.raises(NonFiniteLogits):
        engine.prefill(IDS, engine.new_cache())


@pytest.mark.parametrize("form", ["fp32", "bf16", "int4"])
def test_logits_do_not_depend_on_the_number_of_threads(kernels: Library, form: str) -> None:
    decoder = decoder_of(replace(MOE, experts=12, top_k=5), hidden=128)
    compiled = converted(decoder, lambda weight, bias: CompiledExperts(kernels, weight, bias, "bf16"), form)
    wanted = None
    for threads in (1, 2, 3, 7):
        kernels.set_threads(threads)
        logits = every_way(engine_of(compiled, kernels))
        assert wanted is None or logits.equal(wanted)
        wanted = logits


def test_experts_that_are_stored_differently_run_side_by_side(kernels: Library) -> None:
    decoder = decoder_of(MOE)
    compiled = converted(decoder, lambda weight, bias: CompiledExperts(kernels, weight, bias, "fp32"), "fp32")
    up = compiled.blocks[0].mlp.up
    for expert, form in ((1, "bf16"), (2, "int8"), (4, "int4")):
        weight = FORMS[form](decoder.blocks[0].mlp.up.weight[expert])
        up.matrices[expert] = CompiledExperts(kernels, form_of_one(weight), None, "fp32").matrices[0]
        decoder.blocks[0].mlp.up.weight[expert] = weight.dequantize(torch.float32)
    assert relative_error(every_way(engine_of(compiled, kernels)), every_way(engine_of(decoder, None))) < TOLERANCE


def form_of_one(weight: StoredWeight) -> StoredWeight:
    """A stack of one expert."""
    return weight._changed(lambda tensor: tensor[None])
