"""Lowers embeddings for every layer, and several residual streams."""

from __future__ import annotations

from gptcli.kernels.bindings import IDENTITY, TANH
from gptcli.model.altup import LEAST_SQUARE, AltUp, Laurel, Streams
from gptcli.model.config import AltUpConfig
from gptcli.model.layer_inputs import LayerInput, LayerInputs
from gptcli.runtime.lowering.operations import Operations, activation_number, handles
from gptcli.runtime.program import Buffer


def lower_layer_inputs(ops: Operations, inputs: LayerInputs, x: Buffer) -> None:
    """The inputs of all layers, side by side, from the embedding x."""
    handles(inputs.config, "vocab_size", "width", "activation")
    width, layers = inputs.config.width, len(ops.config.blocks)
    of_tokens, projected = Buffer("token_inputs", layers * width), Buffer("layer_inputs", layers * width)
    ops.add("EMBED", matrices=[ops.matrix(inputs.embed)], out=of_tokens, size=of_tokens.width, factor=width**0.5)
    ops.linear(inputs.project, x, projected)
    ops.scale(projected, x.width**-0.5)
    ops.norms(inputs.norm, projected, projected, rows=layers, size=width)
    ops.sum(projected, of_tokens)
    ops.scale(projected, 2**-0.5)


def lower_layer_input(ops: Operations, index: int, layer_input: LayerInput, x: Buffer) -> Buffer:
    """The output of layer number `index`'s `LayerInput` for x."""
    inputs = ops.config.layer_inputs
    assert inputs is not None
    gated, added = Buffer("gated", inputs.width), Buffer("added", x.width)
    own = Buffer("layer_inputs", len(ops.config.blocks) * inputs.width, index * inputs.width)
    ops.linear(layer_input.gate, x, gated)
    ops.activate(activation_number(inputs.activation), gated, gated)
    ops.multiply(gated, own, inputs.width)
    ops.linear(layer_input.out, gated, added)
    return ops.norm(layer_input.norm, added, added)


def lower_laurel(ops: Operations, laurel: Laurel, normalized: Buffer, x: Buffer) -> None:
    """x = (x + laurel(normalized)) / sqrt(2)."""
    assert ops.config.altup is not None
    low_rank, out = Buffer("laurel_low_rank", ops.config.altup.laurel_rank), Buffer("laurel", x.width)
    ops.linear(laurel.down, normalized, low_rank)
    ops.linear(laurel.up, low_rank, out)
    ops.sum(x, ops.norm(laurel.norm, out, out))
    ops.sum(x, normalized)
    ops.scale(x, 2**-0.5)


class LoweredStreams:
    """The residual streams, each in a buffer of its own."""

    def __init__(self, ops: Operations, config: AltUpConfig, streams: Streams, x: Buffer) -> None:
        """Makes them of the embedding x."""
        handles(config, "streams", "active", "laurel_rank")
        self._ops, self._config, self._streams = ops, config, streams
        self._now, self._next = (
            [Buffer(f"{name}_{stream}", x.width) for stream in range(config.streams)]
            for name in ("stream", "predicted")
        )
        ops.copy(x, self._now[0])
        for stream, project in zip(self._now[1:], streams.into, strict=True):
            ops.linear(project, x, stream)
            self._match_rms(stream, x)

    def predict(self, altup: AltUp, x: Buffer) -> None:
        """Predicts all streams after a layer; x = the layer's input."""
        ops, count = self._ops, self._config.streams
        shares = Buffer("shares", count * count)
        ops.linear(altup.prediction, self._modalities(altup, self._now[self._config.active]), shares)
        for to, predicted in enumerate(self._next):
            for source, stream in enumerate(self._now):
                self._add(predicted, stream, shares.at(to * count + source), to == source, replace=source == 0)
        ops.copy(self._next[self._config.active], x)

    def correct(self, altup: AltUp, x: Buffer) -> None:
        """The streams = the predicted ones, corrected by the layer's output x; overwrites x."""
        ops, active = self._ops, self._config.active
        shares = Buffer("shares", self._config.streams)
        ops.linear(altup.correction, self._modalities(altup, x), shares)
        ops.sum(x, self._next[active], -1.0)
        for stream, predicted in enumerate(self._next):
            self._add(predicted, x, shares.at(stream), True)
        self._now, self._next = self._next, self._now

    def scaled_active(self, altup: AltUp, x: Buffer) -> None:
        """x = the active stream, scaled for `LayerInput`."""
        self._ops.copy(self._now[self._config.active], x)
        self._ops.add("MULTIPLY", out=x, weight=altup.scale, size=x.width, out_stride=x.width, table=IDENTITY)

    def add(self, out: Buffer) -> None:
        """Adds a `LayerInput`'s output to all streams but the first."""
        for stream in self._now[1:]:
            self._ops.sum(stream, out)

    def merge(self, x: Buffer) -> None:
        """x = their mean, each projected to the first one's space."""
        ops, other = self._ops, Buffer("other_stream", x.width)
        ops.copy(self._now[0], x)
        for stream, project in zip(self._now[1:], self._streams.out, strict=True):
            ops.linear(project, stream, other)
            self._match_rms(other, self._now[0])
            ops.sum(x, other)
        ops.scale(x, 1 / self._config.streams)

    def _modalities(self, altup: AltUp, x: Buffer) -> Buffer:
        ops, normalized = self._ops, Buffer("normalized", x.width)
        modalities = Buffer("modalities", self._config.streams)
        ops.norm(altup.norm, x, normalized)
        ops.scale(normalized, 1 / x.width)
        ops.linear(altup.router, normalized, modalities)
        ops.activate(TANH, modalities, modalities)
        return modalities

    def _add(self, out: Buffer, x: Buffer, share: Buffer, plus_one: bool, replace: bool = False) -> None:
        self._ops.add(
            "ADD_SHARE",
            input=x,
            out=out,
            steps=share,
            size=x.width,
            stride=share.width,
            factor=float(plus_one),
            table=replace,
        )

    def _match_rms(self, stream: Buffer, wanted: Buffer) -> None:
        self._ops.add("MATCH_RMS", input=wanted, out=stream, size=wanted.width, factor=LEAST_SQUARE)
