"""Lowering refuses every config that it was not written for, so that a program never computes another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, make_dataclass, replace
from typing import Any

import pytest
import torch

from gptcli.kernels.tensors import Library
from gptcli.model import config as configs
from gptcli.model.config import (
    Alibi,
    AltUpConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DeltaNetConfig,
    DenseAndMoeConfig,
    LatentAttentionConfig,
    LayerInputsConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Mamba2Config,
    MlpConfig,
    MoeConfig,
    NormConfig,
    PositionScale,
    ProportionalScaling,
    QkNormConfig,
    RopeConfig,
    RopeScaling,
    ShortConvolutionConfig,
    YarnScaling,
)
from gptcli.model.decoder import Decoder
from gptcli.runtime.lowering.decoder import lower
from tests.parity.test_families import needed_library

NORM = NormConfig(kind="rms", eps=1e-5)
MLP = MlpConfig(width=16)
MOE = MoeConfig(expert=MLP, experts=4, top_k=2, renormalize=True, shared=MLP)
LINEAR = LinearScaling(factor=2.0)
SCALINGS: list[RopeScaling | None] = [
    None,
    LINEAR,
    Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16),
    YarnScaling(factor=4.0, original_context=16, magnitude=1.0),
    ProportionalScaling(turned=2),
    LongRopeScaling(short=(1.0,) * 4, long=(2.0,) * 4, original_context=16, magnitude=1.0),
]
STATES = (
    ShortConvolutionConfig(kernel=3),
    Mamba2Config(heads=2, head_dim=8, groups=1, state_dim=4, kernel=4),
    DeltaNetConfig(heads=2, key_heads=1, key_dim=4, value_dim=8, kernel=4, norm=NORM),
)
INPUTS = LayerInputsConfig(vocab_size=32, width=8, activation="silu")
LATENT = LatentAttentionConfig(
    heads=2,
    latent_dim=8,
    plain_dim=8,
    value_dim=8,
    rope=RopeConfig(theta=10000.0, dim=8),
    scale=0.25,
    norm=NORM,
)


@pytest.fixture(scope="module")
def library() -> Library:
    return needed_library()


def decoder_config(scaling: RopeScaling | None = LINEAR) -> DecoderConfig:
    """A config of every kind that can be lowered, one scaling at a time."""
    attention = AttentionConfig(
        heads=2,
        kv_heads=1,
        head_dim=8,
        rope=RopeConfig(theta=10000.0, dim=8, scaling=scaling),
        scale=0.5,
        qk_norm=QkNormConfig(norm=NORM, over="head"),
    )
    return DecoderConfig(
        vocab_size=32,
        hidden_size=16,
        max_context=64,
        blocks=(BlockConfig(attention=attention, mlp=MLP),) * 2,
        norm=NORM,
        tied_head=True,
    )


def with_mlp(config: DecoderConfig, mlp: MlpConfig | MoeConfig) -> DecoderConfig:
    """The same config with another MLP in its blocks."""
    return replace(config, blocks=tuple(replace(block, mlp=mlp) for block in config.blocks))


def decoder_of(config: DecoderConfig) -> Decoder:
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    return decoder


def changed(node: Any, change: Callable[[Any], Any]) -> Any:
    """A tree of configs after a change of each, leaves first."""
    if isinstance(node, tuple):
        return tuple(changed(each, change) for each in node)
    if not is_dataclass(node):
        return node
    children = {each.name: changed(getattr(node, each.name), change) for each in fields(node)}
    return change(replace(node, **children))  # type: ignore[type-var]


def with_field(config: DecoderConfig, kind: type, value: int) -> DecoderConfig:
    """The same config in which those of a kind have one more field, which is 0 by default."""
    extended = make_dataclass(kind.__name__, [("added", int, 0)], bases=(kind,), frozen=True, kw_only=True)

    def extend(node: Any) -> Any:
        if type(node) is not kind:
            return node
        return extended(**{each.name: getattr(node, each.name) for each in fields(node)}, added=value)

    made: DecoderConfig = changed(config, extend)
    assert made != config
    return made


def with_block(**changes: Any) -> DecoderConfig:
    """A config with another attention, state or MLP in its blocks."""
    config = decoder_config()
    return replace(config, blocks=tuple(replace(block, **changes) for block in config.blocks))


ATTENTION = decoder_config().blocks[0].attention
assert isinstance(ATTENTION, AttentionConfig)
KINDS = [
    *((kind, decoder_config()) for kind in (DecoderConfig, BlockConfig, AttentionConfig, MlpConfig)),
    (
        PositionScale,
        with_block(attention=replace(ATTENTION, position_scale=PositionScale(beta=0.1, original_context=8))),
    ),
    (Alibi, with_block(attention=replace(ATTENTION, alibi=Alibi()))),
    (LatentAttentionConfig, with_block(attention=LATENT)),
    (DenseAndMoeConfig, with_block(mlp=DenseAndMoeConfig(dense=MLP, moe=MOE, norm=NORM))),
    *((type(state), with_block(state=state, attention=None)) for state in STATES),
    (LayerInputsConfig, replace(decoder_config(), layer_inputs=INPUTS)),
    (AltUpConfig, replace(decoder_config(), altup=AltUpConfig(streams=2, active=0, laurel_rank=4))),
    *((kind, decoder_config()) for kind in (NormConfig, QkNormConfig, RopeConfig)),
    *((kind, with_mlp(decoder_config(), MOE)) for kind in (MoeConfig, MlpConfig)),
    *((type(scaling), decoder_config(scaling)) for scaling in SCALINGS if scaling is not None),
]


def test_every_kind_of_config_is_tested_here() -> None:
    kinds = {each for each in vars(configs).values() if isinstance(each, type) and is_dataclass(each)}
    assert kinds == {kind for kind, _ in KINDS}


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_a_field_that_lowering_does_not_know_is_refused_unless_it_has_its_default(
    kind: type, config: DecoderConfig, library: Library
) -> None:
    assert lower(decoder_of(with_field(config, kind, 0)), library) is not None
    assert lower(decoder_of(with_field(config, kind, 1)), library) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda block: replace(block, residual="between"),
        lambda block: replace(block, mlp=replace(MLP, activation="mish")),
        lambda block: replace(block, mlp=replace(MOE, router="sparsemixer", top_k=3)),
        lambda block: replace(block, mlp=replace(MOE, scales_input=True, expert=replace(MLP, bias=True))),
        lambda block: replace(block, mlp=replace(MOE, expert=replace(MLP, gate_scale=2.0))),
        lambda block: replace(block, attention=replace(block.attention, alibi=Alibi(), softcap=5.0)),
        lambda block: replace(block, attention=replace(block.attention, alibi=Alibi(), window=8)),
        lambda block: replace(block, attention=replace(block.attention, alibi=Alibi(), sinks=True)),
        lambda block: replace(
            block,
            attention=replace(block.attention, qk_norm=QkNormConfig(norm=replace(NORM, bias=True), over="head")),
        ),
    ],
    ids=[
        "residual",
        "activation",
        "sparsemixer for three",
        "a scaled input beside a bias",
        "a scaled gate of experts",
        "a bound beside alibi",
        "alibi in a window",
        "alibi beside sinks",
        "bias of an rms norm",
    ],
)
def test_what_has_no_operation_is_refused(change: Callable[[BlockConfig], BlockConfig], library: Library) -> None:
    config = decoder_config()
    assert lower(decoder_of(replace(config, blocks=tuple(map(change, config.blocks)))), library) is None


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda config: config, True),
        (lambda config: with_field(config, DecoderConfig, 0), True),
        (lambda config: with_field(config, DecoderConfig, 1), False),
        (lambda config: replace(config, logit_scale=2.0), False),
        (lambda config: replace(config, logit_softcap=30.0), False),
        (lambda config: decoder_config(SCALINGS[-1]), False),
    ],
    ids=["plain", "a default", "a new field", "a scale of logits", "a bound on logits", "a rope that changes"],
)
def test_only_what_a_program_computes_alone_can_run_without_the_decoder(
    change: Callable[[DecoderConfig], DecoderConfig], kept: bool, library: Library
) -> None:
    decoder = decoder_of(decoder_config())
    program = lower(decoder, library)
    assert program is not None
    decoder.config = change(decoder.config)  # as if lowering had learned it
    assert (program.snapshot(64, "fp32", 1) is not None) == kept
