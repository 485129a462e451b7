"""Lowering refuses configs that it does not know, so that a program never computes another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, make_dataclass, replace
from typing import Any

import pytest

from gptcli.kernels.tensors import Library
from gptcli.model import config as configs
from gptcli.model.config import (
    Alibi,
    AltUpConfig,
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    DenseAndMoeConfig,
    LatentAttentionConfig,
    LayerInputsConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
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
from gptcli.runtime.lowering.decoder import lower
from tests.kernels.test_programs import ATTENTION, BLOCK, DELTA, LATENT, MAMBA, MLP, MOE, NORM, ROPE, decoder_of, of
from tests.parity.test_families import needed_library

LINEAR = LinearScaling(factor=2.0)
SCALINGS: list[RopeScaling | None] = [
    None,
    LINEAR,
    Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16),
    YarnScaling(factor=4.0, original_context=16, magnitude=1.0),
    ProportionalScaling(rotated=2),
    LongRopeScaling(short=(1.0,) * 8, long=(2.0,) * 8, original_context=16, magnitude=1.0),
]


@pytest.fixture(scope="module")
def library() -> Library:
    return needed_library()


def attending(**changes: Any) -> AttentionConfig:
    return replace(ATTENTION, qk_norm=QkNormConfig(norm=NORM, over="head"), **changes)


def with_block(**changes: Any) -> DecoderConfig:
    """A config that can be lowered, but for changes to its blocks."""
    return of(*[replace(BLOCK, **({"attention": attending()} | changes))] * 2)


def scaled(scaling: RopeScaling | None) -> DecoderConfig:
    return with_block(attention=attending(rope=replace(ROPE, scaling=scaling)))


def changed(node: Any, change: Callable[[Any], Any]) -> Any:
    """A tree of configs with each of them changed, leaves first."""
    if isinstance(node, tuple):
        return tuple(changed(each, change) for each in node)
    if not is_dataclass(node):
        return node
    children = {each.name: changed(getattr(node, each.name), change) for each in fields(node)}
    return change(replace(node, **children))  # type: ignore[type-var]


def with_field(config: DecoderConfig, kind: type, value: int) -> DecoderConfig:
    """The same config; its configs of one kind have one more field, whose default is 0."""
    extended = make_dataclass(kind.__name__, [("added", int, 0)], bases=(kind,), frozen=True, kw_only=True)

    def extend(node: Any) -> Any:
        if type(node) is not kind:
            return node
        return extended(**{each.name: getattr(node, each.name) for each in fields(node)}, added=value)

    made: DecoderConfig = changed(config, extend)
    assert made != config
    return made


PLAIN = scaled(LINEAR)
SHARED = replace(MOE, shared=MLP)
CONVOLUTION = ShortConvolutionConfig(kernel=3)
KINDS = [
    *((kind, PLAIN) for kind in (DecoderConfig, BlockConfig, AttentionConfig, MlpConfig)),
    (PositionScale, with_block(attention=attending(position_scale=PositionScale(beta=0.1, original_context=8)))),
    (Alibi, with_block(attention=attending(alibi=Alibi()))),
    (LatentAttentionConfig, with_block(attention=LATENT)),
    (DenseAndMoeConfig, with_block(mlp=DenseAndMoeConfig(dense=MLP, moe=SHARED, norm=NORM))),
    *((type(state), with_block(state=state, attention=None)) for state in (CONVOLUTION, MAMBA, DELTA)),
    (LayerInputsConfig, replace(PLAIN, layer_inputs=LayerInputsConfig(vocab_size=32, width=8, activation="silu"))),
    (AltUpConfig, replace(PLAIN, altup=AltUpConfig(streams=2, active=0, laurel_rank=4))),
    *((kind, PLAIN) for kind in (NormConfig, QkNormConfig, RopeConfig)),
    *((kind, with_block(mlp=SHARED)) for kind in (MoeConfig, MlpConfig)),
    *((type(scaling), scaled(scaling)) for scaling in SCALINGS if scaling is not None),
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


BIASED = QkNormConfig(norm=replace(NORM, bias=True), over="head")
REFUSED = {
    "residual": with_block(residual="between"),
    "activation": with_block(mlp=replace(MLP, activation="mish")),
    "sparsemixer for three": with_block(mlp=replace(SHARED, router="sparsemixer", top_k=3)),
    "a scaled input beside a bias": with_block(mlp=replace(SHARED, scales_input=True, expert=replace(MLP, bias=True))),
    "a scaled gate of experts": with_block(mlp=replace(SHARED, expert=replace(MLP, gate_scale=2.0))),
    "a bound beside alibi": with_block(attention=attending(alibi=Alibi(), softcap=5.0)),
    "alibi in a window": with_block(attention=attending(alibi=Alibi(), window=8)),
    "alibi beside sinks": with_block(attention=attending(alibi=Alibi(), sinks=True)),
    "bias of an rms norm": with_block(attention=replace(ATTENTION, qk_norm=BIASED)),
}


@pytest.mark.parametrize("config", REFUSED.values(), ids=REFUSED)
def test_what_has_no_operation_is_refused(config: DecoderConfig, library: Library) -> None:
    assert lower(decoder_of(config), library) is None


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda config: config, True),
        (lambda config: with_field(config, DecoderConfig, 0), True),
        (lambda config: with_field(config, DecoderConfig, 1), False),
        (lambda config: replace(config, logit_scale=2.0), False),
        (lambda config: replace(config, logit_softcap=30.0), False),
        (lambda config: scaled(SCALINGS[-1]), False),
    ],
    ids=["plain", "a default", "a new field", "a scale of logits", "a bound on logits", "a rope that changes"],
)
def test_only_what_a_program_computes_alone_can_run_without_the_decoder(
    change: Callable[[DecoderConfig], DecoderConfig], kept: bool, library: Library
) -> None:
    decoder = decoder_of(PLAIN)
    program = lower(decoder, library)
    assert program is not None
    decoder.config = change(decoder.config)  # as if lowering had learned it
    assert (program.snapshot(64, "fp32", 1) is not None) == kept
