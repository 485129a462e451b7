"""Layers as a program runs them, on every instruction set, against the same decoder in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gptcli.checkpoint.folder import ModelFolder
from gptcli.checkpoint.load import WeightPlan, load_decoder
from gptcli.kernels.bindings import CacheKind
from gptcli.kernels.layers import CompiledLinear, JoinedLinear
from gptcli.kernels.tensors import Library
from gptcli.model.config import (
    Alibi,
    AltUpConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DeltaNetConfig,
    LatentAttentionConfig,
    LayerInputsConfig,
    Mamba2Config,
    MlpConfig,
    MoeConfig,
    NormConfig,
    PositionScale,
    RopeConfig,
    ShortConvolutionConfig,
)
from gptcli.model.decoder import Decoder
from gptcli.quant.affine import quantize_affine
from gptcli.quant.dense import DenseWeight
from gptcli.runtime.device_plan import DevicePlan
from gptcli.runtime.engine import Extension
from gptcli.runtime.torch_engine import TorchEngine
from gptcli.runtime.weight_bytes import weight_bytes
from tests.kernels.test_mixtures import IDS, engine_of, every_way
from tests.parity.reference import write_reference
from tests.parity.test_families import DEEPSEEK, GROUPS, needed_library, relative_error

TOLERANCE = 1e-5
NORM = NormConfig(kind="rms", eps=1e-5)
ROPE = RopeConfig(theta=10000.0, dim=16)
MLP = MlpConfig(width=40)
ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=16, rope=ROPE, scale=0.25)
LATENT = LatentAttentionConfig(heads=5, latent_dim=24, plain_dim=12, value_dim=20, rope=ROPE, scale=0.2, norm=NORM)
BLOCK = BlockConfig(attention=ATTENTION, mlp=MLP)
MAMBA = Mamba2Config(heads=6, head_dim=10, groups=2, state_dim=20, kernel=4, norm_eps=1e-5)
DELTA = DeltaNetConfig(heads=4, key_heads=2, key_dim=20, value_dim=12, kernel=4, norm=NORM)
MOE = MoeConfig(expert=MLP, experts=8, top_k=3, renormalize=True)


def of(*blocks: BlockConfig, **changes: object) -> DecoderConfig:
    config = DecoderConfig(vocab_size=40, hidden_size=48, max_context=128, blocks=blocks, norm=NORM, tied_head=True)
    return replace(config, **changes)  # type: ignore[arg-type]


def attending(**changes: object) -> DecoderConfig:
    return of(replace(BLOCK, attention=replace(ATTENTION, **changes)), BLOCK)  # type: ignore[arg-type]


def mixing(**changes: object) -> DecoderConfig:
    return of(replace(BLOCK, mlp=replace(MOE, **changes)))  # type: ignore[arg-type]


CASES = {
    "latents": of(replace(BLOCK, attention=LATENT)),
    "latents, queries of low rank, biases": of(replace(BLOCK, attention=replace(LATENT, query_rank=10, bias=True))),
    "chunks": attending(window=24, chunked=True),
    "alibi": attending(alibi=Alibi(), rope=None, kv_heads=4),
    "alibi, rounded, heads that are no power of two": attending(alibi=Alibi(rounded=True), rope=None, heads=6),
    "alibi, other slopes": attending(alibi=Alibi(most=6.0)),
    "gated": attending(gated=True, out_scale=0.5, clip=0.8, v_norm=replace(NORM, weight=False)),
    "scaled by position": attending(position_scale=PositionScale(beta=0.4, original_context=7, first=1)),
    "keys of another layer": of(BLOCK, replace(BLOCK, attention=replace(ATTENTION, keys_of=0))),
    "a short convolution": of(replace(BLOCK, attention=None, state=ShortConvolutionConfig(kernel=3, bias=True)), BLOCK),
    "mamba": of(BlockConfig(attention=None, mlp=None, state=MAMBA)),
    "mamba beside attention": of(
        replace(
            BLOCK, state=replace(MAMBA, norm_before_gate=True, part_scales=(0.5, 2.0, 1.5, 0.7, 1.2), out_scale=2.0)
        )
    ),
    "mamba, bounded, without a norm": of(
        replace(BLOCK, attention=None, state=replace(MAMBA, step_limits=(0.3, 0.9), norm_eps=None, bias=True, kernel=2))
    ),
    "delta net": of(replace(BLOCK, attention=None, state=DELTA), BLOCK),
    "delta net, tiled": of(replace(BLOCK, attention=None, state=replace(DELTA, tiled=True))),
    "xielu": of(replace(BLOCK, mlp=replace(MLP, activation="xielu", gated=False))),
    "cut off and scaled": of(
        replace(BLOCK, mlp=replace(MLP, sparsity=0.7, gate_scale=1.5, out_scale=0.7), scaled=True)
    ),
    "inputs of layers": of(
        BLOCK, BLOCK, layer_inputs=LayerInputsConfig(vocab_size=30, width=12, activation="gelu_tanh")
    ),
    "several streams": of(BLOCK, BLOCK, altup=AltUpConfig(streams=3, active=1, laurel_rank=5)),
    "sigmoid router": mixing(router="sigmoid", scale=2.5, added_to_sum=1e-3, shared=MLP, shared_gate=False),
    "groups": mixing(router="sigmoid", correction=True, groups=4, top_groups=2, least_sum=0.5),
    "groups by their best": mixing(groups=2, group_best=1, renormalize=False, expert_scale=True),
    "sparsemixer": mixing(router="sparsemixer", top_k=2, jitter=0.3),
    "scaled inputs": mixing(router="sigmoid", scales_input=True, renormalize=False),
    "experts of a latent": mixing(latent=20, latent_bias=True, shared=MLP),
    "experts without gates": mixing(expert=replace(MLP, gated=False, activation="relu_squared")),
}


def decoder_of(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval().requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "router" in name or "step_bias" in name else 0.3)
    return decoder


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_run_a_layer_has_the_logits_that_it_has_in_torch(kernels: Library, case: str) -> None:
    decoder = decoder_of(CASES[case])
    assert relative_error(every_way(engine_of(decoder, kernels)), every_way(engine_of(decoder, None))) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_a_program_reads_as_many_bytes_of_weights_as_the_decoder_has(case: str) -> None:
    decoder = decoder_of(CASES[case])
    program = engine_of(decoder, needed_library())._program
    assert program is not None and program.program.bytes_a_token == weight_bytes(decoder)


@pytest.mark.parametrize("case", CASES)
def test_after_the_last_layer_that_mixes_tokens_only_the_wanted_ones_are_computed(case: str) -> None:
    program = engine_of(decoder_of(CASES[case]), needed_library())._program
    assert program is not None
    ops, linear = program.program.ops, needed_library().code("LINEAR")
    assert ops[-1].narrow and sum(op.narrow for op in ops if op.code == linear) > 1  # more than the head


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", TOLERANCE), ("fp16", 1e-3), ("int8", 1e-3)])
def test_long_prompts_read_the_same_latents_as_single_tokens_beside_other_texts(
    kernels: Library, kind: CacheKind, tolerance: float
) -> None:
    """From 48 tokens on, keys and values are made of what the cache has, where a sum's order may round a number."""
    decoder = decoder_of(CASES["latents"])
    plan = DevicePlan(WeightPlan(torch.device("cpu"), torch.float32, "expand", kernels, None), kernels, kind)
    engine = TorchEngine(decoder, plan, decoder.config.max_context, load_s=0.0)
    begun, alone = engine.new_cache(), []
    engine.prefill(IDS[:20], begun)
    texts = [IDS[:3], IDS[20:75], IDS[30:90], [7], IDS[:48], IDS[:47]]
    caches = [engine.copy_of(begun, 20 if index < 2 else 0) for index in range(len(texts))]
    for text, cache in zip(texts, caches, strict=True):
        single = engine.copy_of(cache, cache.length)
        alone.append([engine.decode(token, single) for token in text][-1])
    together = engine.extend([Extension(cache, text) for text, cache in zip(texts, caches, strict=True)])
    assert relative_error(torch.stack([logits for [logits] in together]), torch.stack(alone)) < tolerance


def in_pieces(linear: nn.Linear, library: Library) -> JoinedLinear:
    """The same layer with rows in several forms, some of them in fewer bits."""
    forms = (DenseWeight, lambda weight: quantize_affine(weight, 8), lambda weight: quantize_affine(weight, 4))
    pieces = linear.weight.data.split([3, 50, 1, 16, 33, 2, 7, 40, 5, linear.out_features - 157])
    weights = [forms[index % len(forms)](piece.contiguous()) for index, piece in enumerate(pieces)]
    return JoinedLinear([CompiledLinear(library, weight, None, "fp32") for weight in weights], linear.bias)


def test_rows_in_several_forms_are_multiplied_as_those_of_one_matrix(kernels: Library) -> None:
    config = of(*[replace(BLOCK, attention=replace(ATTENTION, heads=8, qkv_bias=True))] * 2, hidden_size=64)
    decoder = decoder_of(config)
    for block in decoder.blocks:
        block.attention.qkv = in_pieces(block.attention.qkv, kernels)
    engine, plain = engine_of(decoder, kernels), engine_of(decoder, None)
    assert relative_error(every_way(engine), every_way(plain)) < TOLERANCE
    assert engine._program is not None and engine._program.program.bytes_a_token == weight_bytes(decoder)


@pytest.mark.parametrize("packing", ["dense", "int8", "int4"])
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_latent_attention_multiplies_with_weights_in_any_form(
    kernels: Library, packing: str, half: torch.dtype | None, tmp_path: Path
) -> None:
    path = write_reference(tmp_path, "deepseek_v3", **DEEPSEEK | GROUPS | {"hidden_size": 64}).path

    def engine(library: Library | None) -> TorchEngine:
        plan = WeightPlan(torch.device("cpu"), torch.float32, packing, library, half)  # type: ignore[arg-type]
        decoder = load_decoder(ModelFolder.open(path), plan)
        if library is None and half is not None:
            for name, parameter in decoder.named_parameters():
                if parameter.dim() > 1 and "router" not in name and ".kv." not in name:
                    parameter.data = parameter.data.to(half).float()
        return TorchEngine(decoder, DevicePlan(plan, library), decoder.config.max_context, load_s=0.0)

    compiled = engine(kernels)
    assert compiled.kernels == kernels.level
    assert relative_error(every_way(compiled), every_way(engine(None))) < TOLERANCE
